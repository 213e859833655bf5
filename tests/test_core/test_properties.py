"""Properties that must hold for any input, tried on many."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lidc_cdam.artifacts import Fold, Maps, Splits, read_maps, read_splits, write_maps
from lidc_cdam.artifacts import write_splits as store_splits
from lidc_cdam.crop_files import Crop, read_crop, write_crop
from lidc_cdam.geometry import VIEWS, Grid, origin_of_cube, take_view
from lidc_cdam.intensity import Intensity, Scaling
from lidc_cdam.vocabulary import TARGET_GROUPS, TARGETS, resolve_targets
from preprocessing.splits import divide, shared_patients

quick = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
finite = st.floats(-1e3, 1e3, width=32)
names = st.sampled_from([*TARGETS, *TARGET_GROUPS])


@quick
@given(st.lists(names, min_size=1, max_size=6))
def test_targets_come_once_and_in_the_vocabularys_order(asked: list[str]) -> None:
    keys = [target.key for target in resolve_targets(asked)]
    assert keys == [key for key in TARGETS if key in set(keys)]
    assert keys == [target.key for target in resolve_targets(list(reversed(asked)))]
    assert keys == [target.key for target in resolve_targets(keys)]


@quick
@given(st.tuples(*(st.integers(1, 5),) * 3), st.data())
def test_a_view_shows_every_voxel_of_its_slice_once(shape: tuple[int, int, int], data: st.DataObject) -> None:
    cube = np.arange(np.prod(shape)).reshape(shape)
    for view in VIEWS.values():
        index = data.draw(st.integers(0, shape[view.axis] - 1))
        image = take_view(cube, view.key, index)
        expected = np.take(cube, index, axis=view.axis)
        np.testing.assert_array_equal(np.sort(image, axis=None), np.sort(expected, axis=None))


@pytest.mark.parametrize("view", VIEWS)
def test_the_letters_of_a_view_follow_the_cubes_axes(view: str) -> None:
    """x grows to the left (L), y to the back (P), z to the head (H): read off the image of each coordinate."""
    z, y, x = np.meshgrid(*(np.arange(3),) * 3, indexing="ij")
    ends = {"x": ("R", "L"), "y": ("A", "P"), "z": ("F", "H")}
    left, right, top, bottom = VIEWS[view].letters
    for cube, name in ((x, "x"), (y, "y"), (z, "z")):
        image = take_view(cube, view, 1)
        if image[0, 0] != image[0, -1]:
            assert (left, right) == (ends[name] if image[0, 0] < image[0, -1] else ends[name][::-1])
        if image[0, 0] != image[-1, 0]:
            assert (top, bottom) == (ends[name] if image[0, 0] < image[-1, 0] else ends[name][::-1])


@quick
@given(st.tuples(finite, finite, finite), st.integers(8, 256), st.floats(0.25, 4))
def test_the_central_voxel_lies_on_the_centre(centre: tuple[float, float, float], side: int, spacing: float) -> None:
    origin = origin_of_cube(centre, Grid(side, spacing))
    np.testing.assert_allclose([o + side // 2 * spacing for o in origin], centre, atol=1e-9)


@quick
@given(arrays.arrays(np.int16, (2, 4, 4), elements=st.integers(-3000, 3000)))
def test_intensity_is_fitted_on_what_the_model_sees_and_inverts(images: np.ndarray) -> None:
    import torch

    fitted = Intensity.fit(images)
    seen = fitted.apply(torch.from_numpy(images), 4)
    clipped = np.clip(images, -1000, 400)
    np.testing.assert_allclose(fitted.invert(seen).numpy(), clipped, atol=0.1)
    assert abs(float(seen.double().mean())) < 1e-3
    if clipped.std() > 1:
        assert abs(float(seen.double().std(unbiased=False)) - 1) < 1e-3


@quick
@given(arrays.arrays(np.float64, (5, 2), elements=st.floats(1, 5)))
def test_scaling_gives_z_scores_and_inverts(values: np.ndarray) -> None:
    fitted = Scaling.fit(("margin", "texture"), values)
    scores = fitted.to_model(values)
    np.testing.assert_allclose(fitted.to_reader_scale(scores), values, atol=1e-5)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-3)
    for column, spread in zip(scores.T, values.std(axis=0), strict=True):
        assert spread < 1e-6 or abs(column.std() - 1) < 1e-3


@quick
@given(arrays.arrays(np.float32, (2, 1, 1, 3, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_maps_keep_every_bit_and_sign(tmp_path: Path, scores: np.ndarray) -> None:
    path = tmp_path / "maps.npz"
    write_maps(path, Maps(scores, ("margin", "texture"), ("axial",), (16,)))
    np.testing.assert_array_equal(read_maps(path).scores, scores)


@quick
@given(arrays.arrays(np.int16, (3, 4, 5)), st.tuples(finite, finite, finite))
def test_a_crop_keeps_voxels_axes_and_place(tmp_path: Path, hu: np.ndarray, origin: tuple[float, float, float]) -> None:
    readers = (hu % 5).astype(np.uint8)
    write_crop(tmp_path, "n", Crop(hu, readers, origin))
    found = read_crop(tmp_path, "n")
    np.testing.assert_array_equal(found.hu, hu)
    np.testing.assert_array_equal(found.readers, readers)
    np.testing.assert_allclose(found.origin_mm, origin, atol=1e-3)


@quick
@given(st.lists(st.sets(st.text("ab01_", min_size=1, max_size=5), max_size=4), min_size=1, max_size=3))
def test_splits_keep_every_role(tmp_path: Path, roles: list[set[str]]) -> None:
    folds = tuple(Fold(tuple(sorted(role)), (), tuple(sorted(role))) for role in roles)
    splits = Splits("sound", 0, "0" * 64, folds, 0.25, {"folds": len(folds)})
    store_splits(tmp_path / "splits.json", splits)
    assert dataclasses.asdict(read_splits(tmp_path / "splits.json")) == dataclasses.asdict(splits)


def random_cohort(seed: int, patients: int) -> pd.DataFrame:
    """One to six nodules a patient, labels that cling to the patient."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        bias = rng.uniform()
        labels = rng.uniform(size=rng.integers(1, 7)) < bias
        rows += [
            (f"P{patient:03d}_n{number:02d}", f"P{patient:03d}", int(label)) for number, label in enumerate(labels)
        ]
    return pd.DataFrame(rows, columns=["nodule_id", "patient_id", "label"])


