"""Figures with all their bootstrap replicates, so that means and paired differences of figures cost no second pass."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from lidc_cdam.metrics.intervals import Statistic, Weights, percentiles

Drawn = Float[np.ndarray, " draw"]
"""A figure on all nodules, then on each replicate."""
Figures = Mapping[str, Drawn]
"""Figures by metric."""
Told = dict[str, float | int | None]
"""A figure with the ends of its interval, as `summary.json` has it."""

SPEARMAN_REPLICATES = 500
"""Rank correlation ranks anew in each replicate, so it takes fewer."""


def draw(statistics: Mapping[str, Statistic], weights: Weights) -> dict[str, Drawn]:
    """Each statistic on all nodules and on each replicate.

    Args:
        statistics: by metric.
        weights: replicates of the nodules that the statistics are of.
    """
    every = np.concatenate([np.ones((1, weights.shape[1])), weights])
    return {
        name: statistic(every[: SPEARMAN_REPLICATES + 1] if name == "spearman" else every)
        for name, statistic in statistics.items()
    }


def on(statistic: Statistic, rows: Int[np.ndarray, " row"]) -> Statistic:
    """A statistic of rows that each belong to a nodule (readings, a part of the nodules), as one of nodule weights.

    Args:
        statistic: of the rows.
        rows: nodule of each row.
    """
    return lambda weights: statistic(weights[:, rows])


def mean_of(figures: Sequence[Drawn]) -> Drawn:
    """Mean of several figures in each replicate: their errors in one patient are not independent."""
    averaged: Drawn = np.mean(np.stack(figures), axis=0)
    return averaged


def minus(first: Figures, second: Figures, names: Collection[str] | None = None) -> dict[str, Drawn]:
    """Paired differences of the metrics that both have (and, if given, `names` holds)."""
    return {name: first[name] - second[name] for name in first if name in second and (names is None or name in names)}


def tell(drawn: Drawn) -> Told:
    """A figure with its percentile interval; null where it is not defined."""
    return percentiles(float(drawn[0]), drawn[1:]).as_dict()


def tell_all(figures: Figures) -> dict[str, Told]:
    """`tell` of each metric."""
    return {name: tell(drawn) for name, drawn in figures.items()}
