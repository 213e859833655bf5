"""HTML documents: one self-contained file each, no request to any network, nothing but data through autoescaping."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).resolve().parent / "templates"
INDEX_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


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
    made.filters["told"] = told
    made.filters["drawing"] = Markup  # only for SVG text from `reports.figures`, which escapes its words
    return made


def told(sentence: str) -> Markup:
    """A sentence with what stands between backticks as code."""
    parts = [escape(part) for part in sentence.split("`")]
    whole = len(parts) % 2
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 and whole else part for place, part in enumerate(parts)
    )


SCRIPTS = ("case_grid.js", "case_draw.js", "case.js")
"""The viewer's parts, in order; they share one scope."""
KEYS: tuple[tuple[str, str], ...] = (
    ("1 to 9", "map of a target"),
    ("Space", "map or plain CT"),
    ("Mouse wheel; arrows, Page Up, Page Down on a picture", "slices"),
    ("Home on a picture", "central slice"),
    ("Drag on a picture", "window: across for the width, up and down for the level"),
    ("L, M, W", "lung, mediastinal, wide window"),
    ("Shift and arrows on a picture", "move the cross that reads values"),
    ("V; double click or Enter on a picture", "another view large"),
    ("O", "outlines"),
    ("C", "compare with the next target or method"),
    ("P", "save as PNG"),
    ("R", "reset"),
    ("?", "this list"),
)
"""What the viewer's keys do."""


def render_case(document: dict[str, Any], key: str, viewer: dict[str, Any] | None = None) -> str:
    """One nodule's page.

    Args:
        document: what `reports.sections.document` gives.
        key: digest of what decided the page, kept in it.
        viewer: what `reports.viewer.viewer_data` gives; without it the page has its still pictures alone.
    """
    style, script = _style(), _script()
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = environment().get_template("case.html")
    return template.render(
        doc=document,
        key=key,
        policy=policy,
        style=style,
        script=script,
        viewer=None if viewer is None else inert_json(viewer),
        keys=KEYS,
    )


def inert_json(value: Any) -> Markup:
    """JSON that no HTML parser can take for markup, whatever its strings hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _digest(text: str) -> str:
    """A text's digest as a policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def render_index(index: dict[str, Any]) -> str:
    """The page that lists all nodules; its one small script is named in the page's policy by its digest."""
    script = (TEMPLATES / "index.js").read_text(encoding="utf-8")
    policy = f"{INDEX_POLICY}; script-src '{_digest(script)}'"
    template = environment().get_template("index.html")
    return template.render(index=index, policy=policy, style=_style(), script=Markup(script))


def render_images(page: dict[str, Any]) -> str:
    """The page that lists pictures of natural images' maps, which lie beside it as files."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file:; base-uri 'none'; form-action 'none'"
    return environment().get_template("images.html").render(page=page, policy=policy, style=_style())


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


@cache
def _script() -> Markup:
    parts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return Markup('"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n")
