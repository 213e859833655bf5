"""What `evaluate` measured of a run's maps (`explainers.csv`), per nodule and over the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lidc_cdam import artifacts

MASS, CHANCE, RANK, POINTING = "relevance_mass", "relevance_mass_chance", "relevance_rank", "pointing_game"
FIDELITY = "fidelity"
"""A_(LIF-MIF): above zero where the prediction falls faster without what the map calls important."""
CONTROL = "random"
"""Method that a map is compared with."""

Measures = dict[str, dict[str, float]]
"""Value by target and metric."""
Typical = dict[str, dict[str, tuple[float, float]]]
"""Quartiles (25 %, 75 %) over a run's nodules by target and metric."""


@dataclass(frozen=True)
class Measured:
    """The rows of some methods."""

    table: pd.DataFrame
    nodules: dict[tuple[str, str], Measures]
    """By method and nodule."""

    def of(self, method: str, nodule: str) -> Measures:
        """One nodule's values; empty where there are none."""
        return self.nodules.get((method, nodule), {})

    def typical(self, method: str) -> Typical:
        """The middle half of every metric of a method."""
        found: Typical = {}
        for (target, metric), values in self.table[self.table["method"] == method].groupby(["target", "metric"])[
            "value"
        ]:
            low, high = np.percentile(values, (25, 75))
            found.setdefault(str(target), {})[str(metric)] = (float(low), float(high))
        return found


def read_measures(run: Path, methods: Sequence[str]) -> Measured:
    """A run's `explainers.csv`, as far as it is about some methods; empty if nothing was measured.

    Raises:
        LidcCdamError: the table is malformed.
    """
    path = run / artifacts.EXPLAINERS
    columns = artifacts.EXPLAINER_COLUMNS
    if not path.exists():
        return Measured(pd.DataFrame(columns=list(columns)), {})
    table = artifacts.read_table(path, columns, "evaluate")
    table = table[table["method"].isin(methods) & np.isfinite(table["value"])]
    nodules: dict[tuple[str, str], Measures] = {}
    for method, nodule, target, metric, value in table[["method", "nodule_id", "target", "metric", "value"]].itertuples(
        index=False
    ):
        if math.isfinite(value):
            nodules.setdefault((method, nodule), {}).setdefault(target, {})[metric] = float(value)
    return Measured(table, nodules)
