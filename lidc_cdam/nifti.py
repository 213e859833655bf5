"""Write small cubes as compressed NIfTI-1 files.

nibabel makes the header and gzip compresses the bytes here: SimpleITK takes three times as long for a cube, half of an
extraction's time, cannot be told to compress less, and may say nothing when a disk is full.
"""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Shaped

from lidc_cdam.files import replacing

DATA_OFFSET = 352
"""Bytes before the voxels: the header's 348, and four that say that no extension follows."""
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
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(array.shape[::-1])
    header.set_data_offset(DATA_OFFSET)
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = note.encode()
    start = header.binaryblock.ljust(DATA_OFFSET, b"\0")
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(start + array.astype(kind).tobytes(), LEVEL, mtime=0))
