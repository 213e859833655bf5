"""Write small cubes as compressed NIfTI-1 files.

nibabel makes the bytes and gzip compresses them here: SimpleITK takes three times as long for a cube, half of an
extraction's time, cannot be told to compress less, and may say nothing when a disk is full.
"""

import gzip
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Shaped

from lidc_cdam.files import replacing

LEVEL = 1
"""Of gzip: CT is noise to it, so the highest saves 1 % more in thrice the time."""


NO_EXTENSION = bytes(4)
"""What follows the header where there are no extensions."""


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
    kind = array.dtype.newbyteorder("<")
    header = _header(array.shape, kind.str, spacing_mm).copy()
    x, y, z = origin_mm
    # NIfTI's world is RAS: x and y change their sign.
    for axis, offset in (("x", -x), ("y", -y), ("z", z)):
        header[f"qoffset_{axis}"] = offset
        header[f"srow_{axis}"][3] = offset
    header["descrip"] = note.encode()
    whole = header.binaryblock + NO_EXTENSION + np.ascontiguousarray(array, dtype=kind).tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(whole, LEVEL, mtime=0))


@lru_cache(maxsize=16)
def _header(shape: tuple[int, ...], kind: str, spacing_mm: float) -> nibabel.Nifti1Header:
    """A header of a cube at the origin; nibabel takes longer to make one than gzip to compress the cube."""
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(kind)
    header.set_data_shape(shape[::-1])
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = len(header.binaryblock) + len(NO_EXTENSION)
    return header
