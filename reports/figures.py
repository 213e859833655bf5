"""Pictures as SVG text: CT with the readers' outlines, signed maps, dot lines, the colour bar, thumbnails.

One unit of a CT picture is one millimetre of the crop. Colours that must follow a page's light or dark theme are CSS
variables (`var(--ink)`), and a CT that several pictures share is a `<use>` of a shared definition; `reports.pdf`
replaces both, because a stand-alone SVG has neither.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped, UInt8
from PIL import Image
from skimage.measure import find_contours

from lidc_cdam.geometry import VIEWS
from lidc_cdam.vocabulary import RESEARCH

ORANGE = (255, 140, 20)
"""Raises the prediction. Orange and blue stay apart in every common colour blindness and on grey CT."""
BLUE = (64, 150, 255)
"""Lowers the prediction."""
OPACITY = 0.8
"""Opacity of a score at the limit; zero is fully transparent."""
DIMMED = 0.3
"""How much the CT under a map is darkened, evenly, so that colours stand out on a white nodule."""
ABOVE, BELOW = "#ffe3c4", "#d5e7ff"
"""Contour lines at plus (solid) and minus (dashed) the level."""
CONSENSUS = "#ffe24a"
ANY_READER = "#7fe3ff"
CT_PIXELS = 192
"""Side of an embedded CT picture: six pixels a millimetre for a 32 mm crop."""
MAP_PIXELS = 96
THUMBNAIL_PIXELS = 96


@dataclass(frozen=True)
class Window:
    """A radiologist's way to show HU as grey."""

    key: str
    title: str
    level_hu: float
    width_hu: float

    @property
    def range_hu(self) -> tuple[float, float]:
        """HU shown as black and as white."""
        return self.level_hu - self.width_hu / 2, self.level_hu + self.width_hu / 2


LUNG = Window("lung", "lung window", -600, 1500)
SOFT = Window("soft", "mediastinal window", 40, 400)
WIDE = Window("wide", "wide window", -300, 1400)
"""What a model sees: -1000 to 400 HU."""
WINDOWS = (LUNG, SOFT, WIDE)


def data_uri(image: Image.Image, form: str = "PNG", **options: int) -> str:
    """An image as a `data:` address."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def grey(image_hu: Integer[np.ndarray, "row column"], window: Window, pixels: int) -> UInt8[np.ndarray, "height width"]:
    """HU through a window as grey values 0 to 255, smoothly (bicubic) enlarged to a longer side of `pixels`."""
    low, high = window.range_hu
    scale = pixels / max(image_hu.shape)
    size = (round(image_hu.shape[1] * scale), round(image_hu.shape[0] * scale))
    # Clipped first, so that bone, metal or padding next to the window's range leaves no ringing.
    clipped = Image.fromarray(np.clip(image_hu, low, high).astype(np.float32))
    enlarged = np.asarray(clipped.resize(size, Image.Resampling.BICUBIC))
    return (np.clip((enlarged - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def ct_image(
    image_hu: Integer[np.ndarray, "row column"], window: Window, side_mm: float, pixels: int = CT_PIXELS
) -> str:
    """The `<image>` element of a CT picture, `side_mm` wide and high."""
    uri = data_uri(Image.fromarray(grey(image_hu, window, pixels)))
    return f'<image href="{uri}" width="{side_mm:g}" height="{side_mm:g}" preserveAspectRatio="none"/>'


def thumbnail(image_hu: Integer[np.ndarray, "row column"], pixels: int = 56) -> str:
    """A small lung-window JPEG as a `data:` address."""
    return data_uri(Image.fromarray(grey(image_hu, LUNG, pixels)), "JPEG", quality=70)


def colourise(scores: Float[np.ndarray, "row column"], limit: float) -> UInt8[np.ndarray, "row column 4"]:
    """Signed scores as RGBA: orange above zero, blue below, opacity in proportion to |score| up to `limit`."""
    rgba = np.empty((*scores.shape, 4), dtype=np.uint8)
    rgba[..., :3] = np.where(scores[..., None] >= 0, ORANGE, BLUE)
    strength = np.clip(np.abs(scores) / limit, 0, 1) if limit > 0 else np.zeros(scores.shape)
    rgba[..., 3] = np.rint(strength * OPACITY * 255)
    return rgba


def overlay_image(scores: Float[np.ndarray, "row column"], limit: float, side_mm: float) -> str:
    """The `<image>` element of a map: scores on the token grid, enlarged bilinearly, then coloured.

    Enlarging before colouring keeps zero between two signs transparent.
    """
    size = (MAP_PIXELS, MAP_PIXELS)
    enlarged = np.asarray(Image.fromarray(scores.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    uri = data_uri(Image.fromarray(colourise(enlarged, limit), "RGBA"))
    return f'<image href="{uri}" width="{side_mm:g}" height="{side_mm:g}" preserveAspectRatio="none"/>'


def contour_path(grid: Shaped[np.ndarray, "row column"], level: float, side_mm: float) -> str:
    """Path data of a level set of values at cell centres; cells beyond the edge count as below the level.

    Args:
        grid: values on a grid of equal cells that covers the whole picture.
        level: the value to follow.
        side_mm: side of the picture.
    """
    below = min(float(grid.min()), level) - abs(level) - 1.0
    padded = np.pad(grid.astype(np.float64), 1, constant_values=below)
    row_mm, column_mm = side_mm / grid.shape[0], side_mm / grid.shape[1]
    parts = []
    for line in find_contours(padded, level):
        # padded index 1 is the first cell, whose centre lies half a cell inside the picture
        x = np.clip((line[:, 1] - 0.5) * column_mm, 0, side_mm)
        y = np.clip((line[:, 0] - 0.5) * row_mm, 0, side_mm)
        points = "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y, strict=True))
        parts.append(f"M{points}Z" if np.array_equal(line[0], line[-1]) else f"M{points}")
    return "".join(parts)


def mask_path(mask: Bool[np.ndarray, "row column"], side_mm: float) -> str:
    """Path data of a mask's outline."""
    row_mm, column_mm = side_mm / mask.shape[0], side_mm / mask.shape[1]
    padded = np.pad(mask.astype(np.float64), 1)
    parts = []
    for line in find_contours(padded, 0.5):
        points = "L".join(f"{(c - 0.5) * column_mm:.2f} {(r - 0.5) * row_mm:.2f}" for r, c in line[:-1])
        parts.append(f"M{points}Z")
    return "".join(parts)


