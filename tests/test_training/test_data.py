from dataclasses import replace

import numpy as np
import pytest
import torch

from lidc_cdam.artifacts import Fold, read_cohort, read_splits
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import VIEWS, take_view
from lidc_cdam.vocabulary import resolve_targets
from training.data import FoldData, evaluation_images, fit_statistics, read_cubes, read_truth
from training.radiomics import feature_names
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(targets="joint", batch_size=4)


@pytest.fixture(scope="module")
def parts(data):
    cohort = read_cohort(data)
    return read_cubes(data, list(cohort.index)), cohort, read_splits(data / "splits.json").folds[0]


def test_statistics_come_from_the_training_part_alone(parts):
    cubes, cohort, fold = parts
    honest = FoldData(cubes, cohort, fold, SETTINGS).statistics
    others = {*fold.val, *fold.test}
    sources = {key: np.full_like(cube, 3000) if key in others else cube for key, cube in cubes.sources.items()}
    spoiled_cubes = replace(cubes, sources=sources)
    spoiled_cohort = cohort.copy()
    spoiled_cohort.loc[list(others), ["margin", "diameter"]] = 1000.0
    assert FoldData(spoiled_cubes, spoiled_cohort, fold, SETTINGS).statistics == honest
    spoiled_cohort.loc[fold.train[0], "margin"] = 1000.0
    assert FoldData(cubes, spoiled_cohort, fold, SETTINGS).statistics != honest


def test_statistics_describe_the_central_slices_of_the_chosen_views(parts):
    cubes, cohort, fold = parts
    targets = resolve_targets("diameter")
    truth = read_truth(cohort, fold.train, targets)
    found = fit_statistics(cubes, fold.train, truth, targets, ["axial"])
    grey = np.clip(np.stack([cubes.sources[key][0, 14:19] for key in fold.train]), -1000, 400)
    assert found.intensity.mean == pytest.approx(((grey + 1000.0) / 1400).mean())
    assert found.scaling.mean == pytest.approx((truth.mean(),))


def test_test_nodules_are_in_neither_part(parts):
    cubes, cohort, fold = parts
    without_test = replace(cubes, sources={key: one for key, one in cubes.sources.items() if key not in fold.test})
    loaded = FoldData(without_test, cohort.drop(index=list(fold.test)), fold, SETTINGS)
    assert len(loaded.val_dataloader().dataset) == len(fold.val)
    assert sum(len(wanted) for _, _, wanted in loaded.train_dataloader()) <= len(fold.train)


def test_labels_are_the_cohorts_on_the_models_scale(parts):
    cubes, cohort, fold = parts
    loaded = FoldData(cubes, cohort, fold, SETTINGS)
    wanted = loaded.train.wanted
    assert np.array_equal(wanted[:, 0], cohort.loc[list(fold.train), "label"])
    assert np.allclose(wanted[:, 1:].mean(0), 0, atol=1e-5)
    assert np.allclose(wanted[:, 1:].std(0), 1, atol=1e-5)


def test_batches_hold_each_nodule_at_most_once_and_none_is_nearly_empty(parts):
    cubes, cohort, fold = parts
    for size, lengths in ((4, [4, 4]), (5, [5]), (8, [8]), (6, [6, 3]), (100, [9]), (1, [1] * 9)):
        loaded = FoldData(cubes, cohort, fold, TrainingSettings(batch_size=size))
        found = [len(wanted) for _, _, wanted in loaded.train_dataloader()]
        assert found == ([5, 4] if size == 5 else lengths)
        assert loaded.batches_per_epoch == len(found)


def test_evaluation_shows_the_central_slice_of_each_view(parts):
    cubes, _, fold = parts
    images = evaluation_images(cubes, fold.val, list(VIEWS))
    assert images.shape == (len(fold.val), 3, 1, 32, 32)
    for position, view in enumerate(VIEWS):
        assert np.array_equal(images[1, position, 0], take_view(cubes.sources[fold.val[1]][0], view, 16))
    batch, _, _ = next(iter(FoldData(cubes, parts[1], fold, SETTINGS).val_dataloader()))
    assert torch.equal(batch[1], torch.from_numpy(images[1]))


