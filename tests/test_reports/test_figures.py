import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab
from test_reports import world

from lidc_cdam import crop_files
from lidc_cdam.geometry import VIEWS, take_view
from lidc_cdam.vocabulary import RESEARCH
from reports import figures

SIDE = world.SIDE


def picture_of(svg: str, index: int) -> np.ndarray:
    """Pixels of the embedded image number `index` of an SVG."""
    encoded = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", svg)[index]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def cut(padded: int = 0, view: str = "axial") -> figures.Cut:
    made = world.crop(np.random.default_rng(1), padded=padded)
    parts = (made.hu, made.readers, made.readers >= 2, made.hu == crop_files.PADDING_HU)
    return figures.Cut(view, *(take_view(part, view, 16) for part in parts), float(SIDE))


@pytest.mark.parametrize(("sign", "colour"), [(1, figures.ORANGE), (-1, figures.BLUE)])
@pytest.mark.parametrize("token", [(3, 12), (10, 1)])
def test_a_single_score_is_coloured_by_its_sign_at_its_place_only(sign, colour, token):
    scores = np.zeros((world.GRID, world.GRID), dtype=np.float32)
    scores[token] = sign * 2.0
    svg = figures.map_picture(cut(), figures.ct_image(cut().hu, figures.LUNG, SIDE), scores, 2.0, 1.0, "key")
    overlay = picture_of(svg, 1)
    pixels = figures.MAP_PIXELS // world.GRID
    row, column = (int((place + 0.5) * pixels) for place in token)
    assert tuple(overlay[row, column, :3]) == colour
    assert overlay[row, column, 3] > 0.8 * figures.OPACITY * 255
    strength = overlay[..., 3].astype(float)
    centre = [float((strength.sum(axis) * np.arange(figures.MAP_PIXELS)).sum() / strength.sum()) for axis in (1, 0)]
    assert centre == pytest.approx([(place + 0.5) * pixels - 0.5 for place in token], abs=0.6)
    assert overlay[:, :, 3][np.abs(np.arange(figures.MAP_PIXELS) - row) > 1.6 * pixels].max() == 0


