import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Maps
from lidc_cdam.crop_files import Crop, crop_path, write_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.map_files import (
    Volume,
    crop_digest,
    explained_crop,
    read_volume,
    volume_folder,
    volume_path,
    volume_targets,
    volume_views_path,
    write_volume,
)

ORIGIN_MM = (-3.5, 20.25, 100.0)


@pytest.fixture
def volume() -> Volume:
    scores = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    return Volume(scores, ("axial", "sagittal"), ORIGIN_MM, 0.7, "abc")


def test_a_volume_comes_back_and_its_mean_lies_where_the_crop_does(tmp_path, volume):
    folder = volume_folder(tmp_path, 1, "cdam", "a")
    assert folder == tmp_path / "fold_1/volumes/cdam/a"
    write_volume(folder, "margin", volume, "what it is")
    back = read_volume(folder, "margin")
    np.testing.assert_array_equal(back.scores, volume.scores)
    assert (back.views, back.origin_mm, back.spacing_mm) == (volume.views, volume.origin_mm, volume.spacing_mm)
    image = sitk.ReadImage(str(volume_path(folder, "margin")))
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), volume.scores.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN_MM)
    np.testing.assert_allclose(image.GetSpacing(), 0.7, rtol=1e-6)
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert image.GetMetaData("ITK_FileNotes") == "what it is"
    assert volume_targets(folder) == ["margin"]
    assert explained_crop(volume_views_path(folder, "margin")) == "abc"


def test_views_that_do_not_fit_the_scores_are_refused(tmp_path, volume):
    with pytest.raises(ValueError, match="must hold 1 views"):
        write_volume(tmp_path, "margin", Volume(volume.scores, ("axial",), ORIGIN_MM, 1.0, ""))
    assert not list(tmp_path.iterdir())


def test_a_volume_that_is_missing_or_damaged_is_told(tmp_path, volume):
    with pytest.raises(LidcCdamError, match=r"margin.npz is missing; run `lidc-cdam explain --volume` first"):
        read_volume(tmp_path, "margin")
    write_volume(tmp_path, "margin", volume)
    path = volume_views_path(tmp_path, "margin")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LidcCdamError, match="must be an NPZ file"):
        read_volume(tmp_path, "margin")


def test_a_crops_digest_is_that_of_its_voxels_and_place(tmp_path):
    hu = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    readers = np.zeros_like(hu, np.uint8)
    write_crop(tmp_path, "a", Crop(hu, readers, ORIGIN_MM))
    first = crop_digest(tmp_path, "a")
    path = crop_path(tmp_path, "a")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 9))
    assert crop_digest(tmp_path, "a") == first
    for other in (Crop(hu + 1, readers, ORIGIN_MM), Crop(hu, readers, (0.0, 0.0, 0.0))):
        write_crop(tmp_path, "a", other)
        assert crop_digest(tmp_path, "a") not in (None, first)
    path.write_bytes(path.read_bytes()[:50])
    assert crop_digest(tmp_path, "a") is None
    assert crop_digest(tmp_path, "b") is None


def test_maps_name_their_crop(tmp_path):
    scores = np.zeros((1, 1, 1, 2, 2), np.float32)
    path = artifacts.maps_path(tmp_path, 0, "cdam", "a")
    for digest in ("", "abc"):
        artifacts.write_maps(path, Maps(scores, ("margin",), ("axial",), (16,), digest))
        assert artifacts.read_maps(path).crop_sha256 == digest
        assert explained_crop(path) == (digest or None)
