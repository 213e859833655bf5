"""Where a run's nodules come from, and how they were divided: the cohort's flow, splits and leakage."""

from collections.abc import Mapping
from typing import Any

from reports import blocks, kind
from reports.blocks import Block
from reports.facts import Facts
from reports.words import shared_words

ROLES = ("train", "val", "test")
UNDECIDED = (
    "Indeterminate nodules teach biomarkers alone; their patients neither validate nor test in that fold, and they are "
    "in no validation and no test part."
)


def flow_lines(facts: Facts) -> list[str]:
    """From the scans to the predicted nodules, a sentence a step."""
    counts: Mapping[str, Any] = facts.made.get("cohort", {}).get("results", {})
    lines = []
    if counts:
        lines.append(
            f"{counts.get('scans')} scans with an outlined nodule, of {counts.get('patients')} patients: "
            f"{counts.get('nodules')} nodules."
        )
    if facts.excluded is not None and len(facts.excluded):
        reasons = facts.excluded["reason"].value_counts()
        told = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        lines.append(f"Excluded {len(facts.excluded)}: {told}.")
    labels = facts.cohort["label"]
    lines.append(
        f"Cohort {len(facts.cohort)}: {int((labels == 0).sum())} benign, {int((labels == 1).sum())} malignant, "
        f"{int(labels.isna().sum())} indeterminate (the readers' {kind.label_rule(facts)} is 3)."
    )
    lines.append(f"Crops of {len(facts.dataset.nodules)} of the cohort's nodules in the data folder.")
    if facts.splits is not None:
        named = {key for fold in facts.splits.folds for part in (fold.train, fold.val, fold.test) for key in part}
        lines.append(f"Labelled nodules with a crop, divided into folds: {len(named)}.")
    table = facts.predictions
    lines.append(f"Predicted by this run: {len(table)} nodules of {table['patient_id'].nunique()} patients.")
    return lines


def cohort_blocks(facts: Facts) -> list[Block]:
    """The flow as sentences, and as the cohort's own figure where it was drawn."""
    made = [blocks.items(flow_lines(facts))]
    if "excluded" in facts.problems:
        made.append(blocks.missing(f"No exclusions: {facts.problems['excluded']}"))
    path = facts.run.data / "flow.svg"
    if path.exists():
        svg = path.read_text(encoding="utf-8", errors="replace")
        made.append(blocks.figure("Cohort flow", svg, "From scans to labels; the list above holds the same numbers."))
    else:
        made.append(blocks.quiet("`lidc-cdam cohort --describe`, run on the data folder, draws this flow (flow.svg)."))
    return made


def leakage(facts: Facts) -> str:
    """Whether test nodules share patients with training, in one sentence; empty where it is not known."""
    splits = facts.splits
    if splits is None:
        return ""
    if not splits.shared_patients:
        return "No test nodule shares its patient with a training or validation nodule of its fold."
    return f"Leakage: {shared_words(splits.shared_patients)}, so the figures are too good."


def splits_blocks(facts: Facts) -> list[Block]:
    """Folds with their sizes, and the leakage."""
    splits = facts.splits
    if splits is None:
        return [blocks.missing(f"Not known. {facts.problems.get('splits', '')}")]
    label, more = facts.cohort["label"], kind.undecided(facts)
    rows = []
    for number, fold in enumerate(splits.folds):
        sizes = [str(len(getattr(fold, role))) for role in ROLES]
        sizes[1:1] = [f"+ {more[number]}"] if more else []
        malignant = int((label.reindex(list(fold.test)) == 1).sum())
        trained = "yes" if (facts.predictions["fold"] == number).any() else "not trained yet"
        rows.append([f"Fold {number}", *sizes, str(malignant), trained])
    beside = ["Indeterminate, in training"] if more else []
    head = ["", "Training", *beside, "Validation", "Test", "Malignant in test", "In this report"]
    made = [
        blocks.record([("Protocol", splits.protocol), ("Seed", str(splits.seed)), ("Leakage", leakage(facts))]),
        blocks.table("Nodules of each fold", head, rows),
    ]
    return [*made, blocks.quiet(UNDECIDED)] if more else made
