"""From one row per phantom, method, biomarker and figure to means and correlations with intervals over patients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lidc_cdam.metrics.causes import REACTS, correlation, expected_sign, partial_correlation
from lidc_cdam.metrics.intervals import LEVEL, Weights, column_means, draw_weights, interval
from lidc_cdam.metrics.text_tables import Entry, aligned, cell
from lidc_cdam.vocabulary import BIOMARKERS

MODEL = "model"
"""Rows of the outputs themselves, which no map takes part in."""
MEANS = (
    "cause_mass",
    "cause_mass_positive",
    "cause_share",
    "cause_mass_gain",
    "cause_auprc",
    "cause_in_nodule",
    "sign_with_cause",
    "sign_of_change",
    "size_correlation",
)
COLUMNS: dict[str, tuple[str, str]] = {
    "cause_mass": ("mass on cause", ".2f"),
    "cause_share": ("chance", ".2f"),
    "cause_auprc": ("AUPRC", ".2f"),
    "cause_in_nodule": ("x nodule", ".2f"),
    "sign_with_cause": ("sign agrees", ".2f"),
    "sign_constant": ("constant", ".2f"),
    "change_correlation": ("r with change", "+.2f"),
    "size_correlation": ("r diameter map", "+.2f"),
    "partial_correlation": ("partial r", "+.2f"),
}
"""Figures of the printed table: title and number format."""


def summarise(table: pd.DataFrame, cohort: pd.DataFrame, replicates: int, seed: int) -> dict[str, Any]:
    """Every method's figures per biomarker.

    Args:
        table: rows of `causes.csv`.
        cohort: readers' values by nodule, for what is left of a correlation given diameter.
        replicates: bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        `effects` {changed biomarker: {output: interval}}, on the model's own scale; `methods` {method: {biomarker:
        {figure: interval}}}.
    """
    keys = ["nodule_id", "patient_id"]
    people = table[keys].drop_duplicates().sort_values("nodule_id")
    weights = draw_weights(list(people["patient_id"]), replicates, seed)
    index = list(people["nodule_id"])
    found: dict[str, Any] = {
        "bootstrap": {"unit": "patient", "replicates": replicates, "level": LEVEL, "seed": seed},
        "phantoms": len(index),
        "patients": int(people["patient_id"].nunique()),
        "effects": {},
        "methods": {},
    }
    for (method, target), rows in table.groupby(["method", "target"], sort=False):
        wide = rows.pivot(index="nodule_id", columns="metric", values="value").reindex(index)
        if method == MODEL:
            for name, entry in _means(wide, weights, list(wide.columns)).items():
                found["effects"].setdefault(name.removeprefix("effect_of_"), {})[target] = entry
        else:
            found["methods"].setdefault(method, {})[target] = _figures(wide, str(target), cohort, weights)
    order = [biomarker.key for biomarker in BIOMARKERS]
    found["effects"] = {key: found["effects"][key] for key in order if key in found["effects"]}
    return found


def _figures(wide: pd.DataFrame, target: str, cohort: pd.DataFrame, weights: Weights) -> dict[str, Entry]:
    """One method's figures of one biomarker."""
    wide = wide.copy()
    wide["cause_mass_gain"] = wide["cause_mass"] - wide["cause_share"]
    # Chance is of the phantoms whose map has an answer.
    wide.loc[wide["cause_mass"].isna(), "cause_share"] = np.nan
    found = _means(wide, weights, [name for name in MEANS if name in wide])
    total, rating = wide["map_total"].to_numpy(), cohort[target].reindex(wide.index).to_numpy(dtype=float)
    size = np.log(cohort["diameter"].reindex(wide.index).to_numpy(dtype=float))
    statistics = {
        "total_rating_correlation": correlation(total, rating),
        "total_size_correlation": correlation(total, size),
    }
    if target != "diameter":
        statistics["partial_correlation"] = partial_correlation(total, rating, size)
    if "output_change" in wide:
        change = wide["output_change"].to_numpy()
        moved = (wide["region_most"] - wide["region_least"]).to_numpy()
        statistics["change_correlation"] = correlation(moved, change)
        reacts = np.abs(change) >= REACTS
        found["sign_constant"] = _plain(
            max((change[reacts] > 0).mean(), (change[reacts] < 0).mean()) if reacts.any() else np.nan
        )
        found["reacting"] = _plain(reacts[np.isfinite(change)].mean() if np.isfinite(change).any() else np.nan)
    return found | {name: interval(statistic, weights).as_dict() for name, statistic in statistics.items()}


def _plain(value: float) -> Entry:
    """A figure without an interval."""
    return {"value": float(value) if np.isfinite(value) else None, "low": None, "high": None}


def _means(wide: pd.DataFrame, weights: Weights, names: list[str]) -> dict[str, Entry]:
    """Means of columns, each with how many phantoms it is of."""
    values = wide[names].to_numpy(dtype=np.float64)
    counts = (~np.isnan(values)).sum(0)
    return {
        name: {**entry.as_dict(), "phantoms": int(count)}
        for name, entry, count in zip(names, column_means(values, weights), counts, strict=True)
    }


def lines_of_causes(found: Mapping[str, Any]) -> list[str]:
    """Two text tables: what the outputs do when one biomarker changes, and every method's maps."""
    lines = [
        f"{found['phantoms']} phantoms of {found['patients']} patients; 95 % intervals over patients.",
        "",
        "Outputs (model's own scale) when one biomarker alone goes from the least to the most of its cause:",
        *aligned(
            [_effect_row(key, row) for key, row in found["effects"].items()],
            ["changed", "own output", "expected", "most moved other"],
        ),
        "",
    ]
    cells = [
        [target, method, *(cell(entry.get(name), form) for name, (_, form) in COLUMNS.items())]
        for target in found["effects"]
        for method, targets in found["methods"].items()
        if (entry := targets.get(target))
    ]
    return lines + aligned(cells, ["biomarker", "method", *(title for title, _ in COLUMNS.values())])


def _effect_row(changed: str, row: Mapping[str, Entry]) -> list[str]:
    others = {name: entry["value"] for name, entry in row.items() if name != changed and entry["value"] is not None}
    furthest = max(others, key=lambda name: abs(others[name] or 0.0), default="")
    told = f"{furthest} {others[furthest]:+.2f}" if furthest else "-"
    return [changed, cell(row.get(changed), "+.2f"), "+" if expected_sign(changed) > 0 else "-", told]
