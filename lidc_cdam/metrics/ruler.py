"""What can be answered without a model: a ruler with one threshold, the commoner class, the best constant."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.artifacts import Splits
from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.intervals import Statistic

DIAMETER = "diameter"
CLOSE = 1 + 1e-9
"""Within one step of the scale (or 1 mm), with room for thirds that are not exact in binary."""

Column = Float[np.ndarray, " nodule"]


def best_constant(true: Column) -> float:
    """The one answer that lies within 1 of the most true values; the middle of its window, the lowest if several.

    It is chosen on the nodules it is scored on, which favours it over any model beside it.
    """
    ordered = np.sort(true)
    inside = np.searchsorted(ordered, ordered + 2 * CLOSE, side="right") - np.arange(len(ordered))
    first = int(np.argmax(inside))
    return float((ordered[first] + ordered[first + int(inside[first]) - 1]) / 2)


def nearest_step(values: Column) -> Column:
    """The step of the scale (or the mm) nearest to a value; halves, which two of four readers make, go up."""
    return np.floor(values + 0.5)


def commonest_step(true: Column) -> float:
    """The step of the scale that is nearest to the most true values; the lowest if several."""
    steps, counts = np.unique(nearest_step(true), return_counts=True)
    return float(steps[np.argmax(counts)])


def constant_statistics(true: Column) -> dict[str, Statistic]:
    """What the best constant answers reach: within_1, and exact (each by a constant of its own)."""
    return {
        "within_1": weighted.mean(np.abs(true - best_constant(true)) <= CLOSE),
        "exact": weighted.mean(nearest_step(true) == commonest_step(true)),
    }


def best_threshold(values: Column, label: Column) -> float:
    """The threshold that classifies the most of these nodules right by "malignant above it"; the lowest if several.

    Candidates lie between neighbouring values, below all and above all.
    """
    distinct = np.unique(values)
    candidates = np.concatenate(([-np.inf], (distinct[1:] + distinct[:-1]) / 2, [np.inf]))
    benign, malignant = np.sort(values[label < 0.5]), np.sort(values[label > 0.5])
    right = np.searchsorted(benign, candidates) + len(malignant) - np.searchsorted(malignant, candidates)
    return float(candidates[np.argmax(right)])


def ruler_hits(predictions: pd.DataFrame, cohort: pd.DataFrame, splits: Splits) -> Column:
    """Whether the mean reader diameter, with one threshold, classifies each nodule right, out of fold.

    Args:
        predictions: nodules and the fold that tests each.
        cohort: the cohort table.
        splits: the folds; each fold's threshold is chosen on its training nodules.

    Returns:
        1 or 0 per row of `predictions`.
    """
    diameter, label = cohort[DIAMETER], cohort["label"]
    hits = np.zeros(len(predictions))
    for fold, rows in predictions.groupby("fold").indices.items():
        train = [key for key in splits.folds[int(str(fold))].train if key in cohort.index and pd.notna(label[key])]
        threshold = best_threshold(_column(diameter.loc[train]), _column(label.loc[train]))
        tested = predictions["nodule_id"].iloc[rows]
        hits[rows] = (_column(diameter.loc[tested]) > threshold) == (_column(label.loc[tested]) > 0.5)
    return hits


def malignancy_statistics(
    predictions: pd.DataFrame, cohort: pd.DataFrame, splits: Splits, padded_share: Mapping[str, float]
) -> dict[str, dict[str, Statistic]]:
    """Rivals for malignancy that need no training.

    Args:
        predictions: nodules with a label, and the fold that tests each.
        cohort: the cohort table.
        splits: the folds, for the ruler's thresholds.
        padded_share: share of each nodule's cube that was not read.

    Returns:
        `ruler`, `commoner_class`, and `unread_frame` where some cube was not read in full, each by metric.
    """
    nodules = predictions["nodule_id"]
    label = _column(cohort["label"].loc[nodules])
    hits = ruler_hits(predictions, cohort, splits)
    found = {
        "ruler": {
            "accuracy": weighted.mean(hits),
            "balanced_accuracy": weighted.balanced_accuracy(hits, label),
            "auc": weighted.auc(_column(cohort[DIAMETER].loc[nodules]), label),
        },
        "commoner_class": {"accuracy": weighted.mean(label == float(label.mean() >= 0.5))},
    }
    read = np.array([1 - padded_share.get(nodule_id, 0.0) for nodule_id in nodules])
    if (read < 1).any():
        found["unread_frame"] = {"auc": weighted.auc(read, label)}
    return found


def _column(values: pd.Series) -> Column:
    return values.to_numpy(dtype=np.float64)
