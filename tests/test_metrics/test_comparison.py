import json

import numpy as np
import pandas as pd
import pytest

from lidc_cdam.metrics.comparison import compare, lines_of


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for nodule in range(40):
        shared = rng.normal()
        for method, lead in (("cdam", 0.3), ("random", 0.0)):
            for target in ("margin", "texture"):
                value = lead + shared + 0.01 * rng.normal()
                rows.append((f"n{nodule}", f"p{nodule // 2}", 0, method, target, "relevance_mass", value))
                if nodule < 10:
                    rows.append((f"n{nodule}", f"p{nodule // 2}", 0, method, target, "fidelity", 10 * value))
    return pd.DataFrame(rows, columns=["nodule_id", "patient_id", "fold", "method", "target", "metric", "value"])


def test_difference_is_paired_by_nodule(table: pd.DataFrame) -> None:
    found = compare(table, replicates=300)
    own = found["methods"]["cdam"]["margin"]["relevance_mass"]
    apart = found["minus_random"]["cdam"]["margin"]["relevance_mass"]
    assert apart["value"] == pytest.approx(0.3, abs=0.02)
    assert apart["high"] - apart["low"] < 0.1 * (own["high"] - own["low"])
    assert (own["nodules"], found["methods"]["cdam"]["margin"]["fidelity"]["nodules"]) == (40, 10)
    assert (found["nodules"], found["patients"]) == (40, 20)
    json.dumps(found, allow_nan=False)


def test_all_is_the_mean_over_targets(table: pd.DataFrame) -> None:
    methods = compare(table, replicates=10)["methods"]["cdam"]
    parts = [methods[target]["relevance_mass"]["value"] for target in ("margin", "texture")]
    assert methods["all"]["relevance_mass"]["value"] == pytest.approx(np.mean(parts))


def test_values_without_an_answer_are_left_out_and_counted(table: pd.DataFrame) -> None:
    first = (table["nodule_id"] == "n0") & (table["method"] == "cdam") & (table["metric"] == "relevance_mass")
    expected = table[~first & (table["method"] == "cdam") & (table["metric"] == "relevance_mass")]["value"].mean()
    table.loc[first, "value"] = np.nan
    found = compare(table, replicates=10)["methods"]["cdam"]
    assert found["margin"]["relevance_mass"]["undefined"] == 1
    assert found["margin"]["relevance_mass"]["nodules"] == 39
    assert found["all"]["relevance_mass"]["value"] == pytest.approx(expected)
    assert found["all"]["relevance_mass"]["undefined"] == 1
    assert "undefined" not in found["all"]["fidelity"]


def test_table_for_people(table: pd.DataFrame) -> None:
    lines = lines_of(compare(table, replicates=100))
    assert lines[0].split("  ")[0] == "mean over targets"
    assert [line.split("  ")[0] for line in lines[1:]] == ["cdam", "random", "cdam - random"]
    assert "pointing" not in lines[0]
    assert "[" in lines[3]


def test_without_the_control_there_is_no_difference(table: pd.DataFrame) -> None:
    assert "minus_random" not in compare(table[table["method"] == "cdam"], replicates=10)
