"""How far off a prediction may be: split-conformal intervals, and what models of other folds answered.

A fold's validation nodules took no part in the training of its model up to the choice of its epoch, so the errors
there say how large an error on a further nodule is in nine of ten cases (Papadopoulos et al. 2002; Vovk et al. 2005).
They chose the best epoch, which may make them look slightly better, and a kernel head is fitted on them too afterwards
(`Run.is_refitted`); how often the intervals hold on the test nodules is therefore measured and told.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam import artifacts
from lidc_cdam.vocabulary import TARGETS, Target

VALIDATION = "validation.csv"
"""A fold's predictions of its validation nodules, which training writes."""
CONFIDENCE = 0.9
LEAST = 10
"""Fewest validation nodules (of a class, for malignancy) to calibrate on; nine are the fewest that 90 % needs."""


@dataclass(frozen=True)
class Calibrated:
    """What is known of the error of one nodule's predictions."""

    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By biomarker: the readers' mean lies between these in nine of ten cases."""
    labels: tuple[int, ...] | None = None
    """Malignancy labels (0, 1) that are not ruled out; None: not calibrated."""
    others: dict[str, dict[int, float]] = field(default_factory=dict)
    """By target: predictions of other folds' models for which the nodule was a validation nodule, by fold."""


@dataclass(frozen=True)
class Calibration:
    """A run's calibrated predictions and how often they hold."""

    nodules: dict[str, Calibrated]
    held: dict[str, tuple[float, int]]
    """By target: share of the test nodules whose interval (or set of labels) holds the readers' value; how many."""
    calibrated_on: dict[int, int]
    """By fold: validation nodules."""


def calibrate(run: Path, predictions: pd.DataFrame, keys: Sequence[str]) -> Calibration:
    """Calibrate every prediction of a run on its own fold's validation nodules.

    Args:
        run: the run's folder; a fold without `validation.csv` (older versions) is left out.
        predictions: the run's `predictions.csv`.
        keys: its targets.

    Raises:
        LidcCdamError: a `validation.csv` is malformed.
    """
    folds = sorted({int(fold) for fold in predictions["fold"] if fold >= 0})
    tables = {fold: _validation(run, fold, keys) for fold in folds}
    found: dict[str, Calibrated] = {nodule: Calibrated() for nodule in predictions["nodule_id"]}
    for fold, table in tables.items():
        if table is None:
            continue
        own = predictions[predictions["fold"] == fold]
        for key in keys:
            _calibrate_target(TARGETS[key], table, own, found)
        for row in table.to_dict("records"):
            if row["nodule_id"] in found:
                for key in keys:
                    found[row["nodule_id"]].others.setdefault(key, {})[fold] = float(row[f"{key}_predicted"])
    held = {key: share for key in keys if (share := _held(TARGETS[key], predictions, found)) is not None}
    return Calibration(found, held, {fold: len(table) for fold, table in tables.items() if table is not None})


def _validation(run: Path, fold: int, keys: Sequence[str]) -> pd.DataFrame | None:
    path = artifacts.fold_folder(run, fold) / VALIDATION
    if not path.exists():
        return None
    columns = [f"{key}_{kind}" for key in keys for kind in ("true", "predicted")]
    return artifacts.read_table(path, (*artifacts.PREDICTION_IDENTITY, *columns), "crossval")


def _calibrate_target(
    target: Target, validation: pd.DataFrame, own: pd.DataFrame, found: dict[str, Calibrated]
) -> None:
    truth, predicted = (validation[f"{target.key}_{kind}"].to_numpy(float) for kind in ("true", "predicted"))
    answers = own[f"{target.key}_predicted"].to_numpy(float)
    if target.kind == "probability":
        sets = label_sets(truth, predicted, answers)
        for nodule, labels in zip(own["nodule_id"], sets or [], strict=sets is not None):
            found[nodule] = Calibrated(found[nodule].intervals, labels, found[nodule].others)
        return
    length = target.kind == "length"
    ends = intervals(truth, predicted, answers, 0.0 if length else target.low, np.inf if length else target.high)
    if ends is not None:
        for nodule, (low, high) in zip(own["nodule_id"], ends, strict=True):
            found[nodule].intervals[target.key] = (float(low), float(high))


def intervals(
    truth: Float[np.ndarray, " validation"],
    predicted: Float[np.ndarray, " validation"],
    answers: Float[np.ndarray, " nodule"],
    low: float,
    high: float,
) -> Float[np.ndarray, "nodule 2"] | None:
    """Ends of the interval around each answer; None where there are too few validation nodules.

    Args:
        truth: the readers' means of the validation nodules.
        predicted: the model's answers for them.
        answers: the predictions to put an interval around.
        low: lower end of the scale; no interval goes beyond it.
        high: upper end.
    """
    from crepes import ConformalRegressor  # a second of imports that only a run with reports to write needs

    known = np.isfinite(truth) & np.isfinite(predicted)
    if known.sum() < LEAST:
        return None
    regressor = ConformalRegressor().fit(truth[known] - predicted[known])
    ends: np.ndarray = regressor.predict_int(answers, confidence=CONFIDENCE, y_min=low, y_max=high)
    # A prediction beyond the readers' scale still lies in its own interval.
    return np.stack([np.minimum(ends[:, 0], answers), np.maximum(ends[:, 1], answers)], axis=1)


def label_sets(
    truth: Float[np.ndarray, " validation"],
    predicted: Float[np.ndarray, " validation"],
    answers: Float[np.ndarray, " nodule"],
) -> list[tuple[int, ...]] | None:
    """Labels that are not ruled out, each calibrated on the validation nodules that bear it (label-conditional).

    Args:
        truth: labels of the validation nodules, 0 or 1.
        predicted: the model's probability of 1 for them.
        answers: probabilities of 1 to judge.
    """
    from crepes import ConformalClassifier

    kept = []
    for label in (0, 1):
        strange = _strangeness(predicted[truth == label], label)
        if len(strange) < LEAST:
            return None
        classifier = ConformalClassifier().fit(strange)
        asked = _strangeness(answers, label)[:, None]
        kept.append(classifier.predict_set(asked, confidence=CONFIDENCE, smoothing=False)[:, 0] == 1)
    return [tuple(label for label in (0, 1) if kept[label][place]) for place in range(len(answers))]


def _strangeness(probability: Float[np.ndarray, " nodule"], label: int) -> Float[np.ndarray, " nodule"]:
    """How badly probabilities of 1 fit a label."""
    return 1 - probability if label else probability


def _held(target: Target, predictions: pd.DataFrame, found: dict[str, Calibrated]) -> tuple[float, int] | None:
    hits = []
    for nodule, truth in zip(predictions["nodule_id"], predictions[f"{target.key}_true"], strict=True):
        calibrated = found[nodule]
        if not np.isfinite(truth):
            continue
        if target.kind == "probability":
            if calibrated.labels is not None:
                hits.append(int(truth) in calibrated.labels)
        elif target.key in calibrated.intervals:
            low, high = calibrated.intervals[target.key]
            hits.append(low <= truth <= high)
    return (float(np.mean(hits)), len(hits)) if hits else None
