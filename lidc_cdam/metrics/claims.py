"""What the paper says that biomarker maps show, as figures that can fail.

A nodule's surface is that of the readers' consensus. Every place has a signed distance from it, negative inside, and
belongs to the core, the shell around the surface, or the near or far outside. A map is read by its **level** in such a
region, the mean signed score there over the map's mean absolute score (0: nothing; 1: all of it positive and as strong
as the whole map's average), and by its **share**, the sum there over the sum of absolute scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

CORE_MM, SHELL_MM, NEAR_MM = -2.0, 2.0, 8.0
"""Signed distances at which the core ends, the shell ends, and the near outside ends."""
PROFILE_MM = tuple(float(edge) for edge in range(-10, 13))
"""Edges of the profile's bins, mm."""
SMOOTHING_MM = 1.5
"""Deviation of the Gaussian that takes the voxels' steps from a surface before its curvature is asked for."""
NEGLIGIBLE = 0.2
"""Level up to which a map counts as about zero."""
Volume = Float32[np.ndarray, "slice row column"]
Plane = Float[np.ndarray, "height width"]


def signed_distance(inside: Bool[np.ndarray, "slice row column"], spacing_mm: float) -> Volume:
    """Distance of each voxel's centre from the surface of a mask, mm, negative inside; the surface lies half-way."""
    away, deep = (ndimage.distance_transform_edt(kind) for kind in (~inside, inside))
    return np.asarray(np.where(inside, 0.5 - deep, away - 0.5) * spacing_mm, np.float32)


def mean_curvature(distance_mm: Volume, spacing_mm: float) -> Volume:
    """Mean curvature, 1/mm, of the level surface through each voxel: 1/r on a ball of radius r, below 0 in a groove.

    Half the divergence of the unit normals of the smoothed distance.
    """
    smooth = ndimage.gaussian_filter(distance_mm.astype(np.float64), SMOOTHING_MM / spacing_mm, mode="nearest")
    slopes = np.gradient(smooth, spacing_mm)
    length = np.maximum(np.sqrt(sum(slope**2 for slope in slopes)), 1e-6)
    parts = [np.gradient(slope / length, spacing_mm, axis=axis) for axis, slope in enumerate(slopes)]
    return np.asarray(sum(parts) / 2, np.float32)


def regions(distance_mm: Plane) -> dict[str, Bool[np.ndarray, "height width"]]:
    """Where each region lies."""
    return {
        "core": distance_mm < CORE_MM,
        "shell": np.abs(distance_mm) <= SHELL_MM,
        "near": (distance_mm > SHELL_MM) & (distance_mm <= NEAR_MM),
        "far": distance_mm > NEAR_MM,
    }


def curved_and_flat(distance_mm: Plane, curvature: Plane) -> dict[str, Bool[np.ndarray, "height width"]]:
    """The third of the shell that is most curved, and the third that is least."""
    shell = np.abs(distance_mm) <= SHELL_MM
    if not shell.any():
        return {"curved": shell, "flat": shell}
    low, high = np.quantile(curvature[shell], (1 / 3, 2 / 3))
    return {"curved": shell & (curvature >= high), "flat": shell & (curvature <= low)}


def levels(
    scores: Float[np.ndarray, "target height width"],
    places: Mapping[str, Bool[np.ndarray, "height width"]],
    read: Bool[np.ndarray, "height width"],
) -> dict[str, Float[np.ndarray, " target"]]:
    """Level (`level_<region>`) and share (`share_<region>`) of maps in regions; NaN in an empty one.

    Args:
        scores: signed maps of one view.
        places: by name.
        read: the pixels that come from the scan; others count nowhere.
    """
    strength = np.abs(scores[:, read]).mean(1) if read.any() else np.zeros(len(scores))
    whole = np.where(strength > 0, strength, np.nan)
    found = {}
    for name, place in places.items():
        here = place & read
        total = scores[:, here].sum(1) if here.any() else np.full(len(scores), np.nan)
        found[f"level_{name}"] = total / max(here.sum(), 1) / whole
        found[f"share_{name}"] = total / (whole * read.sum())
    return found


def profile(
    scores: Float[np.ndarray, "target height width"], distance_mm: Plane, read: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "target bin"]:
    """Level of maps in each bin of signed distance (`PROFILE_MM`); NaN in an empty one."""
    bins = [read & (distance_mm >= low) & (distance_mm < high) for low, high in pairwise(PROFILE_MM)]
    found = levels(scores, {str(index): place for index, place in enumerate(bins)}, read)
    return np.stack([found[f"level_{index}"] for index in range(len(bins))], axis=1)


@dataclass(frozen=True)
class Claim:
    """One statement about a biomarker's map."""

    target: str
    words: str
    figure: str
    """A column of levels, or `first - second`."""
    wanted: str
    """`positive`, `negative` or `zero`."""

    def column(self, wide: pd.DataFrame) -> Float[np.ndarray, " nodule"]:
        """The figure of each nodule; NaN where it has none, or the table does not know it."""
        first, *second = (
            wide[name].to_numpy(dtype=float) if name in wide else np.full(len(wide), np.nan)
            for name in self.figure.split(" - ")
        )
        difference: np.ndarray = first - second[0] if second else first
        return difference

    def verdict(self, low: float | None, high: float | None) -> str:
        """`holds` or `fails` where the interval says so, else `undecided`; `no answer` without an interval."""
        if low is None or high is None:
            return "no answer"
        if self.wanted == "zero":
            if max(-low, high) <= NEGLIGIBLE:
                return "holds"
            return "fails" if low > NEGLIGIBLE or high < -NEGLIGIBLE else "undecided"
        lowest, highest = (low, high) if self.wanted == "positive" else (-high, -low)
        return "holds" if lowest > 0 else "fails" if highest < 0 else "undecided"


CLAIMS: tuple[Claim, ...] = (
    Claim("margin", "positive at the nodule's edge", "level_shell", "positive"),
    Claim("margin", "negative in its body", "level_core", "negative"),
    Claim("diameter", "positive in the body", "level_core", "positive"),
    Claim("diameter", "near zero just outside", "level_near", "zero"),
    Claim("sphericity", "positive on curved boundary", "level_curved", "positive"),
    Claim("sphericity", "higher on curved than on flat boundary", "level_curved - level_flat", "positive"),
    Claim("spiculation", "positive just outside the surface, where spicules are", "level_near", "positive"),
    Claim("spiculation", "positive on the spicules themselves (phantoms)", "level_spicules", "positive"),
    Claim("spiculation", "lower in the body than in the shell", "level_core - level_shell", "negative"),
    Claim(
        "spiculation", "lower in the body than on the spicules (phantoms)", "level_core - level_spicules", "negative"
    ),
)
"""What the paper says of the maps, in the regions of this module."""
