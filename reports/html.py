"""HTML documents: one self-contained file each, no request to any network, nothing but data through autoescaping."""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).resolve().parent / "templates"


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
        finalize=kept,
    )
    made.filters["told"] = told
    made.filters["drawing"] = Markup  # only for SVG text from `reports.figures`, which escapes its words
    made.filters["plate"] = _plate
    return made


INTERVAL = re.compile(r"\(([−+]?[\d.]+) to ([−+]?[\d.]+)\)")


def kept(value: Any) -> Any:
    """Plain text whose intervals, `(0.83 to 0.89)`, no line end can part; anything else as it is."""
    return INTERVAL.sub("(\\1\u00a0to\u00a0\\2)", value) if type(value) is str and " to " in value else value


def refusal(error: TemplateError) -> str:
    """Why a template cannot be filled in, on one line and without this machine's folders."""
    words = " ".join((error.message or type(error).__name__).split())
    place = f" in line {error.lineno} of the template {error.name}" if isinstance(error, TemplateSyntaxError) else ""
    return words + place


def told(sentence: str) -> Markup:
    """A sentence with what stands between backticks as code."""
    parts = [escape(part) for part in kept(sentence).split("`")]
    whole = len(parts) % 2
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 and whole else part for place, part in enumerate(parts)
    )


def _plate(svg: str) -> str:
    """An SVG file as an image's address: apart from the page, so that neither its styles nor its scripts reach it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


SCRIPTS = ("case_grid.js", "case_draw.js", "case.js", "case_keep.js", "case_controls.js")
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
    template = environment().get_template("case.html")
    return template.render(
        doc=document,
        key=key,
        policy=_policy(style, script),
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


def _policy(style: str, script: str = "", pictures: str = "data:") -> str:
    """A page's policy: its own style and script by their digests, pictures it carries itself, and nothing else."""
    scripts = f"script-src '{_digest(script)}'; " if script else ""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; {scripts}img-src {pictures}; base-uri 'none'; "
        f"form-action 'none'"
    )


def render_index(index: dict[str, Any]) -> str:
    """The page that lists all nodules."""
    style, script = _style("index"), Markup((TEMPLATES / "index.js").read_text(encoding="utf-8"))
    template = environment().get_template("index.html")
    return template.render(index=index, policy=_policy(style, script), style=style, script=script)


def render_run(content: dict[str, Any], key: str) -> str:
    """The run report's page.

    Args:
        content: what `reports.run_report.run_content` gives.
        key: digest of what decided the page, kept in it.
    """
    style = _style("run")
    return environment().get_template("run.html").render(doc=content, key=key, policy=_policy(style), style=style)


def render_images(page: dict[str, Any]) -> str:
    """The page that lists pictures of natural images' maps, which lie beside it as files."""
    style = _style("images")
    policy = _policy(style, pictures="'self' file:")
    return environment().get_template("images.html").render(page=page, policy=policy, style=style)


def stored_key(path: Path) -> str | None:
    """The key of a page written earlier; None if there is no such page or it has none."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as stream:
        head = stream.read(2000)
    _, mark, rest = head.partition('<meta name="lidc-cdam-key" content="')
    return rest.partition('"')[0] if mark else None


@cache
def _style(page: str = "") -> Markup:
    """The style of all pages, and what one page adds."""
    names = ("style", page) if page else ("style",)
    return Markup("\n".join((TEMPLATES / f"{name}.css").read_text(encoding="utf-8") for name in names))


@cache
def _script() -> Markup:
    parts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return Markup('"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n")
