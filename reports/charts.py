"""Charts as SVG text: a target's dot line and the maps' colour bar. Their colours follow the page's theme."""

import math
from collections.abc import Sequence

from lidc_cdam.vocabulary import Target
from reports.figures import ABOVE, BELOW, BLUE, OPACITY, ORANGE, svg


def dot_line(
    target: Target,
    readers: Sequence[float],
    mean: float | None,
    prediction: float | None,
    interval: tuple[float, float] | None = None,
    others: Sequence[float] = (),
    width: float = 250,
) -> str:
    """A target's scale with one dot per reader (equal answers stacked), the readers' mean and the prediction.

    Args:
        target: gives the scale's ends; a probability is drawn on the readers' scale, where one half falls on the
            middle rating, which is where the readers' median parts benign from malignant.
        readers: one value per reader, on the readers' scale.
        mean: the readers' mean (median for malignancy).
        prediction: on the readers' scale (a probability for malignancy).
        interval: ends of the prediction's interval, in its unit.
        others: what models of other folds predict, in the prediction's unit.
        width: width of the picture in pixels.
    """
    shown = [*readers, *([] if mean is None else [mean]), *others, *(interval or ())]
    low, high = _ends(target, shown, prediction)
    margin, base, height = 9.0, 33.0, 52.0

    def place(value: float) -> float:
        return margin + (min(max(value, low), high) - low) / (high - low) * (width - 2 * margin)

    def scaled(value: float) -> float:
        return place(low + value * (high - low) if target.kind == "probability" else value)

    marks = []
    if interval is not None:
        start, stop = (scaled(end) for end in interval)
        marks.append(
            f'<rect x="{start:.1f}" y="{base - 4:g}" width="{max(stop - start, 1):.1f}" height="8" rx="2" '
            f'fill="var(--accent)" fill-opacity="0.28"/>'
        )
    marks.append(f'<path d="M{margin} {base}H{width - margin}" stroke="var(--line)" stroke-width="1.5"/>')
    for tick in _ticks(target, low, high):
        marks.append(f'<path d="M{place(tick):.1f} {base}v4" stroke="var(--line)" stroke-width="1.2"/>')
        marks.append(
            f'<text x="{place(tick):.1f}" y="{base + 17:g}" font-size="14" text-anchor="middle" '
            f'fill="var(--muted)">{tick:g}</text>'
        )
    if mean is not None:
        marks.append(f'<path d="M{place(mean):.1f} 0.5V{base}" stroke="var(--ink)" stroke-width="2"/>')
    marks += _dots([place(value) for value in readers], base)
    marks += [_diamond(scaled(value), base, hollow=True) for value in others]
    if prediction is not None:
        marks.append(_diamond(scaled(prediction), base))
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


def _diamond(x: float, y: float, hollow: bool = False) -> str:
    half = 4.5 if hollow else 6.5
    fill, line = ("var(--paper)", "var(--accent)") if hollow else ("var(--accent)", "var(--paper)")
    return (
        f'<path d="M{x:.1f} {y - half:g}L{x + half - 0.5:.1f} {y:g}L{x:.1f} {y + half:g}L{x - half + 0.5:.1f} {y:g}Z" '
        f'fill="{fill}" stroke="{line}" stroke-width="1.2"/>'
    )


def colour_bar(share: float, key: str, limit: float | None = None, width: float = 420) -> str:
    """The scale of the maps over mid-grey, as over CT: its ends, zero, and the two line styles.

    Args:
        share: level of the contour lines as a share of the limit.
        key: unique name of the scale in its page.
        limit: score of the full colour; None where each panel prints its own.
        width: width of the picture in pixels.
    """
    margin, top, tall = 34.0, 6.0, 16.0
    span = width - 2 * margin
    stops = "".join(
        f'<stop offset="{place}" stop-color="rgb{BLUE if place < 0.5 else ORANGE}" '
        f'stop-opacity="{abs(place - 0.5) * 2 * OPACITY:g}"/>'
        for place in (0.0, 0.4999, 0.5001, 1.0)
    )
    marks = [
        f'<defs><linearGradient id="{key}">{stops}</linearGradient></defs>',
        f'<rect x="{margin}" y="{top}" width="{span}" height="{tall}" fill="#4a4f57"/>',
        f'<rect x="{margin}" y="{top}" width="{span}" height="{tall}" fill="url(#{key})"/>',
    ]
    for part in (-1.0, -share, 0.0, share, 1.0):
        x = margin + (part + 1) / 2 * span
        dashes = ' stroke-dasharray="3 2"' if part < 0 else ""
        if abs(part) != 1 and part:
            colour = BELOW if part < 0 else ABOVE
            marks.append(f'<path d="M{x:.1f} {top}v{tall}" stroke="{colour}" stroke-width="1.6"{dashes} fill="none"/>')
        marks.append(f'<path d="M{x:.1f} {top + tall}v3" stroke="var(--ink)" stroke-width="1"/>')
        words = f"{signed(part)} × limit" if limit is None and abs(part) == 1 else signed(part * (limit or 1))
        marks.append(
            f'<text x="{x:.1f}" y="{top + tall + 14:g}" font-size="10.5" text-anchor="middle" '
            f'fill="var(--ink)">{words}</text>'
        )
    return svg(width, 40, marks)


def signed(value: float) -> str:
    """A score with its sign and three significant digits; a plain 0 for zero."""
    return f"{value:+.3g}".replace("-", "−") if value else "0"
