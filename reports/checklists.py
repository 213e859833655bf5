"""CLAIM, TRIPOD+AI and METRICS, filled in as far as a run knows; the rest is the author's.

Numbers and order are those of the published lists; items are in our own short words, so the publication decides.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lidc_cdam.files import write_text
from lidc_cdam.vocabulary import RESEARCH

FOLDER = "checklists"
AUTHOR = "author must answer"
FILLED, PART = "filled in", "in part"
COLUMNS = ("number", "section", "item", "status", "answer")


@dataclass(frozen=True)
class Checklist:
    """A published list."""

    key: str
    title: str
    source: str
    """Where it is published."""
    counted: str
    """What it counts."""


CHECKLISTS: tuple[Checklist, ...] = (
    Checklist(
        "claim",
        "CLAIM, 2024 update",
        "Tejani et al.: Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update. Radiology: "
        "Artificial Intelligence 6(4), 2024, e240300, doi:10.1148/ryai.240300. Numbers and order "
        "agree with three forms that authors had filled in, one of which took them from the publication (PMC11304031); "
        "the publication itself was not compared: check them before you submit.",
        "44 items",
    ),
    Checklist(
        "tripod",
        "TRIPOD+AI",
        "Collins et al.: TRIPOD+AI statement: updated guidance for reporting clinical prediction models that use "
        "regression or machine learning methods. BMJ 385, 2024, e078378, doi:10.1136/bmj-2023-078378. Numbers and "
        "order agree with a transcript of the published form (11 January 2024).",
        "27 items in 52 parts",
    ),
    Checklist(
        "metrics",
        "METRICS",
        "Kocak et al.: METhodological RadiomICs Score (METRICS). Insights into Imaging 15, 2024, 8, "
        "doi:10.1186/s13244-023-01572-w. Numbers and order agree with the published table and its explanation "
        "(METRICS-E3). No score is given here: the author decides each item, and whether the conditional ones (8 to "
        "10, 12, 14 to 17) apply.",
        "30 items",
    ),
)


@dataclass(frozen=True)
class Item:
    """One item with what the run knows of it."""

    number: str
    section: str
    item: str
    status: str
    """`FILLED`, `PART` or `AUTHOR`."""
    answer: str


def filled(checklist: Checklist, answers: Mapping[str, str]) -> list[Item]:
    """A list's items in its order.

    Args:
        checklist: which.
        answers: what the run knows, by key; an empty text is not known.
    """
    items = []
    for row in published(checklist.key):
        known = answers.get(row["answer"], "")
        status = AUTHOR if not known else (PART if row["rest"] else FILLED)
        rest = f" {AUTHOR.capitalize()}: {row['rest']}." if known and row["rest"] else ""
        answer = f"{known}{rest}" if known else AUTHOR.capitalize()
        items.append(Item(row["number"], row["section"], row["item"], status, answer))
    return items


def published(key: str) -> list[dict[str, str]]:
    """The rows of a list: number, section, item, key of its answer, and what is left to the author even then."""
    path = Path(__file__).resolve().parent / "published" / f"{key}.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def counted(items: Sequence[Item]) -> str:
    """How much of a list is done, in words."""
    numbers = {status: sum(item.status == status for item in items) for status in (FILLED, PART, AUTHOR)}
    return f"{numbers[FILLED]} filled in, {numbers[PART]} in part, {numbers[AUTHOR]} for the author"


def write_checklists(out: Path, answers: Mapping[str, str]) -> list[Path]:
    """Write each list as `OUT/checklists/<key>.csv` and `.md`."""
    written = []
    for checklist in CHECKLISTS:
        items = filled(checklist, answers)
        for ending, text in (("csv", _as_csv(items)), ("md", _as_markdown(checklist, items))):
            path = out / FOLDER / f"{checklist.key}.{ending}"
            write_text(path, text)
            written.append(path)
    return written


def _as_csv(items: Sequence[Item]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(item, name) for name in COLUMNS] for item in items)
    return stream.getvalue()


def _as_markdown(checklist: Checklist, items: Sequence[Item]) -> str:
    rows = "".join(f"| {' | '.join(_cell(getattr(item, name)) for name in COLUMNS)} |\n" for item in items)
    return (
        f"# {checklist.title}\n\n"
        f"{checklist.source} {checklist.counted}, here in short words of our own. {counted(items)}. "
        f"{RESEARCH}.\n\n"
        f"| No. | Section | Item | Status | Answer |\n|---|---|---|---|---|\n{rows}"
    )


def _cell(text: str) -> str:
    """Text that cannot end a Markdown cell or begin HTML."""
    for character, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\n", " "), ("\r", " ")):
        text = text.replace(character, escaped)
    return text
