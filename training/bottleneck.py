"""Concept bottleneck: malignancy from the eight predicted biomarkers alone, and what correcting them is worth.

A logistic regression turns the eight biomarkers into malignancy. It learns from the **readers'** values of a fold's
training and validation nodules (the independent bottleneck of Koh et al. 2020): a network's predictions on nodules it
has learnt from are better than those on new ones, so a regression fitted on them would trust them too much; and a
person who corrects a biomarker puts a reader's value in its place, which is what this regression knows.

Intervention: predicted biomarkers of test nodules are replaced by the readers', each alone, then one after another. The
order is chosen greedily on the validation nodules (least log loss, with a regression that learnt from the training
nodules alone); test nodules choose nothing. With all eight replaced it is the baseline `readers_logistic`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.pipeline import Pipeline

from lidc_cdam.artifacts import PREDICTION_IDENTITY, fold_folder, predicted_keys, read_predictions, write_table
from lidc_cdam.metrics.drawn import Drawn, draw, minus, tell_all
from lidc_cdam.metrics.intervals import REPLICATES, Weights, draw_weights
from lidc_cdam.metrics.prediction import classification_statistics
from lidc_cdam.vocabulary import MALIGNANCY
from training.baselines import KEYS, fit_logistic, reader_values
from training.fit import VALIDATION
from training.run import Run

FILE = "bottleneck.csv"
LEARNT_FROM = "the readers' biomarkers of each fold's training and validation nodules"
SHOWN = ("auc", "accuracy", "brier")
"""Metrics of an intervention."""

Values = Float64[np.ndarray, "nodule 8"]
Probabilities = Float64[np.ndarray, " nodule"]


@dataclass(frozen=True)
class Bottleneck:
    """What the bottleneck answers, and what it consists of."""

    table: pd.DataFrame
    """Per nodule: identity, `malignancy_true`, `malignancy_predicted`, `with_<key>` (that biomarker replaced), and
    `with_first_<k>` (the first k of the fold's order)."""
    coefficients: dict[int, list[float]]
    """Per fold: eight coefficients, per standard deviation of the readers' values, and the intercept."""
    orders: dict[int, list[str]] = field(default_factory=dict)
    """Per fold: biomarkers in the order in which they are replaced; empty without validation predictions."""


def has_bottleneck(keys: Sequence[str]) -> bool:
    """Whether a run predicts all eight biomarkers."""
    return set(KEYS) <= set(keys)


def fit_bottleneck(run: Run, predictions: pd.DataFrame) -> Bottleneck:
    """Fit and apply the bottleneck on the folds that a table of predictions holds.

    Args:
        run: the run.
        predictions: its pooled predictions, all eight biomarkers among them.

    Raises:
        LidcCdamError: a fold's training nodules lack a class or a value.
    """
    chosen = predictions.groupby("fold").indices
    orders = {int(str(fold)): _order(run, int(str(fold))) for fold in chosen}
    if not all(orders.values()):
        orders = {}
    parts, coefficients = [], {}
    for fold, rows in ((int(str(name)), rows) for name, rows in chosen.items()):
        part = run.splits.folds[fold]
        fitted = fit_logistic(run.cohort, [*part.train, *part.val])
        coefficients[fold] = [*map(float, fitted[-1].coef_[0]), float(fitted[-1].intercept_[0])]
        parts.append(_apply(run, fitted, predictions.iloc[rows], orders.get(fold, [])))
    return Bottleneck(pd.concat(parts, ignore_index=True), coefficients, orders)


def _apply(run: Run, fitted: Pipeline, rows: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    tested = rows["nodule_id"].tolist()
    predicted, readers = predicted_values(rows), reader_values(run.cohort, tested)
    columns = {
        f"{MALIGNANCY.key}_true": run.cohort.loc[tested, "label"].to_numpy(dtype=np.float64),
        f"{MALIGNANCY.key}_predicted": probability(fitted, predicted),
        **{f"with_{key}": probability(fitted, replaced(predicted, readers, [key])) for key in KEYS},
    }
    for count in range(1, len(order) + 1):
        columns[f"with_first_{count}"] = probability(fitted, replaced(predicted, readers, order[:count]))
    return rows[list(PREDICTION_IDENTITY)].assign(**columns)


def predicted_values(rows: pd.DataFrame) -> Values:
    """The predicted biomarkers of a table of predictions."""
    return rows[[f"{key}_predicted" for key in KEYS]].to_numpy(dtype=np.float64)


def replaced(predicted: Values, readers: Values, keys: Sequence[str]) -> Values:
    """The predicted biomarkers with those named by `keys` as the readers gave them."""
    return np.where(np.isin(KEYS, list(keys)), readers, predicted)


def probability(fitted: Pipeline, values: Values) -> Probabilities:
    """What the logistic regression answers for biomarkers."""
    return np.asarray(fitted.predict_proba(values)[:, 1], dtype=np.float64)


def _order(run: Run, fold: int) -> list[str]:
    """The fold's order of replacement; empty where its folder has no validation predictions."""
    path, part = fold_folder(run.out, fold) / VALIDATION, run.splits.folds[fold]
    if not path.exists():
        return []
    rows = read_predictions(path).set_index("nodule_id")
    known = run.cohort["label"].reindex(list(part.val)).dropna()
    fitted = fit_logistic(run.cohort, part.train)
    predicted, readers = predicted_values(rows.loc[known.index]), reader_values(run.cohort, known.index.tolist())
    return order_of_benefit(fitted, predicted, readers, known.to_numpy(dtype=np.float64))


def order_of_benefit(fitted: Pipeline, predicted: Values, readers: Values, label: Probabilities) -> list[str]:
    """Biomarkers in the order in which replacing one more lowers the log loss most.

    Args:
        fitted: the logistic regression.
        predicted: a network's biomarkers of validation nodules.
        readers: the readers'.
        label: 0 or 1.
    """
    order: list[str] = []
    while len(order) < len(KEYS):
        losses = {
            key: log_loss(probability(fitted, replaced(predicted, readers, [*order, key])), label)
            for key in KEYS
            if key not in order
        }
        order.append(min(losses, key=lambda key: losses[key]))
    return order


def log_loss(answers: Probabilities, label: Probabilities) -> float:
    """Mean negative log likelihood; probabilities are kept off 0 and 1 by 1e-12."""
    right = np.clip(np.where(label > 0.5, answers, 1 - answers), 1e-12, None)
    return float(-np.log(right).mean())


def measure_bottleneck(
    found: Bottleneck, rivals: Mapping[str, pd.DataFrame], replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Any]:
    """The section `bottleneck` of `RUN/summary.json`.

    Args:
        found: the bottleneck's answers; nodules without a label are left out.
        rivals: tables that may hold predictions of malignancy for the same nodules in the same order, by name.
        replicates: bootstrap replicates of each interval.
        seed: seed of the bootstrap.

    Returns:
        `metrics`, the differences `bottleneck_minus_<rival>`, `coefficients` (per standard deviation of the readers'
        values, with their spread over the folds) and `interventions` (`alone` and `in_order`, each with the metrics and
        with the paired `gain` over no replacement; `orders` by fold).
    """
    rows = np.flatnonzero(np.isfinite(found.table[f"{MALIGNANCY.key}_true"].to_numpy(dtype=np.float64)))
    table = found.table.iloc[rows]
    weights = draw_weights(list(table["patient_id"]), replicates, seed)
    own = _drawn(table, f"{MALIGNANCY.key}_predicted", weights)
    told: dict[str, Any] = {"learnt_from": LEARNT_FROM, "nodules": len(table), "metrics": tell_all(own)}
    for name, rival in rivals.items():
        if MALIGNANCY.key in predicted_keys(rival):
            other = rival.set_index("nodule_id").loc[table["nodule_id"], f"{MALIGNANCY.key}_predicted"]
            answers = table.assign(**{f"{MALIGNANCY.key}_predicted": other.to_numpy(dtype=np.float64)})
            drawn = _drawn(answers, f"{MALIGNANCY.key}_predicted", weights)
            told[f"bottleneck_minus_{name}"] = tell_all(minus(own, drawn))
    alone = {key: _intervention(table, f"with_{key}", own, weights) for key in KEYS}
    steps = range(1, len(KEYS) + 1) if found.orders else ()
    in_order = [{"replaced": step, **_intervention(table, f"with_first_{step}", own, weights)} for step in steps]
    orders = {str(fold): order for fold, order in found.orders.items()}
    told["coefficients"] = _spread(found.coefficients)
    told["interventions"] = {"alone": alone, "in_order": in_order, "orders": orders}
    return told


def _drawn(table: pd.DataFrame, column: str, weights: Weights) -> dict[str, Drawn]:
    answers, label = (table[name].to_numpy(dtype=np.float64) for name in (column, f"{MALIGNANCY.key}_true"))
    return draw(classification_statistics(answers, label), weights)


def _intervention(table: pd.DataFrame, column: str, own: Mapping[str, Drawn], weights: Weights) -> dict[str, Any]:
    answers = _drawn(table, column, weights)
    drawn = {name: answers[name] for name in SHOWN}
    return {"metrics": tell_all(drawn), "gain": tell_all(minus(drawn, own))}


def _spread(coefficients: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """Mean, standard deviation over the folds, and the folds' own values, per biomarker and for the intercept."""
    values = np.array(list(coefficients.values()))
    return {
        name: {"mean": float(column.mean()), "deviation": float(column.std()), "folds": column.tolist()}
        for name, column in zip([*KEYS, "intercept"], values.T, strict=True)
    }


def write_bottleneck(run: Path, table: pd.DataFrame) -> None:
    """Write `RUN/bottleneck.csv`."""
    write_table(run / FILE, table, PREDICTION_IDENTITY)
