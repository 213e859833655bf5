"""How well the readers of a cohort agree, with intervals over patients: `agreement.csv`.

Reading j of nodule i is x_ij; readers are not named, so a nodule's readings are exchangeable (one-way random effects).
With n_i readings of nodule i, M = sum n_i, N nodules, means m_i, their reading-weighted mean m, and all P pairs of
readings of one nodule:

    MSB = sum n_i (m_i - m)^2 / (N - 1)             MSW = sum_ij (x_ij - m_i)^2 / (M - N)
    n_0 = (M - sum n_i^2 / M) / (N - 1)

    icc              = (MSB - MSW) / (MSB + (n_0 - 1) MSW)                        ICC(1), Shrout & Fleiss 1979
    kappa            = 1 - D / E, with D = mean over pairs of (x_ij - x_ik)^2     quadratic weights, Cohen 1968
                       and E = the same for two values drawn from the readings in pairs, independently
    mean_difference  = mean over pairs of |x_ij - x_ik|                           on the readers' scale
    noise_floor      = mean_i(MSW / n_i) / var_i(m_i)                             of the z-scored mean squared error

Both readings of a pair stand in both roles, so kappa's margins are equal and E is twice the variance of the readings,
each counted once for every pair it is in. Point values equal `lidc_cdam.metrics.agreement`, which has no weights.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics.intervals import Statistic, Weights, draw_weights, interval, ratio
from lidc_cdam.vocabulary import TARGETS
from preprocessing.readings import ABSENT, PRESENT

GROUPS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "labelled": lambda cohort: cohort["label"].notna(),
    "chosen": lambda cohort: cohort["nodule_id"].notna(),
}
"""Nodules that a row is about: those with a label, which models learn from, or all that were chosen."""
COLUMNS = ("group", "target", "nodules", "readings", "pairs")
DECIMALS = 6


class NoduleSums:
    """Per nodule, the sums that every figure is made of; each is one value per nodule."""

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


def agreement_table(cohort: pd.DataFrame, readings: pd.DataFrame) -> pd.DataFrame:
    """The rows of `agreement.csv`: malignancy, the eight biomarkers and the presence of calcification, for each group.

    Each figure stands with the ends of its 95 % interval (2000 draws of patients with replacement); empty where the
    readings do not define it.

    Args:
        cohort: the table `cohort.csv`.
        readings: the table `readings.csv`.
    """
    rows = []
    for group, members in GROUPS.items():
        chosen = readings[readings["nodule_id"].isin(cohort.loc[members(cohort), "nodule_id"])]
        if chosen.empty:
            continue
        # In the order in which `NoduleSums` has its nodules.
        weights = draw_weights(chosen.groupby("nodule_id")["patient_id"].first().tolist())
        for target in (*TARGETS, PRESENT):
            values = (chosen["calcification"] != ABSENT).astype(float) if target == PRESENT else chosen[target]
            sums = NoduleSums(values, chosen["nodule_id"])
            counts = (len(sums.count), len(chosen), int(sums.pairs.sum()))
            rows.append(dict(zip(COLUMNS, (group, target, *counts), strict=True)) | _figures(sums, weights))
    return pd.DataFrame(rows, columns=None if rows else [*COLUMNS])


def _figures(sums: NoduleSums, weights: Weights) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, statistic in sums.figures.items():
        figure = interval(statistic, weights)
        ends = {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        found |= {key: round(value, DECIMALS) for key, value in ends.items()}
    return found


def _above_rounding(squares: Float[np.ndarray, " replicate"]) -> Float[np.ndarray, " replicate"]:
    """Differences of squares, where what is left by rounding is 0: nothing is divided by it then."""
    return np.where(squares > 1e-9, squares, 0.0)
