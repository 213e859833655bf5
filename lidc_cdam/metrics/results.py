"""The files that `evaluate` leaves: rows, curves, means with intervals, the table of methods, and the pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from lidc_cdam.artifacts import EXPLAINER_COLUMNS, EXPLAINERS, SCHEMA, read_cohort, write_table
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import write_json, write_text
from lidc_cdam.metrics.comparison import ALL, TITLES, compare, lines_of
from lidc_cdam.metrics.gallery import draw_galleries
from lidc_cdam.metrics.intervals import column_means, draw_weights, known_mean
from lidc_cdam.metrics.measures import FAMILIES
from lidc_cdam.metrics.parts import curves_of, evaluation_folder, rows_of
from lidc_cdam.metrics.pictures import PICTURES, draw_pictures
from lidc_cdam.metrics.settings import Measurement
from lidc_cdam.metrics.text_tables import cell
from lidc_cdam.progress import say

COMPARISON = "explainers.json"
CURVES = "explainers_curves.csv"
TABLE = "explainers_table"
CURVE_COLUMNS = ("method", "target", "curve", "percent", "value", "low", "high", "nodules")
DRAWN = {"fidelity": ("mif", "lif"), "box": ("r",)}
"""Curves of a family."""
SHOWN = 10
"""Nodules of the gallery."""
Tested = Mapping[int, Mapping[str, str]]
"""Patient of each test nodule of each fold."""

__all__ = ["COMPARISON", "CURVES", "PICTURES", "TABLE", "gallery_nodules", "write_results"]


def write_results(run: Path, data: Path, measurement: Measurement, tested: Tested, replicates: int) -> None:
    """Write what all folds and methods measured so far say together.

    Args:
        run: folder of the run.
        data: its folder of crops.
        measurement: settings of this call.
        tested: what could be measured.
        replicates: bootstrap replicates of each interval.

    Raises:
        LidcCdamError: nothing was measured.
    """
    parts = _parts(run, tested)
    rows = [row for path, identity in parts for row in rows_of(path, identity)]
    if not rows:
        raise LidcCdamError(
            f"No map of {run} could be measured; {evaluation_folder(run, '*')} names each nodule with its reason."
        )
    table = pd.DataFrame(rows)
    cohort = read_cohort(data)
    comparison = compare(table, replicates, measurement.seed, cohort["diameter"])
    curves = _curves(parts, replicates, measurement.seed)
    write_table(run / EXPLAINERS, table, EXPLAINER_COLUMNS)
    write_table(run / CURVES, curves, CURVE_COLUMNS)
    write_json(run / COMPARISON, {"schema": SCHEMA, "settings": vars(measurement), **comparison})
    _write_method_table(run, comparison)
    drawn = draw_pictures(run, comparison, curves)
    drawn += draw_galleries(run, data, tested, gallery_nodules(data, [key for fold in tested.values() for key in fold]))
    for line in lines_of(comparison):
        say(line)
    say(f"{len(drawn)} pictures are in {run / PICTURES}.")


def gallery_nodules(data: Path, nodule_ids: Sequence[str], count: int = SHOWN) -> list[str]:
    """Nodules from the smallest to the largest, evenly spread over the order of their diameters."""
    diameters = read_cohort(data)["diameter"].reindex(list(nodule_ids)).dropna()
    ordered = sorted(diameters.index, key=lambda key: (float(diameters[key]), key))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    return [ordered[place] for place in places]


def _parts(run: Path, tested: Tested) -> list[tuple[Path, dict[str, str | int]]]:
    """Every part with what it is of, by fold, family and method, nodules in the order of the folds' predictions."""
    found: list[tuple[Path, dict[str, str | int]]] = []
    for fold, patients in tested.items():
        for family in FAMILIES:
            for folder in sorted((evaluation_folder(run, fold) / family).glob("*")):
                present = {path.stem for path in folder.glob("[!.]*.npz")}
                found += [
                    (
                        folder / f"{key}.npz",
                        {"nodule_id": key, "patient_id": patient, "fold": fold, "method": folder.name},
                    )
                    for key, patient in patients.items()
                    if key in present
                ]
    return found


def _curves(parts: Sequence[tuple[Path, Mapping[str, Any]]], replicates: int, seed: int) -> pd.DataFrame:
    """Mean curves of each method and target, and of the mean over a nodule's targets, with bands over patients."""
    grouped: dict[tuple[str, str], list[tuple[str, dict[str, Float64[np.ndarray, ...]], list[str]]]] = {}
    for path, identity in parts:
        family = path.parent.parent.name
        if family in DRAWN:
            with np.load(path, allow_pickle=False) as stored:
                targets = [str(name) for name in stored["targets"]]
            found = curves_of(path, DRAWN[family])
            grouped.setdefault((str(identity["method"]), family), []).append(
                (str(identity["patient_id"]), found, targets)
            )
    tables = [
        _mean_curve(method, name, members, replicates, seed)
        for (method, family), members in grouped.items()
        for name in DRAWN[family]
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(CURVE_COLUMNS))


def _mean_curve(
    method: str,
    name: str,
    members: Sequence[tuple[str, dict[str, Float64[np.ndarray, "..."]], list[str]]],
    replicates: int,
    seed: int,
) -> pd.DataFrame:
    """One curve of one method, of all targets."""
    targets, percent = members[0][2], members[0][1]["percent"]
    values = np.stack([curves[name] for _, curves, _ in members])
    every = np.concatenate([values, known_mean(values, axis=1)[:, None]], axis=1)
    weights = draw_weights([patient for patient, _, _ in members], replicates, seed)
    intervals = column_means(every.reshape(len(every), -1), weights)
    rows = [
        (method, target, name, at, each.value, each.low, each.high, len(every))
        for (target, at), each in zip(((t, p) for t in (*targets, ALL) for p in percent), intervals, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def _write_method_table(run: Path, comparison: Mapping[str, Any]) -> None:
    """`explainers_table.csv` (long, all targets) and `.md` (means over targets, to read)."""
    methods = comparison["methods"]
    rows = [
        {
            "method": method,
            "target": target,
            "metric": metric,
            **{key: entry.get(key) for key in ("value", "low", "high")},
        }
        | {"nodules": entry["nodules"]}
        for method, targets in methods.items()
        for target, metrics in targets.items()
        for metric, entry in metrics.items()
    ]
    write_table(
        run / f"{TABLE}.csv", pd.DataFrame(rows), ("method", "target", "metric", "value", "low", "high", "nodules")
    )
    shown = [metric for metric in TITLES if any(metric in targets[ALL] for targets in methods.values())]
    lines = [
        "| mean over targets [95 % interval over patients] | "
        + " | ".join(TITLES[metric][0] for metric in shown)
        + " |",
        "|---|" + "---|" * len(shown),
    ]
    for method, targets in methods.items():
        cells = [cell(targets[ALL].get(metric), TITLES[metric][1]) for metric in shown]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    write_text(run / f"{TABLE}.md", "\n".join(lines) + "\n")
