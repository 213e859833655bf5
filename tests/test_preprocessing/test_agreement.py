"""The table of the readers' agreement: the published ceiling, intervals, shape."""

from pathlib import Path

import pandas as pd
import pytest
from published import PUBLISHED

from lidc_cdam import artifacts
from lidc_cdam.vocabulary import TARGETS
from preprocessing.agreement import agreement_table

FIGURES = ("icc", "kappa", "mean_difference", "noise_floor")


@pytest.fixture(scope="module")
def table(cohorts: dict[str, Path]) -> pd.DataFrame:
    return pd.read_csv(cohorts["all"] / artifacts.AGREEMENT).set_index(["group", "target"])


@pytest.mark.parametrize("target", PUBLISHED)
def test_the_published_ceiling(table: pd.DataFrame, target: str) -> None:
    row = table.loc[("labelled", target)]
    icc, difference, floor = PUBLISHED[target]
    assert (round(row["icc"], 2), round(row["mean_difference"], 2)) == (icc, difference)
    # Printed to three places; diameter's 0.0175 may have gone either way.
    assert row["noise_floor"] == pytest.approx(floor, abs=0.00051)
    assert (row["nodules"], row["readings"]) == (869, 3250)


def test_the_table_has_every_target_in_both_groups(table: pd.DataFrame) -> None:
    assert list(table.loc["labelled"].index) == list(table.loc["chosen"].index) == [*TARGETS, "calcification_present"]
    assert set(table.loc["chosen", "nodules"]) == {1378}
    for name in FIGURES:
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()


def test_a_cohort_without_labels_has_one_group(cohorts) -> None:
    cohort, readings = artifacts.read_cohort(cohorts["all"]), artifacts.read_readings(cohorts["all"])
    table = agreement_table(cohort[cohort["label"].isna()].head(40), readings)
    assert set(table["group"]) == {"chosen"}
    assert set(table["nodules"]) == {40}
    assert agreement_table(cohort.head(0), readings).empty
