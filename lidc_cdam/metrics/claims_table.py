"""From one row per nodule, method, target and figure to claims with intervals over patients and a verdict each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lidc_cdam.metrics.claims import CLAIMS, CORE_MM, NEAR_MM, NEGLIGIBLE, PROFILE_MM, SHELL_MM
from lidc_cdam.metrics.intervals import LEVEL, Weights, column_means, draw_weights
from lidc_cdam.metrics.text_tables import aligned, cell
from lidc_cdam.vocabulary import TARGETS

GROUPS = ("all", "highest third")
"""Nodules that a claim is measured on: every one, and those with the highest readers' values of its target."""
SHOWN = ("core", "shell", "near", "far")


def summarise(
    table: pd.DataFrame,
    profiles: Sequence[tuple[str, str, str, np.ndarray]],
    cohort: pd.DataFrame,
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    """Claims, regions, correlations and profiles of every method.

    Args:
        table: rows of `claims.csv`.
        profiles: (nodule, method, target, level in each bin).
        cohort: readers' values by nodule.
        replicates: bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        `methods` {method: {`claims`, `regions`, `correlations`, `profiles`}}.
    """
    people = table[["nodule_id", "patient_id"]].drop_duplicates().sort_values("nodule_id")
    index = list(people["nodule_id"])
    weights = draw_weights(list(people["patient_id"]), replicates, seed)
    found: dict[str, Any] = {
        "bootstrap": {"unit": "patient", "replicates": replicates, "level": LEVEL, "seed": seed},
        "regions_mm": {"core_below": CORE_MM, "shell_to": SHELL_MM, "near_to": NEAR_MM},
        "negligible": NEGLIGIBLE,
        "profile_mm": list(PROFILE_MM),
        "nodules": len(index),
        "patients": int(people["patient_id"].nunique()),
        "methods": {},
    }
    for method in table["method"].unique():
        rows = table[table["method"] == method]
        wide = {
            str(target): part.pivot(index="nodule_id", columns="metric", values="value").reindex(index)
            for target, part in rows.groupby("target", sort=False)
        }
        curves = {
            target: np.stack(
                [curve for _, by, of, curve in sorted(profiles, key=lambda row: row[0]) if (by, of) == (method, target)]
            )
            for target in wide
        }
        found["methods"][method] = {
            "claims": _claims(wide, cohort, weights),
            "regions": {
                target: _intervals(part, weights, [name for name in part if not str(name).startswith("correlation_")])
                for target, part in wide.items()
            },
            "correlations": {
                target: _intervals(
                    part, weights, [name for name in part if str(name).startswith("correlation_")], len("correlation_")
                )
                for target, part in wide.items()
            },
            "profiles": {
                target: [entry.as_dict() for entry in column_means(curve, weights)] for target, curve in curves.items()
            },
        }
    return found


def _claims(wide: Mapping[str, pd.DataFrame], cohort: pd.DataFrame, weights: Weights) -> list[dict[str, Any]]:
    """Every claim about a target that the run has, on each group of nodules."""
    rows = []
    for claim in CLAIMS:
        if claim.target not in wide:
            continue
        values = claim.column(wide[claim.target])
        rating = cohort[claim.target].reindex(wide[claim.target].index).to_numpy(dtype=float)
        highest = rating >= np.nanquantile(rating, 2 / 3)
        for group in GROUPS:
            chosen = values if group == "all" else np.where(highest, values, np.nan)
            (entry,) = column_means(chosen[:, None], weights)
            told = entry.as_dict()
            verdict = claim.verdict(told["low"], told["high"])
            count = int(np.isfinite(chosen).sum())
            if count:
                rows.append(
                    {
                        "target": claim.target,
                        "claim": claim.words,
                        "figure": claim.figure,
                        "group": group,
                        **told,
                        "nodules": count,
                        "verdict": verdict,
                    }
                )
    return rows


def _intervals(part: pd.DataFrame, weights: Weights, names: Sequence[Any], cut: int = 0) -> dict[str, Any]:
    if not names:
        return {}
    found = column_means(part[list(names)].to_numpy(dtype=np.float64), weights)
    return {str(name)[cut:]: entry.as_dict() for name, entry in zip(names, found, strict=True)}


def lines_of_claims(found: Mapping[str, Any]) -> list[str]:
    """Text tables: the claims by each method; of the first one also shares by region and correlations of maps."""
    lines = [f"{found['nodules']} nodules of {found['patients']} patients; 95 % intervals over patients."]
    for method, parts in found["methods"].items():
        claims = [
            [row["target"], row["claim"], row["group"], str(row["nodules"]), cell(row, "+.2f"), row["verdict"]]
            for row in parts["claims"]
        ]
        head = ["target", "claim", "nodules of", "n", "level", "verdict"]
        lines += ["", f"Claims, maps by {method}", *aligned(claims, head)]
    method, parts = next(iter(found["methods"].items()))
    shares = [
        [target, *(cell(entries.get(f"share_{name}"), "+.2f") for name in SHOWN)]
        for target, entries in parts["regions"].items()
    ]
    lines += ["", f"Signed share of the scores by region, maps by {method}", *aligned(shares, ["target", *SHOWN])]
    lines += [
        "",
        f"Correlation of two targets' maps over tokens, maps by {method}",
        *_matrix(parts["correlations"]),
        "",
    ]
    return lines


def _matrix(correlations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The upper triangle of the targets' correlations."""
    keys = [key for key in TARGETS if key in correlations]

    def told(one: str, other: str) -> str:
        entry = correlations[one].get(other) or correlations[other].get(one)
        return "" if entry is None or entry["value"] is None or one == other else f"{entry['value']:+.2f}"

    return aligned([[one, *(told(one, other) for other in keys)] for one in keys], ["", *keys])