@dataclass(frozen=True)
class Cut:
    """One view of a nodule's cube: what a CT picture needs."""

    view: str
    hu: Integer[np.ndarray, "row column"]
    readers: UInt8[np.ndarray, "row column"]
    """Number of readers that marked the voxel."""
    consensus: Bool[np.ndarray, "row column"]
    """Marked by enough of the readers (`Run.consensus_level`)."""
    padded: Bool[np.ndarray, "row column"]
    """Outside what was read."""
    side_mm: float


def ct_picture(cut: Cut, image: str, key: str) -> str:
    """A CT picture: consensus solid, the region any reader marked thin, hatching.

    Args:
        cut: the view.
        image: the `<image>` (or `<use>`) element of the CT.
        key: unique name of the picture in its page.
    """
    layers = [
        image,
        _hatching(cut.padded, cut.side_mm, key),
        _outline(mask_path(cut.readers > 0, cut.side_mm), ANY_READER, 0.16),
        _outline(mask_path(cut.consensus, cut.side_mm), CONSENSUS, 0.3),
    ]
    return _framed(cut.side_mm, layers, cut.view, words=1.85)


def map_picture(
    cut: Cut, image: str, scores: Float[np.ndarray, "row column"], limit: float, level: float, key: str
) -> str:
    """A signed map over the CT, with lines at plus (solid) and minus (dashed) `level` and the consensus.

    The lines keep the sign readable in grey print.
    """
    side = cut.side_mm
    layers = [
        image,
        _hatching(cut.padded, side, key, words=False),
        f'<rect width="{side:g}" height="{side:g}" fill="#000" fill-opacity="{DIMMED}"/>',
        overlay_image(scores, limit, side),
        _outline(contour_path(scores, level, side), ABOVE, 0.22),
        _outline(contour_path(-scores, level, side), BELOW, 0.22, "0.8 0.6"),
        _outline(mask_path(cut.consensus, side), CONSENSUS, 0.2),
    ]
    return _framed(side, layers, cut.view)


def map_thumbnail(cut: Cut, scores: Float[np.ndarray, "row column"], limit: float, level: float, key: str) -> str:
    """A small signed map over the CT, with the lines and the consensus of `map_picture`.

    Args:
        cut: the view.
        scores: on the token grid.
        limit: score of the full colour.
        level: score of the lines.
        key: unique name of the picture in its page.
    """
    side = cut.side_mm
    ct = Image.fromarray(grey(cut.hu, LUNG, THUMBNAIL_PIXELS)).point(lambda value: round(value * (1 - DIMMED)))
    enlarged = Image.fromarray(scores.astype(np.float32)).resize(ct.size, Image.Resampling.BILINEAR)
    coloured = Image.fromarray(colourise(np.asarray(enlarged), limit), "RGBA")
    uri = data_uri(Image.alpha_composite(ct.convert("RGBA"), coloured).convert("RGB"), "JPEG", quality=85)
    layers = [
        f'<image href="{uri}" width="{side:g}" height="{side:g}" preserveAspectRatio="none"/>',
        _hatching(cut.padded, side, key, words=False),
        _outline(contour_path(scores, level, side), ABOVE, 0.4),
        _outline(contour_path(-scores, level, side), BELOW, 0.4, "1.4 1"),
        _outline(mask_path(cut.consensus, side), CONSENSUS, 0.4),
    ]
    return _framed(side, layers, words=2.6)


