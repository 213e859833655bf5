"""From one row per nodule, method, target and metric to figures with intervals, and methods against chance."""

from collections import Counter
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float

from lidc_cdam.metrics.differences import enough, paired_differences
from lidc_cdam.metrics.intervals import LEVEL, REPLICATES, Interval, Weights, column_means, draw_weights, known_mean
from lidc_cdam.metrics.text_tables import aligned, cell

CONTROL = "random"
"""The method that the others are compared with, nodule by nodule."""
ALL = "all"
"""Name, beside the targets, of a nodule's mean over its targets."""
TITLES: dict[str, tuple[str, str]] = {
    "relevance_mass": ("relevance mass", ".3f"),
    "relevance_rank": ("relevance rank", ".3f"),
    "pointing_game": ("pointing game", ".3f"),
    "auprc": ("AUPRC", ".3f"),
    "auprc_chance": ("chance of AUPRC", ".3f"),
    "relevance_mass_chance": ("chance of mass, rank, pointing", ".3f"),
    "relevance_mass_soft": ("soft mass", ".3f"),
    "relevance_mass_soft_chance": ("chance of soft mass", ".3f"),
    "relevance_rank_soft": ("soft rank", ".3f"),
    "relevance_rank_soft_chance": ("chance of soft rank", ".3f"),
    "compactness": ("compactness", ".3f"),
    "fidelity": ("fidelity", ".2f"),
    "fidelity_delta": ("fidelity Delta", ".2f"),
    "box": ("box sensitivity", ".2f"),
    "box_delta": ("box Delta", ".2f"),
    "randomised_head": ("random head", ".3f"),
    "randomised_embedding": ("all random", ".3f"),
    "repeated_fold": ("other folds", ".3f"),
    "repeated_run": ("other run", ".3f"),
    "label_randomised": ("random labels", ".3f"),
    "completeness_gap": ("completeness gap", ".4f"),
}
"""Metrics of the method x metric table: title and number format."""
PRINTED = (
    "relevance_mass",
    "relevance_rank",
    "pointing_game",
    "relevance_mass_chance",
    "fidelity",
    "fidelity_delta",
    "box",
    "box_delta",
)
"""Those of the table in the terminal."""
CHANCES = tuple(metric for metric in TITLES if metric.endswith("_chance"))
BY_DIAMETER = tuple(metric for metric in TITLES if metric.startswith(("relevance", "pointing", "auprc")))
TERTILES = ("small", "middle", "large")

Column = tuple[str, str, str]
"""Method, target, metric."""


def compare(
    table: pd.DataFrame, replicates: int = REPLICATES, seed: int = 0, diameters: pd.Series | None = None
) -> dict[str, Any]:
    """Means and paired differences, with intervals over patients.

    Args:
        table: rows of `explainers.csv`; a value that is not defined is NaN.
        replicates: bootstrap replicates.
        seed: seed of the bootstrap.
        diameters: mean diameter of each nodule by the readers, mm, for the split by tertile.

    Returns:
        `methods` {method: {target: {metric: interval}}}; each with `nodules`, how many the mean is of, and
        `undefined`, how many had no answer. `minus_random` likewise, for nodules with both. The target `all` is the
        mean over a nodule's targets; of a difference, over those that both methods answer. `differences` of all pairs
        of methods, of `all`, with p-values
        (`differences.paired_differences`), and with `diameters` the localisation of `all` `by_diameter`.
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
        apart = _over_common_targets(paired, apart)
        found["minus_random"] = _nested(paired, apart, column_means(apart, weights))
    compared = [target != ALL and metric in TITLES and metric not in CHANCES for _, target, metric in columns]
    patients = list(wide.index.get_level_values("patient_id"))
    found["differences"] = paired_differences(wide.loc[:, compared], patients, replicates, seed)
    found["bootstrap"]["difference_replicates"] = enough(len({method for method, *_ in columns}), replicates)
    over = cast(pd.DataFrame, wide.xs(ALL, axis=1, level="target"))
    if diameters is not None:
        found["by_diameter"] = _by_diameter(over, diameters, weights)
    return found


def lines_of(comparison: dict[str, Any]) -> list[str]:
    """The comparison as a small text table: means over targets, methods as rows."""
    rows = {method: targets[ALL] for method, targets in comparison["methods"].items()}
    rows |= {f"{method} - {CONTROL}": targets[ALL] for method, targets in comparison.get("minus_random", {}).items()}
    measured = [metric for metric in TITLES if any(metric in row for row in rows.values())]
    shown = [metric for metric in PRINTED if metric in measured] or measured
    cells = [[name, *(cell(row.get(metric), TITLES[metric][1]) for metric in shown)] for name, row in rows.items()]
    return aligned(cells, ["mean over targets", *(TITLES[metric][0] for metric in shown)])


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


def _over_common_targets(
    columns: list[Column], apart: Float[np.ndarray, "nodule column"]
) -> Float[np.ndarray, "nodule column"]:
    """The differences with that of `ALL` as the mean over the targets that have one, and not one of two means."""
    members: dict[tuple[str, str], list[int]] = {}
    for place, (method, target, metric) in enumerate(columns):
        if target != ALL:
            members.setdefault((method, metric), []).append(place)
    means = {key: known_mean(apart[:, places], axis=1) for key, places in members.items()}
    parts = [
        means[method, metric] if target == ALL else apart[:, place]
        for place, (method, target, metric) in enumerate(columns)
    ]
    return np.stack(parts, axis=1)


def _by_diameter(over: pd.DataFrame, diameters: pd.Series, weights: Weights) -> dict[str, Any]:
    """Localisation of small, middle and large nodules."""
    sizes = diameters.reindex(over.index.get_level_values("nodule_id")).to_numpy(dtype=np.float64)
    bounds = np.nanquantile(sizes, (1 / 3, 2 / 3)) if len(sizes) else np.array([np.nan, np.nan])
    kept = [metric in BY_DIAMETER for metric in over.columns.get_level_values("metric")]
    values = over.loc[:, kept]
    pairs = cast(list[tuple[str, str]], list(values.columns))
    columns = [(method, tertile, metric) for tertile in TERTILES for method, metric in pairs]
    parts = [
        np.where((np.searchsorted(bounds, sizes) == number)[:, None], values.to_numpy(dtype=np.float64), np.nan)
        for number in range(len(TERTILES))
    ]
    split = np.concatenate(parts, axis=1)
    return {
        "bounds_mm": [float(bound) for bound in bounds],
        "methods": _nested(columns, split, column_means(split, weights)),
    }


def _nested(
    columns: list[Column], values: Float[np.ndarray, "nodule column"], intervals: list[Interval]
) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    counts = (~np.isnan(values)).sum(0)
    for (method, target, metric), interval, count in zip(columns, intervals, counts, strict=True):
        entry = {**interval.as_dict(), "nodules": int(count)}
        nested.setdefault(method, {}).setdefault(target, {})[metric] = entry
    return nested
