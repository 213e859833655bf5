from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from published import PUBLISHED
from scipy.stats import f_oneway
from sklearn.metrics import cohen_kappa_score

from lidc_cdam.metrics.agreement import NoduleSums, agreement, agreement_of_targets, mean_noise_floor, reader_auc
from lidc_cdam.vocabulary import RATINGS, TARGETS
from preprocessing.annotations import load_nodules

FIGURES = ("icc", "kappa", "mean_difference", "noise_floor")


@pytest.fixture
def few() -> tuple[pd.Series, pd.Series]:
    """Codes of 60 nodules with one to four readers."""
    rng = np.random.default_rng(3)
    nodules = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    codes = np.clip(np.rint(rng.normal(3, 1.2, 60)[nodules] + rng.normal(0, 0.8, len(nodules))), 1, 5)
    return pd.Series(codes), pd.Series([f"n{index:02d}" for index in nodules])


@pytest.fixture(scope="module")
def readings() -> pd.DataFrame:
    rows = []
    for nodule in load_nodules():
        ratings = [reading.ratings["malignancy"] for reading in nodule.readings]
        if len(ratings) in (3, 4) and np.median(ratings) != 3:
            rows += [
                {
                    "nodule_id": nodule.nodule_id,
                    **{key: reading.ratings[key] for key in RATINGS},
                    "diameter": reading.diameter_mm,
                }
                for reading in nodule.readings
            ]
    return pd.DataFrame(rows)


def test_human_ceiling_on_the_real_readings(readings: pd.DataFrame) -> None:
    assert readings["nodule_id"].nunique() == 869
    found = agreement_of_targets(readings)
    assert list(found) == list(TARGETS)
    for key, (icc, mean_difference, noise_floor) in PUBLISHED.items():
        assert round(found[key].icc, 2) == icc, key
        assert round(found[key].mean_difference, 2) == mean_difference, key
        assert round(found[key].noise_floor, 3) == noise_floor, key
    assert round(mean_noise_floor(found), 3) == 0.236
    assert round(reader_auc(readings), 3) == 0.863


def test_a_part_of_the_nodules_only_uses_their_readings(readings: pd.DataFrame) -> None:
    part = list(readings["nodule_id"].unique()[:50])
    chosen = readings[readings["nodule_id"].isin(part)]
    assert agreement_of_targets(readings, part) == agreement_of_targets(chosen)
    assert reader_auc(readings, part) == reader_auc(chosen)


def test_equal_numbers_of_readers_give_the_textbook_value() -> None:
    # Shrout & Fleiss 1979, table 2: six targets, four judges; ICC(1,1) = .17.
    table = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    values, nodules = pd.Series(table.ravel()), pd.Series(np.repeat(list("abcdef"), 4))
    assert round(agreement(values, nodules).icc, 2) == 0.17


def test_perfect_agreement_and_pure_noise() -> None:
    nodules = pd.Series(np.repeat([f"n{index}" for index in range(2000)], 4))
    perfect = agreement(pd.Series(np.repeat(np.arange(2000), 4)), nodules)
    assert (perfect.icc, perfect.mean_difference, perfect.noise_floor) == (1, 0, 0)
    noise = agreement(pd.Series(np.random.default_rng(0).normal(size=8000)), nodules)
    assert noise.icc == pytest.approx(0, abs=0.03)
    # Two standard normal readings differ by 2 / sqrt(pi) on average.
    assert noise.mean_difference == pytest.approx(2 / np.sqrt(np.pi), abs=0.02)
    assert noise.noise_floor == pytest.approx(1, abs=0.05)


def test_noise_floor_is_what_the_true_value_misses_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(2, 5, size=4000)
    truth = rng.normal(size=4000)
    nodules = np.repeat(np.arange(4000), counts)
    values = truth[nodules] + 0.8 * rng.normal(size=len(nodules))
    found = agreement(pd.Series(values), pd.Series(nodules))
    means = pd.Series(values).groupby(nodules).mean().to_numpy()
    assert found.noise_floor == pytest.approx(((truth - means) ** 2).mean() / means.var(), rel=0.05)
    assert found.icc == pytest.approx(1 / (1 + 0.64), abs=0.03)


def test_too_few_readings_have_no_answer() -> None:
    single = agreement(pd.Series([1, 2, 3]), pd.Series(["a", "b", "c"]))
    assert single.as_dict() == {"icc": None, "mean_difference": None, "noise_floor": None}
    alike = agreement(pd.Series([2, 2, 2, 2]), pd.Series(["a", "a", "b", "b"]))
    assert alike.as_dict() == {"icc": None, "mean_difference": 0, "noise_floor": None}


def test_kappa_is_that_of_both_orders_of_each_pair(few) -> None:
    values, nodules = few
    pairs = [
        pair
        for _, part in values.groupby(nodules)
        for one, other in combinations(part, 2)
        for pair in ((one, other), (other, one))
    ]
    sums = NoduleSums(values, nodules)
    expected = cohen_kappa_score(*zip(*pairs, strict=True), weights="quadratic")
    assert sums.kappa(np.ones((1, len(sums.count))))[0] == pytest.approx(expected, rel=1e-9)


def test_icc_of_equal_numbers_is_that_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(5)
    readings = rng.normal(size=(40, 1)) + rng.normal(size=(40, 4))
    ratio = f_oneway(*readings).statistic
    sums = NoduleSums(pd.Series(readings.ravel()), pd.Series(np.repeat([f"n{index:02d}" for index in range(40)], 4)))
    assert sums.icc(np.ones((1, 40)))[0] == pytest.approx((ratio - 1) / (ratio + 3))


def test_a_weight_is_so_many_copies_of_the_nodule(few) -> None:
    values, nodules = few
    sums = NoduleSums(values, nodules)
    weights = np.random.default_rng(1).integers(0, 4, len(sums.count))
    copies = [
        (value, f"{name}_{copy}")
        for (name, part), weight in zip(values.groupby(nodules), weights, strict=True)
        for copy in range(weight)
        for value in part
    ]
    literal = NoduleSums(*(pd.Series(column) for column in zip(*copies, strict=True)))
    for name in FIGURES:
        expected = literal.figures[name](np.ones((1, weights.sum())))
        assert sums.figures[name](weights[None].astype(float)) == pytest.approx(expected, rel=1e-9)


def test_what_readings_do_not_define_is_empty() -> None:
    single = NoduleSums(pd.Series([1.0, 2.0, 3.0]), pd.Series(["a", "b", "c"]))
    alike = NoduleSums(pd.Series([0.1] * 4), pd.Series(["a", "a", "b", "b"]))
    once = np.ones((1, 3))
    assert all(np.isnan(figure(once)[0]) for figure in single.figures.values())
    found = {name: figure(once[:, :2])[0] for name, figure in alike.figures.items()}
    assert found["mean_difference"] == 0
    assert np.isnan([found[name] for name in ("icc", "kappa", "noise_floor")]).all()
