"""How good out-of-fold predictions are, beside other models, a ruler, a constant and the readers themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.artifacts import SCHEMA, Splits, predicted_keys
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.agreement import agreement_of_targets, mean_noise_floor, reader_auc
from lidc_cdam.metrics.calibration import expected_calibration_error, reliability
from lidc_cdam.metrics.drawn import Drawn, draw, mean_of, minus, on, tell, tell_all
from lidc_cdam.metrics.intervals import LEVEL, REPLICATES, Statistic, Weights, draw_weights
from lidc_cdam.metrics.readers import drawn_readers
from lidc_cdam.metrics.ruler import (
    CLOSE,
    best_constant,
    commonest_step,
    constant_statistics,
    malignancy_statistics,
    nearest_step,
)
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY

GROUP = "biomarkers"
"""Name, beside the targets, of the means over the eight biomarkers."""
AVERAGED = ("z_mse", "r2", "spearman", "icc", "exact", "within_1")
"""Metrics whose mean over the eight biomarkers means something (an MAE has a unit)."""

Column = Float[np.ndarray, " nodule"]
Drawings = dict[str, dict[str, Drawn]]
"""Figures by target and metric."""


def classification_statistics(probability: Column, label: Column) -> dict[str, Statistic]:
    """Figures of a probability of malignancy.

    Args:
        probability: predicted, 0 to 1; the answer is malignant at 0.5 and above.
        label: 0 or 1.

    Returns:
        accuracy, balanced_accuracy, auc, auprc (average precision), brier (mean squared error of the probability) and
        ece (expected calibration error).
    """
    hits = (probability >= 0.5) == (label > 0.5)
    return {
        "accuracy": weighted.mean(hits),
        "balanced_accuracy": weighted.balanced_accuracy(hits, label),
        "auc": weighted.auc(probability, label),
        "auprc": weighted.average_precision(probability, label),
        "brier": weighted.mean((probability - label) ** 2),
        "ece": expected_calibration_error(probability, label),
    }


def regression_statistics(predicted: Column, true: Column) -> dict[str, Statistic]:
    """Figures of a biomarker on the readers' scale.

    Returns:
        z_mse (mean squared error over the variance of the true values of the same nodules), mae (rating or mm), r2,
        spearman, icc (absolute agreement with the readers' mean, ICC(A,1)), exact (share of nodules whose prediction
        and readers' mean have one nearest step of the scale, or mm) and within_1 (share at most one step, or 1 mm,
        from the readers' mean).
    """
    return {
        "z_mse": weighted.z_mse(predicted, true),
        "mae": weighted.mean(np.abs(predicted - true)),
        "r2": weighted.r2(predicted, true),
        "spearman": weighted.spearman(predicted, true),
        "icc": weighted.icc(predicted, true),
        "exact": weighted.mean(nearest_step(predicted) == nearest_step(true)),
        "within_1": weighted.mean(np.abs(predicted - true) <= CLOSE),
    }


def summarise(
    predictions: pd.DataFrame,
    cohort: pd.DataFrame,
    readings: pd.DataFrame,
    splits: Splits,
    padded_share: Mapping[str, float] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    rivals: Mapping[str, pd.DataFrame] | None = None,
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
        rivals: out-of-fold predictions of other kinds of models for the same nodules, by name, in the same form.

    Returns:
        `metrics` {target: {metric: interval}}, `calibration` {malignancy: reliability curve}, `baselines` {name:
        {target: {metric: interval}}} and their paired differences `model_minus_<name>` on the same nodules, `readers`
        {target: agreement}, `noise_floor` {target: z-MSE, and `biomarkers` their mean}; null = not defined.

    Raises:
        LidcCdamError: there is no prediction, one is not a number, or one is of a nodule that the cohort does not have.
    """
    _check(predictions, cohort)
    weights = draw_weights(list(predictions["patient_id"]), replicates, seed)
    model = drawn_figures(predictions, weights)
    found = {name: drawn_figures(_aligned(table, predictions), weights) for name, table in (rivals or {}).items()}
    return {
        "schema": SCHEMA,
        "nodules": len(predictions),
        "patients": int(predictions["patient_id"].nunique()),
        "bootstrap": {"unit": "patient", "replicates": replicates, "level": LEVEL, "seed": seed},
        "metrics": {target: tell_all(figures) for target, figures in model.items()},
        "calibration": _calibration(predictions, weights),
        "baselines": {
            **_untrained(predictions, cohort, splits, padded_share or {}, model, weights),
            **_told_rivals(found, model),
            **_told_readers(predictions, readings, weights),
        },
        **_readers(readings, list(predictions["nodule_id"]), GROUP in model),
    }


def drawn_figures(predictions: pd.DataFrame, weights: Weights) -> Drawings:
    """All figures of a table of predictions with their replicates; with all eight biomarkers also their means.

    A nodule without a true value (an indeterminate label) is left out of that target's figures.
    """
    found = {
        key: draw({name: on(statistic, rows) for name, statistic in _statistics(key, predicted, true).items()}, weights)
        for key in predicted_keys(predictions)
        for rows, predicted, true in [_pair(predictions, key)]
        if len(rows)
    }
    if all(biomarker.key in found for biomarker in BIOMARKERS):
        own = [found[biomarker.key] for biomarker in BIOMARKERS]
        found[GROUP] = {f"mean_{metric}": mean_of([each[metric] for each in own]) for metric in AVERAGED}
    return found


def _statistics(key: str, predicted: Column, true: Column) -> dict[str, Statistic]:
    return (classification_statistics if key == MALIGNANCY.key else regression_statistics)(predicted, true)


def _check(predictions: pd.DataFrame, cohort: pd.DataFrame) -> None:
    if predictions.empty:
        raise LidcCdamError("A summary needs at least one prediction, but there is none; train a fold first.")
    unknown = [key for key in predictions["nodule_id"] if key not in cohort.index]
    if unknown:
        raise LidcCdamError(
            f"Predictions must be of nodules of the cohort, but {unknown[0]} is not in it; "
            f"use the --data folder that the run was trained on."
        )
    for key in predicted_keys(predictions):
        lacking = predictions[~np.isfinite(_column(predictions[f"{key}_predicted"]))]
        if len(lacking):
            row = lacking.iloc[0]
            raise LidcCdamError(
                f"Every prediction must be a number, but that of {key} for {row['nodule_id']} is not; "
                f"delete fold_{row['fold']} of the run and train it again."
            )


def _aligned(table: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """A rival's rows in the order of the model's."""
    return table.set_index("nodule_id", drop=False).loc[list(predictions["nodule_id"])]


def _calibration(predictions: pd.DataFrame, weights: Weights) -> dict[str, Any]:
    if MALIGNANCY.key not in predicted_keys(predictions):
        return {}
    rows, probability, label = _pair(predictions, MALIGNANCY.key)
    return {MALIGNANCY.key: reliability(probability, label, weights[:, rows])} if len(rows) else {}


def _untrained(
    predictions: pd.DataFrame,
    cohort: pd.DataFrame,
    splits: Splits,
    padded_share: Mapping[str, float],
    model: Mapping[str, Mapping[str, Drawn]],
    weights: Weights,
) -> dict[str, Any]:
    """The ruler, the unread frame and the commoner class for malignancy; for each biomarker the best constant."""
    told: dict[str, Any] = {}
    rows = np.flatnonzero(cohort["label"].loc[predictions["nodule_id"]].notna())
    # The eight biomarkers make a concept bottleneck, which answers for malignancy too.
    if len(rows) and (MALIGNANCY.key in model or GROUP in model):
        statistics = malignancy_statistics(predictions.iloc[rows], cohort, splits, padded_share)
        drawn = {name: draw(chosen, weights[:, rows]) for name, chosen in statistics.items()}
        told = {name: {MALIGNANCY.key: tell_all(figures)} for name, figures in drawn.items()}
        if MALIGNANCY.key in model:
            told["model_minus_ruler"] = {MALIGNANCY.key: tell_all(minus(model[MALIGNANCY.key], drawn["ruler"]))}
    constants: Drawings = {}
    for key in (biomarker.key for biomarker in BIOMARKERS if biomarker.key in model):
        rows, _, true = _pair(predictions, key)
        constants[key] = draw(constant_statistics(true), weights[:, rows])
        answers = {"constant": best_constant(true), "exact_constant": commonest_step(true)}
        alone = {name: {"value": answer, "low": None, "high": None} for name, answer in answers.items()}
        told.setdefault("best_constant", {})[key] = {**tell_all(constants[key]), **alone}
    if GROUP in model:
        means = {
            f"mean_{name}": tell(mean_of([constants[each.key][name] for each in BIOMARKERS]))
            for name in ("within_1", "exact")
        }
        told["best_constant"][GROUP] = means
    return told


def _told_rivals(rivals: Mapping[str, Drawings], model: Drawings) -> dict[str, Any]:
    """Each rival's figures, and the model's minus them."""
    told: dict[str, Any] = {}
    for name, found in rivals.items():
        told[name] = {target: tell_all(figures) for target, figures in found.items()}
        told[f"model_minus_{name}"] = {
            target: tell_all(minus(model[target], figures)) for target, figures in found.items() if target in model
        }
    return told


def _told_readers(predictions: pd.DataFrame, readings: pd.DataFrame, weights: Weights) -> dict[str, Any]:
    """One reader against the others, the model against the same others, and the noise floor."""
    predicted = {key: _column(predictions[f"{key}_predicted"]) for key in predicted_keys(predictions)}
    drawn = drawn_readers(readings, list(predictions["nodule_id"]), predicted, weights)
    reader, model = drawn["one_reader"], drawn["model"]
    told = {name: {target: tell_all(figures) for target, figures in drawn[name].items()} for name in drawn}
    return {
        "one_reader": told["one_reader"],
        "model_against_other_readers": told["model"],
        "model_minus_one_reader": {target: tell_all(minus(model[target], reader[target])) for target in model},
        "noise_floor": told["noise_floor"],
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


def _pair(predictions: pd.DataFrame, key: str) -> tuple[np.ndarray, Column, Column]:
    """Rows with a true value, and their predicted and true values."""
    predicted, true = _column(predictions[f"{key}_predicted"]), _column(predictions[f"{key}_true"])
    rows = np.flatnonzero(np.isfinite(true))
    return rows, predicted[rows], true[rows]


def _column(values: pd.Series) -> Column:
    return values.to_numpy(dtype=np.float64)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
