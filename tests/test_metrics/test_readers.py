import numpy as np
import pandas as pd
import pytest

from lidc_cdam.metrics.agreement import agreement_of_targets, reader_auc
from lidc_cdam.metrics.intervals import draw_weights
from lidc_cdam.metrics.readers import drawn_readers, noise_floor, one_reader
from lidc_cdam.vocabulary import BIOMARKERS, RATINGS

COUNT = 40
NODULES = [f"n{index:02d}" for index in range(COUNT)]
PATIENTS = [f"p{index // 2}" for index in range(COUNT)]
ONES = np.ones((1, COUNT))


@pytest.fixture
def readings() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for place, nodule in enumerate(NODULES):
        for _ in range(1 + place % 4):
            ratings = {key: int(rng.integers(1, 6)) for key in RATINGS}
            rows.append({"nodule_id": nodule, **ratings, "diameter": 5 + place / 2 + rng.normal()})
    return pd.DataFrame(rows)


def copied(readings: pd.DataFrame, weights: np.ndarray) -> tuple[pd.DataFrame, list[str]]:
    """The readings with each nodule as often as its weight, under names of its own."""
    parts = [
        readings[readings["nodule_id"] == nodule].assign(nodule_id=f"{nodule}-{copy}")
        for nodule, count in zip(NODULES, weights.astype(int), strict=True)
        for copy in range(count)
    ]
    table = pd.concat(parts, ignore_index=True)
    return table, list(dict.fromkeys(table["nodule_id"]))


def test_one_readers_error_is_the_literal_one(readings: pd.DataFrame) -> None:
    squares, sizes, means = [], [], []
    for _, rated in readings.groupby("nodule_id")["margin"]:
        values = list(rated)
        if len(values) > 1:
            gaps = [value - (sum(values) - value) / (len(values) - 1) for value in values]
            squares.append(np.mean(np.square(gaps)))
            sizes.append(np.mean(np.abs(gaps)))
            means.append(np.mean(values))
    reader, model = one_reader(readings, "margin", NODULES)
    assert reader["z_mse"](ONES)[0] == pytest.approx(np.mean(squares) / np.var(means))
    assert reader["mae"](ONES)[0] == pytest.approx(np.mean(sizes))
    assert model == {}


def test_readers_who_agree_make_no_error_and_the_model_is_measured_against_the_same_others() -> None:
    truth = np.arange(COUNT, dtype=float)
    alike = pd.DataFrame({"nodule_id": np.repeat(NODULES, 3), "diameter": np.repeat(truth, 3)})
    reader, model = one_reader(alike, "diameter", NODULES, truth + 2)
    assert reader["z_mse"](ONES)[0] == 0
    assert model["mae"](ONES)[0] == pytest.approx(2)
    assert model["z_mse"](ONES)[0] == pytest.approx(4 / truth.var())


def test_malignancy_is_the_known_reader_auc(readings: pd.DataFrame) -> None:
    reader, _ = one_reader(readings, "malignancy", NODULES)
    assert reader["auc"](ONES)[0] == pytest.approx(reader_auc(readings))


@pytest.mark.parametrize("key", ["malignancy", "margin"])
def test_weights_stand_for_copies_of_nodules(readings: pd.DataFrame, key: str) -> None:
    weights = draw_weights(PATIENTS, 5, seed=3)
    predicted = np.linspace(1, 5, COUNT)
    ours = one_reader(readings, key, NODULES, predicted)
    for row in range(len(weights)):
        table, names = copied(readings, weights[row])
        known = dict(zip(NODULES, predicted, strict=True))
        theirs = one_reader(table, key, names, np.array([known[name[:3]] for name in names]))
        for mine, other in zip(ours, theirs, strict=True):
            for metric in mine:
                assert mine[metric](weights[row : row + 1])[0] == pytest.approx(
                    other[metric](np.ones((1, len(names))))[0]
                )


def test_the_noise_floor_is_that_of_the_agreement(readings: pd.DataFrame) -> None:
    found = agreement_of_targets(readings)
    for key in ("texture", "diameter"):
        assert noise_floor(readings, key, NODULES)(ONES)[0] == pytest.approx(found[key].noise_floor)
    weights = draw_weights(PATIENTS, 3, seed=4)
    for row in range(len(weights)):
        table, names = copied(readings, weights[row])
        drawn = noise_floor(readings, "margin", NODULES)(weights[row : row + 1])[0]
        assert drawn == pytest.approx(agreement_of_targets(table, names)["margin"].noise_floor)


def test_single_readings_and_missing_ones_have_no_answer(readings: pd.DataFrame) -> None:
    single = readings.drop_duplicates("nodule_id")
    assert one_reader(single, "margin", NODULES) == ({}, {})
    holes = readings.assign(margin=readings["margin"].astype(float).where(readings["nodule_id"] != "n03"))
    reader, _ = one_reader(holes, "margin", NODULES)
    expected, _ = one_reader(readings[readings["nodule_id"] != "n03"], "margin", NODULES)
    assert reader["mae"](ONES)[0] == expected["mae"](ONES)[0]


def test_all_eight_biomarkers_bring_their_mean_and_malignancy(readings: pd.DataFrame) -> None:
    weights = draw_weights(PATIENTS, 10)
    predicted = {biomarker.key: np.full(COUNT, 3.0) for biomarker in BIOMARKERS}
    found = drawn_readers(readings, NODULES, predicted, weights)
    own = [found["one_reader"][biomarker.key]["z_mse"] for biomarker in BIOMARKERS]
    np.testing.assert_allclose(found["one_reader"]["biomarkers"]["mean_z_mse"], np.mean(own, axis=0))
    assert "malignancy" in found["one_reader"]
    assert "malignancy" not in found["model"]
    part = drawn_readers(readings, NODULES, {"margin": predicted["margin"]}, weights)
    assert all(list(targets) == ["margin"] for targets in part.values())