@settings(quick, max_examples=12)
@given(st.integers(0, 2**31), st.integers(40, 70), st.sampled_from(["sound", "paper_main", "paper_appendix"]))
def test_folds_hold_every_promise(seed: int, patients: int, protocol: str) -> None:
    table = random_cohort(seed, patients)
    patient_of = dict(zip(table["nodule_id"], table["patient_id"], strict=True))
    label_of = dict(zip(table["nodule_id"], table["label"], strict=True))
    folds = divide(table, protocol, seed, 5)
    everything = sorted(table["nodule_id"])
    tested = [name for fold in folds for name in fold.test]
    assert len(tested) == len(set(tested))
    if protocol != "paper_main":
        assert sorted(tested) == everything
    shares = []
    for fold in folds:
        assert sorted([*fold.train, *fold.val, *fold.test]) == everything
        roles = [{patient_of[name] for name in role} for role in (fold.train, fold.val, fold.test)]
        if protocol == "sound":
            assert sum(map(len, roles)) == len(set.union(*roles))
        for role in (fold.train, fold.val, fold.test):
            malignant = sum(label_of[name] for name in role) / len(role)
            assert abs(malignant - table["label"].mean()) < (0.2 if protocol == "sound" else 0.05)
        shared = [patient_of[name] in roles[0] | roles[1] for name in fold.test]
        shares.append(sum(shared) / len(shared))
    assert shared_patients(folds, patient_of) == pytest.approx(sum(shares) / len(shares))


@settings(quick, max_examples=6)
@given(st.integers(0, 2**31), st.sampled_from(["sound", "paper_main", "paper_appendix"]))
def test_folds_depend_on_the_seed_and_not_on_the_rows_order(seed: int, protocol: str) -> None:
    table = random_cohort(seed, 40)
    folds = divide(table, protocol, seed, 4)
    assert divide(table.sample(frac=1, random_state=seed), protocol, seed, 4) == folds
    assert divide(table, protocol, seed + 1, 4) != folds
