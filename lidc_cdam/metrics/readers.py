"""One reader against the others, and the readers' noise floor, as figures that can be drawn and compared with a model.

A reading x_ij is compared with the mean (for malignancy the label of the median) of the nodule's *other* readings,
never with a mean that holds it. A model is compared with its own target, the mean of all readings, which is less noisy;
so `one_reader` also measures the model against the very same others, and only that difference is like for like.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.agreement import against_others
from lidc_cdam.metrics.drawn import Drawn, draw, mean_of, on
from lidc_cdam.metrics.intervals import Statistic, Weights, ratio
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS

Column = Float[np.ndarray, " nodule"]
Values = Float[np.ndarray, " reading"]
Chosen = Callable[[Values], dict[str, Statistic]]


def one_reader(
    readings: pd.DataFrame, key: str, nodule_ids: Sequence[str], predicted: Column | None = None
) -> tuple[dict[str, Statistic], dict[str, Statistic]]:
    """Figures of a single reading, and of a model, against the other readings of the same nodules.

    Args:
        readings: the table `readings.csv`.
        key: a target.
        nodule_ids: nodules of the weights, in order.
        predicted: the model's answers, same order; none gives no second answer.

    Returns:
        For malignancy `auc`: every reading scores the label that the median of the others gives, all readings pooled,
        those whose others are indeterminate left out. For a biomarker `z_mse` and `mae` against the mean of the others,
        averaged within a nodule, so that each counts once; z_mse in units of the variance of the mean of *all*
        readings. Empty where no nodule has two readings.
    """
    place = {nodule_id: row for row, nodule_id in enumerate(nodule_ids)}
    own = readings[readings["nodule_id"].isin(place.keys())]
    pairs = against_others(own, key, "median" if key == MALIGNANCY.key else "mean")
    if key == MALIGNANCY.key:
        pairs = pairs[pairs["others"] != 3]
    if pairs.empty:
        return {}, {}
    rows = pairs["nodule_id"].map(place).to_numpy(dtype=np.int64)
    figures = (_auc if key == MALIGNANCY.key else _errors)(pairs, rows)
    answers = figures(pairs["own"].to_numpy(dtype=np.float64))
    return answers, {} if predicted is None else figures(predicted[rows])


def _auc(pairs: pd.DataFrame, rows: np.ndarray) -> Chosen:
    label = (pairs["others"] > 3).to_numpy(dtype=np.float64)
    return lambda values: {"auc": on(weighted.auc(values, label), rows)}


def _errors(pairs: pd.DataFrame, rows: np.ndarray) -> Chosen:
    nodules, index = np.unique(rows, return_inverse=True)
    counts = np.bincount(index)
    others = pairs["others"].to_numpy(dtype=np.float64)
    means = np.bincount(index, pairs["own"]) / counts

    def figures(values: Values) -> dict[str, Statistic]:
        squares = np.bincount(index, (values - others) ** 2) / counts
        sizes = np.bincount(index, np.abs(values - others)) / counts
        return {
            "z_mse": on(weighted.scaled_error(squares, means), nodules),
            "mae": on(weighted.mean(sizes), nodules),
        }

    return figures


def noise_floor(readings: pd.DataFrame, key: str, nodule_ids: Sequence[str]) -> Statistic:
    """`agreement.Agreement.noise_floor` as a function of nodule weights.

    Args:
        readings: the table `readings.csv`.
        key: a target.
        nodule_ids: nodules of the weights, in order.
    """
    values = (
        readings.dropna(subset=[key]).groupby("nodule_id")[key].agg(["count", "mean", "var"]).reindex(list(nodule_ids))
    )
    rows = np.flatnonzero(values["count"].notna().to_numpy())
    known = values.iloc[rows]
    counts, means = (known[name].to_numpy(dtype=np.float64) for name in ("count", "mean"))
    squares = known["var"].fillna(0.0).to_numpy(dtype=np.float64) * (counts - 1)

    def figure(weights: Weights) -> Float[np.ndarray, " replicate"]:
        within = ratio(weights @ squares, weights @ (counts - 1))
        return within * weighted.scaled_error(1 / counts, means)(weights)

    return on(figure, rows)


def drawn_readers(
    readings: pd.DataFrame, nodule_ids: Sequence[str], predicted: Mapping[str, Column], weights: Weights
) -> dict[str, dict[str, dict[str, Drawn]]]:
    """The readers as rivals of a model.

    Args:
        readings: the table `readings.csv`.
        nodule_ids: nodules of the weights, in order.
        predicted: the model's answers by target.
        weights: bootstrap replicates of the nodules.

    Returns:
        `one_reader`, `model` (against the same others) and `noise_floor` (z_mse of the biomarkers), each by target and
        metric; with all eight biomarkers also their mean, as `biomarkers`.
    """
    found: dict[str, dict[str, dict[str, Drawn]]] = {"one_reader": {}, "model": {}, "noise_floor": {}}
    # The eight biomarkers make a concept bottleneck, which answers for malignancy too.
    complete = all(biomarker.key in predicted for biomarker in BIOMARKERS)
    for key in (key for key in TARGETS if key in predicted or complete):
        reader, model = one_reader(readings, key, nodule_ids, predicted.get(key))
        found["one_reader"] |= {key: draw(reader, weights)} if reader else {}
        found["model"] |= {key: draw(model, weights)} if model else {}
        if key != MALIGNANCY.key:
            found["noise_floor"][key] = draw({"z_mse": noise_floor(readings, key, nodule_ids)}, weights)
    for targets in found.values():
        if all(biomarker.key in targets for biomarker in BIOMARKERS):
            own = [targets[biomarker.key]["z_mse"] for biomarker in BIOMARKERS]
            targets["biomarkers"] = {"mean_z_mse": mean_of(own)}
    return found
