"""HTML documents: one self-contained file each, no request to any network, nothing but data through autoescaping."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parent / "templates"
CASE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def environment() -> Environment:
    """The templates, with autoescaping for every kind of file and errors for unknown names."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["drawing"] = Markup  # only for SVG text from `reports.figures`, which escapes its words
    made.filters["plate"] = _plate
    return made


def _plate(svg: str) -> str:
    """An SVG file as an image's address: apart from the page, so that neither its styles nor its scripts reach it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def render_case(document: dict[str, Any], key: str) -> str:
    """One nodule's page.

    Args:
        document: what `reports.sections.document` gives.
        key: digest of what decided the page, kept in it.
    """
    return environment().get_template("case.html").render(doc=document, key=key, policy=CASE_POLICY, style=_style())


def render_index(index: dict[str, Any]) -> str:
    """The page that lists all nodules; its one small script is named in the page's policy by its digest."""
    script = (TEMPLATES / "index.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{CASE_POLICY}; script-src 'sha256-{digest}'"
    template = environment().get_template("index.html")
    return template.render(index=index, policy=policy, style=_style(), script=Markup(script))


def render_run(content: dict[str, Any], key: str) -> str:
    """The run report's page.

    Args:
        content: what `reports.run_report.run_content` gives.
        key: digest of what decided the page, kept in it.
    """
    return environment().get_template("run.html").render(doc=content, key=key, policy=CASE_POLICY, style=_style())


def stored_key(path: Path) -> str | None:
    """The key of a page written earlier; None if there is no such page or it has none."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as stream:
        head = stream.read(2000)
    _, mark, rest = head.partition('<meta name="lidc-cdam-key" content="')
    return rest.partition('"')[0] if mark else None


@cache
def _style() -> Markup:
    return Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
