"""Bootstrap intervals over patients: all nodules of a drawn patient come together, as often as the patient is drawn.

A replicate is a row of weights, how often each nodule is in it, so that a statistic of all replicates is a few matrix
products instead of a loop (Efron & Tibshirani 1993, chapters 8 and 13: percentile intervals of a cluster bootstrap).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Shaped

from lidc_cdam.errors import LidcCdamError

Weights = Float[np.ndarray, "replicate nodule"]
Statistic = Callable[[Weights], Float[np.ndarray, " replicate"]]
"""A figure for each row of weights; NaN where it is not defined (an AUC with one class)."""

REPLICATES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval."""

    value: float
    """The figure on all nodules; NaN if it is not defined."""
    low: float
    high: float
    skipped: int = 0
    """Replicates in which the figure is not defined; they are left out of the interval."""

    def as_dict(self) -> dict[str, float | int | None]:
        """The figure for JSON, which has no NaN: what is not defined is null; `skipped` only where there are any."""
        ends = {
            name: float(end) if np.isfinite(end) else None
            for name, end in (("value", self.value), ("low", self.low), ("high", self.high))
        }
        return {**ends, **({"skipped": self.skipped} if self.skipped else {})}


def draw_weights(patients: Sequence[str], replicates: int = REPLICATES, seed: int = 0) -> Weights:
    """Draw replicates: as many patients as there are, with replacement.

    Args:
        patients: patient of each nodule.
        replicates: how many to draw, at least 1.
        seed: seed of the draw.

    Returns:
        How often each nodule stands in each replicate.

    Raises:
        LidcCdamError: `replicates` is below 1.
    """
    if replicates < 1:
        raise LidcCdamError(f"--replicates must be at least 1; got {replicates}.")
    names, patient_of_nodule = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if not len(names):
        return np.zeros((replicates, 0))
    share = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), share, size=replicates)
    weights: Weights = drawn[:, patient_of_nodule].astype(np.float64)
    return weights


def bootstrap(
    statistic: Statistic,
    patients: Sequence[str],
    replicates: int = REPLICATES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """A statistic with its percentile interval over patients.

    A paired difference is a statistic too (`difference`): both figures then see the same replicates.

    Args:
        statistic: the figure as a function of nodule weights.
        patients: patient of each nodule.
        replicates: how many to draw.
        seed: seed of the draw; the same seed and patients give the same replicates.
        level: share of replicates inside the interval, above 0 and below 1.

    Raises:
        LidcCdamError: `replicates` is below 1.
    """
    return interval(statistic, draw_weights(patients, replicates, seed), level)


def interval(statistic: Statistic, weights: Weights, level: float = LEVEL) -> Interval:
    """`bootstrap` on replicates already drawn, for many statistics of the same nodules."""
    value = statistic(np.ones((1, weights.shape[1])))[0]
    return percentiles(float(value), statistic(weights), level)


def difference(first: Statistic, second: Statistic) -> Statistic:
    """The paired difference `first` - `second`, in each replicate."""
    return lambda weights: first(weights) - second(weights)


def column_means(values: Float[np.ndarray, "nodule column"], weights: Weights, level: float = LEVEL) -> list[Interval]:
    """Mean of each column with its interval.

    Args:
        values: one row per nodule; NaN where a nodule has no value, which leaves it out of that column.
        weights: replicates of the same nodules.
        level: share of replicates inside the interval.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)

    def means(rows: Weights) -> Float[np.ndarray, "replicate column"]:
        return ratio(rows @ filled, rows @ known.astype(np.float64))

    whole = means(np.ones((1, len(values))))[0]
    drawn = means(weights)
    return [percentiles(float(value), column, level) for value, column in zip(whole, drawn.T, strict=True)]


def known_mean(values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
    """Mean of the values that are defined along an axis; NaN where none is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis), known.sum(axis).astype(np.float64))


def ratio(
    numerator: Float[np.ndarray, "*shape"], denominator: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """`numerator / denominator`; NaN where the denominator is 0."""
    defined = denominator != 0
    safe = np.where(defined, denominator, 1.0)
    quotient: Shaped[np.ndarray, "*shape"] = np.where(defined, numerator / safe, np.nan)
    return quotient


def percentiles(value: float, drawn: Float[np.ndarray, " replicate"], level: float = LEVEL) -> Interval:
    """The interval of a figure from its replicates; those that are NaN are left out and counted."""
    defined = drawn[~np.isnan(drawn)]
    skipped = len(drawn) - len(defined)
    if not len(defined):
        return Interval(value, float("nan"), float("nan"), skipped)
    tail = (1 - level) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return Interval(value, float(low), float(high), skipped)


def proportion(hits: int, trials: int, level: float = LEVEL) -> Interval:
    """A share of independent trials with Wilson's score interval, which holds its level also near 0 and 1.

    Args:
        hits: trials that went well.
        trials: all of them.
        level: coverage of the interval, above 0 and below 1.
    """
    if not trials:
        return Interval(float("nan"), float("nan"), float("nan"))
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = hits / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = (spread * (share * (1 - share) + spread / 4)) ** 0.5 / (1 + spread)
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0))
