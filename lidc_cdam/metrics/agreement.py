"""How well the readers agree with each other: the ceiling of what a model can reach on their readings.

One-way random effects: reading j of nodule i is mu + a_i + e_ij, because the readers of LIDC-IDRI are not named. With
N nodules, n_i readings of nodule i, M = sum n_i, nodule means m_i and the mean of all readings m:

    MSB = sum n_i (m_i - m)^2 / (N - 1)            MSW = sum (n_i - 1) s_i^2 / (M - N)
    n_0 = (M - sum n_i^2 / M) / (N - 1)            (Shrout & Fleiss 1979; n_0 for unequal numbers, Snedecor & Cochran)

    ICC(1)               = (MSB - MSW) / (MSB + (n_0 - 1) MSW)
    mean difference      = mean of |x_ij - x_ik| over all pairs of readings of one nodule, pooled over nodules
    noise floor of z-MSE = mean_i(MSW / n_i) / var_i(m_i): what even the nodule's true value would miss of the mean of
                           n_i readings, in units of the population variance of those means

On the 869 nodules of preset `all` they give the figures of the table in the documentation ("human ceiling").
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics import weighted
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS


@dataclass(frozen=True)
class Agreement:
    """Agreement of the readers on one target; NaN where too few readings define it."""

    icc: float
    """One-way intraclass correlation of a single reading, ICC(1)."""
    mean_difference: float
    """Mean absolute difference of two readings of one nodule, on the readers' scale."""
    noise_floor: float
    """Noise floor of the z-scored mean squared error against the mean of a nodule's readings."""

    def as_dict(self) -> dict[str, float | None]:
        """For JSON: null where not defined."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def agreement(values: pd.Series, nodules: pd.Series) -> Agreement:
    """Agreement of the readings of one quantity.

    Args:
        values: one value per reading.
        nodules: the nodule of each reading; any number of readings per nodule, at least one nodule with two.
    """
    groups = values.groupby(nodules.to_numpy())
    counts = groups.count().to_numpy(dtype=np.float64)
    means = groups.mean().to_numpy(dtype=np.float64)
    number, readings = len(counts), float(counts.sum())
    if number < 2 or readings <= number:
        return Agreement(float("nan"), float("nan"), float("nan"))
    deviations = values.to_numpy(dtype=np.float64) - groups.transform("mean").to_numpy(dtype=np.float64)
    within = float((deviations**2).sum() / (readings - number))
    between = float((counts * (means - values.mean()) ** 2).sum() / (number - 1))
    typical = float((readings - (counts**2).sum() / readings) / (number - 1))
    return Agreement(
        _quotient(between - within, between + (typical - 1) * within),
        float(_pair_differences(values, nodules).mean()),
        _quotient(float((within / counts).mean()), float(means.var())),
    )


def agreement_of_targets(readings: pd.DataFrame, nodule_ids: Collection[str] | None = None) -> dict[str, Agreement]:
    """Agreement on malignancy (its rating, 1 to 5) and the eight biomarkers.

    Args:
        readings: the table `readings.csv`.
        nodule_ids: nodules to look at; all by default.
    """
    chosen = readings if nodule_ids is None else readings[readings["nodule_id"].isin(set(nodule_ids))]
    return {key: agreement(chosen[key], chosen["nodule_id"]) for key in TARGETS}


def mean_noise_floor(found: dict[str, Agreement]) -> float:
    """Mean noise floor over the eight biomarkers."""
    return float(np.mean([found[biomarker.key].noise_floor for biomarker in BIOMARKERS]))


def reader_auc(readings: pd.DataFrame, nodule_ids: Collection[str] | None = None) -> float:
    """AUC of one reader's malignancy rating for the label that the median of the nodule's other readers gives.

    Every reading is scored once against the others of its nodule; those whose others have the median 3
    (indeterminate) are left out. All readings are pooled.

    Args:
        readings: the table `readings.csv`.
        nodule_ids: nodules to look at; all by default.
    """
    chosen = readings if nodule_ids is None else readings[readings["nodule_id"].isin(set(nodule_ids))]
    pairs = against_others(chosen, MALIGNANCY.key, "median")
    pairs = pairs[pairs["others"] != 3]
    if pairs.empty:
        return float("nan")
    label = (pairs["others"] > 3).to_numpy(dtype=np.float64)
    figure = weighted.auc(pairs["own"].to_numpy(dtype=np.float64), label)
    return float(figure(np.ones((1, len(pairs))))[0])


def against_others(readings: pd.DataFrame, key: str, centre: Literal["mean", "median"]) -> pd.DataFrame:
    """Each reading of one quantity beside the mean or the median of the other readings of its nodule.

    Args:
        readings: the table `readings.csv`; a nodule with one reading has no others and is left out.
        key: the quantity.
        centre: of the others.

    Returns:
        `nodule_id`, `own` and `others`, one row per reading.
    """
    known = readings.dropna(subset=[key])
    rows: list[tuple[str, float, float]] = []
    for nodule_id, values in known.groupby("nodule_id", sort=False)[key]:
        own = values.to_numpy(dtype=np.float64)
        rest = [np.delete(own, index) for index in range(len(own)) if len(own) > 1]
        rows += [
            (str(nodule_id), value, float(np.mean(others) if centre == "mean" else np.median(others)))
            for value, others in zip(own, rest, strict=False)
        ]
    return pd.DataFrame(rows, columns=["nodule_id", "own", "others"])


def _pair_differences(values: pd.Series, nodules: pd.Series) -> Float[np.ndarray, " pair"]:
    """|x_ij - x_ik| of every pair of readings of one nodule."""
    table = pd.DataFrame({"nodule": nodules.to_numpy(), "value": values.to_numpy(dtype=np.float64)})
    table["reading"] = np.arange(len(table))
    pairs = table.merge(table, on="nodule", suffixes=("", "_other"))
    pairs = pairs[pairs["reading"] < pairs["reading_other"]]
    found: Float[np.ndarray, " pair"] = (pairs["value"] - pairs["value_other"]).abs().to_numpy()
    return found


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
