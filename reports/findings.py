"""What raised and lowered one prediction, in short sentences that each state their numbers: where the scores lie."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from scipy.ndimage import distance_transform_edt

from lidc_cdam.geometry import VIEWS
from lidc_cdam.vocabulary import Target
from reports.charts import signed
from reports.figures import Cut
from reports.words import percent

EDGE_MM = 2.0
"""Half the width of the band that counts as the rim of the readers' consensus."""
ZONES = ("core", "rim", "outside")
"""Deeper than `EDGE_MM` inside the consensus; closer than that to its outline, on either side; farther out."""
BODY_WORDS = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "H": "superior", "F": "inferior"}
"""Where from the centre the side of the patient lies that a letter stands for."""
LEAST_TOLD = 0.005
"""A share of the score on what was not read below which no sentence tells it."""


@dataclass(frozen=True)
class Token:
    """The strongest token of a map."""

    score: float
    view: str
    away: tuple[tuple[str, float], ...]
    """Steps from the crop's centre: letter of the patient's side, mm; up to two, none below half a millimetre."""
    zone: str
    """One of `ZONES`, or `unread`."""


@dataclass(frozen=True)
class Finding:
    """Where the scores of one target's map lie, pooled over its views; only what was read counts."""

    raising: float
    """Share of the sum of |score| that is positive, 0 to 1."""
    positive: dict[str, float]
    """Share of the positive sum by zone; zones without any area are left out."""
    negative: dict[str, float]
    area: dict[str, float]
    """Share of the pixels by zone."""
    unread: float
    """Share of the sum of |score| on what was not read; it counts nowhere else."""
    strongest: Token


def find(cuts: list[Cut], scores: Float32[np.ndarray, "view row column"]) -> Finding | None:
    """Measure a map.

    Args:
        cuts: the slice that each view's map lies on.
        scores: token grids of one target, in the same order.

    Returns:
        None for a map without any score on what was read.
    """
    pixels = [_on_pixels(own, cut.hu.shape) for own, cut in zip(scores, cuts, strict=True)]
    zones = [zone_of(cut) for cut in cuts]
    flat, zone = (np.concatenate([part.ravel() for part in parts]) for parts in (pixels, zones))
    total, read = float(np.abs(flat).sum()), zone >= 0
    known = float(np.abs(flat[read]).sum())
    if not known:
        return None
    return Finding(
        float(np.clip(flat[read], 0, None).sum()) / known,
        _shares(np.clip(flat, 0, None), zone),
        _shares(np.clip(-flat, 0, None), zone),
        _shares(np.ones_like(flat), zone),
        1 - known / total,
        strongest_token(cuts, scores),
    )


def strongest_token(cuts: list[Cut], scores: Float32[np.ndarray, "view row column"]) -> Token:
    """The token with the largest |score|, and where it lies."""
    view, row, column = (int(place) for place in np.unravel_index(np.abs(scores).argmax(), scores.shape))
    cut = cuts[view]
    rows, columns = scores.shape[-2:]
    right = (column + 0.5 - columns / 2) * cut.side_mm / columns
    down = (row + 0.5 - rows / 2) * cut.side_mm / rows
    left_letter, right_letter, top_letter, bottom_letter = VIEWS[cut.view].letters
    steps = (
        (right_letter if right > 0 else left_letter, abs(right)),
        (bottom_letter if down > 0 else top_letter, abs(down)),
    )
    away = tuple((letter, mm) for letter, mm in steps if mm >= 0.5)
    return Token(float(scores[view, row, column]), cut.view, away, _token_zone(cut, (row, column), (rows, columns)))


def zone_of(cut: Cut) -> Int[np.ndarray, "row column"]:
    """Index into `ZONES` of every pixel; -1 where nothing was read."""
    spacing = cut.side_mm / cut.consensus.shape[0]
    # Distances from pixel centres to the outline, which runs half a pixel before the next pixel's centre.
    inside = (distance_transform_edt(np.pad(cut.consensus, 1))[1:-1, 1:-1] - 0.5) * spacing
    beyond: Float[np.ndarray, "row column"] = np.full(cut.consensus.shape, np.inf)
    if cut.consensus.any():
        beyond = (distance_transform_edt(~cut.consensus) - 0.5) * spacing
    deep, far = cut.consensus & (inside > EDGE_MM), ~cut.consensus & (beyond > EDGE_MM)
    zones: np.ndarray = np.select([cut.padded, deep, far], [-1, 0, 2], 1)
    return zones


