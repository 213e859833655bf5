"""How good out-of-fold predictions are, beside a ruler, a constant and the readers themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.artifacts import SCHEMA, Splits, predicted_keys
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.agreement import agreement_of_targets, mean_noise_floor, reader_auc
from lidc_cdam.metrics.intervals import (
    LEVEL,
    REPLICATES,
    Interval,
    Statistic,
    Weights,
    difference,
    draw_weights,
    interval,
)
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY

DIAMETER = "diameter"
GROUP = "biomarkers"
"""Name, beside the targets, of the means over the eight biomarkers."""
SPEARMAN_REPLICATES = 500
"""Spearman ranks anew in each replicate, so it takes fewer."""
CLOSE = 1 + 1e-9
"""Within one step of the scale (or 1 mm), with room for thirds that are not exact in binary."""

Column = Float[np.ndarray, " nodule"]


def classification_statistics(probability: Column, label: Column) -> dict[str, Statistic]:
    """Figures of a probability of malignancy.

    Args:
        probability: predicted, 0 to 1; the answer is malignant at 0.5 and above.
        label: 0 or 1.

    Returns:
        accuracy, balanced_accuracy, auc, auprc (average precision) and brier (mean squared error of the probability).
    """
    hits = (probability >= 0.5) == (label > 0.5)
    return {
        "accuracy": weighted.mean(hits),
        "balanced_accuracy": weighted.balanced_accuracy(hits, label),
        "auc": weighted.auc(probability, label),
        "auprc": weighted.average_precision(probability, label),
        "brier": weighted.mean((probability - label) ** 2),
    }


def regression_statistics(predicted: Column, true: Column) -> dict[str, Statistic]:
    """Figures of a biomarker on the readers' scale.

    Returns:
        z_mse (mean squared error over the variance of the true values of the same nodules), mae (rating or mm), r2,
        spearman and within_1 (share of nodules at most one step of the scale, or 1 mm, from the readers' mean).
    """
    return {
        "z_mse": weighted.z_mse(predicted, true),
        "mae": weighted.mean(np.abs(predicted - true)),
        "r2": weighted.r2(predicted, true),
        "spearman": weighted.spearman(predicted, true),
        "within_1": weighted.mean(np.abs(predicted - true) <= CLOSE),
    }


def best_constant(true: Column) -> float:
    """The one answer that lies within 1 of the most true values; the middle of its window, the lowest if several.

    It is chosen on the nodules it is scored on, which favours it over any model beside it.
    """
    ordered = np.sort(true)
    inside = np.searchsorted(ordered, ordered + 2 * CLOSE, side="right") - np.arange(len(ordered))
    first = int(np.argmax(inside))
    return float((ordered[first] + ordered[first + int(inside[first]) - 1]) / 2)


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


def summarise(
    predictions: pd.DataFrame,
    cohort: pd.DataFrame,
    readings: pd.DataFrame,
    splits: Splits,
    padded_share: Mapping[str, float] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that `RUN/summary.json` says about a run's out-of-fold predictions.

    Args:
        predictions: the pooled table `predictions.csv`.
        cohort: the table `cohort.csv`, indexed by nodule.
        readings: the table `readings.csv`.
        splits: the folds, for the ruler's thresholds.
        padded_share: share of each nodule's cube that was not read. Where there is any, the baseline `unread_frame`
            says how well that share alone tells malignancy: a cut-out that hugs its nodule gives its size away.
        replicates: bootstrap replicates of each interval.
        seed: seed of the bootstrap.

    Returns:
        `metrics` {target: {metric: interval}}, `baselines` {name: {target: {metric: interval}}} on the same nodules,
        `readers` {target: agreement}, `noise_floor` {target: z-MSE, and `biomarkers` their mean}; null = not defined.

    Raises:
        LidcCdamError: there is no prediction, or one of a nodule that the cohort does not have.
    """
    _check(predictions, cohort)
    weights = draw_weights(list(predictions["patient_id"]), replicates, seed)
    figures = {
        key: (classification_statistics if key == MALIGNANCY.key else regression_statistics)(*_pair(predictions, key))
        for key in predicted_keys(predictions)
    }
    complete = all(biomarker.key in figures for biomarker in BIOMARKERS)
    if complete:
        figures[GROUP] = _means_over_biomarkers(figures)
    return {
        "schema": SCHEMA,
        "nodules": len(predictions),
        "patients": int(predictions["patient_id"].nunique()),
        "bootstrap": {"unit": "patient", "replicates": replicates, "level": LEVEL, "seed": seed},
        "metrics": _intervals(figures, weights),
        "baselines": _baselines(predictions, cohort, splits, padded_share or {}, figures, weights),
        **_readers(readings, list(predictions["nodule_id"]), complete),
    }


def _check(predictions: pd.DataFrame, cohort: pd.DataFrame) -> None:
    if predictions.empty:
        raise LidcCdamError("A summary needs at least one prediction, but there is none; train a fold first.")
    unknown = [key for key in predictions["nodule_id"] if key not in cohort.index]
    if unknown:
        raise LidcCdamError(
            f"Predictions must be of nodules of the cohort, but {unknown[0]} is not in it; "
            f"use the --data folder that the run was trained on."
        )


def _means_over_biomarkers(figures: Mapping[str, Mapping[str, Statistic]]) -> dict[str, Statistic]:
    """Mean over the eight in each replicate: their errors in one patient are not independent."""
    own = [figures[biomarker.key] for biomarker in BIOMARKERS]
    return {
        f"mean_{metric}": _mean_of([chosen[metric] for chosen in own])
        for metric in ("z_mse", "r2", "spearman", "within_1")
    }


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        drawn: Float[np.ndarray, " replicate"] = np.mean([statistic(weights) for statistic in statistics], axis=0)
        return drawn

    return figure


def _intervals(
    figures: Mapping[str, Mapping[str, Statistic]], weights: Weights
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    return {
        target: {name: _interval(name, statistic, weights).as_dict() for name, statistic in chosen.items()}
        for target, chosen in figures.items()
    }


def _interval(name: str, statistic: Statistic, weights: Weights) -> Interval:
    return interval(statistic, weights[:SPEARMAN_REPLICATES] if name.endswith("spearman") else weights)


def _baselines(
    predictions: pd.DataFrame,
    cohort: pd.DataFrame,
    splits: Splits,
    padded_share: Mapping[str, float],
    figures: Mapping[str, Mapping[str, Statistic]],
    weights: Weights,
) -> dict[str, Any]:
    """The ruler, the unread frame and the commoner class for malignancy; for each biomarker the best constant."""
    found: dict[str, dict[str, dict[str, Statistic]]] = {"best_constant": {}}
    constants = {}
    for key in figures:
        if key == MALIGNANCY.key:
            found |= _malignancy_baselines(predictions, cohort, splits, figures[key])
            read = np.array([1 - padded_share.get(nodule_id, 0.0) for nodule_id in predictions["nodule_id"]])
            if (read < 1).any():
                found["unread_frame"] = {key: {"auc": weighted.auc(read, _pair(predictions, key)[1])}}
        elif key != GROUP:
            true = _pair(predictions, key)[1]
            constants[key] = best_constant(true)
            found["best_constant"][key] = {"within_1": weighted.mean(np.abs(true - constants[key]) <= CLOSE)}
    if GROUP in figures:
        own = [found["best_constant"][biomarker.key]["within_1"] for biomarker in BIOMARKERS]
        found["best_constant"][GROUP] = {"mean_within_1": _mean_of(own)}
    answered: dict[str, Any] = {name: _intervals(targets, weights) for name, targets in found.items() if targets}
    for key, constant in constants.items():
        answered["best_constant"][key]["constant"] = {"value": constant, "low": None, "high": None}
    return answered


def _malignancy_baselines(
    predictions: pd.DataFrame, cohort: pd.DataFrame, splits: Splits, model: Mapping[str, Statistic]
) -> dict[str, dict[str, dict[str, Statistic]]]:
    label = _pair(predictions, MALIGNANCY.key)[1]
    hits = ruler_hits(predictions, cohort, splits)
    ruler = {
        "accuracy": weighted.mean(hits),
        "balanced_accuracy": weighted.balanced_accuracy(hits, label),
        "auc": weighted.auc(_column(cohort[DIAMETER].loc[predictions["nodule_id"]]), label),
    }
    commoner = weighted.mean(label == float(label.mean() >= 0.5))
    return {
        "ruler": {MALIGNANCY.key: ruler},
        "model_minus_ruler": {
            MALIGNANCY.key: {name: difference(model[name], statistic) for name, statistic in ruler.items()}
        },
        "commoner_class": {MALIGNANCY.key: {"accuracy": commoner}},
    }


def _readers(readings: pd.DataFrame, nodule_ids: Sequence[str], complete: bool) -> dict[str, Any]:
    """The readers' agreement on the same nodules."""
    found = agreement_of_targets(readings, nodule_ids)
    agreed: dict[str, dict[str, float | None]] = {key: each.as_dict() for key, each in found.items()}
    agreed[MALIGNANCY.key]["reader_auc"] = _or_none(reader_auc(readings, nodule_ids))
    floors = {key: _or_none(each.noise_floor) for key, each in found.items()}
    if complete:
        floors[GROUP] = _or_none(mean_noise_floor(found))
    return {"readers": agreed, "noise_floor": floors}


def _pair(predictions: pd.DataFrame, key: str) -> tuple[Column, Column]:
    return _column(predictions[f"{key}_predicted"]), _column(predictions[f"{key}_true"])


def _column(values: pd.Series) -> Column:
    return values.to_numpy(dtype=np.float64)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
