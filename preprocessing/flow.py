"""How a cohort came about: its nodules counted from the scans to the labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from preprocessing.annotations import Scan
from preprocessing.clusters import MOST_READERS
from preprocessing.readings import UNDECIDED
from preprocessing.rules import RULES
from preprocessing.selection import INDETERMINATE, Selection

UNNAMED = "rules of the preset"
"""The one step of a cohort whose exclusions do not name their rule."""
CLUSTERING_WORDS = {"pylidc": "pylidc's rule", "mm": "pylidc's rule with distances in mm"}
CROWDED_WORDS = {
    "exclude": "",
    "keep": f"clusters of more than {MOST_READERS} readings kept",
    "split": f"clusters of more than {MOST_READERS} readings divided",
}


@dataclass(frozen=True)
class Tally:
    """Nodules, and the patients they are of."""

    nodules: int
    patients: int

    def __str__(self) -> str:
        return f"{counted(self.nodules, 'nodule')} of {counted(self.patients, 'patient')}"


@dataclass(frozen=True)
class Step:
    """What one rule leaves out."""

    title: str
    reasons: dict[str, int]
    """Nodules by reason, most first."""
    left: Tally
    """What remains after it."""

    @property
    def nodules(self) -> int:
        """How many it leaves out."""
        return sum(self.reasons.values())


@dataclass(frozen=True)
class Flow:
    """The way from the scans to the labels."""

    scans: int
    patients: int
    """Of all scans."""
    outlined_scans: int
    """Scans with a nodule that a reader outlined."""
    readings: int
    clustering: str
    """How readings became nodules, in words."""
    crowded: str
    """What became of clusters of more than four readings, in words; empty where they are left out."""
    outlined: Tally
    steps: tuple[Step, ...]
    """Only rules that leave something out."""
    chosen: Tally
    labels: dict[str, Tally]
    """By label, each with its rule: `benign (median below 3)`."""


def flow_of(table: pd.DataFrame, excluded: pd.DataFrame, scans: Sequence[Scan], selection: Selection) -> Flow:
    """Count the way from the scans to the labels.

    Args:
        table: `cohort.csv`.
        excluded: `excluded.csv`; without the column `rule`, as an earlier version wrote it, all rules are one step.
        scans: every scan of the database.
        selection: the rules, for their words.
    """
    columns = ["nodule_id", "patient_id", "series_uid", "readers"]
    everything = pd.concat([table[columns], excluded[columns]], ignore_index=True)
    titles = [rule.title for rule in RULES] if "rule" in excluded else [UNNAMED]
    left, steps = everything, []
    for title in titles:
        members = excluded[excluded["rule"] == title] if title != UNNAMED else excluded
        if members.empty:
            continue
        left = left[~left["nodule_id"].isin(members["nodule_id"])]
        reasons = {str(reason): int(count) for reason, count in members["reason"].value_counts().items()}
        steps.append(Step(title, reasons, _tally(left)))
    rule = selection.label_rule
    labels = {
        f"benign ({rule} below {INDETERMINATE})": table["label"] == 0,
        f"{UNDECIDED} ({rule} {INDETERMINATE})": table["label"].isna(),
        f"malignant ({rule} above {INDETERMINATE})": table["label"] == 1,
    }
    return Flow(
        scans=len(scans),
        patients=len({scan.patient_id for scan in scans}),
        outlined_scans=everything["series_uid"].nunique(),
        readings=int(everything["readers"].sum()),
        clustering=CLUSTERING_WORDS[selection.clustering],
        crowded=CROWDED_WORDS[selection.crowded],
        outlined=_tally(everything),
        steps=tuple(steps),
        chosen=_tally(table),
        labels={name: _tally(table[members]) for name, members in labels.items()},
    )


def flow_lines(flow: Flow) -> list[str]:
    """The flow as lines of text."""
    lines = [
        f"{flow.scans} scans of {flow.patients} patients, {flow.outlined_scans} with an outlined nodule",
        f"{flow.readings} readings, grouped by {flow.clustering} into {flow.outlined}",
        *((flow.crowded,) if flow.crowded else ()),
    ]
    for step in flow.steps:
        sole = len(step.reasons) == 1
        what = next(iter(step.reasons)) if sole else f"by {step.title}"
        lines.append(f"- {step.nodules} {what}; {step.left} left")
        lines += [] if sole else [f"    {number:4d}  {reason}" for reason, number in step.reasons.items()]
    lines.append(f"= {flow.chosen} chosen")
    return lines + [
        f"    {tally.nodules:4d}  {name}, {counted(tally.patients, 'patient')}" for name, tally in flow.labels.items()
    ]


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 nodule`, `2 nodules`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _tally(table: pd.DataFrame) -> Tally:
    return Tally(len(table), table["patient_id"].nunique())
