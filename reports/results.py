"""A run's figures as tables: each with its 95 % interval, beside what it must be compared with (`summary.json`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from lidc_cdam.metrics.drawn import SPEARMAN_REPLICATES
from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports import blocks
from reports.blocks import Block
from reports.cohort_part import leakage
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
BIOMARKER_COLUMNS = {
    "z_mse": "z-MSE",
    "mae": "MAE",
    "r2": "R²",
    "spearman": "Spearman",
    "icc": "ICC",
    "within_1": "Within 1",
}
RIVALS = {
    "ruler": "Readers' mean diameter, one threshold",
    "radiomics": "Radiomics of the readers' consensus, extra trees",
    "radiomics_kernel": "The same radiomics, kernel ridge regression",
    "readers_logistic": "Logistic regression on the readers' biomarkers",
    "one_reader": "One reader against the others",
    "commoner_class": "Always the commoner label",
    "unread_frame": "Share of the crop that was read, alone",
}
"""What stands beside the model, by baseline of `summary.json`."""
BIOMARKER_RIVALS = {
    "radiomics": "Radiomics, extra trees",
    "radiomics_kernel": "Radiomics, kernel ridge",
    "one_reader": "One reader",
}
"""The same for the biomarkers."""
DIFFERENCES = {
    "model_minus_ruler": "the readers' mean diameter",
    "model_minus_radiomics": "radiomics by extra trees",
    "model_minus_radiomics_kernel": "radiomics by kernel ridge regression",
    "model_minus_readers_logistic": "logistic regression on the readers' biomarkers",
    "model_minus_one_reader": "one reader (both against the other readers)",
}


def performance(facts: Facts) -> list[Block]:
    """Tables of malignancy and of the biomarkers, the paired differences, and what the figures mean."""
    if not facts.summary:
        return [blocks.missing(f"Not measured. {facts.problems.get('summary', '')}")]
    parts = [_malignancy(facts), _biomarkers(facts.summary)]
    # Of a run on biomarkers alone, malignancy is what follows from them.
    direct = MALIGNANCY.key in facts.run.targets
    made = [block for part in (parts if direct else reversed(parts)) for block in part]
    absent = [f"No {name.replace('_', ' ')}: {reason}" for name, reason in facts.summary.get("absent", {}).items()]
    return [*made, *([blocks.items(absent)] if absent else []), blocks.quiet(_boot(facts.summary))]


def _boot(summary: Mapping[str, Any]) -> str:
    return (
        f"Intervals: 95 %, {replicates(summary)} bootstrap replicates over patients; models are not trained "
        f"anew. Many figures are shown and none is corrected for that."
    )


def replicates(summary: Mapping[str, Any]) -> str:
    """How many replicates intervals rest on; Spearman's on fewer where there are many."""
    count = summary.get("bootstrap", {}).get("replicates", "")
    ranked = any("spearman" in figures for figures in summary.get("metrics", {}).values())
    fewer = ranked and isinstance(count, int) and count > SPEARMAN_REPLICATES
    return f"{count} (Spearman: {SPEARMAN_REPLICATES})" if fewer else str(count)


def _malignancy(facts: Facts) -> list[Block]:
    summary = facts.summary
    metrics, beside = summary.get("metrics", {}), summary.get("baselines", {})
    concepts = summary.get("bottleneck", {}).get("metrics")
    found = {"This run": metrics.get(MALIGNANCY.key), "Concept bottleneck on its biomarkers": concepts}
    found |= {words: beside.get(name, {}).get(MALIGNANCY.key) for name, words in RIVALS.items()}
    rows = {words: figures for words, figures in found.items() if figures}
    if not (metrics.get(MALIGNANCY.key) or concepts):
        return []
    shown = [key for key in MALIGNANCY_COLUMNS if any(told(row.get(key)) for row in rows.values())]
    cells = [[words, *(told(row.get(key)) or "–" for key in shown)] for words, row in rows.items()]
    title = "Malignancy of test nodules, with 95 % intervals"
    made = [blocks.table(title, ["", *(MALIGNANCY_COLUMNS[key] for key in shown)], cells)]
    apart = _apart(beside, MALIGNANCY.key, "auc")
    if apart:
        made.append(blocks.items([f"AUC minus that of {words}: {figure}." for words, figure in apart.items()]))
    made.append(
        blocks.quiet(
            f"The label is the readers' opinion: the {facts.run.label_rule} of their malignancy ratings below or above "
            f"3; 3 is left out.{_constant(facts)} Brier and ECE: lower is better. The share of the crop that was read "
            "gives the nodule's size away where crops come from cut-outs."
        )
    )
    return made


def _constant(facts: Facts) -> str:
    """What a constant probability reaches, which AUPRC must be read beside."""
    column = f"{MALIGNANCY.key}_true"
    if column not in facts.predictions or facts.predictions[column].isna().all():
        return ""
    share = float(facts.predictions[column].dropna().mean())
    return f" A constant answer has an AUC of 0.5 and an AUPRC of {share:.3f}, the share of malignant nodules."


