"""The index page's content: one row per nodule, the run's figures on top."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lidc_cdam.geometry import take_view
from lidc_cdam.quality import FLAGS, flag_kind
from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports import figures
from reports.context import Case, Run, targets_of, title_of
from reports.material import Material
from reports.words import percent

LABELS = {0: "benign", 1: "malignant", None: "indeterminate"}


def index_row(material: Material) -> dict[str, Any]:
    """What the index shows of one nodule; small, because it travels back from a worker."""
    case = material.case
    pairs = [(run, own) for run, own in zip(material.runs, material.cases, strict=True) if own is not None]
    cells = {target.key: _cell(run, own, target.key) for run, own in pairs for target in targets_of(run)}
    errors = [cell["error"] for key, cell in cells.items() if key != MALIGNANCY.key and cell["error"] is not None]
    return {
        "nodule_id": case.nodule_id,
        "fold": case.fold,
        "readers": material.readers,
        "label": "" if case.malignancy is None else LABELS[case.label],
        "thumbnail": figures.thumbnail(take_view(material.crop.hu, "axial", material.central)),
        "cells": cells,
        "error": statistics.fmean(errors) if errors else None,
        "maps": all(maps is not None for maps in material.maps),
        "synthetic": case.is_synthetic,
        "unread": bool(material.padded.any()),
        "flags": [] if case.record is None else sorted({flag_kind(flag) for flag in case.record.flags}),
    }


def _cell(run: Run, case: Case, key: str) -> dict[str, Any]:
    """Prediction, truth and error of one target: error in cohort SDs, for malignancy distance from the label."""
    prediction, truth = case.predicted.get(key), case.true.get(key)
    malignancy = TARGETS[key].kind == "probability"
    shown = "–" if prediction is None else (percent(prediction) if malignancy else f"{prediction:.1f}")
    beside = case.malignancy if malignancy else truth
    unit = 1.0 if malignancy else run.spread.get(key, 0.0)
    known = prediction is not None and truth is not None and unit > 0
    return {
        "prediction": shown,
        "sort": prediction,
        "readers": "–" if beside is None else (f"{beside:g}" if malignancy else f"{beside:.1f}"),
        "error": abs(prediction - truth) / unit if known and prediction is not None and truth is not None else None,
    }


def index_content(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything the index page says.

    Args:
        runs: the run, and the second one if there is one.
        results: rows of `index_row`, or `nodule_id` and `reason` of a nodule that has no report.
    """
    rows = [row for row in results if "reason" not in row]
    return {
        "title": "Nodule reports",
        "research": figures.RESEARCH,
        "targets": [{"key": key, "title": TARGETS[key].title} for run in runs for key in run.targets],
        "rows": rows,
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
    leakage = (
        ""
        if run.shared_patients is None
        else f"; {percent(run.shared_patients)} of test nodules share their patient with training or validation"
    )
    nodules = sum(run.mapped.values())
    scale = f"{run.method}, {nodules} nodules, one signed scale per fold and target" if run.limits else "no maps yet"
    return {
        "title": title_of(run),
        "facts": [
            ("Backbone", run.backbone or "not recorded"),
            ("Protocol", f"{run.protocol or 'not recorded'}{leakage}"),
            ("Maps", scale),
            *(("Shown to the model", words) for words in run.shown),
        ],
        "metrics": _metric_rows(run),
        "rated": any(key != MALIGNANCY.key for key in run.targets),
    }


MALIGNANCY_METRICS = {"accuracy": "accuracy", "auc": "AUC", "balanced_accuracy": "balanced accuracy", "brier": "Brier"}
RADIOMICS = "radiomics of the readers' consensus"
BASELINES = {
    "ruler": {
        "accuracy": "readers' mean diameter with one threshold",
        "auc": "readers' mean diameter alone",
        "balanced_accuracy": "readers' mean diameter with one threshold",
    },
    "radiomics": dict.fromkeys(("accuracy", "auc", "balanced_accuracy", "brier"), RADIOMICS),
    "readers_logistic": dict.fromkeys(("accuracy", "auc", "brier"), "logistic regression on the readers' biomarkers"),
    "commoner_class": {"accuracy": "always the commoner label"},
    "unread_frame": {"auc": "share of the crop that was read, alone (cut-outs give the nodule's size away)"},
}
"""What stands beside the figures of malignancy: words by baseline and metric of `summary.json`."""


def _metric_rows(run: Run) -> list[dict[str, str]]:
    """The run's figures with intervals, each beside what it must be compared with (`summary.json`)."""
    metrics, baselines = run.summary.get("metrics", {}), run.summary.get("baselines", {})
    rows = []
    for key, name in MALIGNANCY_METRICS.items():
        rows.append(_metric_row(f"Malignancy, {name}", metrics.get(MALIGNANCY.key, {}).get(key), _beside(run, key)))
    constant = baselines.get("best_constant", {}).get("biomarkers", {}).get("mean_within_1")
    means = metrics.get("biomarkers", {})
    beside = _errors_beside(run, "biomarkers", "mean_z_mse")
    rows.append(_metric_row("Eight biomarkers, mean z-MSE", means.get("mean_z_mse"), beside))
    beside = f"best constant answers, chosen on these nodules: {_interval(constant)}" if constant else ""
    rows.append(_metric_row("Eight biomarkers, within 1 of the mean", means.get("mean_within_1"), beside))
    for target in targets_of(run):
        value = metrics.get(target.key, {}).get("z_mse")
        rows.append(_metric_row(f"{target.title}, z-MSE", value, _errors_beside(run, target.key, "z_mse")))
    return [row for row in rows if row["value"]]


def _beside(run: Run, metric: str) -> str:
    """What a figure of malignancy must be compared with."""
    baselines = run.summary.get("baselines", {})
    found = {
        words[metric]: _interval(baselines.get(name, {}).get(MALIGNANCY.key, {}).get(metric))
        for name, words in BASELINES.items()
        if metric in words
    }
    reader = run.summary.get("readers", {}).get(MALIGNANCY.key, {}).get("reader_auc")
    if metric == "auc" and reader is not None:
        found["one reader against the others' median"] = f"{reader:.3f}"
    return "; ".join(f"{title}: {figure}" for title, figure in found.items() if figure)


def _metric_row(name: str, figure: Mapping[str, Any] | None, beside: str) -> dict[str, str]:
    return {"name": name, "value": _interval(figure), "beside": beside}


def _interval(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure.get("value") is None:
        return ""
    low, high = figure.get("low"), figure.get("high")
    ends = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{figure['value']:.3f}{ends}"


def _errors_beside(run: Run, key: str, metric: str) -> str:
    """What a biomarker's error must be compared with: radiomics, and what the readers' own spread leaves."""
    radiomics = _interval(run.summary.get("baselines", {}).get("radiomics", {}).get(key, {}).get(metric))
    floor = run.summary.get("noise_floor", {}).get(key)
    parts = [f"{RADIOMICS}: {radiomics}"] if radiomics else []
    return "; ".join([*parts, *([] if floor is None else [f"readers' noise floor: {floor:.3f}"])])
