"""Figures of predictions as functions of nodule weights, for all bootstrap replicates at once.

Each function takes what was predicted and what is true and returns a `Statistic`: from weights [replicate, nodule] to
the figure on that many copies of each nodule, exactly as if the copies were in the list. With all weights 1 it is the
plain figure.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from lidc_cdam.metrics.intervals import Statistic, Weights, ratio

Values = Real[np.ndarray, " nodule"] | Bool[np.ndarray, " nodule"]


def mean(losses: Values) -> Statistic:
    """Mean of a per-nodule quantity (accuracy from hits, MAE from absolute errors, Brier from squared ones)."""
    column = np.asarray(losses, dtype=np.float64)
    return lambda weights: ratio(weights @ column, weights.sum(1))


def balanced_accuracy(hits: Values, labels: Values) -> Statistic:
    """Mean of the hit rates of both classes; not defined with one class."""
    positive = np.asarray(labels, dtype=np.float64)
    right = np.asarray(hits, dtype=np.float64)

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        rates = [ratio(weights @ (right * kind), weights @ kind) for kind in (positive, 1 - positive)]
        both: Float[np.ndarray, " replicate"] = (rates[0] + rates[1]) / 2
        return both

    return figure


def auc(scores: Values, labels: Values) -> Statistic:
    """Area under the ROC curve: probability that a positive scores above a negative, ties one half."""
    order, starts = _tied_groups(scores)
    positive = np.asarray(labels, dtype=np.float64)[order]

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        ones, zeros = _class_weights(weights[:, order], positive, starts)
        below = np.cumsum(zeros, axis=1) - zeros
        return ratio((ones * (below + zeros / 2)).sum(1), ones.sum(1) * zeros.sum(1))

    return figure


def average_precision(scores: Values, labels: Values) -> Statistic:
    """Area under the precision-recall curve as a step function, sum of (R_n - R_(n-1)) P_n over thresholds n."""
    order, starts = _tied_groups(-np.asarray(scores, dtype=np.float64))
    positive = np.asarray(labels, dtype=np.float64)[order]

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        ones, zeros = _class_weights(weights[:, order], positive, starts)
        hits, alarms = np.cumsum(ones, axis=1), np.cumsum(zeros, axis=1)
        found = ones.sum(1)
        precision = np.nan_to_num(ratio(hits, hits + alarms))
        figures = ratio((ones * precision).sum(1), found)
        # Like the AUC, it says nothing without a negative.
        return np.where(zeros.sum(1) > 0, figures, np.nan)

    return figure


def z_mse(predicted: Values, true: Values) -> Statistic:
    """Mean squared error over the (population) variance of the true values of the same nodules: 1 - R2."""
    return scaled_error((np.asarray(predicted, dtype=np.float64) - true) ** 2, true)


def scaled_error(squares: Values, true: Values) -> Statistic:
    """Mean of per-nodule squared errors over the (population) variance of the true values of the same nodules."""
    # Centred first: the variance as a difference of moments then loses no digits.
    errors, centred = np.asarray(squares, dtype=np.float64), np.asarray(true, dtype=np.float64) - np.mean(true)

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        total = weights.sum(1)
        variance = ratio(weights @ centred**2, total) - ratio(weights @ centred, total) ** 2
        return ratio(ratio(weights @ errors, total), np.where(variance > 1e-12, variance, 0.0))

    return figure


def r2(predicted: Values, true: Values) -> Statistic:
    """Coefficient of determination."""
    unexplained = z_mse(predicted, true)
    return lambda weights: 1 - unexplained(weights)


def icc(first: Values, second: Values) -> Statistic:
    """Absolute agreement of two columns, ICC(A,1): two-way, single measure (McGraw & Wong 1996, table 4).

    With n nodules, k = 2 columns and the mean squares of rows, columns and error:

        ICC(A,1) = (MSR - MSE) / (MSR + (k - 1) MSE + k (MSC - MSE) / n)
    """
    columns = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    centre = float(np.mean(columns))
    sums, gaps = (columns[0] + columns[1]) / 2 - centre, columns[0] - columns[1]

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        count = weights.sum(1)
        means = [ratio(weights @ each, count) for each in (sums, gaps)]
        spread = [
            np.maximum(weights @ each**2 - count * mean**2, 0) for each, mean in zip((sums, gaps), means, strict=True)
        ]
        rows, error = (ratio(each, count - 1) for each in (2 * spread[0], spread[1] / 2))
        between = count * means[1] ** 2 / 2
        whole = rows + error + ratio(2 * (between - error), count)
        return ratio(rows - error, np.where(whole > 1e-12, whole, 0.0))

    return figure


def spearman(predicted: Values, true: Values) -> Statistic:
    """Rank correlation; tied values share their mean rank."""
    ranks = [_weighted_ranks(predicted), _weighted_ranks(true)]

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        total = weights.sum(1, keepdims=True)
        first, second = (
            rank - ratio((weights * rank).sum(1, keepdims=True), total) for rank in (to(weights) for to in ranks)
        )
        spread = (weights * first**2).sum(1) * (weights * second**2).sum(1)
        return ratio((weights * first * second).sum(1), np.sqrt(np.maximum(spread, 0)))

    return figure


def _weighted_ranks(values: Values) -> Callable[[Weights], Float[np.ndarray, "replicate nodule"]]:
    """Mean rank (from 1) of each nodule's copies, [replicate, nodule]."""
    order, starts = _tied_groups(values)
    sizes = np.diff(np.append(starts, len(order)))
    back = np.argsort(order, kind="stable")

    def ranks(weights: Weights) -> Float[np.ndarray, "replicate nodule"]:
        group = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(group, axis=1) - group / 2 + 0.5
        spread: Float[np.ndarray, "replicate nodule"] = np.repeat(middle, sizes, axis=1)[:, back]
        return spread

    return ranks


def _tied_groups(scores: Values) -> tuple[Int[np.ndarray, " nodule"], Int[np.ndarray, " group"]]:
    """Ascending order of the scores, and where each group of equal ones starts in it."""
    order = np.argsort(scores, kind="stable")
    ordered = np.asarray(scores)[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return order, starts


def _class_weights(
    weights: Weights, positive: Float[np.ndarray, " nodule"], starts: Int[np.ndarray, " group"]
) -> tuple[Float[np.ndarray, "replicate group"], Float[np.ndarray, "replicate group"]]:
    """Weight of the positives and of the negatives in each group of tied scores."""
    ones = np.add.reduceat(weights * positive, starts, axis=1)
    return ones, np.add.reduceat(weights, starts, axis=1) - ones
