"""The run report as plain content, and its files: `run.html`, `run.pdf` and the checklists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lidc_cdam import provenance
from lidc_cdam.files import replacing, write_text
from lidc_cdam.vocabulary import RESEARCH
from reports import blocks, html, kind, pdf
from reports.answers import answers_of, together
from reports.blocks import Block
from reports.card import card_blocks, settings_blocks
from reports.checklists import CHECKLISTS, FOLDER, Checklist, counted, filled, write_checklists
from reports.cohort_part import cohort_blocks, splits_blocks
from reports.context import Run, title_of
from reports.explained import explainers_blocks
from reports.facts import Facts, gather
from reports.plates import learning_plate, marked, performance_plates
from reports.results import headline, performance
from reports.sections import CITATIONS
from reports.subgroups import subgroup_blocks

PAGE, PAPER = "run.html", "run.pdf"
TITLED = {kind.ALL: ", synthetic phantoms", kind.PART: ", with synthetic phantoms", kind.NONE: ""}
"""What the title adds, so that every page of the PDF says it."""
MARKED = {kind.ALL: "Synthetic phantoms", kind.PART: "With synthetic phantoms"}
"""What stands under each figure, which can be saved without the page."""


def write_run_report(out: Path, runs: Sequence[Run], renderer: str) -> None:
    """Write the run report and the checklists; what was made from the same artefacts stays as it is.

    Args:
        out: folder of the reports.
        runs: the run, and the second one if there is one.
        renderer: digest of the templates and of the code that renders.

    Raises:
        LidcCdamError: an artefact that no report can do without is missing.
    """
    facts = [gather(run) for run in runs]
    answers = together({title_of(each.run): answers_of(each) for each in facts})
    content = run_content(facts, answers)
    key = provenance.sha256_of({"content": content, "renderer": renderer})
    if html.stored_key(out / PAGE) == key and is_whole(out):
        return
    with replacing(out / PAPER) as temporary:
        temporary.write_bytes(pdf.render_run(content))
    write_checklists(out, answers)
    # The page comes last: its key says that all are there.
    write_text(out / PAGE, html.render_run(content, key))


def is_whole(out: Path) -> bool:
    """Whether every file of the run report is there."""
    lists = [out / FOLDER / f"{each.key}.{ending}" for each in CHECKLISTS for ending in ("csv", "md")]
    return all(path.exists() for path in (out / PAGE, out / PAPER, *lists))


def run_content(facts: Sequence[Facts], answers: dict[str, str]) -> dict[str, Any]:
    """Everything that the run report says, in its order."""
    first = facts[0]
    return {
        "title": f"Run report: {' and '.join(_lower(title_of(each.run), place) for place, each in enumerate(facts))}"
        f"{TITLED[kind.synthetic(first)]}",
        "research": RESEARCH,
        "synthetic": kind.phantoms(first),
        "facts": _facts(facts),
        "sentences": list(dict.fromkeys(sentence for each in facts for sentence in headline(each))),
        "sections": [
            *_sections(facts),
            *(_checklist(each, answers) for each in CHECKLISTS),
            blocks.section("provenance", "Provenance", [blocks.record(_provenance(facts))]),
            blocks.section("cite", "To cite", [blocks.items(CITATIONS)]),
        ],
        "nodules": len(first.predictions),
    }


def _lower(title: str, place: int) -> str:
    return title.lower() if place else title


def _facts(facts: Sequence[Facts]) -> list[list[str]]:
    first = facts[0]
    table = first.predictions
    return [
        ["Nodules", f"{len(table)} of {table['patient_id'].nunique()} patients"],
        ["Backbone", ", ".join(dict.fromkeys(each.run.backbone or "not recorded" for each in facts))],
        ["Protocol", first.run.protocol or "not recorded"],
        ["Folds", ", ".join(str(fold) for fold in sorted(set(table["fold"])))],
        ["Maps", ", ".join(dict.fromkeys(each.run.method for each in facts if each.run.limits)) or "none yet"],
    ]


def _sections(facts: Sequence[Facts]) -> list[dict[str, Any]]:
    """The sections of each run; one that says the same of both stands once."""
    made: list[dict[str, Any]] = []
    for place, each in enumerate(facts):
        title, words = title_of(each.run), MARKED.get(kind.synthetic(each))
        for key, (name, drawn) in _parts(each).items():
            found = marked(drawn, words) if words else drawn
            if any(earlier["blocks"] == found for earlier in made):
                continue
            shown = f"{name}: {title.lower()}" if len(facts) > 1 else name
            made.append(blocks.section(f"{key}-{place}" if place else key, shown, found))
    return made


def _parts(facts: Facts) -> dict[str, tuple[str, list[Block]]]:
    return {
        "performance": ("Performance", [*performance(facts), *performance_plates(facts)]),
        "subgroups": ("Subgroups", subgroup_blocks(facts)),
        "explainers": ("Explanations", explainers_blocks(facts)),
        "cohort": ("Cohort", cohort_blocks(facts)),
        "splits": ("Splits and leakage", splits_blocks(facts)),
        "training": ("Training", [*settings_blocks(facts), learning_plate(facts)]),
        "card": ("Model card", card_blocks(facts)),
    }


def _checklist(checklist: Checklist, answers: dict[str, str]) -> dict[str, Any]:
    items = filled(checklist, answers)
    rows = [[item.number, item.section, item.item, item.status, item.answer] for item in items]
    return blocks.section(
        checklist.key,
        f"Checklist: {checklist.title}",
        [
            blocks.text(f"{checklist.counted}: {counted(items)}."),
            blocks.table(checklist.title, ["No.", "Section", "Item", "Status", "Answer"], rows, wide=4),
            blocks.quiet(
                f"{checklist.source} Items in short words of our own; the publication decides. The same as "
                f"{FOLDER}/{checklist.key}.csv and .md, to go on with."
            ),
        ],
    )


def _provenance(facts: Sequence[Facts]) -> list[tuple[str, str]]:
    pairs = []
    for each in facts:
        run = each.run
        versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        pairs += [
            ("Run", title_of(run)),
            ("Configuration (SHA-256)", run.config_sha256[:16]),
            ("Software", versions or "not recorded"),
            ("Commit", run.commit[:12] if run.commit else "not recorded"),
        ]
    return list(dict.fromkeys(pairs))
