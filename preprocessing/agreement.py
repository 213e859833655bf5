"""The table `agreement.csv`: how well the readers of a cohort agree, with intervals over patients.

The figures and their formulas are those of `lidc_cdam.metrics.agreement`.
"""

from collections.abc import Callable

import pandas as pd

from lidc_cdam.metrics.agreement import NoduleSums
from lidc_cdam.metrics.intervals import Weights, draw_weights, interval
from lidc_cdam.vocabulary import TARGETS
from preprocessing.readings import ABSENT, PRESENT

GROUPS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "labelled": lambda cohort: cohort["label"].notna(),
    "chosen": lambda cohort: cohort["nodule_id"].notna(),
}
"""Nodules that a row is about: those with a label, which models learn from, or all that were chosen."""
COLUMNS = ("group", "target", "nodules", "readings", "pairs")
DECIMALS = 6


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
