"""Which differences between methods are more than chance: paired, over patients, with Holm's correction.

A difference is the mean over nodules of a nodule's figure by one method less that by the other. Its two-sided p-value
comes from the same bootstrap as its interval: with B replicates of the patients, of which L have a difference of at
most 0 and G one of at least 0,

    p = min(1, 2 (min(L, G) + 1) / (B + 1))

(Davison & Hinkley 1997, chapter 4, inverted percentile interval). B replicates cannot show a p below 2 / (B + 1).
Holm's step-down correction is over all pairs of methods within one metric.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics.intervals import Weights, percentiles, ratio


def paired_differences(wide: pd.DataFrame, weights: Weights) -> list[dict[str, Any]]:
    """Differences of all pairs of methods.

    Args:
        wide: one row per nodule, one column per method and metric; NaN where a nodule has no figure.
        weights: replicates of the same nodules.

    Returns:
        One record a pair and metric: `metric`, `first`, `second`, `value` (first less second) with `low` and `high`,
        `nodules` that have both, `p` and `p_holm`.
    """
    found: list[dict[str, Any]] = []
    for metric in wide.columns.get_level_values("metric").unique():
        figures = wide.xs(metric, axis=1, level="metric")
        records = [
            _pair(figures[first].to_numpy() - figures[second].to_numpy(), weights, metric, first, second)
            for first, second in combinations(figures.columns, 2)
        ]
        known = [record for record in records if record["p"] is not None]
        for record, corrected in zip(known, holm([record["p"] for record in known]), strict=True):
            record["p_holm"] = corrected
        found += records
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


def _pair(
    apart: Float[np.ndarray, " nodule"], weights: Weights, metric: str, first: str, second: str
) -> dict[str, Any]:
    known = ~np.isnan(apart)
    filled = np.where(known, apart, 0.0)
    every = np.concatenate([np.ones((1, len(apart))), weights])
    means = ratio(every @ filled, every @ known.astype(np.float64))
    # Of two methods with one and the same map, rounding must not make a difference.
    means = np.where(np.abs(means) < 1e-12, 0.0, means)
    interval = percentiles(float(means[0]), means[1:]).as_dict()
    p = two_sided(means[1:]) if known.any() else None
    names = {"metric": metric, "first": first, "second": second}
    return {**names, **interval, "nodules": int(known.sum()), "p": p, "p_holm": p}
