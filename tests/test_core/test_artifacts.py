import dataclasses

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Dataset, Fold, Maps, NoduleRecord, Splits
from lidc_cdam.crop_files import Crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import Grid


@pytest.fixture
def crop() -> Crop:
    generator = np.random.default_rng(0)
    hu = generator.integers(-1000, 400, (32, 32, 32), dtype=np.int16)
    return Crop(hu, generator.integers(0, 5, hu.shape, dtype=np.uint8), (-110.25, 33.5, -800.0))


def test_a_crop_comes_back_with_its_geometry(tmp_path, crop):
    crop_files.write_crop(tmp_path, "LIDC-IDRI-0001_n01", crop)
    back = crop_files.read_crop(tmp_path, "LIDC-IDRI-0001_n01")
    np.testing.assert_array_equal(back.hu, crop.hu)
    np.testing.assert_array_equal(back.readers, crop.readers)
    assert back.origin_mm == pytest.approx(crop.origin_mm, abs=1e-4)
    assert back.spacing_mm == pytest.approx(1)
    stored = sitk.ReadImage(str(crop_files.crop_path(tmp_path, "LIDC-IDRI-0001_n01")))
    assert stored.GetPixelIDTypeAsString() == "16-bit signed integer"
    assert stored.GetDirection() == pytest.approx(np.eye(3).ravel())
    assert stored.TransformIndexToPhysicalPoint((1, 2, 3)) == pytest.approx((-109.25, 35.5, -797.0), abs=1e-4)


def test_a_mask_of_another_place_is_refused(tmp_path, crop):
    crop_files.write_crop(tmp_path, "a", crop)
    crop_files.write_crop(tmp_path, "b", Crop(crop.hu, crop.readers, (0.0, 0.0, 0.0)))
    crop_files.mask_path(tmp_path, "b").replace(crop_files.mask_path(tmp_path, "a"))
    with pytest.raises(LidcCdamError, match="share one geometry"):
        crop_files.read_crop(tmp_path, "a")


def test_a_mask_that_lies_another_way_is_refused(tmp_path, crop):
    crop_files.write_crop(tmp_path, "a", crop)
    mask = sitk.ReadImage(str(crop_files.mask_path(tmp_path, "a")))
    mask.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(mask, str(crop_files.mask_path(tmp_path, "a")))
    with pytest.raises(LidcCdamError, match="share one geometry"):
        crop_files.read_crop(tmp_path, "a")


def test_a_damaged_crop_is_told(tmp_path, crop):
    crop_files.write_crop(tmp_path, "a", crop)
    crop_files.crop_path(tmp_path, "a").write_bytes(b"no NIfTI")
    with pytest.raises(LidcCdamError, match="damaged"):
        crop_files.read_crop(tmp_path, "a")


def test_maps_come_back(tmp_path):
    scores = np.random.default_rng(0).normal(size=(2, 3, 1, 16, 12)).astype(np.float32)
    maps = Maps(scores, ("margin", "diameter"), ("axial", "coronal", "sagittal"), (16,))
    path = artifacts.maps_path(tmp_path, 0, "cdam", "a")
    artifacts.write_maps(path, maps)
    back = artifacts.read_maps(path)
    np.testing.assert_array_equal(back.scores, scores)
    assert (back.targets, back.views, back.slices) == (maps.targets, maps.views, maps.slices)
    with pytest.raises(ValueError, match="must begin with"):
        artifacts.write_maps(path, Maps(scores, ("margin",), maps.views, maps.slices))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(LidcCdamError, match="must be an NPZ file"):
        artifacts.read_maps(path)


def test_dataset_and_splits_come_back(tmp_path):
    record = NoduleRecord("a", "pack", "scan", 0.25, 0.7, 2.5, ("irregular z",))
    dataset = Dataset({"preset": "all"}, {"a": record})
    artifacts.write_dataset(tmp_path, dataset)
    assert artifacts.read_dataset(tmp_path) == dataset
    splits = Splits("sound", 1, "ab", (Fold(("a",), ("b",), ("c",)),), 0.0, {"folds": 1})
    artifacts.write_splits(tmp_path / "splits.json", splits)
    assert artifacts.read_splits(tmp_path / "splits.json") == splits


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "splits.json").write_text('{"schema": 99}')
    with pytest.raises(LidcCdamError, match="must have schema 1, but it has 99"):
        artifacts.read_splits(tmp_path / "splits.json")


