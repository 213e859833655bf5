"""Volumes of scores and maps of random weights on disk, and what ties maps to the crop that they explain."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from lidc_cdam.artifacts import MAP_ARRAYS, Maps, fold_folder, maps_of, read_arrays
from lidc_cdam.crop_files import crop_path
from lidc_cdam.files import replacing
from lidc_cdam.nifti import write_nifti

EVALUATION, RANDOM_WEIGHTS = "evaluation", "randomised"
"""A fold's folder of what was measured, and the family of metrics that also keeps maps there."""


@dataclass(frozen=True)
class Volume:
    """One nodule's signed, raw scores for one target on its crop's grid (identity directions in LPS)."""

    scores: Float32[np.ndarray, "view slice row column"]
    """One volume per view, each of that view's slices."""
    views: tuple[str, ...]
    origin_mm: tuple[float, float, float]
    """Position (x, y, z) of voxel [0, 0, 0]'s centre in LPS, mm; the crop's own."""
    spacing_mm: float
    crop_sha256: str
    """Digest of the crop that was explained (`crop_digest`)."""

    @property
    def mean(self) -> Float32[np.ndarray, "slice row column"]:
        """The mean over the views, which each count the same."""
        mean: np.ndarray = self.scores.mean(0, dtype=np.float64).astype(np.float32)
        return mean


def volume_folder(run: Path, fold: int, method: str, nodule_id: str) -> Path:
    """`RUN/fold_k/volumes/<method>/<nodule_id>`."""
    return fold_folder(run, fold) / "volumes" / method / nodule_id


def volume_path(folder: Path, target: str) -> Path:
    """`<target>.nii.gz` of a nodule's `volume_folder`: the mean over the views, to open over the crop."""
    return folder / f"{target}.nii.gz"


def volume_views_path(folder: Path, target: str) -> Path:
    """`<target>.npz` of a nodule's `volume_folder`: one volume per view."""
    return folder / f"{target}.npz"


def volume_targets(folder: Path) -> list[str]:
    """The targets that have a volume in a nodule's `volume_folder`."""
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("[!.]*.nii.gz"))


def random_maps_path(run: Path, fold: int, method: str, nodule_id: str) -> Path:
    """`RUN/fold_k/evaluation/randomised/<method>/<nodule_id>.npz`, which also holds what was measured of the maps."""
    return fold_folder(run, fold) / EVALUATION / RANDOM_WEIGHTS / method / f"{nodule_id}.npz"


def read_random_maps(path: Path) -> Maps:
    """A nodule's maps by its fold's model with every weight random.

    Raises:
        LidcCdamError: the file is missing or damaged.
    """
    return maps_of(read_arrays(path, MAP_ARRAYS, "evaluate"))


def write_volume(folder: Path, target: str, volume: Volume, note: str = "") -> None:
    """Write a target's two files.

    Args:
        folder: the nodule's `volume_folder`.
        target: its key.
        volume: scores on the crop's grid.
        note: what they are, for the NIfTI header (79 bytes at most).

    Raises:
        ValueError: `scores` has another number of views than `views` names.
        OSError: a file cannot be written.
    """
    if len(volume.scores) != len(volume.views):
        raise ValueError(f"scores must hold {len(volume.views)} views ({volume.views}), got {volume.scores.shape}")
    with replacing(volume_views_path(folder, target)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            scores=volume.scores,
            views=np.array(volume.views),
            origin_mm=np.array(volume.origin_mm),
            spacing_mm=np.array(volume.spacing_mm),
            crop_sha256=np.array(volume.crop_sha256),
        )
    write_nifti(volume_path(folder, target), volume.mean, volume.origin_mm, volume.spacing_mm, note)


def read_volume(folder: Path, target: str) -> Volume:
    """Read a target's volumes, one per view.

    Raises:
        LidcCdamError: the file is missing or damaged.
    """
    names = ("scores", "views", "origin_mm", "spacing_mm", "crop_sha256")
    stored = read_arrays(volume_views_path(folder, target), names, "explain --volume")
    x, y, z = (float(coordinate) for coordinate in stored["origin_mm"])
    views = tuple(str(name) for name in stored["views"])
    return Volume(stored["scores"], views, (x, y, z), float(stored["spacing_mm"]), str(stored["crop_sha256"]))


def crop_digest(data: Path, nodule_id: str) -> str | None:
    """SHA-256 of a crop's voxels and geometry, whatever its compression; None where the file cannot be read."""
    try:
        return hashlib.sha256(gzip.decompress(crop_path(data, nodule_id).read_bytes())).hexdigest()
    except (OSError, EOFError, zlib.error):
        return None


def explained_crop(path: Path) -> str | None:
    """The `crop_digest` that a file of maps or volumes was made from; None if it does not say (older versions).

    Raises:
        LidcCdamError: the file is missing or damaged.
    """
    stored = read_arrays(path, (), "explain", ("crop_sha256",))
    return str(stored["crop_sha256"]) or None if stored else None
