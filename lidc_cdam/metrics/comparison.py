"""From one row per nodule, method, target and metric to figures with intervals, and methods against chance."""

from collections import Counter
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics.intervals import LEVEL, REPLICATES, Interval, column_means, draw_weights

CONTROL = "random"
"""The method that the others are compared with, nodule by nodule."""
ALL = "all"
"""Name, beside the targets, of a nodule's mean over its targets."""
SHOWN: dict[str, tuple[str, str]] = {
    "relevance_mass": ("relevance mass", ".3f"),
    "relevance_rank": ("relevance rank", ".3f"),
    "pointing_game": ("pointing game", ".3f"),
    "relevance_mass_chance": ("chance of the three", ".3f"),
    "fidelity": ("fidelity", ".2f"),
}
"""Metrics of the printed table: title and number format."""

Column = tuple[str, str, str]
"""Method, target, metric."""


def compare(table: pd.DataFrame, replicates: int = REPLICATES, seed: int = 0) -> dict[str, Any]:
    """Means and paired differences to `random`, with intervals over patients.

    Args:
        table: rows of `explainers.csv`; a value that is not defined is NaN.
        replicates: bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        `methods` {method: {target: {metric: interval}}}; each with `nodules`, how many the mean is of, and
        `undefined`, how many had no answer. `minus_random` likewise, for nodules with both. The target `all` is the
        mean over a nodule's targets.
    """
    rows = _with_means(table)
    wide = _wide(rows)
    weights = draw_weights(list(wide.index.get_level_values("patient_id")), replicates, seed)
    columns = [cast(Column, column) for column in wide.columns]
    values = wide.to_numpy(dtype=np.float64)
    lacking = rows[rows["value"].isna()]
    undefined = Counter(zip(lacking["method"], lacking["target"], lacking["metric"], strict=True))
    found: dict[str, Any] = {
        "bootstrap": {"unit": "patient", "replicates": replicates, "level": LEVEL, "seed": seed},
        "nodules": len(wide),
        "patients": int(wide.index.get_level_values("patient_id").nunique()),
        "methods": _nested(columns, values, column_means(values, weights)),
    }
    for (method, target, metric), count in undefined.items():
        found["methods"][method][target][metric]["undefined"] = count
    paired = [column for column in columns if column[0] != CONTROL and (CONTROL, *column[1:]) in columns]
    if paired:
        controls = [columns.index((CONTROL, target, metric)) for _, target, metric in paired]
        apart = values[:, [columns.index(column) for column in paired]] - values[:, controls]
        found["minus_random"] = _nested(paired, apart, column_means(apart, weights))
    return found


def lines_of(comparison: dict[str, Any]) -> list[str]:
    """The comparison as a small text table: means over targets, methods as rows."""
    rows = {method: targets[ALL] for method, targets in comparison["methods"].items()}
    rows |= {f"{method} - {CONTROL}": targets[ALL] for method, targets in comparison.get("minus_random", {}).items()}
    shown = [metric for metric in SHOWN if any(metric in row for row in rows.values())]
    cells = [["mean over targets", *(SHOWN[metric][0] for metric in shown)]]
    for name, row in rows.items():
        cells.append([name, *(_cell(row.get(metric), SHOWN[metric][1]) for metric in shown)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _with_means(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each nodule's mean over its targets as one more target."""
    keys = ["nodule_id", "patient_id", "method", "metric"]
    over = table.groupby(keys, as_index=False)["value"].mean().assign(target=ALL)
    rows: pd.DataFrame = pd.concat([table[[*keys, "target", "value"]], over], ignore_index=True)
    return rows


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per nodule, one column per method, target and metric."""
    indexed = rows.set_index(["nodule_id", "patient_id", "method", "target", "metric"])["value"]
    wide: pd.DataFrame = indexed.unstack(["method", "target", "metric"])
    return wide


def _nested(
    columns: list[Column], values: Float[np.ndarray, "nodule column"], intervals: list[Interval]
) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    counts = (~np.isnan(values)).sum(0)
    for (method, target, metric), interval, count in zip(columns, intervals, counts, strict=True):
        entry = {**interval.as_dict(), "nodules": int(count)}
        nested.setdefault(method, {}).setdefault(target, {})[metric] = entry
    return nested


def _cell(entry: dict[str, Any] | None, form: str) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    ends = [entry[name] for name in ("low", "high")]
    interval = "" if None in ends else f" [{', '.join(format(end, form) for end in ends)}]"
    return f"{entry['value']:{form}}{interval}"
