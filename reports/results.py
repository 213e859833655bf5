"""A run's figures as tables: each with its 95 % interval, beside what it must be compared with (`summary.json`)."""

from collections.abc import Mapping
from typing import Any

from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports import blocks
from reports.blocks import Block
from reports.facts import Facts

Figure = Mapping[str, Any]
GROUP = "biomarkers"
MALIGNANCY_COLUMNS = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auprc": "AUPRC",
    "brier": "Brier",
    "ece": "ECE",
}
BIOMARKER_COLUMNS = {"z_mse": "z-MSE", "r2": "R²", "spearman": "Spearman", "icc": "ICC", "within_1": "Within 1"}
RIVALS = {
    "ruler": "Readers' mean diameter, one threshold",
    "radiomics": "Radiomics of the readers' consensus",
    "readers_logistic": "Logistic regression on the readers' biomarkers",
    "one_reader": "One reader against the others",
    "commoner_class": "Always the commoner label",
    "unread_frame": "Share of the crop that was read, alone",
}
"""What stands beside the model, by baseline of `summary.json`."""
DIFFERENCES = {
    "model_minus_ruler": "the readers' mean diameter",
    "model_minus_radiomics": "radiomics",
    "model_minus_readers_logistic": "logistic regression on the readers' biomarkers",
    "model_minus_one_reader": "one reader (both against the other readers)",
}


def performance(facts: Facts) -> list[Block]:
    """Tables of malignancy and of the biomarkers, the paired differences, and what the figures mean."""
    if not facts.summary:
        return [blocks.missing(f"Not measured. {facts.problems.get('summary', '')}")]
    made = [*_malignancy(facts.summary), *_biomarkers(facts.summary)]
    absent = [f"No {name.replace('_', ' ')}: {reason}" for name, reason in facts.summary.get("absent", {}).items()]
    lacking = facts.summary.get("missing_folds") or []
    if lacking:
        absent.append(f"Folds not trained yet, so not in these figures: {', '.join(map(str, lacking))}.")
    return [*made, *([blocks.items(absent)] if absent else []), blocks.quiet(_boot(facts.summary))]


def _boot(summary: Mapping[str, Any]) -> str:
    boot = summary.get("bootstrap", {})
    return (
        f"Intervals: 95 %, {boot.get('replicates', '')} bootstrap replicates over patients; models are not trained "
        f"anew. Many figures are shown and none is corrected for that."
    )


def _malignancy(summary: Mapping[str, Any]) -> list[Block]:
    metrics, beside = summary.get("metrics", {}), summary.get("baselines", {})
    concepts = summary.get("bottleneck", {}).get("metrics")
    found = {"This run": metrics.get(MALIGNANCY.key), "Concept bottleneck on its biomarkers": concepts}
    found |= {words: beside.get(name, {}).get(MALIGNANCY.key) for name, words in RIVALS.items()}
    rows = {words: figures for words, figures in found.items() if figures}
    if not (metrics.get(MALIGNANCY.key) or concepts):
        return []
    shown = [key for key in MALIGNANCY_COLUMNS if any(told(row.get(key)) for row in rows.values())]
    cells = [[words, *(told(row.get(key)) or "–" for key in shown)] for words, row in rows.items()]
    title = "Malignancy, out of fold, with 95 % intervals"
    made = [blocks.table(title, ["", *(MALIGNANCY_COLUMNS[key] for key in shown)], cells)]
    apart = _apart(beside, MALIGNANCY.key, "auc")
    if apart:
        made.append(blocks.items([f"AUC minus that of {words}: {figure}." for words, figure in apart.items()]))
    made.append(
        blocks.quiet(
            "The label is the readers' opinion: the median of their malignancy ratings below or above 3; a median of 3 "
            "is left out. Brier and ECE: lower is better. The share of the crop that was read gives the nodule's size "
            "away where crops come from cut-outs."
        )
    )
    return made