def test_zero_is_transparent_and_scores_beyond_the_limit_keep_the_full_colour():
    coloured = figures.colourise(np.array([[0.0, 0.5, 1.0, 7.0, -1.0]]), 1.0)
    full = round(figures.OPACITY * 255)
    assert coloured[0, :, 3].tolist() == [0, full // 2, full, full, full]
    assert not figures.colourise(np.zeros((4, 4)), 0.0)[..., 3].any()


def test_between_two_signs_the_overlay_is_transparent():
    scores = np.tile(np.where(np.arange(world.GRID) < 8, -1.0, 1.0).astype(np.float32), (world.GRID, 1))
    overlay = picture_of(figures.overlay_image(scores, 1.0, SIDE), 0)
    middle = figures.MAP_PIXELS // 2
    assert overlay[:, middle - 1 : middle + 1, 3].max() < 0.2 * figures.OPACITY * 255


@pytest.mark.parametrize("view", list(VIEWS))
def test_the_ct_is_drawn_as_it_is_looked_at(view):
    cube = np.full((SIDE, SIDE, SIDE), -1000, dtype=np.int16)
    cube[28, 16, 16] = cube[16, 3, 16] = cube[16, 16, 26] = 400  # head, front, left
    pixels = figures.grey(take_view(cube, view, 16), figures.LUNG, SIDE)
    bright = {tuple(place) for place in np.argwhere(pixels > 128).tolist()}
    expected = {"axial": {(3, 16), (16, 26)}, "coronal": {(3, 16), (15, 26)}, "sagittal": {(3, 16), (15, 3)}}
    assert bright == expected[view]


def test_a_level_set_encloses_its_cells_and_stays_in_the_picture():
    grid = np.zeros((16, 16))
    grid[4:6, 10:12] = 1.0
    grid[15, 0] = 1.0
    path = figures.contour_path(grid, 0.5, 32.0)
    points = np.array([[float(x) for x in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", path)])
    inner = points[points[:, 0] > 10]
    assert inner.min(axis=0).tolist() == [20.0, 8.0]
    assert inner.max(axis=0).tolist() == [24.0, 12.0]
    assert points.min() >= 0
    assert points.max() <= 32


def test_a_masks_outline_lies_on_the_voxels_edges():
    mask = np.zeros((32, 32), dtype=bool)
    mask[10:20, 5:9] = True
    path = figures.mask_path(mask, 32.0)
    points = np.array([[float(x) for x in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", path)])
    assert (points.min(axis=0).tolist(), points.max(axis=0).tolist()) == ([5.0, 10.0], [9.0, 20.0])


def test_what_was_not_read_is_hatched_and_named():
    svg = figures.ct_picture(cut(padded=7, view="coronal"), "", "key")
    assert 'fill="url(#hatch-key)"' in svg
    assert "outside what was read" in svg
    assert "hatch" not in figures.ct_picture(cut(view="coronal"), "", "key")


def test_every_picture_says_research_use_only():
    scores = np.zeros((4, 4), dtype=np.float32)
    pictures = [
        figures.ct_picture(cut(), "", "a"),
        figures.map_picture(cut(), "", scores, 1.0, 0.5, "a"),
        figures.outlined_picture("", cut().consensus, float(SIDE)),
    ]
    for svg in pictures:
        assert " - ".join(re.findall(r">([^<>]+)</text>", svg)[-2:]) == RESEARCH


def test_no_words_and_no_scale_bar_lie_on_the_picture():
    svg = figures.ct_picture(cut(view="coronal"), "", "a")
    corner = float(re.findall(r"translate\(([\d.]+) ", svg)[0])
    placed = {
        words: (float(x), float(y))
        for x, y, words in re.findall(r'<text x="([\d.]+)" y="([\d.]+)".*?>(.+?)</text>', svg)
    }
    assert {"R", "L", "H", "F", "10 mm"} < set(placed)
    for x, y in placed.values():
        assert not (corner - 0.4 < x < corner + SIDE + 0.4 and corner - 0.4 < y < corner + SIDE + 0.4)
    (bar,) = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)", svg)
    assert float(bar[2]) - float(bar[0]) == pytest.approx(10)
    assert float(bar[1]) > corner + SIDE


def test_plus_is_a_solid_line_and_minus_a_dashed_one():
    scores = np.zeros((8, 8), dtype=np.float32)
    scores[2, 2] = 1
    plus = figures.map_picture(cut(), "", scores, 1.0, 0.5, "a")
    minus = figures.map_picture(cut(), "", -scores, 1.0, 0.5, "a")
    assert figures.ABOVE in plus
    assert "stroke-dasharray" not in plus
    assert figures.BELOW in minus
    assert "stroke-dasharray" in minus


# Machado, Oliveira and Fernandes (IEEE TVCG 2009): what is seen of linear RGB without one kind of cone.
BLIND = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def seen(colour: tuple[int, ...], kind: str) -> np.ndarray:
    """A colour in CIELAB as it is seen without one kind of cone."""
    part = np.asarray(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    left = np.clip(np.asarray(BLIND[kind]) @ linear, 0, 1)
    return rgb2lab(np.where(left <= 0.0031308, left * 12.92, 1.055 * left ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("kind", BLIND)
def test_the_signs_stay_apart_without_one_kind_of_cone(kind):
    over_grey = [
        [tuple(figures.OPACITY * part + (1 - figures.OPACITY) * grey for part in colour) for grey in (0, 90, 180)]
        for colour in (figures.ORANGE, figures.BLUE)
    ]
    apart = [np.linalg.norm(seen(one, kind) - seen(other, kind)) for one in over_grey[0] for other in over_grey[1]]
    red_and_green = np.linalg.norm(seen((200, 60, 60), kind) - seen((60, 140, 60), kind))
    assert min(apart) > 50
    assert kind == "tritanopia" or red_and_green < 50
