import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from lidc_cdam.nifti import write_nifti


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(
    ("origin", "spacing"), [((-12.34567890123, 45.6, -78.9), 0.7), ((0.0, 0.0, 0.0), 1.0), ((1e3, -1e3, 0.5), 1 / 3)]
)
def test_the_bytes_are_those_of_simpleitk(
    tmp_path: Path, kind: type, origin: tuple[float, float, float], spacing: float
) -> None:
    array = np.random.default_rng(0).normal(100, 40, (7, 6, 5)).astype(kind)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((spacing,) * 3)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(tmp_path / "theirs.nii.gz"), useCompression=True)
    write_nifti(tmp_path / "ours.nii.gz", array, origin, spacing)
    ours, theirs = (gzip.decompress((tmp_path / name).read_bytes()) for name in ("ours.nii.gz", "theirs.nii.gz"))
    # Zeros may be negative in one of them.
    assert _without_signs_of_zero(ours) == _without_signs_of_zero(theirs)


def _without_signs_of_zero(raw: bytes) -> bytes:
    placed = np.frombuffer(raw[256:328], "<f4") + np.float32(0)
    return raw[:256] + placed.tobytes() + raw[328:]


def test_the_order_of_the_voxels_in_memory_does_not_matter(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    write_nifti(tmp_path / "a.nii.gz", array, (1.0, 2.0, 3.0), 1.0)
    write_nifti(tmp_path / "b.nii.gz", np.asfortranarray(array.astype(">i2")), (1.0, 2.0, 3.0), 1.0)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    back = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj).T, array)
    np.testing.assert_allclose(back.affine @ (1, 0, 0, 1), (-2, -2, 3, 1))
