"""The index page's content: one row per nodule, the run's main figures on top."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lidc_cdam.artifacts import SCHEMA
from lidc_cdam.geometry import take_view
from lidc_cdam.quality import FLAGS, flag_kind
from lidc_cdam.vocabulary import MALIGNANCY, RESEARCH, TARGETS
from reports import figures
from reports.context import Case, Run, targets_of, title_of
from reports.material import Material
from reports.results import GROUP, told
from reports.words import nodules, percent, shared_words

LABELS = {0: "benign", 1: "malignant", None: "indeterminate"}


def index_row(material: Material) -> dict[str, Any]:
    """What the index shows of one nodule; small, because it travels back from a worker."""
    case = material.case
    pairs = [(run, own) for run, own in zip(material.runs, material.cases, strict=True) if own is not None]
    cells = {target.key: _cell(run, own, target.key) for run, own in pairs for target in targets_of(run)}
    errors = [cell["error"] for key, cell in cells.items() if key != MALIGNANCY.key and cell["error"] is not None]
    label = "" if case.malignancy is None else LABELS[case.label]
    flags = [] if case.record is None else sorted({flag_kind(flag) for flag in case.record.flags})
    return {
        "nodule_id": case.nodule_id,
        "words": " ".join([case.nodule_id, case.patient_id, label, *flags]).lower(),
        "fold": case.fold,
        "readers": material.readers,
        "label": label,
        "thumbnail": figures.thumbnail(take_view(material.crop.hu, "axial", material.central)),
        "cells": cells,
        "error": statistics.fmean(errors) if errors else cells.get(MALIGNANCY.key, {}).get("error"),
        "maps": all(maps is not None for maps in material.maps),
        "synthetic": case.is_synthetic,
        "unread": bool(material.padded.any()),
        "flags": flags,
    }


def _cell(run: Run, case: Case, key: str) -> dict[str, Any]:
    """Prediction, truth and error of one target: error in cohort SDs, for malignancy distance from the label."""
    prediction, truth = case.predicted.get(key), case.true.get(key)
    malignancy = TARGETS[key].kind == "probability"
    shown = "–" if prediction is None else (percent(prediction) if malignancy else f"{prediction:.1f}")
    beside = case.malignancy if malignancy else truth
    unit = 1.0 if malignancy else run.spread.get(key, 0.0)
    error = None if prediction is None or truth is None or unit <= 0 else abs(prediction - truth) / unit
    return {
        "prediction": shown,
        "sort": prediction,
        "readers": "–" if beside is None else (f"{beside:g}" if malignancy else f"{beside:.1f}"),
        "error": error,
        "worse": error is not None and error > (0.5 if malignancy else 1),
    }


def index_content(runs: Sequence[Run], results: Sequence[dict[str, Any]], problem: str = "") -> dict[str, Any]:
    """Everything the index page says.

    Args:
        runs: the run, and the second one if there is one.
        results: rows of `index_row`, or `nodule_id` and `reason` of a nodule that has no report.
        problem: why there is no run report to link to; empty where there is one.
    """
    rows = [row for row in results if "reason" not in row]
    return {
        "title": "Nodule reports",
        "research": RESEARCH,
        "targets": [{"key": key, "title": TARGETS[key].title} for run in runs for key in run.targets],
        "folds": sorted({row["fold"] for row in rows}),
        "problem": problem,
        "rows": rows,
        "count": nodules(len(rows)),
        "synthetic": sum(row["synthetic"] for row in rows),
        "unread": sum(row["unread"] for row in rows),
        "flags": _flag_rows(rows),
        "failed": [row for row in results if "reason" in row],
        "runs": [_run_facts(run) for run in runs],
    }


def _flag_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many nodules carry each data-quality flag, the commonest first, with what it means."""
    counts = Counter(kind for row in rows for kind in row["flags"])
    return [{"flag": kind, "meaning": FLAGS.get(kind, ""), "nodules": number} for kind, number in counts.most_common()]


def _run_facts(run: Run) -> dict[str, Any]:
    mapped = sum(run.mapped.values())
    shared = run.shared_patients
    leakage = f"; {shared_words(shared)}" if shared else ""
    backbone = f"Backbone {run.backbone or 'not recorded'}, protocol {run.protocol or 'not recorded'}{leakage}."
    maps = f"Maps: {run.method}, of {nodules(mapped)}." if run.limits else "No maps yet."
    return {"title": title_of(run), "sentences": [*_figures(run.summary), f"{backbone} {maps}", *run.shown]}


def _figures(summary: Mapping[str, Any]) -> list[str]:
    """The two main figures, over all nodules of the run, each beside one baseline; the run report has all of them."""
    if summary.get("schema") != SCHEMA:
        return []
    metrics, beside = summary.get("metrics", {}), summary.get("baselines", {})
    sentences, count = [], summary.get("nodules")
    over = f"All {count} test nodules of the run: " if count else ""
    auc = told(metrics.get(MALIGNANCY.key, {}).get("auc"))
    if auc:
        ruler = told(beside.get("ruler", {}).get(MALIGNANCY.key, {}).get("auc"))
        sentences.append(f"{over}AUC {auc}{f'; the readers’ mean diameter alone {ruler}' if ruler else ''}.")
    error = told(metrics.get(GROUP, {}).get("mean_z_mse"))
    if error:
        floor = summary.get("noise_floor", {}).get(GROUP)
        least = "" if floor is None else f"; the readers’ own spread leaves {floor:.3f}"
        sentences.append(f"Eight biomarkers, mean z-MSE {error}, where answering the mean gives 1{least}.")
    return sentences
