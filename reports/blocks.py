"""The pieces that a run report is made of: plain data that the HTML and the PDF template show alike."""

from collections.abc import Sequence
from typing import Any

Block = dict[str, Any]


def text(words: str) -> Block:
    """A paragraph."""
    return {"kind": "text", "text": words}


def quiet(words: str) -> Block:
    """A note in grey."""
    return {"kind": "quiet", "text": words}


def missing(words: str) -> Block:
    """What stands in the place of something that is not there, with the way to get it."""
    return {"kind": "missing", "text": words}


def items(sentences: Sequence[str]) -> Block:
    """A list of sentences."""
    return {"kind": "items", "items": list(sentences)}


def record(pairs: Sequence[tuple[str, str]]) -> Block:
    """Names and values."""
    return {"kind": "record", "pairs": [list(pair) for pair in pairs]}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], wide: int = 0) -> Block:
    """A table whose first column names its rows.

    Args:
        title: what it shows, for its caption.
        head: names of the columns.
        rows: cells as text.
        wide: index of the column that takes the room that is left; the first by default.
    """
    return {"kind": "table", "title": title, "head": list(head), "rows": [list(row) for row in rows], "wide": wide}


def figure(title: str, svg: str, alt: str, folded: bool = False) -> Block:
    """A picture of the run's own files.

    Args:
        title: its caption.
        svg: the file's text.
        alt: what it shows, in words.
        folded: whether it is closed at first in HTML and left out of the PDF.
    """
    return {"kind": "figure", "title": title, "svg": svg, "alt": alt, "folded": folded}


def row(pieces: Sequence[Block]) -> Block:
    """Pieces side by side."""
    return {"kind": "row", "pieces": list(pieces)}


def heading(title: str) -> Block:
    """A heading inside a section."""
    return {"kind": "heading", "text": title}


def section(key: str, title: str, blocks: Sequence[Block]) -> dict[str, Any]:
    """A section with its anchor.

    Args:
        key: letters, digits and dashes; unique in the document.
        title: its heading.
        blocks: its pieces in order.
    """
    return {"key": key, "title": title, "blocks": list(blocks)}
