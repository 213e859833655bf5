import shutil

import numpy as np
import pytest

from lidc_cdam import provenance
from lidc_cdam.artifacts import read_cohort, read_dataset, write_dataset
from lidc_cdam.crop_files import PADDING_HU, mask_path, read_crop, write_crop
from lidc_cdam.errors import LidcCdamError
from training import radiomics
from training.radiomics import FILE, STAGE, feature_names, radiomics_features, read_features

DISTANCE = np.linalg.norm(np.indices((32, 32, 32)) - 16, axis=0)
BALL = DISTANCE <= 8
LUNG = np.where(BALL, 40, -850).astype(np.int16)


def test_a_ball_has_a_balls_figures():
    found = radiomics_features(LUNG, BALL)
    assert found["volume_mm3"] == BALL.sum() == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.02)
    for name in ("ellipsoid_short_mm", "ellipsoid_long_mm", "feret_diameter_mm", "section_feret_diameter_mm"):
        assert found[name] == pytest.approx(16, abs=1.5), name
    assert found["surface_mm2"] == pytest.approx(4 * np.pi * 64, rel=0.1)
    assert found["roundness"] == pytest.approx(1, abs=0.05)
    assert found["elongation"] == pytest.approx(1, abs=0.01)
    assert found["solidity"] == found["section_solidity"] == 1
    assert found["height_mm"] == 17
    assert found["mean_hu"] == found["quantile_50_hu"] == 40
    assert found["mean_hu_from_-3_to_-1_mm"] == 40
    assert found["mean_hu_from_1_to_3_mm"] == -850
    assert found["share_solid"] == 1
    assert found["share_ground_glass"] == found["dense_share_within_5_mm"] == 0


def test_lengths_scale_with_the_voxel_and_ratios_do_not():
    single, double = radiomics_features(LUNG, BALL), radiomics_features(LUNG, BALL, spacing_mm=2.0)
    for name, power in (("volume_mm3", 3), ("section_area_mm2", 2), ("height_mm", 1), ("box_long_mm", 1)):
        assert double[name] == pytest.approx(single[name] * 2**power), name
    for name in ("roundness", "box_fill", "solidity", "reach_to_radius", "section_solidity", "mean_hu"):
        assert double[name] == pytest.approx(single[name]), name
    # A ramp of 10 HU a voxel is 5 HU a mm on voxels of 2 mm.
    ramp = np.broadcast_to(np.arange(-160, 160, 10, dtype=np.int16), (32, 32, 32)).copy()
    for spacing in (1.0, 2.0):
        edge = radiomics_features(ramp, DISTANCE <= 5, spacing)["gradient_hu_per_mm_from_0_to_2_mm"]
        assert edge == pytest.approx(10 / spacing, rel=0.02)


def test_shape_tells_a_star_from_a_ball():
    star = BALL.copy()
    star[16, 15:18, 2:30] = star[16, 2:30, 15:18] = True
    ball, spiky = (radiomics_features(LUNG, mask) for mask in (BALL, star))
    assert spiky["section_solidity"] < ball["section_solidity"]
    assert spiky["solidity"] < ball["solidity"]
    assert spiky["reach_to_radius"] > 1.3 * ball["reach_to_radius"]


def test_a_turned_nodule_keeps_its_features():
    rng = np.random.default_rng(0)
    mask = (DISTANCE <= 7) | (
        np.abs(np.indices((32, 32, 32)) - np.array([16, 20, 12])[:, None, None, None]).max(0) <= 3
    )
    hu = (LUNG + rng.normal(0, 30, LUNG.shape)).astype(np.int16)
    upright, turned = (radiomics_features(*(np.rot90(each, turns, (1, 2)) for each in (hu, mask))) for turns in (0, 1))
    for name, value in upright.items():
        assert turned[name] == pytest.approx(value, rel=0.02, abs=0.02), name


def test_unread_voxels_take_no_part():
    hu = LUNG.copy()
    hu[:, :, 27:] = PADDING_HU
    found, whole = radiomics_features(hu, BALL), radiomics_features(LUNG, BALL)
    for name in ("mean_hu_from_3_to_6_mm", "deviation_hu_from_3_to_6_mm", "dense_share_within_5_mm", "lowest_hu"):
        assert found[name] == pytest.approx(whole[name]), name
    # Nothing outside the mask was read: the surroundings are unknown, not air.
    alone = radiomics_features(np.where(BALL, LUNG, PADDING_HU).astype(np.int16), BALL)
    assert np.isnan(alone["mean_hu_from_1_to_3_mm"])
    assert alone["volume_mm3"] == whole["volume_mm3"]


@pytest.mark.parametrize("voxels", [0, 1, 2])
def test_the_smallest_masks_have_every_name_and_no_infinity(voxels):
    mask = np.zeros((32, 32, 32), bool)
    mask[16, 16, 16 : 16 + voxels] = True
    found = radiomics_features(LUNG, mask)
    assert tuple(found) == feature_names()
    assert not np.isinf(list(found.values())).any()
    assert np.isnan(list(found.values())).all() == (voxels == 0)


def test_features_are_kept_and_only_changed_crops_are_measured_again(data, tmp_path, monkeypatch):
    folder = shutil.copytree(data, tmp_path / "data")
    names = list(read_dataset(folder).nodules)
    table = read_features(folder, names[:4], tmp_path)
    assert list(table.index) == names[:4]
    assert list(table.columns) == list(feature_names())
    crop, readers = read_crop(folder, names[2]), int(read_cohort(folder).loc[names[2], "readers"])
    expected = radiomics_features(crop.hu, crop.consensus(readers))
    np.testing.assert_array_equal(table.loc[names[2]], list(expected.values()))
    measured = []
    real = radiomics._measure
    monkeypatch.setattr(radiomics, "_measure", lambda data, key, count: measured.append(key) or real(data, key, count))
    again = read_features(folder, [names[3], names[1]], tmp_path)
    assert measured == []
    np.testing.assert_array_equal(again, table.loc[[names[3], names[1]]])
    dataset = read_dataset(folder)
    record = dataset.nodules[names[0]]
    object.__setattr__(record, "source", "dicom")
    write_dataset(folder, dataset)
    read_features(folder, names[:5], tmp_path)
    assert measured == [names[0], names[4]]
    assert provenance.read_record(tmp_path, STAGE)["results"] == {"nodules": 5}


def test_features_of_an_earlier_version_are_measured_anew(data, tmp_path, monkeypatch):
    names = list(read_dataset(data).nodules)[:2]
    monkeypatch.setattr(radiomics, "ALGORITHM", 0)
    read_features(data, names, tmp_path)
    text = (tmp_path / FILE).read_text()
    monkeypatch.undo()
    read_features(data, names, tmp_path)
    assert (tmp_path / FILE).read_text() != text
    assert provenance.read_record(tmp_path, STAGE)["config"] == {"algorithm": radiomics.ALGORITHM}


def test_a_missing_mask_is_told(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    name = next(iter(read_dataset(folder).nodules))
    mask_path(folder, name).unlink()
    with pytest.raises(LidcCdamError, match=r"masks.*is missing; run `lidc-cdam extract` again"):
        read_features(folder, [name], tmp_path)
    assert not (tmp_path / FILE).exists()


def test_an_empty_consensus_is_a_row_without_values(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    name = next(iter(read_dataset(folder).nodules))
    crop = read_crop(folder, name)
    object.__setattr__(crop, "readers", np.minimum(crop.readers, 1))
    write_crop(folder, name, crop)
    assert read_features(folder, [name], tmp_path).isna().all(axis=None)
