"""Write small cubes as compressed NIfTI-1 files.

nibabel makes the bytes and gzip compresses them here: SimpleITK takes three times as long for a cube, half of an
extraction's time, cannot be told to compress less, and may say nothing when a disk is full.
"""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Shaped

from lidc_cdam.files import replacing

LEVEL = 1
"""Of gzip: CT is noise to it, so the highest saves 1 % more in thrice the time."""


def write_nifti(
    path: Path,
    array: Shaped[np.ndarray, "slice row column"],
    origin_mm: tuple[float, float, float],
    spacing_mm: float,
    note: str = "",
) -> None:
    """Write a cube with identity directions in LPS as `.nii.gz`, whole or not at all.

    Args:
        path: the file.
        array: uint8, int16 or float32.
        origin_mm: position (x, y, z) of voxel [0, 0, 0]'s centre in LPS.
        spacing_mm: distance of neighbouring voxels along each axis.
        note: what the file holds, for its header (79 bytes at most).

    Raises:
        OSError: the file cannot be written.
    """
    x, y, z = origin_mm
    # NIfTI's world is RAS: x and y change their sign.
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (-x, -y, z)
    kind = array.dtype.newbyteorder("<")
    image = nibabel.Nifti1Image(np.ascontiguousarray(array, dtype=kind).T, affine, dtype=kind)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = note.encode()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), LEVEL, mtime=0))