def test_a_nodule_without_a_value_is_refused(parts):
    _, cohort, fold = parts
    spoiled = cohort.copy()
    spoiled.loc[fold.train[0], "label"] = np.nan
    with pytest.raises(LidcCdamError, match=f"value for malignancy, but {fold.train[0]} has none"):
        read_truth(spoiled, fold.train, resolve_targets("malignancy"))
    with pytest.raises(LidcCdamError, match="NOBODY is not in it; run `lidc-cdam split` again"):
        read_truth(cohort, Fold(("NOBODY",), (), ()).train, resolve_targets("malignancy"))


def test_a_missing_crop_is_told(data):
    with pytest.raises(LidcCdamError, match=r"SYN-999_n01.nii.gz is missing; run `lidc-cdam extract` again"):
        read_cubes(data, ["SYN-999_n01"])


def test_a_model_can_be_shown_neighbours_the_consensus_and_radiomics(data, parts, tmp_path):
    _, cohort, fold = parts
    settings = TrainingSettings(targets="joint", stack="adjacent", stack_step=2, mask_channel=True, radiomics=True)
    cubes = read_cubes(data, list(cohort.index), settings.shown, tmp_path)
    key = fold.val[0]
    images = evaluation_images(cubes, [key], ["coronal"])
    crop = read_crop(data, key)
    for plane, index in enumerate((14, 16, 18)):
        assert np.array_equal(images[0, 0, plane], take_view(crop.hu, "coronal", index))
    assert np.array_equal(images[0, 0, 3], take_view(crop.consensus(4), "coronal", 16))
    loaded = FoldData(cubes, cohort, fold, settings)
    features = loaded.train.features
    assert features.shape == (len(fold.train), len(feature_names()))
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 4
    spoiled = cubes.features.copy()
    spoiled.loc[[*fold.val, *fold.test]] = 1e6
    assert FoldData(replace(cubes, features=spoiled), cohort, fold, settings).statistics == loaded.statistics
    images, numbers, _ = next(iter(loaded.train_dataloader()))
    assert images.shape[1:] == (4, 32, 32)
    assert numbers.shape[1] == len(feature_names())


def test_permuted_labels_are_the_same_values_of_other_nodules_and_images_stay(parts):
    cubes, cohort, fold = parts
    plain, dealt = (
        FoldData(cubes, cohort, fold, replace(SETTINGS, permute_labels=permuted)) for permuted in (False, True)
    )
    for ours, theirs in ((plain.train, dealt.train), (plain.val, dealt.val)):
        assert ours.nodule_ids == theirs.nodule_ids
        assert not np.array_equal(ours.wanted, theirs.wanted)
        # A nodule's values stay together.
        rows = [part.wanted[np.lexsort(part.wanted.T)] for part in (ours, theirs)]
        np.testing.assert_allclose(*rows, atol=1e-5)
    assert dealt.statistics.intensity == plain.statistics.intensity


def test_runs_from_before_a_control_could_be_trained_go_on():
    assert "permute_labels" not in SETTINGS.as_dict()
    assert replace(SETTINGS, permute_labels=True).as_dict()["permute_labels"] is True


def test_a_kernel_teaches_what_it_says_without_the_patient_and_validation_is_not_in_it(data, parts, tmp_path):
    _, cohort, fold = parts
    settings = TrainingSettings(targets="joint", radiomics=True, side_head="kernel")
    cubes = read_cubes(data, list(cohort.index), settings.shown, tmp_path)
    loaded = FoldData(cubes, cohort, fold, settings)
    numbers = torch.from_numpy(cubes.scaled_features(fold.train, loaded.statistics.features))
    assert loaded.train.features.shape == loaded.train.wanted.shape
    assert not np.allclose(loaded.train.features, loaded.kernel(numbers).numpy(), atol=1e-3)
    assert loaded.val.features.shape[1] == len(feature_names())
    spoiled = cohort.assign(margin=cohort["margin"].where(~cohort.index.isin([*fold.val, *fold.test]), 9.0))
    other = FoldData(cubes, spoiled, fold, settings)
    assert np.array_equal(other.train.features, loaded.train.features)
    assert torch.equal(other.kernel(numbers), loaded.kernel(numbers))
    assert len(loaded.final_kernel.support) == len(fold.train) + len(fold.val)
    assert not torch.equal(other.final_kernel(numbers), loaded.final_kernel(numbers))
