"""PDF documents through typst: PDF/UA-1 and PDF/A-2a at once, embedded fonts, the same bytes for the same content.

Content travels as JSON data (`sys.inputs`), so no text of an artefact can become typst code.
"""

import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typst

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import RESEARCH
from reports.html import TEMPLATES

STANDARDS: "list[typst.PDFStandard]" = ["ua-1", "a-2a"]
NO_CLOCK = 0
"""PDF/A demands a date. The document has none of its own, so it bears the epoch, as reproducible builds do."""
PAPER_COLOURS = {
    "var(--ink)": "#14181f",
    "var(--muted)": "#555f6e",
    "var(--line)": "#9aa4b2",
    "var(--paper)": "#ffffff",
    "var(--accent)": "#a3195b",
}


def render_case(document: dict[str, Any]) -> bytes:
    """One nodule's PDF, two or three A4 pages.

    Args:
        document: what `reports.sections.document` gives.

    Raises:
        LidcCdamError: the document breaks a rule of the template or of a standard.
    """
    return _set("case", stand_alone(document, document["shared"]))


def render_combined(documents: Sequence[dict[str, Any]]) -> bytes:
    """Several nodules' reports as one PDF with a table of contents and bookmarks.

    Args:
        documents: what `stand_alone` makes of each nodule's document.

    Raises:
        LidcCdamError: as `render_case`.
    """
    count = len(documents)
    content = {
        "title": "Nodule reports",
        "research": RESEARCH,
        "lead": f"{count} nodule{'' if count == 1 else 's'}, each on its own pages.",
        "documents": list(documents),
    }
    return _set("combined", content)


def render_run(content: dict[str, Any]) -> bytes:
    """The run report's PDF.

    Args:
        content: what `reports.run_report.run_content` gives.

    Raises:
        LidcCdamError: as `render_case`.
    """
    return _set("run", content)


def _set(template: str, content: dict[str, Any]) -> bytes:
    """Set a template with data."""
    try:
        made = _compiler(template).compile(
            format="pdf", sys_inputs={"document": json.dumps(content)}, pdf_standards=STANDARDS, timestamp=NO_CLOCK
        )
    except typst.TypstError as error:
        raise LidcCdamError(
            f"The PDF must be set from the template {template}.typ, but typst refuses it ({refusal(error)}); the HTML "
            f"report has the same content."
        ) from error
    if not isinstance(made, bytes):
        raise TypeError(f"typst must give one PDF as bytes, got {type(made).__name__}")
    return made


def refusal(error: typst.TypstError) -> str:
    """Why typst refuses a template, on one line."""
    return " ".join(str(error).split())[:300]


def stand_alone(value: Any, shared: dict[str, str]) -> Any:
    """`value` with every SVG made independent of a page: theme colours and shared images filled in."""
    if isinstance(value, dict):
        return {
            key: _flatten(part, shared) if key == "svg" else stand_alone(part, shared)
            for key, part in value.items()
            if key != "shared"
        }
    if isinstance(value, list | tuple):
        return [stand_alone(part, shared) for part in value]
    return value


def _flatten(svg: str, shared: dict[str, str]) -> str:
    for name, colour in PAPER_COLOURS.items():
        svg = svg.replace(name, colour)
    for identifier, image in shared.items():
        svg = svg.replace(f'<use href="#{identifier}"/>', image)
    return svg


@cache
def _compiler(template: str) -> typst.Compiler:
    return compiler_of(TEMPLATES / f"{template}.typ")


def compiler_of(template: Path) -> typst.Compiler:
    """A compiler of one template that sees no other font than DejaVu, so that every machine makes the same pages."""
    fonts = typst.Fonts(include_system_fonts=False, font_paths=[str(_font_folder())])
    return typst.Compiler(str(template), root=str(TEMPLATES), font_paths=fonts)


def _font_folder() -> Path:
    """Folder of DejaVu Sans, which comes with matplotlib; found without importing it."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("matplotlib, which brings the fonts of the PDF reports, is not installed")
    return Path(found.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
