"""Signed maps over natural images as PNG pictures: what the model was shown, a map per class, one printed scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from reports.charts import signed
from reports.figures import DIMMED, colourise

PANEL = 224
"""Longer side of a panel, pixels."""
GAP, CAPTION, BAR, HEAD = 12, 40, 40, 30
INK, MUTED, PAPER = (20, 24, 31), (82, 92, 107), (255, 255, 255)
BAR_GROUND = (74, 79, 87)
"""Mid-grey under the scale, as under a map."""


@dataclass(frozen=True)
class Panel:
    """A picture with two lines under it."""

    picture: Image.Image
    title: str
    note: str = ""


def shown_panel(shown: UInt8[np.ndarray, "row column 3"]) -> Image.Image:
    """What the model was shown, enlarged; small images keep their pixels."""
    image = Image.fromarray(shown)
    smooth = max(image.size) > PANEL // 4
    return image.resize(_panel_size(shown), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def map_panel(
    shown: UInt8[np.ndarray, "row column 3"], scores: Float[np.ndarray, "token_row token_column"], limit: float
) -> Image.Image:
    """A map over the grey, darkened image: orange raises the output, blue lowers it, zero is transparent.

    Args:
        shown: what the model was shown.
        scores: raw scores on the token grid.
        limit: score of the full colour.
    """
    size = _panel_size(shown)
    grey = shown_panel(shown).convert("L").point(lambda value: round(value * (1 - DIMMED)))
    enlarged = Image.fromarray(scores.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    colours = Image.fromarray(colourise(np.asarray(enlarged), limit), "RGBA")
    return Image.alpha_composite(grey.convert("RGBA"), colours).convert("RGB")


def sheet(panels: Sequence[Sequence[Panel]], title: str, limit: float, unit: str = "") -> Image.Image:
    """Rows of panels under a title, over the scale with its limits.

    Args:
        panels: rows of pictures of one size.
        title: above them.
        limit: score of the full colour.
        unit: what the scores are of, for the scale.
    """
    wide, tall = panels[0][0].picture.size
    columns = max(map(len, panels))
    width = max(columns * (wide + GAP) + GAP, 2 * PANEL + 3 * GAP)
    made = Image.new("RGB", (width, HEAD + len(panels) * (tall + CAPTION) + BAR + GAP), PAPER)
    draw = ImageDraw.Draw(made)
    draw.text((GAP, 8), title, INK, font(14, bold=True))
    for row, line in enumerate(panels):
        for column, panel in enumerate(line):
            left, upper = GAP + column * (wide + GAP), HEAD + row * (tall + CAPTION)
            made.paste(panel.picture, (left, upper))
            draw.text((left, upper + tall + 3), fitted(panel.title, 12, wide, bold=True), INK, font(12, bold=True))
            draw.text((left, upper + tall + 19), fitted(panel.note, 11, wide), MUTED, font(11))
    _scale(made, (GAP, made.height - BAR - 4), limit, unit)
    return made


def _panel_size(shown: UInt8[np.ndarray, "row column 3"]) -> tuple[int, int]:
    rows, columns = shown.shape[:2]
    scale = PANEL / max(rows, columns)
    return round(columns * scale), round(rows * scale)


def _scale(made: Image.Image, corner: tuple[int, int], limit: float, unit: str) -> None:
    """A colour bar from minus to plus the limit, with what the colours mean."""
    left, upper = corner
    wide, tall = min(made.width - 2 * GAP, 2 * PANEL), 12
    bar = Image.fromarray(colourise(np.linspace(-1, 1, wide)[None].repeat(tall, 0), 1.0), "RGBA")
    ground = Image.new("RGBA", bar.size, (*BAR_GROUND, 255))
    made.paste(Image.alpha_composite(ground, bar).convert("RGB"), corner)
    draw = ImageDraw.Draw(made)
    words = (
        (left, "la", f"{signed(-limit)} lowers{unit}"),
        (left + wide // 2, "ma", "0"),
        (left + wide, "ra", f"raises{unit} {signed(limit)}"),
    )
    for x, anchor, text in words:
        draw.text((x, upper + tall + 3), text, INK, font(11), anchor=anchor)


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib brings it."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def fitted(text: str, size: int, width: float, bold: bool = False) -> str:
    """A text, cut where it is wider than `width` pixels."""
    if font(size, bold).getlength(text) <= width:
        return text
    while text and font(size, bold).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
