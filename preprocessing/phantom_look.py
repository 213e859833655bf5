"""From readings to a look: every number and every random choice of a phantom, drawn once and kept as a record."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, mode

import numpy as np
from jaxtyping import Float

from lidc_cdam.vocabulary import BIOMARKERS
from preprocessing.annotations import Nodule, Scan
from preprocessing.phantom_parts import Ball, Body, Point, Tube

ABSENT = 6
"""Code of calcification that says there is none."""
MOST_SPICULES = 24
"""Of the highest rating."""


def generator_for(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone (a nodule's id, a series), on every machine."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def ratings_of(nodule: Nodule) -> dict[str, float]:
    """What decides a nodule's look, by biomarker key: means of the readers' codes, their most common calcification."""
    means = {
        biomarker.key: mean(reading.ratings[biomarker.key] for reading in nodule.readings)
        for biomarker in BIOMARKERS
        if biomarker.kind == "rating"
    }
    pattern = mode(reading.ratings["calcification"] for reading in nodule.readings)
    diameter = mean(reading.diameter_mm for reading in nodule.readings)
    return {**means, "calcification": float(pattern), "diameter": diameter}


@dataclass(frozen=True, eq=False)
class Draws:
    """Everything random of one nodule, and what of its own body its parts keep when a rating is changed.

    Enough is drawn for every rating, and each part by a generator of its own: a rating decides how much of it is used.
    """

    bumps: Float[np.ndarray, "bump xyz"]
    """Unit directions of the lobes."""
    spicules: Float[np.ndarray, "spicule xyz"]
    """Unit directions of the spicules, as many as the highest rating has."""
    lengths: Float[np.ndarray, " spicule"]
    """Share of the longest spicule's length."""
    bases_mm: Float[np.ndarray, " spicule"]
    """Radius of each spicule where it begins."""
    popcorn: tuple[Float[np.ndarray, "grain xyz"], Float[np.ndarray, " grain"]]
    """Unit directions of the grains of popcorn calcification, and how far out they lie in depths of the body."""
    eccentric: Float[np.ndarray, " xyz"]
    """Unit direction of a non-central calcification."""
    dense_hu: float
    vessels: tuple[Tube, ...]
    widest_mm: float
    """Widest edge: a wider one would leave nothing of a small nodule."""
    reach: float
    """Factor on the spicules' length: those of large nodules are longer."""


def draw(body: Body, seed: int, nodule_id: str) -> Draws:
    """Draw a nodule's random part from the seed and its id."""

    def generator(part: str) -> np.random.Generator:
        return generator_for(seed, nodule_id, part)

    spicules, popcorn, bumps = generator("spicules"), generator("popcorn"), generator("lobes")
    return Draws(
        bumps=_directions(int(bumps.integers(4, 8)), bumps),
        spicules=_flattened(_directions(MOST_SPICULES, spicules)),
        lengths=spicules.uniform(0.5, 1.0, MOST_SPICULES),
        bases_mm=spicules.uniform(0.7, 1.1, MOST_SPICULES),
        popcorn=(_directions(7, popcorn), popcorn.uniform(0.1, 0.75, 7)),
        eccentric=_directions(1, generator("eccentric"))[0],
        dense_hu=float(generator("dense").uniform(350, 800)),
        vessels=_draw_local_vessels(body, generator("vessels")),
        widest_mm=1.5 + body.deepest_mm,
        reach=0.6 + 0.4 * min(body.radius_mm / 8, 1.5),
    )


@dataclass(frozen=True, eq=False)
class Look:
    """How one nodule looks."""

    edge_mm: float
    """Width of the edge's ramp (margin)."""
    ground_hu: float
    """HU of the body's non-solid part (texture)."""
    core_depth_mm: float
    """Depth below the surface at which the solid part begins (texture); 0 for a solid nodule."""
    contrast: float
    """Factor on the difference to lung, 0 to 1 (subtlety)."""
    bumps: Float[np.ndarray, "bump xyz"]
    """Unit directions of the lobes (lobulation)."""
    bump_mm: float
    """Height of the lobes (lobulation)."""
    spicules: tuple[Tube, ...]
    """Thin tubes from inside the surface outwards, tapering (spiculation)."""
    calcification: int
    """The readers' most common code, 1 to 6."""
    grains: tuple[Ball, ...]
    """Dense balls of the patterns popcorn, non-central and central."""
    dense_hu: float
    """HU of calcified tissue."""
    vessels: tuple[Tube, ...]
    """Vessels near the nodule."""


