"""Figures of a run's folder, taken into a report as they are."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from lidc_cdam.vocabulary import MALIGNANCY
from reports import blocks
from reports.blocks import Block
from reports.facts import Facts
from reports.results import told

LARGEST = 3_000_000
"""Bytes of a figure; a larger one is named and left where it is."""
ROOT = re.compile(r'<svg(?P<rest>[^>]* viewBox="0 0 (?P<width>[\d.]+) (?P<height>[\d.]+)"[^>]*)>')
FOOT = 12
"""Height of the line under a figure that `marked` adds, in the figure's own points."""


def plate(path: Path, title: str, alt: str, folded: bool = False) -> Block:
    """A figure, or what stands in its place.

    Args:
        path: an SVG file.
        title: its caption.
        alt: what it shows.
        folded: whether it is closed at first in HTML and left out of the PDF.
    """
    name = "/".join(path.parts[path.parts.index("figures") :])
    if not path.exists():
        return blocks.missing(f"{title}: {name} is missing; the command that made the run, called again, draws it.")
    svg = path.read_text(encoding="utf-8", errors="replace")
    if "<svg" not in svg or len(svg) > LARGEST:
        return blocks.missing(f"{title}: {name} is no figure that can be shown here; open it in the run's folder.")
    return blocks.figure(title, svg, alt, folded)


def performance_plates(facts: Facts) -> list[Block]:
    """ROC, reliability and biomarkers, as far as the run predicts them."""
    made = []
    folder = facts.run.folder / "figures"
    own = facts.summary.get("metrics", {}).get(MALIGNANCY.key, {})
    if MALIGNANCY.key in facts.run.targets:
        auc, ece = told(own.get("auc")), told(own.get("ece"))
        curves = f"ROC curves of malignancy; AUC of this run {auc}."
        bins = f"Observed over predicted share of malignant nodules in ten bins; ECE {ece}."
        pair = (("roc", "ROC of malignancy", curves), ("reliability", "Reliability of malignancy", bins))
        made.append(blocks.row([plate(folder / f"{name}.svg", title, alt) for name, title, alt in pair]))
    if set(facts.run.targets) - {MALIGNANCY.key}:
        alt = "Predictions over the readers' means, one panel a biomarker; the table above holds the errors."
        made.append(plate(folder / "biomarkers.svg", "Biomarkers against the readers", alt))
    return made


def learning_plate(facts: Facts) -> Block:
    """The learning curves of the folds."""
    alt = "Training and validation loss over epochs, a curve a fold."
    return plate(facts.run.folder / "figures" / "learning_curves.svg", "Learning curves", alt)


def marked(made: Sequence[Block], words: str) -> list[Block]:
    """Blocks whose figures bear words below, so that one that is saved by itself still says them."""
    return [
        entry
        | ({"svg": _marked(entry["svg"], words)} if entry["kind"] == "figure" else {})
        | ({"pieces": marked(entry["pieces"], words)} if entry["kind"] == "row" else {})
        for entry in made
    ]


def _marked(svg: str, words: str) -> str:
    """A figure over a line of words; one that does not tell its size is left as it is."""
    root = ROOT.search(svg)
    if root is None:
        return svg
    width, height = float(root["width"]), float(root["height"])
    # The figure's own size is in points, which are no units of the frame around it.
    rest = re.sub(r' (width|height)="[^"]*"', "", root["rest"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}pt" height="{height + FOOT:g}pt" '
        f'viewBox="0 0 {width:g} {height + FOOT:g}"><rect width="{width:g}" height="{height + FOOT:g}" fill="#fff"/>'
        f'<svg width="{width:g}" height="{height:g}"{rest}>{svg[root.end() :]}'
        f'<text x="4" y="{height + 0.7 * FOOT:g}" font-family="DejaVu Sans, sans-serif" font-size="7.5" '
        f'font-weight="bold" fill="#a3195b">{escape(words)}</text></svg>'
    )