@pytest.mark.parametrize(
    ("name", "read", "text"),
    [
        ("dataset.json", artifacts.read_dataset, '{"schema": 1}'),
        ("dataset.json", artifacts.read_dataset, '{"schema": 1, "parameters": {}, "nodules": {"a": {"flags": []}}}'),
        ("splits.json", lambda folder: artifacts.read_splits(folder / "splits.json"), '{"schema": 1, "folds": [{}]}'),
        ("splits.json", lambda folder: artifacts.read_splits(folder / "splits.json"), '{"schema": 1, "folds": []}'),
    ],
)
def test_json_that_lacks_a_key_is_one_sentence(tmp_path, name, read, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(LidcCdamError, match=rf"{name} must be as `lidc-cdam \w+` wrote it, .* run that step again\."):
        read(tmp_path)


def test_tables_name_what_is_missing(tmp_path):
    with pytest.raises(LidcCdamError, match=r"run `lidc-cdam cohort` first"):
        artifacts.read_cohort(tmp_path)
    pd.DataFrame({"nodule_id": ["a"]}).to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(LidcCdamError, match="patient_id"):
        artifacts.read_cohort(tmp_path)
    (tmp_path / "cohort.csv").write_bytes(b"")
    with pytest.raises(LidcCdamError, match="must be a CSV table"):
        artifacts.read_cohort(tmp_path)


def test_prediction_columns_stand_in_order(tmp_path):
    table = pd.DataFrame(
        {"margin_true": [1.0], "margin_predicted": [2.0], "fold": [0], "patient_id": ["p"], "nodule_id": ["n"]}
    )
    artifacts.write_predictions(tmp_path / "predictions.csv", table)
    back = artifacts.read_predictions(tmp_path / "predictions.csv")
    assert list(back.columns) == ["nodule_id", "patient_id", "fold", "margin_true", "margin_predicted"]
    assert artifacts.predicted_keys(back) == ("margin",)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("", "must hold a row per nodule, but it holds none; run `lidc-cdam crossval` again"),
        ("n,p,0,1,2\nn,p,0,1,2\n", "must name each nodule once, but it names n twice"),
        ("n,p,x,1,2\n", "must hold whole numbers in the column fold"),
        ("n,p,,1,2\n", "must hold whole numbers in the column fold"),
        ("n,p,0,1,b\n", "must hold numbers in the column margin_predicted"),
    ],
)
def test_damaged_predictions_are_told(tmp_path, rows, sentence):
    path = tmp_path / "predictions.csv"
    path.write_text(f"nodule_id,patient_id,fold,margin_true,margin_predicted\n{rows}")
    with pytest.raises(LidcCdamError, match=sentence):
        artifacts.read_predictions(path)


def test_a_folder_or_a_way_through_a_file_is_no_table(tmp_path):
    (tmp_path / "predictions.csv").mkdir()
    with pytest.raises(LidcCdamError, match="must be a CSV table, but it is a folder; remove it"):
        artifacts.read_predictions(tmp_path / "predictions.csv")
    (tmp_path / "file").touch()
    with pytest.raises(LidcCdamError, match=r"file/predictions\.csv is missing; run `lidc-cdam crossval` first"):
        artifacts.read_predictions(tmp_path / "file" / "predictions.csv")


def test_what_is_no_npz_file_is_told_without_advice_to_trust_it(tmp_path):
    path = tmp_path / "maps.npz"
    path.write_bytes(b"\x80\x04no archive")
    with pytest.raises(LidcCdamError, match=r"must be an NPZ file with scores, but it is none; delete it"):
        artifacts.read_arrays(path, ("scores",), "explain")


def test_a_folder_without_a_grid_is_of_the_usual_one():
    old, new = Dataset({"preset": "all"}, {}), Dataset({"side": 48, "spacing_mm": 0.7, "consensus_level": 0.75}, {})
    assert (old.grid, old.consensus_level) == (Grid(32, 1.0), 0.5)
    assert (new.grid, new.consensus_level) == (Grid(48, 0.7), 0.75)


def test_the_consensus_is_what_enough_readers_marked(crop):
    counts = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)
    made = dataclasses.replace(crop, readers=counts, hu=counts.astype(np.int16))
    marked = {(n, level): int(made.consensus(n, level).sum()) for n, level in ((4, 0.5), (3, 0.5), (4, 0.75), (4, 1.0))}
    assert marked == {(4, 0.5): 3, (3, 0.5): 3, (4, 0.75): 2, (4, 1.0): 1}
    assert made.consensus(4, 0.01).ravel().tolist() == [False, True, True, True, True]


def test_distances_lie_where_their_crop_does(tmp_path, crop):
    distance = np.linspace(-3, 9, crop.hu.size, dtype=np.float32).reshape(crop.hu.shape)
    crop_files.write_crop(tmp_path, "a", dataclasses.replace(crop, distance_mm=distance))
    np.testing.assert_array_equal(crop_files.read_distance(tmp_path, "a"), distance)
    assert crop_files.read_crop(tmp_path, "a").distance_mm is None
    images = [sitk.ReadImage(str(path(tmp_path, "a"))) for path in (crop_files.crop_path, crop_files.distance_path)]
    assert images[0].GetOrigin() == images[1].GetOrigin()
    assert images[1].GetPixelID() == sitk.sitkFloat32
    images[1].SetOrigin((5.0, 0.0, 0.0))
    sitk.WriteImage(images[1], str(crop_files.distance_path(tmp_path, "a")))
    with pytest.raises(LidcCdamError, match="share one geometry"):
        crop_files.read_distance(tmp_path, "a")


def test_latents_come_back_and_damaged_ones_are_told(tmp_path):
    path = tmp_path / "latents.npz"
    made = artifacts.Latents(("a", "b"), ("train", "test"), np.array([[1, 2], [3, 4]], np.float32))
    artifacts.write_latents(path, made)
    back = artifacts.read_latents(path)
    assert (back.nodule_ids, back.roles) == (made.nodule_ids, made.roles)
    np.testing.assert_array_equal(back.vectors, made.vectors)
    with pytest.raises(ValueError, match="as many roles and vectors"):
        artifacts.write_latents(path, dataclasses.replace(made, roles=("train",)))
    np.savez(path, nodule_ids=["a"], roles=["train"], vectors=np.full((1, 2), np.nan))
    with pytest.raises(LidcCdamError, match="must hold one finite vector and one role per nodule"):
        artifacts.read_latents(path)