def look_of(ratings: Mapping[str, float], body: Body, draws: Draws) -> Look:
    """The look that ratings give a nodule: they decide what there is, the draws where it lies.

    Args:
        ratings: by biomarker key, as `ratings_of` gives them.
        body: what the parts are put on; `sphericity` and `diameter` have shaped it already.
        draws: of the nodule.
    """
    code = round(ratings["calcification"])
    texture = ratings["texture"]
    return Look(
        edge_mm=min(float(np.interp(ratings["margin"], [1, 5], [4.5, 1.8])), draws.widest_mm),
        ground_hu=float(np.interp(texture, [1, 3, 4.5, 5], [-600, -450, -60, 30])),
        core_depth_mm=float(np.interp(texture, [1, 3, 4.5, 5], [1.2, 0.45, 0.1, 0])) * body.deepest_mm,
        contrast=float(np.interp(ratings["subtlety"], [1, 3, 5], [0.4, 0.7, 1.0])),
        bumps=draws.bumps,
        bump_mm=float(np.interp(ratings["lobulation"], [1, 5], [0.0, 0.3])) * min(body.radius_mm, 8.0),
        spicules=_spicules(ratings["spiculation"], body, draws),
        calcification=code,
        grains=_grains(code, body, draws),
        dense_hu=draws.dense_hu,
        vessels=draws.vessels,
    )


def _directions(count: int, generator: np.random.Generator) -> Float[np.ndarray, "direction xyz"]:
    drawn = generator.standard_normal((count, 3))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def _flattened(directions: Float[np.ndarray, "direction xyz"]) -> Float[np.ndarray, "direction xyz"]:
    """Nearer to the plane of the slices, where a reader sees spicules."""
    flat = directions * (1, 1, 0.6)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))


def _shift(point: Sequence[float], direction: Float[np.ndarray, " xyz"], length_mm: float) -> Point:
    x, y, z = np.asarray(point) + length_mm * direction
    return (float(x), float(y), float(z))


def _spicules(rating: float, body: Body, draws: Draws) -> tuple[Tube, ...]:
    """The first ones drawn: a higher rating keeps those of a lower one, makes them longer and adds others."""
    count = round(float(np.interp(rating, [1.2, 2, 3, 5], [0, 5, 12, MOST_SPICULES])))
    longest = float(np.interp(rating, [1, 2, 5], [2, 4, 9])) * draws.reach
    spicules = []
    for way, length, base in zip(draws.spicules[:count], draws.lengths, draws.bases_mm, strict=False):
        surface = body.reach(way)
        start, end = (_shift(body.centre_mm, way, surface + step) for step in (-1.0, longest * float(length)))
        spicules.append(Tube(start, end, float(base), 0.2))
    return tuple(spicules)


def _grains(calcification: int, body: Body, draws: Draws) -> tuple[Ball, ...]:
    deep = body.deepest_mm
    if calcification == 1:
        return tuple(
            Ball(_shift(body.centre_mm, way, float(step) * deep), max(0.25 * deep, 0.6))
            for way, step in zip(*draws.popcorn, strict=True)
        )
    if calcification == 4:
        return (Ball(_shift(body.centre_mm, draws.eccentric, 0.5 * deep), max(0.4 * deep, 0.8)),)
    if calcification == 5:
        return (Ball(body.centre_mm, max(0.5 * deep, 0.8)),)
    return ()


def _draw_path(
    start: Point,
    direction: Float[np.ndarray, " xyz"],
    length_mm: float,
    radii_mm: tuple[float, float],
    bend: float,
    generator: np.random.Generator,
) -> list[Tube]:
    """A bent vessel of four straight tubes whose direction wanders by about `bend` (radians) at each joint."""
    radii = np.linspace(*radii_mm, 5)
    tubes = []
    for begin, end in pairwise(radii):
        direction = direction + bend * generator.standard_normal(3)
        direction /= np.linalg.norm(direction)
        stop = _shift(start, direction, length_mm / 4)
        tubes.append(Tube(start, stop, float(begin), float(end)))
        start = stop
    return tubes


