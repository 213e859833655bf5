"""Values between voxels: first in the plane of each slice, then between slices at their true positions.

Blocks are [row, column, slice]; fractional indices and heights are those of voxel centres. Beyond the outermost voxel
centre the outermost value goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log, sqrt

import numpy as np
from jaxtyping import Bool, Float, Int, Int16
from scipy.interpolate import make_interp_spline
from scipy.ndimage import map_coordinates, spline_filter

TIE = 1e-6
"""Share of a step within which a position counts as exactly between two voxels, which sends it to the lower index."""
FWHM = 2 * sqrt(2 * log(2))
"""Full width at half maximum of a Gaussian of deviation 1."""
CUT = 3.0
"""Deviations beyond which a Gaussian's weight is left out."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Along one axis of a block: between which voxels each position lies."""

    lower: Int[np.ndarray, "*position"]
    upper: Int[np.ndarray, "*position"]
    weight: Float[np.ndarray, "*position"]
    """Of the upper voxel, 0 to 1."""
    nearest: Int[np.ndarray, "*position"]
    inside: Bool[np.ndarray, "*position"]
    """Whether the position lies inside a voxel."""


def neighbours(index: Float[np.ndarray, "*position"], size: int) -> Neighbours:
    """What fractional indices lie between, on an axis of `size` voxels; ties and borders go to the lower index."""
    lower = np.clip(np.floor(index).astype(int), 0, max(size - 2, 0))
    upper = np.minimum(lower + 1, size - 1)
    weight = np.clip(index - lower, 0, 1)
    inside = (index > TIE - 0.5) & (index < size - 0.5 + TIE)
    return Neighbours(lower, upper, weight, np.where(weight > 0.5 + TIE, upper, lower), inside)


def slice_index(
    z_mm: Float[np.ndarray, " slice"], heights_mm: Float[np.ndarray, " level"], single_mm: float = 1.0
) -> Float[np.ndarray, " level"]:
    """Fractional slice indices of heights; beyond the ends the outermost step goes on.

    Args:
        z_mm: of the slices, ascending; any steps.
        heights_mm: positions along z.
        single_mm: the step where there is a single slice, whose step is unknown.
    """
    if len(z_mm) == 1:
        lower, steps = np.zeros(len(heights_mm), dtype=int), np.array([single_mm])
    else:
        lower = np.clip(np.searchsorted(z_mm, heights_mm, side="right") - 1, 0, len(z_mm) - 2)
        steps = np.diff(z_mm)
    index: np.ndarray = lower + (heights_mm - z_mm[lower]) / steps[lower]
    return index


def _plane_linear(
    hu: Int16[np.ndarray, "row column slice"], row: Float[np.ndarray, "y x"], column: Float[np.ndarray, "y x"]
) -> Float[np.ndarray, "slice y x"]:
    down, across = neighbours(row, hu.shape[0]), neighbours(column, hu.shape[1])
    left, right = 1 - across.weight[..., None], across.weight[..., None]
    above = hu[down.lower, across.lower] * left + hu[down.lower, across.upper] * right
    below = hu[down.upper, across.lower] * left + hu[down.upper, across.upper] * right
    planes: np.ndarray = np.moveaxis(above * (1 - down.weight[..., None]) + below * down.weight[..., None], 2, 0)
    return planes


def _along_linear(
    planes: Float[np.ndarray, "slice y x"], z_mm: Float[np.ndarray, " slice"], heights_mm: Float[np.ndarray, " z"]
) -> Float[np.ndarray, "z y x"]:
    level = neighbours(slice_index(z_mm, heights_mm), len(z_mm))
    weight = level.weight[:, None, None]
    smooth: np.ndarray = planes[level.lower] * (1 - weight) + planes[level.upper] * weight
    return smooth


