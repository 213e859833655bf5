"""Folds: what each protocol promises, on the real cohort's patients and labels."""

from pathlib import Path

import pandas as pd
import pytest

from lidc_cdam import artifacts, cli
from lidc_cdam.artifacts import Dataset, NoduleRecord
from lidc_cdam.errors import LidcCdamError
from preprocessing.splits import PROTOCOLS, divide, shared_patients, split


@pytest.fixture(scope="module")
def table(cohorts: dict[str, Path]) -> pd.DataFrame:
    """The whole `all` cohort, indeterminate nodules included."""
    return artifacts.read_cohort(cohorts["all"]).reset_index(drop=True).astype({"label": "Int64"})


@pytest.fixture(scope="module")
def labelled(table: pd.DataFrame) -> pd.DataFrame:
    return table.dropna(subset="label").astype({"label": int})


def write_data(folder: Path, table: pd.DataFrame, extracted: list[str]) -> Path:
    artifacts.write_table(folder / artifacts.COHORT, table, artifacts.COHORT_COLUMNS)
    records = {name: NoduleRecord(name, "pack", "scan", 0.0, 1.0, 1.0) for name in extracted}
    artifacts.write_dataset(folder, Dataset({}, records))
    return folder


@pytest.fixture
def data(tmp_path: Path, table: pd.DataFrame) -> Path:
    """A folder where every nodule of the cohort is extracted."""
    return write_data(tmp_path / "data", table, list(table["nodule_id"]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_roles_are_disjoint_and_cover_all(labelled: pd.DataFrame, protocol: str, seed: int) -> None:
    for fold in divide(labelled, protocol, seed, 5):
        names = [*fold.train, *fold.val, *fold.test]
        assert len(names) == len(set(names))
        assert set(names) == set(labelled["nodule_id"])


@pytest.mark.parametrize("protocol", ["sound", "paper_appendix"])
@pytest.mark.parametrize("folds", [2, 5, 10])
def test_test_folds_partition_the_cohort(labelled: pd.DataFrame, protocol: str, folds: int) -> None:
    divided = divide(labelled, protocol, 0, folds)
    tested = [name for fold in divided for name in fold.test]
    assert len(divided) == folds
    assert sorted(tested) == sorted(labelled["nodule_id"])


@pytest.mark.parametrize("seed", range(3))
def test_sound_folds_keep_patients_whole(labelled: pd.DataFrame, seed: int) -> None:
    patient_of = labelled.set_index("nodule_id")["patient_id"]
    for fold in divide(labelled, "sound", seed, 5):
        train, val, test = (set(patient_of[list(role)]) for role in (fold.train, fold.val, fold.test))
        assert not train & val
        assert not train & test
        assert not val & test


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_roles_are_stratified(labelled: pd.DataFrame, protocol: str) -> None:
    label_of = labelled.set_index("nodule_id")["label"]
    share = label_of.mean()
    for fold in divide(labelled, protocol, 3, 5):
        for role in (fold.train, fold.val, fold.test):
            assert label_of[list(role)].mean() == pytest.approx(share, abs=0.03)


def test_sizes_of_the_papers_split(labelled: pd.DataFrame) -> None:
    (fold,) = divide(labelled, "paper_main", 0, 5)
    shares = [len(role) / len(labelled) for role in (fold.train, fold.val, fold.test)]
    assert shares == pytest.approx([0.7225, 0.1275, 0.15], abs=0.001)


@pytest.mark.parametrize("protocol", ["sound", "paper_appendix"])
def test_validation_is_about_fifteen_percent_of_the_rest(labelled: pd.DataFrame, protocol: str) -> None:
    for fold in divide(labelled, protocol, 0, 5):
        assert len(fold.val) / (len(fold.train) + len(fold.val)) == pytest.approx(0.15, abs=0.015)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_seed_decides_and_the_order_does_not(labelled: pd.DataFrame, protocol: str) -> None:
    folds = divide(labelled, protocol, 7, 5)
    assert divide(labelled.sample(frac=1, random_state=1), protocol, 7, 5) == folds
    assert divide(labelled, protocol, 8, 5) != folds


def test_the_authors_folds_share_patients(labelled: pd.DataFrame) -> None:
    patients = dict(zip(labelled["nodule_id"], labelled["patient_id"], strict=True))
    shares = [shared_patients(divide(labelled, "paper_appendix", seed, 5), patients) for seed in range(5)]
    assert sum(shares) / len(shares) == pytest.approx(0.57, abs=0.01)
    assert shared_patients(divide(labelled, "sound", 0, 5), patients) == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_written_folds_are_read_back(data: Path, labelled: pd.DataFrame, protocol: str, capsys) -> None:
    split(data, protocol, seed=2)
    splits = artifacts.read_splits(data / artifacts.SPLITS)
    assert splits.folds == divide(labelled, protocol, 2, 5)
    assert (splits.protocol, splits.seed) == (protocol, 2)
    assert "869 nodules of 530 patients" in capsys.readouterr().out


def test_only_extracted_labelled_nodules_are_split(tmp_path: Path, table: pd.DataFrame) -> None:
    extracted = list(table["nodule_id"].iloc[::3])
    split(write_data(tmp_path, table, extracted))
    fold = artifacts.read_splits(tmp_path / artifacts.SPLITS).folds[0]
    labelled = set(table.dropna(subset="label")["nodule_id"])
    assert {*fold.train, *fold.val, *fold.test} == labelled & set(extracted)


def test_a_rerun_does_nothing_and_another_division_is_refused(data: Path, table: pd.DataFrame, capsys) -> None:
    split(data)
    path = data / artifacts.SPLITS
    before = path.read_bytes()
    split(data)
    assert "already holds this division; nothing to do" in capsys.readouterr().out
    words = ["split", "--data", str(data), "--protocol", "paper_main"]
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "with protocol = 'sound', but this call has protocol = 'paper_main'; choose another --out OTHER.json" in said
    with pytest.raises(LidcCdamError, match=r"seed = 0, but this call has seed = 1"):
        split(data, seed=1)
    with pytest.raises(LidcCdamError, match=r"folds = 5, but this call has folds = 4"):
        split(data, folds=4)
    write_data(data, table, list(table["nodule_id"])[:-20])
    with pytest.raises(LidcCdamError, match=r"nodules = 869, but this call has nodules = "):
        split(data)
    assert path.read_bytes() == before
    assert cli.main([*words, "--out", str(data / "other.json")]) == 0
    assert artifacts.read_splits(data / "other.json").protocol == "paper_main"


def test_too_few_patients_are_one_sentence(labelled: pd.DataFrame) -> None:
    malignant = labelled[labelled["label"] == 1]
    few = pd.concat([labelled[labelled["label"] == 0], malignant.drop_duplicates("patient_id").head(4)])
    with pytest.raises(LidcCdamError, match=r"at least 5 patients with a nodule of each label .* but one has 4;"):
        divide(few, "sound", 0, 5)
    assert len(divide(few, "sound", 0, 2)) == 2
    with pytest.raises(LidcCdamError, match="at least 5 nodules of each label"):
        divide(few, "paper_appendix", 0, 5)


def test_a_small_cohort_divides(labelled: pd.DataFrame) -> None:
    one_each = labelled.drop_duplicates("patient_id")
    few = pd.concat([one_each[one_each["label"] == label].head(5) for label in (0, 1)])
    for protocol in PROTOCOLS:
        for fold in divide(few, protocol, 0, 3):
            assert all(len(role) for role in (fold.train, fold.val, fold.test))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"protocol": "fair"}, r"--protocol must be one of sound, paper_main, paper_appendix; got 'fair'"),
        ({"folds": 1}, r"--folds must be at least 2; got 1"),
        ({"seed": -1}, r"--seed must be from 0 to 4294967295; got -1"),
    ],
)
def test_wrong_options_are_one_sentence(data: Path, words: dict, sentence: str) -> None:
    with pytest.raises(LidcCdamError, match=sentence):
        split(data, **words)


def test_missing_inputs_name_the_step(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(LidcCdamError, match="run `lidc-cdam cohort` first"):
        split(tmp_path)
    artifacts.write_table(tmp_path / artifacts.COHORT, table, artifacts.COHORT_COLUMNS)
    with pytest.raises(LidcCdamError, match="run `lidc-cdam extract"):
        split(tmp_path)
    undecided = table[table["label"].isna()]
    write_data(tmp_path, table, list(undecided["nodule_id"].head(3)))
    with pytest.raises(LidcCdamError, match="none of its 3 crops is of one"):
        split(tmp_path)
