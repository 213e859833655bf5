"""Which differences between methods are more than chance: paired, over patients, with Holm's correction.

A difference is the mean over nodules of a nodule's figure by one method less that by the other. Its two-sided p-value
comes from the same bootstrap as its interval: with B replicates of the patients, of which L have a difference of at
most 0 and G one of at least 0,

    p = min(1, 2 (min(L, G) + 1) / (B + 1))

(Davison & Hinkley 1997, chapter 4, inverted percentile interval). B replicates cannot show a p below 2 / (B + 1).
Holm's step-down correction is over all m pairs of methods within one metric, so no p_holm could be below 2 m / (B + 1);
B is therefore raised to what lets the smallest one be `FLOOR` (`enough`).
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics.intervals import Weights, draw_weights, known_mean, percentiles, ratio

FLOOR = 0.01
"""Smallest `p_holm` that the replicates must be able to show."""


def enough(methods: int, replicates: int) -> int:
    """Replicates for the differences of all pairs of so many methods: at least `replicates`."""
    return max(replicates, math.ceil(2 * math.comb(methods, 2) / FLOOR) - 1)


def paired_differences(
    wide: pd.DataFrame, patients: Sequence[str], replicates: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Differences of all pairs of methods.

    Args:
        wide: one row per nodule, one column per method and metric, or per method, target and metric; NaN where a nodule
            has no figure. With targets, a nodule's difference is the mean over the targets that both methods answer.
        patients: patient of each nodule.
        replicates: bootstrap replicates at least; see `enough`.
        seed: seed of the bootstrap.

    Returns:
        One record a pair and metric: `metric`, `first`, `second`, `value` (first less second) with `low` and `high`,
        `nodules` that have both, `p` and `p_holm`.
    """
    methods = wide.columns.get_level_values("method").nunique()
    weights = draw_weights(patients, enough(methods, replicates), seed)
    found: list[dict[str, Any]] = []
    for metric in wide.columns.get_level_values("metric").unique():
        figures = wide.xs(metric, axis=1, level="metric")
        pairs = list(combinations(figures.columns.get_level_values("method").unique(), 2))
        if pairs:
            apart = np.stack([_apart(figures[first], figures[second]) for first, second in pairs], axis=1)
            names = [{"metric": metric, "first": first, "second": second} for first, second in pairs]
            found += [{**name, **told} for name, told in zip(names, _tell(apart, weights), strict=True)]
    return found


def holm(values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction (1979), in the same order."""
    order = np.argsort(values, kind="stable")
    sizes = len(values) - np.arange(len(values))
    stepped = np.minimum(np.maximum.accumulate(np.asarray(values, dtype=np.float64)[order] * sizes), 1)
    corrected = np.empty(len(values))
    corrected[order] = stepped
    return [float(value) for value in corrected]


def two_sided(drawn: Float[np.ndarray, " replicate"]) -> float | None:
    """The p-value of a difference being 0, from its replicates; None where it is defined in none of them."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return None
    fewest = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (fewest + 1) / (len(defined) + 1)))


def _apart(first: pd.Series | pd.DataFrame, second: pd.Series | pd.DataFrame) -> Float[np.ndarray, " nodule"]:
    """Each nodule's difference, over the targets that both answer."""
    # Two series, or two tables with a column for each target.
    apart = (first - second).to_numpy(dtype=np.float64)
    return apart if apart.ndim == 1 else known_mean(apart, axis=1)


def _tell(apart: Float[np.ndarray, "nodule pair"], weights: Weights) -> list[dict[str, Any]]:
    """Mean, interval, p and corrected p of each pair."""
    known = ~np.isnan(apart)
    filled, counted = np.where(known, apart, 0.0), known.astype(np.float64)

    def means(rows: Weights) -> Float[np.ndarray, "replicate pair"]:
        found = ratio(rows @ filled, rows @ counted)
        # Of two methods with one and the same map, rounding must not make a difference.
        return np.where(np.abs(found) < 1e-12, 0.0, found)

    whole, drawn = means(np.ones((1, len(apart))))[0], means(weights)
    records: list[dict[str, Any]] = []
    for value, column, count in zip(whole, drawn.T, known.sum(0), strict=True):
        p = two_sided(column) if count else None
        records.append({**percentiles(float(value), column).as_dict(), "nodules": int(count), "p": p, "p_holm": p})
    answered = [record for record in records if record["p"] is not None]
    for record, corrected in zip(answered, holm([record["p"] for record in answered]), strict=True):
        record["p_holm"] = corrected
    return records
