"""Whether a concept's map says something of the concept: beside maps of likenesses to random sets of examples.

Latents of all nodules have much in common, and so have the maps of any two likenesses. What is the concept's own is how
far its map differs from the maps of random sets *more than those differ from each other*, and what it then shows more.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from lidc_cdam.metrics.intervals import (
    LEVEL,
    REPLICATES,
    Statistic,
    Weights,
    column_means,
    difference,
    draw_weights,
    interval,
)
from lidc_cdam.metrics.localisation import chance, relevance_mass
from lidc_cdam.metrics.weighted import auc

CONCEPT_COLUMNS = ("nodule_id", "patient_id", "fold", "concept", "method", "metric", "value")
FIGURES = {
    "mass": "relevance mass of the concept's map in the consensus",
    "mass_control": "the same of the random sets' maps, their mean",
    "mass_chance": "share of the image that the consensus covers",
    "alike": "correlation of the concept's map with the random sets' maps, their mean",
    "alike_control": "correlation of the random sets' maps with each other, their mean",
    "likeness": "s(z, z_concept)",
    "likeness_control": "the same for the random sets, their mean",
}
"""What is measured of one nodule; views count the same."""
PAIRS = {"mass": "mass_control", "alike": "alike_control"}
"""A figure of the concept, and its control."""
TELLS = "tells"
"""AUC of the likeness for the nodules that fit the concept's rule."""


def measure_concept(
    scores: Float[Tensor, "map view token_row token_column"],
    likeness: Float[np.ndarray, " map"],
    consensus: Bool[Tensor, "view row column"],
    read: Bool[Tensor, "view row column"],
) -> dict[str, float]:
    """The figures of `FIGURES` of one nodule.

    Args:
        scores: maps of the concept, then of its controls (at least two), on the token grid.
        likeness: s(z, z_concept) of each.
        consensus: the readers' consensus; a view without it has no relevance mass.
        read: what comes from the scan; only that counts for the relevance mass.
    """
    pixels = F.interpolate(scores.double(), consensus.shape[-2:], mode="nearest-exact")
    mass = torch.nanmean(relevance_mass(pixels.masked_fill(~read, -torch.inf), consensus), 1)
    level = torch.nanmean(chance(consensus) / read.double().mean((-2, -1)))
    flat = scores.double().flatten(2)
    centred = flat - flat.mean(-1, keepdim=True)
    unit = centred / torch.where(centred.norm(dim=-1, keepdim=True) > 0, centred.norm(dim=-1, keepdim=True), torch.nan)
    alike = torch.einsum("avt,bvt->abv", unit, unit).nanmean(-1)
    pairs = [float(alike[one, other]) for one, other in combinations(range(1, len(scores)), 2)]
    return {
        "mass": float(mass[0]),
        "mass_control": float(torch.nanmean(mass[1:])),
        "mass_chance": float(level),
        "alike": float(torch.nanmean(alike[0, 1:])),
        "alike_control": float(np.mean(pairs)),
        "likeness": float(likeness[0]),
        "likeness_control": float(np.mean(likeness[1:])),
    }


def summarised(table: pd.DataFrame, seed: int = 0, replicates: int = REPLICATES) -> dict[str, Any]:
    """Means and differences with intervals over patients.

    Args:
        table: rows of `concepts.csv`.
        seed: of the bootstrap.
        replicates: bootstrap replicates.

    Returns:
        `concepts` {name: {method: figures}}: each figure of `FIGURES` but the likenesses as an interval, for each of
        `PAIRS` `<figure>_difference`, and for a concept with a rule `tells`: the AUC with which the likeness, ranked
        within each fold, tells nodules that fit the rule from others; `tells_control` of the random sets' likeness, and
        their difference.
    """
    found: dict[str, Any] = {}
    for (name, method), rows in table.groupby(["concept", "method"]):
        wide = rows.set_index(["nodule_id", "patient_id", "fold", "metric"])["value"].unstack("metric").reset_index()
        weights = draw_weights(list(wide["patient_id"]), replicates, seed)
        found.setdefault(str(name), {})[str(method)] = {"nodules": len(wide), **_figures(wide, weights)}
    bootstrap = {"unit": "patient", "replicates": replicates, "level": LEVEL, "seed": seed}
    return {"bootstrap": bootstrap, "figures": FIGURES, "concepts": found}


def _figures(wide: pd.DataFrame, weights: Weights) -> dict[str, Any]:
    columns = {name: wide[name].to_numpy(float) for name in FIGURES if not name.startswith("likeness")}
    columns |= {f"{name}_difference": columns[name] - columns[other] for name, other in PAIRS.items()}
    values = np.stack(list(columns.values()), 1)
    figures: dict[str, Any] = {
        name: each.as_dict() for name, each in zip(columns, column_means(values, weights), strict=True)
    }
    fits = wide["fits"] if "fits" in wide else pd.Series(np.nan, index=wide.index)
    if fits.notna().all() and 0 < fits.sum() < len(fits):
        ranked: list[Statistic] = []
        for name in ("likeness", "likeness_control"):
            within = wide.groupby("fold")[name].rank(pct=True).to_numpy()
            ranked.append(auc(within, fits.to_numpy(float)))
        figures[TELLS] = interval(ranked[0], weights).as_dict()
        figures[f"{TELLS}_control"] = interval(ranked[1], weights).as_dict()
        figures[f"{TELLS}_difference"] = interval(difference(*ranked), weights).as_dict()
        figures["fit"] = int(fits.sum())
    return figures


def lines_of(summary: dict[str, Any], names: Sequence[str], method: str) -> list[str]:
    """One paragraph of lines per concept, in words."""
    lines = []
    for name in names:
        figures = summary["concepts"].get(name, {}).get(method)
        if figures is None:
            continue
        lines.append(f"{name} by {method}, {figures['nodules']} nodules (controls: random sets of training nodules)")
        told = [("mass", "relevance mass"), ("alike", "correlation with the controls' maps"), (TELLS, "likeness, AUC")]
        for key, title in told:
            if key in figures:
                own, other, apart = (figures[f"{key}{end}"] for end in ("", "_control", "_difference"))
                lines.append(f"  {title}: {_told(own)}; controls {_told(other)}; difference {_told(apart, '+.3f')}")
    return lines


def _told(entry: dict[str, Any], form: str = ".3f") -> str:
    if entry["value"] is None:
        return "not defined"
    ends = "" if entry["low"] is None else f" [{entry['low']:{form}}, {entry['high']:{form}}]"
    return f"{entry['value']:{form}}{ends}"