def _draw_local_vessels(body: Body, generator: np.random.Generator) -> tuple[Tube, ...]:
    """About six thin vessels that pass near the nodule, none through its middle; sometimes one that ends at it."""
    tubes: list[Tube] = []
    for away in _directions(int(generator.integers(5, 9)), generator):
        along = np.cross(away, _directions(1, generator)[0])
        along /= np.linalg.norm(along)
        distance = body.reach(away) + generator.uniform(3, 14)
        length = generator.uniform(25, 45)
        start = _shift(_shift(body.centre_mm, away, float(distance)), along, -length / 2)
        tubes += _draw_path(start, along, length, (generator.uniform(0.5, 1.4), 0.1), 0.15, generator)
    if generator.uniform() < 0.5:
        away = _directions(1, generator)[0]
        start = _shift(body.centre_mm, away, body.reach(away) - 0.5)
        tubes += _draw_path(start, away, generator.uniform(12, 25), (generator.uniform(0.6, 1.4), 0.1), 0.2, generator)
    return tuple(tubes)


@dataclass(frozen=True)
class Anatomy:
    """What surrounds the nodules of one scan: two lungs in a chest of elliptic section, vessels, noise levels."""

    centre_mm: tuple[float, float]
    """Middle of the chest (x, y)."""
    chest_mm: tuple[float, float]
    """Half axes of the body's outline (x, y)."""
    lungs: tuple[tuple[float, float, float, float], ...]
    """Of each lung: centre x, y and half axes x, y, mm."""
    hollows: tuple[Ball, ...]
    """Of each nodule: a large ball of lung that holds it, for a real nodule need not lie in a drawn ellipse."""
    vessels: tuple[Tube, ...]
    """Vessels that branch out from both hila."""
    lung_hu: float
    noise_hu: float
    """Deviation of the scanner's noise."""
    parenchyma_hu: float
    """Deviation of the lung's own fine structure."""


def draw_anatomy(scan: Scan, bodies: Sequence[Body], generator: np.random.Generator) -> Anatomy:
    """Draw the surroundings of a scan's nodules."""
    field = 512 * scan.pixel_spacing_mm
    x, y = field * (0.5 + generator.uniform(-0.01, 0.01, 2))
    halves = np.array([0.46, 0.36]) * field
    # The chest grows where a nodule would lie outside.
    reach = [np.hypot(*((np.array(body.centre_mm[:2]) - (x, y)) / (halves - body.radius_mm - 12))) for body in bodies]
    halves = halves * max([1.0, *reach])
    lungs = tuple((x + side * 0.46 * halves[0], y, 0.36 * halves[0], 0.74 * halves[1]) for side in (-1.0, 1.0))
    return Anatomy(
        centre_mm=(float(x), float(y)),
        chest_mm=(float(halves[0]), float(halves[1])),
        lungs=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in lungs),
        hollows=tuple(_draw_hollow(body, lungs, generator) for body in bodies),
        vessels=_draw_tree(scan, lungs, generator),
        lung_hu=float(generator.uniform(-880, -820)),
        noise_hu=float(generator.uniform(15, 35)),
        parenchyma_hu=float(generator.uniform(20, 40)),
    )


def _draw_hollow(
    body: Body, lungs: Sequence[tuple[float, float, float, float]], generator: np.random.Generator
) -> Ball:
    """A ball that reaches from a few millimetres behind the nodule towards the nearer lung's middle: a smooth wall."""
    x, y, z = body.centre_mm
    lung_x, lung_y, _, _ = min(lungs, key=lambda lung: abs(lung[0] - x))
    inwards = np.array([lung_x - x, lung_y - y, 0.0])
    inwards /= max(float(np.linalg.norm(inwards)), 1e-6)
    radius = max(45.0, 2 * body.radius_mm)
    gap = body.reach(-inwards) + generator.uniform(0.5, 14)
    return Ball(_shift((x, y, z), inwards, max(radius - gap, 0.0)), radius)


def _draw_tree(
    scan: Scan, lungs: Sequence[tuple[float, float, float, float]], generator: np.random.Generator
) -> tuple[Tube, ...]:
    low, high = scan.slice_z_mm[0], scan.slice_z_mm[-1]
    tubes: list[Tube] = []
    for x, y, half_x, half_y in lungs:
        side = np.sign(x - 256 * scan.pixel_spacing_mm)
        for _ in range(max(12, round((high - low) / 6))):
            start = (x - side * 0.8 * half_x, y + generator.uniform(-0.2, 0.2) * half_y, generator.uniform(low, high))
            away = np.array([side * generator.uniform(0.2, 1), generator.uniform(-1, 1), generator.uniform(-0.5, 0.5)])
            away /= np.linalg.norm(away)
            length = generator.uniform(0.8, 1.5) * half_x
            tubes += _draw_path(start, away, length, (generator.uniform(1.5, 3.5), 0.1), 0.25, generator)
    return tuple(tubes)
