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
def test_it_reads_as_what_simpleitk_writes(
    tmp_path: Path, kind: type, origin: tuple[float, float, float], spacing: float
) -> None:
    array = np.random.default_rng(0).normal(100, 40, (7, 6, 5)).astype(kind)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((spacing,) * 3)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(tmp_path / "theirs.nii.gz"), useCompression=True)
    write_nifti(tmp_path / "ours.nii.gz", array, origin, spacing, "a note")
    theirs, ours = (sitk.ReadImage(str(tmp_path / name)) for name in ("theirs.nii.gz", "ours.nii.gz"))
    assert ours.GetPixelID() == theirs.GetPixelID()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), array)
    for part in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, part)(), getattr(theirs, part)(), rtol=1e-7, atol=1e-7)
    assert ours.GetMetaData("descrip") == "a note"
    theirs, ours = (nibabel.load(tmp_path / name).header for name in ("theirs.nii.gz", "ours.nii.gz"))
    for code in ("qform_code", "sform_code", "xyzt_units", "datatype"):
        assert ours[code] == theirs[code]


def test_the_order_of_the_voxels_in_memory_does_not_matter(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    write_nifti(tmp_path / "a.nii.gz", array, (1.0, 2.0, 3.0), 1.0)
    write_nifti(tmp_path / "b.nii.gz", np.asfortranarray(array.astype(">i2")), (1.0, 2.0, 3.0), 1.0)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    back = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj).T, array)
    np.testing.assert_allclose(back.affine @ (1, 0, 0, 1), (-2, -2, 3, 1))
