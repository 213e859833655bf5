"""PDF documents through typst: PDF/UA-1 and PDF/A-2a at once, embedded fonts, the same bytes for the same content.

Content travels as JSON data (`sys.inputs`), so no text of an artefact can become typst code.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import typst

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
    """One nodule's PDF, at most two A4 pages.

    Args:
        document: what `reports.sections.document` gives.

    Raises:
        typst.TypstError: the document breaks a rule of the template or of a standard.
    """
    content = json.dumps(stand_alone(document, document["shared"]))
    made = _compiler().compile(
        format="pdf", sys_inputs={"document": content}, pdf_standards=STANDARDS, timestamp=NO_CLOCK
    )
    if not isinstance(made, bytes):
        raise TypeError(f"typst must give one PDF as bytes, got {type(made).__name__}")
    return made


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
def _compiler() -> typst.Compiler:
    return compiler_of(TEMPLATES / "case.typ")


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