def _token_zone(cut: Cut, token: tuple[int, int], grid: tuple[int, int]) -> str:
    """The zone that most of a token's square lies in."""
    found = np.bincount(zone_of(cut)[token_square(token, grid, cut.consensus.shape)].ravel() + 1, minlength=4)
    return ("unread", *ZONES)[int(found.argmax())]


def token_square(token: tuple[int, int], grid: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The pixels that a token covers, at least one.

    Args:
        token: its row and column.
        grid: rows and columns of tokens.
        shape: rows and columns of pixels.
    """
    return tuple(
        slice(at * side // count, max((at + 1) * side // count, at * side // count + 1))
        for at, side, count in zip(token, shape, grid, strict=True)
    )


def _on_pixels(scores: Float32[np.ndarray, "row column"], shape: tuple[int, ...]) -> Shaped[np.ndarray, "height width"]:
    """The token under each pixel's centre."""
    rows, columns = (
        ((np.arange(size) + 0.5) * count / size).astype(int) for size, count in zip(shape, scores.shape, strict=True)
    )
    taken: np.ndarray = scores[np.ix_(rows, columns)].astype(np.float64)
    return taken


def _shares(weights: Float[np.ndarray, " pixel"], zone: Int[np.ndarray, " pixel"]) -> dict[str, float]:
    sums = {name: float(weights[zone == index].sum()) for index, name in enumerate(ZONES) if (zone == index).any()}
    total = sum(sums.values())
    return {name: value / total if total else 0.0 for name, value in sums.items()}


def zone_words(area: dict[str, float], views: int) -> str:
    """What the zones are and how large: what all maps of a nodule share.

    Args:
        area: share of what was read, by zone (`Finding.area`).
        views: number of views that shares are pooled over.
    """
    sizes = {zone: percent(area.get(zone, 0.0)) for zone in ZONES}
    pooled = f", pooled over {views} views" if views > 1 else ""
    return (
        f"Core: deeper than {EDGE_MM:g}\u00a0mm inside the readers' consensus ({sizes['core']} of the area "
        f"read{pooled}); rim: within {EDGE_MM:g}\u00a0mm of its outline ({sizes['rim']}); outside: farther out "
        f"({sizes['outside']}). A map that prefers no place has its scores in these shares."
    )


def sentences(target: Target, finding: Finding | None, views: int) -> list[str]:
    """One to four short sentences about a map; `zone_words` says what they take for granted.

    Args:
        target: what the map explains.
        finding: its measurement.
        views: number of views that it is pooled over.
    """
    name = target.title.lower()
    if finding is None:
        return [f"The map of {name} has no score on what was read."]
    told = []
    if finding.raising > 0:
        told.append(f"{percent(finding.raising)} of the score raises {name}: {_listed(finding.positive)}.")
    if finding.raising < 1:
        lowers = "lowers it" if told else f"of the score lowers {name}"
        told.append(f"{percent(1 - finding.raising)} {lowers}: {_listed(finding.negative)}.")
    told.append(_strongest(finding.strongest, views))
    if finding.unread >= LEAST_TOLD:
        told.append(f"{percent(finding.unread)} of all score, on mirrored tissue, is left out above.")
    return told


PLACES = {"core": "in the core", "rim": "at the rim", "outside": "outside"}


def _listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{percent(share)} {PLACES[zone]}" for zone, share in shares.items())


def _strongest(token: Token, views: int) -> str:
    steps = " and ".join(f"{mm:.0f}\u00a0mm {BODY_WORDS[letter]}" for letter, mm in token.away)
    where = f"{steps} of the centre" if steps else "at the centre"
    place = PLACES.get(token.zone, "on mirrored tissue")
    view = f" in the {VIEWS[token.view].title.lower()} view" if views > 1 else ""
    return f"Strongest token: {signed(token.score)}, {place}, {where}{view}."