def _plane_spline(
    hu: Int16[np.ndarray, "row column slice"], row: Float[np.ndarray, "y x"], column: Float[np.ndarray, "y x"]
) -> Float[np.ndarray, "slice y x"]:
    where = [np.clip(row, 0, hu.shape[0] - 1), np.clip(column, 0, hu.shape[1] - 1)]
    planes = []
    for index in range(hu.shape[2]):
        coefficients = spline_filter(hu[:, :, index].astype(np.float64), order=3, mode="mirror")
        planes.append(map_coordinates(coefficients, where, order=3, mode="mirror", prefilter=False))
    return np.stack(planes)


def _along_spline(
    planes: Float[np.ndarray, "slice y x"], z_mm: Float[np.ndarray, " slice"], heights_mm: Float[np.ndarray, " z"]
) -> Float[np.ndarray, "z y x"]:
    if len(z_mm) == 1:
        return np.repeat(planes, len(heights_mm), axis=0)
    # The knots are the slices' own positions, so that irregular steps are exact: a cubic in z is reproduced.
    spline = make_interp_spline(z_mm, planes, k=min(3, len(z_mm) - 1), axis=0)
    values: np.ndarray = spline(np.clip(heights_mm, z_mm[0], z_mm[-1]))
    return values


@dataclass(frozen=True)
class Interpolation:
    """A way to fill the space between voxels."""

    title: str
    """What `dataset.json` calls it."""
    plane: Callable[..., Float[np.ndarray, "slice y x"]]
    """(hu [row, column, slice], fractional row and column [y, x]) -> values in the plane of every slice."""
    along: Callable[..., Float[np.ndarray, "z y x"]]
    """(planes [slice, y, x], z of the slices, heights) -> values at the heights."""
    support: int
    """Voxels beyond the two neighbours that a value still depends on noticeably."""


INTERPOLATIONS: dict[str, Interpolation] = {
    "linear": Interpolation("linear", _plane_linear, _along_linear, 0),
    # A voxel's share in a cubic spline falls by 0.27 a voxel: after ten it is below a millionth.
    "bspline": Interpolation("cubic B-spline", _plane_spline, _along_spline, 10),
}


@dataclass(frozen=True, eq=False)
class Blur:
    """Positions along one axis at which to take values, and what each counts for at the targets."""

    positions: Float[np.ndarray, " fine"]
    weights: Float[np.ndarray, "target fine"] | None
    """None: the positions are the targets."""

    def apply(self, values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
        """Values at the targets from those at the positions, which lie along `axis`."""
        if self.weights is None:
            return values
        mixed: np.ndarray = np.moveaxis(np.tensordot(self.weights, values, axes=(1, axis)), 0, axis)
        return mixed


def anti_alias(targets: Float[np.ndarray, " target"], target_mm: float, native_mm: float) -> Blur:
    """The Gaussian along one axis that makes a coarser voxel out of finer ones.

    A voxel is taken for a Gaussian whose full width at half maximum is its size; what widens the native one to the
    target's has sigma = sqrt(target_mm^2 - native_mm^2) / 2.355 (Cardoso et al., MICCAI 2015). It is applied to the
    interpolated function, so that irregular slices need no treatment of their own. No blur where the target is finer.

    Args:
        targets: positions, mm, `target_mm` apart.
        target_mm: size of the new voxels.
        native_mm: size of the scan's.
    """
    if target_mm <= native_mm * (1 + TIE):
        return Blur(targets, None)
    sigma = sqrt(target_mm**2 - native_mm**2) / FWHM
    parts = ceil(2 * target_mm / min(native_mm, 2 * sigma))
    step = target_mm / parts
    reach = ceil(CUT * sigma / step)
    fine = targets[0] + step * np.arange(-reach, (len(targets) - 1) * parts + reach + 1)
    away = (fine - targets[:, None]) / sigma
    weights = np.where(np.abs(away) <= CUT + TIE, np.exp(-(away**2) / 2), 0)
    return Blur(fine, weights / weights.sum(axis=1, keepdims=True))
