from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics

from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.intervals import Statistic, draw_weights

RNG = np.random.default_rng(0)
LABEL = (RNG.random(60) < 0.4).astype(float)
SCORE = np.round(LABEL + RNG.normal(size=60), 1)
"""Rounded, so that there are ties between and within the classes."""
TRUE = np.round(RNG.normal(3, 1, size=60) * 3) / 3
PREDICTED = np.round(TRUE + RNG.normal(size=60), 1)
WEIGHTS = draw_weights([f"p{index // 2}" for index in range(60)], 30, seed=1)


def two_way_anova(true: np.ndarray, predicted: np.ndarray) -> float:
    """ICC(A,1) from the sums of squares of a nodule x column table (McGraw & Wong 1996)."""
    table = np.stack([true, predicted], axis=1)
    n, k = table.shape
    rows = k * ((table.mean(1) - table.mean()) ** 2).sum() / (n - 1)
    columns = n * ((table.mean(0) - table.mean()) ** 2).sum() / (k - 1)
    error = ((table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()) ** 2).sum() / ((n - 1) * (k - 1))
    return float((rows - error) / (rows + (k - 1) * error + k * (columns - error) / n))


CLASSES: list[tuple[Statistic, Callable[..., float], np.ndarray, np.ndarray]] = [
    (weighted.auc(SCORE, LABEL), metrics.roc_auc_score, LABEL, SCORE),
    (weighted.average_precision(SCORE, LABEL), metrics.average_precision_score, LABEL, SCORE),
    (
        weighted.balanced_accuracy((SCORE > 0.5) == LABEL, LABEL),
        metrics.balanced_accuracy_score,
        LABEL,
        (SCORE > 0.5).astype(float),
    ),
    (weighted.r2(PREDICTED, TRUE), metrics.r2_score, TRUE, PREDICTED),
    (
        weighted.z_mse(PREDICTED, TRUE),
        lambda true, predicted: metrics.mean_squared_error(true, predicted) / np.var(true),
        TRUE,
        PREDICTED,
    ),
    (
        weighted.spearman(PREDICTED, TRUE),
        lambda true, predicted: float(spearmanr(true, predicted).statistic),
        TRUE,
        PREDICTED,
    ),
    (weighted.icc(PREDICTED, TRUE), two_way_anova, TRUE, PREDICTED),
]


@pytest.mark.parametrize(("statistic", "known", "true", "answer"), CLASSES)
def test_equals_the_known_implementation_on_the_nodules_and_on_copies(
    statistic: Statistic, known: Callable[..., float], true: np.ndarray, answer: np.ndarray
) -> None:
    assert statistic(np.ones((1, 60)))[0] == pytest.approx(known(true, answer))
    copies = [row.astype(int) for row in WEIGHTS]
    expected = [known(np.repeat(true, row), np.repeat(answer, row)) for row in copies]
    np.testing.assert_allclose(statistic(WEIGHTS), expected, atol=1e-12)


def test_one_class_or_one_value_has_no_answer() -> None:
    weights = np.ones((1, 3))
    values, ones = np.array([1.0, 2, 3]), np.ones(3)
    for statistic in (
        weighted.auc(values, ones),
        weighted.average_precision(values, ones),
        weighted.balanced_accuracy(ones, ones),
        weighted.z_mse(values, ones),
        weighted.spearman(values, ones),
    ):
        assert np.isnan(statistic(weights)[0])


def test_auc_only_sees_the_order() -> None:
    weights = np.ones((1, 60))
    assert weighted.auc(SCORE, LABEL)(weights) == weighted.auc(np.exp(SCORE), LABEL)(weights)
    assert weighted.auc(SCORE, LABEL)(weights)[0] == pytest.approx(1 - weighted.auc(-SCORE, LABEL)(weights)[0])


def test_icc_sees_an_offset_that_a_correlation_does_not() -> None:
    weights = np.ones((1, 60))
    assert weighted.icc(TRUE, TRUE)(weights)[0] == pytest.approx(1)
    assert weighted.icc(TRUE + 2, TRUE)(weights)[0] < 0.5 < weighted.spearman(TRUE + 2, TRUE)(weights)[0]
    assert np.isnan(weighted.icc(np.ones(60), np.ones(60))(weights)[0])
