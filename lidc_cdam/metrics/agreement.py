"""How well the readers agree with each other: the ceiling of what a model can reach on their readings.

One-way random effects: reading j of nodule i is x_ij = mu + a_i + e_ij, because the readers of LIDC-IDRI are not named.
With n_i readings of nodule i, M = sum n_i, N nodules, means m_i, their reading-weighted mean m, and all P pairs of
readings of one nodule:

    MSB = sum n_i (m_i - m)^2 / (N - 1)             MSW = sum_ij (x_ij - m_i)^2 / (M - N)
    n_0 = (M - sum n_i^2 / M) / (N - 1)             for unequal numbers, Snedecor & Cochran

    icc              = (MSB - MSW) / (MSB + (n_0 - 1) MSW)                        ICC(1), Shrout & Fleiss 1979
    kappa            = 1 - D / E, with D = mean over pairs of (x_ij - x_ik)^2     quadratic weights, Cohen 1968
                       and E = the same for two values drawn from the readings in pairs, independently
    mean_difference  = mean over pairs of |x_ij - x_ik|                           on the readers' scale
    noise_floor      = mean_i(MSW / n_i) / var_i(m_i)                             of the z-scored mean squared error:
                       what even the nodule's true value would miss of the mean of n_i readings

Both readings of a pair stand in both roles, so kappa's margins are equal and E is twice the variance of the readings,
each counted once for every pair it is in.

On the 869 nodules of preset `all` they give the figures of the table in the documentation ("human ceiling").
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.intervals import Statistic, Weights, ratio
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS


class NoduleSums:
    """Per nodule, the sums that every figure is made of: figures of many draws of nodules are a few products."""

    def __init__(self, values: pd.Series, nodules: pd.Series) -> None:
        """Sum up readings.

        Args:
            values: one value per reading.
            nodules: the nodule of each reading; nodules come in the order of their identifiers.
        """
        table = pd.DataFrame({"nodule": nodules.to_numpy(), "value": values.to_numpy(dtype=float)})
        # A common shift changes no figure and keeps the sums of squares from cancelling.
        table["value"] -= table["value"].mean()
        groups = table.sort_values("value").groupby("nodule")
        self.nodules: pd.Index = groups["value"].count().index
        self.count: np.ndarray = groups["value"].count().to_numpy(dtype=float)
        self.mean: np.ndarray = groups["value"].mean().to_numpy()
        self.within: np.ndarray = groups["value"].var(ddof=0).to_numpy() * self.count
        self.pairs: np.ndarray = self.count * (self.count - 1) / 2
        # Of n values, the one with r smaller ones stands above r others and below n - 1 - r.
        above = 2 * groups.cumcount() - groups["value"].transform("count") + 1
        self.differences: np.ndarray = (above * table["value"]).groupby(table["nodule"]).sum().to_numpy()

    def icc(self, weights: Weights) -> Float[np.ndarray, " replicate"]:
        """ICC(1) of a single reading."""
        number, readings = weights.sum(axis=1), weights @ self.count
        grand = ratio(weights @ (self.count * self.mean), readings)
        between = ratio(_above_rounding(weights @ (self.count * self.mean**2) - readings * grand**2), number - 1)
        typical = ratio(readings - ratio(weights @ self.count**2, readings), number - 1)
        within = self._mean_square_within(weights)
        return ratio(between - within, between + (typical - 1) * within)

    def kappa(self, weights: Weights) -> Float[np.ndarray, " replicate"]:
        """Quadratic-weighted kappa of the pairs of readings."""
        in_pairs = self.count - 1
        total = weights @ (self.count * in_pairs)
        mean = ratio(weights @ (in_pairs * self.count * self.mean), total)
        square = ratio(weights @ (in_pairs * (self.within + self.count * self.mean**2)), total)
        # The squared differences of all pairs of n values add up to n times their squared deviations.
        observed = ratio(weights @ (self.count * self.within), weights @ self.pairs)
        return 1 - ratio(observed, 2 * _above_rounding(square - mean**2))

    def mean_difference(self, weights: Weights) -> Float[np.ndarray, " replicate"]:
        """Mean absolute difference of two readings of one nodule."""
        return ratio(weights @ self.differences, weights @ self.pairs)

    def noise_floor(self, weights: Weights) -> Float[np.ndarray, " replicate"]:
        """What even a nodule's true value would miss of its readers' mean, as z-scored mean squared error."""
        number = weights.sum(axis=1)
        mean = ratio(weights @ self.mean, number)
        variance = _above_rounding(ratio(weights @ self.mean**2, number) - mean**2)
        return ratio(self._mean_square_within(weights) * ratio(weights @ (1 / self.count), number), variance)

    def _mean_square_within(self, weights: Weights) -> Float[np.ndarray, " replicate"]:
        return ratio(weights @ self.within, weights @ (self.count - 1))

    @property
    def figures(self) -> dict[str, Statistic]:
        """Each figure by the name of its column."""
        return {
            "icc": self.icc,
            "kappa": self.kappa,
            "mean_difference": self.mean_difference,
            "noise_floor": self.noise_floor,
        }


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
    sums = NoduleSums(values, nodules)
    once = np.ones((1, len(sums.count)))
    return Agreement(**{name: float(sums.figures[name](once)[0]) for name in ("icc", "mean_difference", "noise_floor")})


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


def _above_rounding(squares: Float[np.ndarray, " replicate"]) -> Float[np.ndarray, " replicate"]:
    """Differences of squares, where what is left by rounding is 0: nothing is divided by it then."""
    return np.where(squares > 1e-9, squares, 0.0)