def _biomarkers(summary: Mapping[str, Any]) -> list[Block]:
    metrics, beside = summary.get("metrics", {}), summary.get("baselines", {})
    keys = [key for key in metrics if key != MALIGNANCY.key]
    if not keys:
        return []
    rows = []
    for key in keys:
        prefix = "mean_" if key == GROUP else ""
        figures = [told(metrics[key].get(f"{prefix}{name}")) or "–" for name in BIOMARKER_COLUMNS]
        others = [
            told(beside.get(name, {}).get(key, {}).get(f"{prefix}z_mse"), ends=False) or "–"
            for name in ("radiomics", "one_reader")
        ]
        floor = summary.get("noise_floor", {}).get(key)
        title = TARGETS[key].title if key in TARGETS else "Mean of the eight"
        rows.append([title, *figures, *others, "–" if floor is None else f"{floor:.3f}"])
    head = ["", *BIOMARKER_COLUMNS.values(), "Radiomics, z-MSE", "One reader, z-MSE", "Noise floor, z-MSE"]
    made = [blocks.table("Biomarkers, out of fold, with 95 % intervals", head, rows)]
    apart = _apart(beside, GROUP, "mean_z_mse")
    if apart:
        made.append(blocks.items([f"Mean z-MSE minus that of {words}: {figure}." for words, figure in apart.items()]))
    constant = told(beside.get("best_constant", {}).get(GROUP, {}).get("mean_within_1"))
    beside_it = f" Best constant answers, chosen on these nodules, reach {constant} within 1." if constant else ""
    made.append(
        blocks.quiet(
            "z-MSE: mean squared error against the readers' mean over the variance of those means; 1 is the mean "
            "answered always. Noise floor: what the readers' own spread leaves even to the true value. Within 1: share "
            f"within one step of the scale, or 1 mm.{beside_it}"
        )
    )
    return made


def _apart(beside: Mapping[str, Any], key: str, metric: str) -> dict[str, str]:
    """Paired differences of a figure, by what is subtracted."""
    found = {
        words: told(beside.get(name, {}).get(key, {}).get(metric), sign=True) for name, words in DIFFERENCES.items()
    }
    return {words: figure for words, figure in found.items() if figure}


def told(figure: Figure | None, ends: bool = True, sign: bool = False, digits: int = 3) -> str:
    """A figure with its interval; empty where there is none.

    Args:
        figure: `value`, `low` and `high`.
        ends: whether the interval is told.
        sign: whether a plus is told.
        digits: after the point.
    """
    if not figure or figure.get("value") is None:
        return ""
    spelled = f"{'+' if sign else ''}.{digits}f"
    low, high = figure.get("low"), figure.get("high")
    between = "" if not ends or low is None or high is None else f" ({low:{spelled}} to {high:{spelled}})"
    return f"{figure['value']:{spelled}}{between}".replace("-", "−")


def headline(facts: Facts) -> list[str]:
    """One to three sentences: whom the run predicts, and its main figures beside the baselines."""
    table, summary = facts.predictions, facts.summary
    patients = table["patient_id"].nunique()
    sentences = [f"{len(table)} nodules of {patients} patients, each predicted by a model that was not trained on it."]
    own = told(summary.get("metrics", {}).get(MALIGNANCY.key, {}).get("auc"))
    beside = summary.get("baselines", {})
    if own:
        ruler = told(beside.get("ruler", {}).get(MALIGNANCY.key, {}).get("auc"))
        reader = told(beside.get("one_reader", {}).get(MALIGNANCY.key, {}).get("auc"))
        others = [f"the readers' mean diameter alone reaches {ruler}"] if ruler else []
        others += [f"one reader against the others {reader}"] if reader else []
        sentences.append(f"Malignancy: AUC {own}{'; ' if others else ''}{', '.join(others)}.")
    own = told(summary.get("metrics", {}).get(GROUP, {}).get("mean_z_mse"))
    if own:
        floor = summary.get("noise_floor", {}).get(GROUP)
        least = f"; the readers' own spread leaves {floor:.3f}" if floor is not None else ""
        sentences.append(f"Eight biomarkers: mean z-MSE {own}, where answering the mean gives 1{least}.")
    return sentences
