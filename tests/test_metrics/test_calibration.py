import numpy as np
import pytest

from lidc_cdam.metrics.calibration import equal_mass_bins, expected_calibration_error, reliability
from lidc_cdam.metrics.intervals import draw_weights

RNG = np.random.default_rng(0)
PROBABILITY = RNG.random(237)
LABEL = (RNG.random(237) < PROBABILITY).astype(float)
PATIENTS = [f"p{index // 2}" for index in range(237)]


def ece(probability: np.ndarray, label: np.ndarray) -> float:
    return float(expected_calibration_error(probability, label)(np.ones((1, len(label))))[0])


def test_bins_ascend_and_hold_equal_numbers() -> None:
    index = equal_mass_bins(PROBABILITY)
    assert (np.diff(index[np.argsort(PROBABILITY)]) >= 0).all()
    assert set(np.bincount(index)) <= {23, 24, 25}
    assert len(np.bincount(index)) == 10


def test_ties_stay_in_one_bin_and_no_bin_is_empty() -> None:
    index = equal_mass_bins(np.repeat([0.1, 0.4, 0.9], [50, 3, 7]))
    assert len(set(index[:50])) == len(set(index[50:53])) == len(set(index[53:])) == 1
    assert (np.bincount(index) > 0).all()
    assert equal_mass_bins(np.full(4, 0.5)).tolist() == [0] * 4
    assert equal_mass_bins(np.array([0.5])).tolist() == [0]


def test_ece_is_the_literal_sum_on_nodules_and_on_copies() -> None:
    index = equal_mass_bins(PROBABILITY)

    def literal(copies: np.ndarray) -> float:
        total = 0.0
        for bin_ in range(10):
            members = np.repeat(np.flatnonzero(index == bin_), copies[index == bin_])
            if len(members):
                total += len(members) / copies.sum() * abs(LABEL[members].mean() - PROBABILITY[members].mean())
        return total

    weights = draw_weights(PATIENTS, 8, seed=1)
    found = expected_calibration_error(PROBABILITY, LABEL)(weights)
    np.testing.assert_allclose(found, [literal(row.astype(int)) for row in weights])


def test_ece_tells_honest_from_overconfident() -> None:
    assert ece(LABEL, LABEL) == 0
    assert ece(1 - LABEL, LABEL) == 1
    assert ece(np.full(237, LABEL.mean()), LABEL) == pytest.approx(0)
    overconfident = np.where(PROBABILITY > 0.5, 0.99, 0.01)
    assert ece(PROBABILITY, LABEL) < 0.1 < ece(overconfident, LABEL)


def test_the_reliability_curve_adds_up_to_the_ece() -> None:
    bins = reliability(PROBABILITY, LABEL, draw_weights(PATIENTS, 200))
    assert sum(each["nodules"] for each in bins) == 237
    gaps = [each["nodules"] / 237 * abs(each["observed"]["value"] - each["mean"]) for each in bins]
    assert sum(gaps) == pytest.approx(ece(PROBABILITY, LABEL))
    for each in bins:
        assert each["lowest"] <= each["mean"] <= each["highest"]
        assert each["observed"]["low"] <= each["observed"]["value"] <= each["observed"]["high"]
    inside = sum(each["observed"]["low"] <= each["mean"] <= each["observed"]["high"] for each in bins)
    assert inside >= 8
