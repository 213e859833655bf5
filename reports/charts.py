"""Charts as SVG text: a target's dot line and the maps' colour bar. Their colours follow the page's theme."""

import math
from collections.abc import Sequence

from lidc_cdam.vocabulary import Target
from reports.figures import ABOVE, BELOW, BLUE, OPACITY, ORANGE, svg


def dot_line(
    target: Target, readers: Sequence[float], mean: float | None, prediction: float | None, width: float = 250
) -> str:
    """A target's scale with one dot per reader (equal answers stacked), the readers' mean and the prediction.

    Args:
        target: gives the scale's ends; a probability is drawn on the readers' scale, where one half falls on the
            middle rating, which is where the readers' median parts benign from malignant.
        readers: one value per reader, on the readers' scale.
        mean: the readers' mean (median for malignancy).
        prediction: on the readers' scale (a probability for malignancy).
        width: width of the picture in pixels.
    """
    low, high = _ends(target, [*readers, *([] if mean is None else [mean])], prediction)
    margin, base, height = 9.0, 33.0, 47.0

    def place(value: float) -> float:
        return margin + (min(max(value, low), high) - low) / (high - low) * (width - 2 * margin)

    marks = [f'<path d="M{margin} {base}H{width - margin}" stroke="var(--line)" stroke-width="1.5"/>']
    for tick in _ticks(target, low, high):
        marks.append(f'<path d="M{place(tick):.1f} {base}v4" stroke="var(--line)" stroke-width="1.2"/>')
        marks.append(
            f'<text x="{place(tick):.1f}" y="{base + 13:g}" font-size="9" text-anchor="middle" '
            f'fill="var(--muted)">{tick:g}</text>'
        )
    if mean is not None:
        marks.append(f'<path d="M{place(mean):.1f} 0.5V{base}" stroke="var(--ink)" stroke-width="2"/>')
    marks += _dots([place(value) for value in readers], base)
    if prediction is not None:
        at = low + prediction * (high - low) if target.kind == "probability" else prediction
        marks.append(_diamond(place(at), base))
    return svg(width, height, marks)


def _ends(target: Target, values: Sequence[float], prediction: float | None) -> tuple[float, float]:
    if target.kind != "length":
        return target.low, target.high
    shown = [*values, *([] if prediction is None else [prediction])]
    return min([target.low, *map(math.floor, shown)]), max([target.high, *map(math.ceil, shown)])


def _ticks(target: Target, low: float, high: float) -> list[float]:
    if target.kind == "length":
        return [low, *(tick for tick in range(10, 100, 10) if low < tick <= high)]
    return [low + step for step in range(round(high - low) + 1)]


def _dots(places: Sequence[float], base: float) -> list[str]:
    stacked: list[tuple[float, float]] = []
    for x in sorted(places):
        level = sum(1 for other, _ in stacked if abs(other - x) < 6.4)
        stacked.append((x, base - 4.5 - 6.3 * min(level, 3)))
    return [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--paper)" stroke="var(--ink)" stroke-width="1.4"/>'
        for x, y in stacked
    ]


def _diamond(x: float, y: float) -> str:
    return (
        f'<path d="M{x:.1f} {y - 6.5:g}L{x + 6:.1f} {y:g}L{x:.1f} {y + 6.5:g}L{x - 6:.1f} {y:g}Z" '
        'fill="var(--accent)" stroke="var(--paper)" stroke-width="1.2"/>'
    )


def colour_bar(limit: float, level: float, key: str, width: float = 420) -> str:
    """The scale of the maps over mid-grey, as over CT: limits, zero, and the two line styles at plus / minus `level`.

    Args:
        limit: score of the full colour.
        level: score of the contour lines.
        key: unique name of the scale in its page.
        width: width of the picture in pixels.
    """
    margin, top, tall = 34.0, 6.0, 16.0
    span = width - 2 * margin
    stops = "".join(
        f'<stop offset="{share}" stop-color="rgb{BLUE if share < 0.5 else ORANGE}" '
        f'stop-opacity="{abs(share - 0.5) * 2 * OPACITY:g}"/>'
        for share in (0.0, 0.4999, 0.5001, 1.0)
    )
    marks = [
        f'<defs><linearGradient id="{key}">{stops}</linearGradient></defs>',
        f'<rect x="{margin}" y="{top}" width="{span}" height="{tall}" fill="#4a4f57"/>',
        f'<rect x="{margin}" y="{top}" width="{span}" height="{tall}" fill="url(#{key})"/>',
    ]
    for value in (-limit, -level, 0.0, level, limit):
        x = margin + (value / limit + 1) / 2 * span
        dashes = ' stroke-dasharray="3 2"' if value < 0 else ""
        if abs(value) != limit and value:
            colour = BELOW if value < 0 else ABOVE
            marks.append(f'<path d="M{x:.1f} {top}v{tall}" stroke="{colour}" stroke-width="1.6"{dashes} fill="none"/>')
        marks.append(f'<path d="M{x:.1f} {top + tall}v3" stroke="var(--ink)" stroke-width="1"/>')
        marks.append(
            f'<text x="{x:.1f}" y="{top + tall + 14:g}" font-size="10.5" text-anchor="middle" '
            f'fill="var(--ink)">{signed(value)}</text>'
        )
    return svg(width, 40, marks)


def signed(value: float) -> str:
    """A score with its sign and three significant digits; a plain 0 for zero."""
    return f"{value:+.3g}".replace("-", "−") if value else "0"