def _biomarkers(summary: Mapping[str, Any]) -> list[Block]:
    metrics, beside = summary.get("metrics", {}), summary.get("baselines", {})
    keys = [key for key in metrics if key != MALIGNANCY.key]
    if not keys:
        return []
    rows = [[_title(key), *(_figure(metrics, key, name) for name in BIOMARKER_COLUMNS)] for key in keys]
    head = ["", *BIOMARKER_COLUMNS.values()]
    constant = told(beside.get("best_constant", {}).get(GROUP, {}).get("mean_within_1"))
    beside_it = f" Best constant answers, chosen on these nodules, reach {constant} within 1." if constant else ""
    return [
        blocks.table("Biomarkers of test nodules, with 95 % intervals", head, rows),
        *_biomarker_rivals(summary, keys),
        blocks.quiet(
            "z-MSE: mean squared error against the readers' mean over the variance of those means; 1 is the mean "
            "answered always. MAE: mean absolute error in steps of the scale, of the diameter in mm. Noise floor: what "
            "the readers' own spread leaves even to the true value. One reader is measured against the others, so its "
            "figure is not like for like; the difference is. Within 1: share within one step of the scale, or 1 mm."
            f"{beside_it}"
        ),
    ]


def _biomarker_rivals(summary: Mapping[str, Any], keys: Sequence[str]) -> list[Block]:
    """The table of z-MSE beside what it must be compared with, and the paired differences of the mean."""
    beside = summary.get("baselines", {})
    found = {
        title: [_figure(beside.get(name, {}), key, "z_mse") for key in keys] for name, title in BIOMARKER_RIVALS.items()
    }
    floors = [_figure(beside.get("noise_floor", {}), key, "z_mse") for key in keys]
    alone = summary.get("noise_floor", {})
    # Summaries of older versions have the floor without its interval.
    plain = ["–" if alone.get(key) is None else f"{alone[key]:.3f}" for key in keys]
    found["Noise floor"] = [floor if floor != "–" else value for floor, value in zip(floors, plain, strict=True)]
    known = {title: cells for title, cells in found.items() if set(cells) != {"–"}}
    made: list[Block] = []
    if known:
        own = [_figure(summary["metrics"], key, "z_mse") for key in keys]
        rows = [
            [_title(key), own[place], *(cells[place] for cells in known.values())] for place, key in enumerate(keys)
        ]
        made.append(blocks.table("z-MSE beside other answers, with 95 % intervals", ["", "This run", *known], rows))
    apart = _apart(beside, GROUP, "mean_z_mse")
    if apart:
        made.append(blocks.items([f"Mean z-MSE minus that of {words}: {figure}." for words, figure in apart.items()]))
    return made


def _title(key: str) -> str:
    return TARGETS[key].title if key in TARGETS else "Mean of the eight"


def _figure(figures: Mapping[str, Any], key: str, name: str) -> str:
    """A biomarker's figure, or that of the mean over the eight; a dash where there is none."""
    return told(figures.get(key, {}).get(f"mean_{name}" if key == GROUP else name)) or "–"


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
    """Whom the run predicts, its main figures beside the baselines, and what must be said with them."""
    table, summary = facts.predictions, facts.summary
    patients = table["patient_id"].nunique()
    sentences = [f"{len(table)} nodules of {patients} patients, each predicted by a model that was not trained on it."]
    metrics, beside = summary.get("metrics", {}), summary.get("baselines", {})
    own = told(metrics.get(MALIGNANCY.key, {}).get("auc"))
    if own:
        ruler = told(beside.get("ruler", {}).get(MALIGNANCY.key, {}).get("auc"))
        reader = told(beside.get("one_reader", {}).get(MALIGNANCY.key, {}).get("auc"))
        others = [f"the readers' mean diameter alone reaches {ruler}"] if ruler else []
        others += [f"one reader against the others {reader}"] if reader else []
        sentences.append(f"Malignancy: AUC {own}{'; ' if others else ''}{', '.join(others)}.")
    own = told(metrics.get(GROUP, {}).get("mean_z_mse"))
    if own:
        floor = summary.get("noise_floor", {}).get(GROUP)
        least = f"; the readers' own spread leaves {floor:.3f}" if floor is not None else ""
        sentences.append(f"Eight biomarkers: mean z-MSE {own}, where answering the mean gives 1{least}.")
    lacking = summary.get("missing_folds") or []
    if lacking:
        sentences.append(f"Folds not trained yet, so not in these figures: {', '.join(map(str, lacking))}.")
    if facts.splits is not None and facts.splits.shared_patients:
        sentences.append(leakage(facts))
    return [*sentences, *facts.run.shown]