def outlined_picture(image: str, consensus: Bool[np.ndarray, "row column"], side_mm: float) -> str:
    """A small CT picture with the consensus alone."""
    layers = [image, _outline(mask_path(consensus, side_mm), CONSENSUS, 0.4)]
    return _framed(side_mm, layers, words=2.6)


def _framed(side_mm: float, layers: Sequence[str], view: str = "", words: float = 1.45) -> str:
    """A picture in a dark frame that bears all words, so that none lies on what is shown.

    Args:
        side_mm: side of the picture.
        layers: the picture, the last layer on top.
        view: whose letters stand around it over a scale bar; empty for neither.
        words: size of the words below, in 32nds of the side.
    """
    unit = side_mm / 32
    margin, size = 2.2 * unit if view else 0.0, words * unit
    width, foot = side_mm + 2 * margin, side_mm + 2 * margin
    tall = foot + 2.5 * size
    lines = [
        _text(max(margin, 0.7 * unit), foot + (0.75 + 1.15 * place) * size, line, size, "#e4e8ee", "start")
        for place, line in enumerate(RESEARCH.split(" - "))
    ]
    frame = f'<rect width="{width:g}" height="{tall:g}" fill="#0e1116"/>'
    picture = f'<g transform="translate({margin:g} {margin:g})">{"".join(layers)}</g>'
    around = [*_letters(view, side_mm, margin), *_scale_bar(side_mm, margin, foot, size)] if view else []
    return svg(width, tall, [frame, picture, *around, *lines])


def _letters(view: str, side_mm: float, margin: float) -> list[str]:
    left, right, top, bottom = VIEWS[view].letters
    middle, far, size = margin + side_mm / 2, 1.5 * margin + side_mm, 0.8 * margin
    places = ((left, margin / 2, middle), (right, far, middle), (top, middle, margin / 2), (bottom, middle, far))
    return [_text(x, y + 0.36 * size, letter, size) for letter, x, y in places]


def _scale_bar(side_mm: float, margin: float, foot: float, size: float, length_mm: float = 10.0) -> list[str]:
    """A bar at the picture's lower right, its length above it."""
    right, y, tick = margin + side_mm, foot + 1.6 * size, 0.3 * size
    ends = "".join(f"M{x:g} {y - tick:g}v{2 * tick:g}" for x in (right - length_mm, right))
    bar = _line(f"{ends}M{right - length_mm:g} {y:g}H{right:g}", "#ffffff", round(0.16 * size, 3), "")
    return [bar, _text(right - length_mm / 2, foot + 0.9 * size, f"{length_mm:g} mm", size)]


def svg(width: float, height: float, layers: Sequence[str]) -> str:
    """A picture out of layers, the last on top."""
    body = "".join(layers)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif">{body}</svg>'
    )


def _line(path: str, colour: str, width: float, dashes: str) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{dashed}/>'
        if path
        else ""
    )


def _outline(path: str, colour: str, width: float, dashes: str = "") -> str:
    """A line on a dark halo, so that it shows on lung and on nodule."""
    halo = _line(path, "#000", width * 2, dashes).replace("/>", ' stroke-opacity="0.5"/>')
    return halo + _line(path, colour, width, dashes)


def _hatching(padded: Bool[np.ndarray, "row column"], side_mm: float, key: str, words: bool = True) -> str:
    if not padded.any():
        return ""
    cell = side_mm / padded.shape[0]
    areas = []
    for row in range(padded.shape[0]):
        edges = np.flatnonzero(np.diff(np.pad(padded[row].astype(np.int8), 1)))
        for start, stop in edges.reshape(-1, 2):
            areas.append(f"M{start * cell:g} {row * cell:g}h{(stop - start) * cell:g}v{cell:g}H{start * cell:g}z")
    area = "".join(areas)
    pattern = (
        f'<pattern id="hatch-{key}" width="1.6" height="1.6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="1.6" height="1.6" fill="#30353d"/>'
        '<rect width="0.35" height="1.6" fill="#59616d"/></pattern>'
    )
    label = _hatch_words(padded, side_mm) if words else ""
    return f'<defs>{pattern}</defs><path d="{area}" fill="url(#hatch-{key})"/>{label}'


def _hatch_words(padded: Bool[np.ndarray, "row column"], side_mm: float) -> str:
    """Words on the hatching where a band of at least 5 mm is hatched from side to side."""
    full = np.flatnonzero(padded.all(axis=1))
    cell = side_mm / padded.shape[0]
    bands = [band for band in np.split(full, np.flatnonzero(np.diff(full) > 1) + 1) if band.size * cell >= 5]
    if not bands:
        return ""
    y = max((float(bands[0].mean()) + 0.5) * cell + 0.5, 2.6)
    return _text(side_mm / 2, y, "outside what was read", 1.5, "#e4e8ee")


def _text(x: float, y: float, words: str, size: float, colour: str = "#fff", anchor: str = "middle") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}" stroke="#000" '
        f'stroke-opacity="0.55" stroke-width="{size / 5:g}" paint-order="stroke">{escape(words)}</text>'
    )
