"""How well a run does on parts of its nodules: by size, readers, slice thickness and rating scales."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from lidc_cdam.metrics import weighted
from lidc_cdam.metrics.intervals import Weights, draw_weights, interval
from lidc_cdam.metrics.ruler import CLOSE
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY
from reports import blocks
from reports.blocks import Block
from reports.facts import Facts
from reports.results import told

FEWEST = 10
"""Nodules that a part needs for a figure."""
DIAMETERS_MM = (6.0, 10.0)
THICKNESSES_MM = (1.25, 2.5)

Column = Float[np.ndarray, " nodule"]
Members = Bool[np.ndarray, " nodule"]


def subgroup_blocks(facts: Facts) -> list[Block]:
    """The table of parts, or the sentence why there is none."""
    table = facts.predictions.set_index("nodule_id").join(facts.cohort.drop(columns=["patient_id", "nodule_id"]))
    parts = parts_of(table)
    measures = _measures(table)
    if not parts or not measures:
        return [blocks.missing("No subgroups: the cohort table does not describe the predicted nodules.")]
    weights = draw_weights(table["patient_id"].tolist())
    rows = []
    for name, members in parts.items():
        figures = [_figure(measure, members, weights) for measure in measures.values()]
        patients = table.loc[members, "patient_id"].nunique()
        rows.append([name, f"{members.sum()} of {patients}", *figures])
    return [
        blocks.table("Parts of the test nodules, with 95 % intervals", ["", "Nodules of patients", *measures], rows),
        blocks.quiet(
            f"AUC: nodules of one part against each other. Within 1: mean over the biomarkers of the share within one "
            f"step, or 1 mm, of the readers' mean. A part with fewer than {FEWEST} nodules has no figure. LIDC-IDRI's "
            f"readings do not tell age, sex or origin, so nothing is known of such groups."
        ),
    ]


def parts_of(table: pd.DataFrame) -> dict[str, Members]:
    """Members of each part by its name; columns that the table lacks give none."""
    found: dict[str, Members] = {"All": np.ones(len(table), bool)}
    if "diameter" in table:
        found |= _ranges(table["diameter"].to_numpy(np.float64), DIAMETERS_MM, "Diameter", "mm")
    if "readers" in table:
        readers = table["readers"].to_numpy(np.float64)
        known = np.unique(readers[np.isfinite(readers)])
        found |= {f"{count:g} readers": readers == count for count in known if len(known) > 1}
    if "slice_thickness_mm" in table:
        found |= _ranges(table["slice_thickness_mm"].to_numpy(np.float64), THICKNESSES_MM, "Slice thickness", "mm")
    if "is_from_initial" in table and table["is_from_initial"].nunique() > 1:
        initial = table["is_from_initial"].astype(str).str.lower().isin(("true", "1", "1.0")).to_numpy()
        found |= {"Rating scales of the initial release": initial, "Rating scales of later releases": ~initial}
    return {name: members for name, members in found.items() if members.any()}


def _ranges(values: Column, bounds: tuple[float, float], title: str, unit: str) -> dict[str, Members]:
    first, second = bounds
    return {
        f"{title} below {first:g} {unit}": values < first,
        f"{title} {first:g} to below {second:g} {unit}": (values >= first) & (values < second),
        f"{title} {second:g} {unit} and more": values >= second,
    }


def _measures(
    table: pd.DataFrame,
) -> dict[str, Callable[[Members], tuple[np.ndarray, Callable[..., np.ndarray]] | None]]:
    """By title of a column: from members to the rows that count and the statistic on them; None without an answer."""
    found: dict[str, Callable[[Members], tuple[np.ndarray, Callable[..., np.ndarray]] | None]] = {}
    if f"{MALIGNANCY.key}_predicted" in table:
        true, predicted = (table[f"{MALIGNANCY.key}_{part}"].to_numpy(np.float64) for part in ("true", "predicted"))

        def auc(members: Members) -> tuple[np.ndarray, Callable[..., np.ndarray]] | None:
            rows = np.flatnonzero(members & np.isfinite(true))
            if len(rows) < FEWEST or len(np.unique(true[rows])) < 2:
                return None
            return rows, weighted.auc(predicted[rows], true[rows])

        found["Malignancy, AUC"] = auc
    keys = [each.key for each in BIOMARKERS if f"{each.key}_predicted" in table]
    if keys:
        errors = np.stack(
            [(table[f"{key}_predicted"] - table[f"{key}_true"]).abs().to_numpy(np.float64) for key in keys], axis=1
        )
        near = np.where(np.isfinite(errors).all(axis=1), (errors <= CLOSE).mean(axis=1), np.nan)

        def within(members: Members) -> tuple[np.ndarray, Callable[..., np.ndarray]] | None:
            rows = np.flatnonzero(members & np.isfinite(near))
            return None if len(rows) < FEWEST else (rows, weighted.mean(near[rows]))

        found["Biomarkers, within 1"] = within
    return found


def _figure(
    measure: Callable[[Members], tuple[np.ndarray, Callable[..., np.ndarray]] | None],
    members: Members,
    weights: Weights,
) -> str:
    found = measure(members)
    if found is None:
        return "–"
    rows, statistic = found
    return told(interval(statistic, weights[:, rows]).as_dict(), digits=2)
