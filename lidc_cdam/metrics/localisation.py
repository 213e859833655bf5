"""Where a map's relevance lies: relevance mass and rank accuracy (CLEVR-XAI), the pointing game, average precision.

Arras, Osman & Samek 2022 (mass, rank), Zhang et al. 2018 (pointing). All functions take maps and masks [..., row,
column] on one grid, as NumPy arrays or Torch tensors, and give one figure per map, of the same kind, in double
precision. `soft_mass` and `soft_rank` take what share of the readers marked a pixel in place of a mask.

A signed map is asked for one part of its relevance at a time: `positive` (what raises the output), `negative` (what
lowers it) or `absolute`. A map without any relevance of that part, or an empty mask, has no answer: NaN, which is left
out of means and counted, and is not a zero. The chance level of mass, rank and pointing, what a random map reaches on
average, is the mask's share of the image (`chance`); that of average precision is `chance_precision`.

Tied scores, such as the pixels of one token, stand for every order of themselves: a figure is its mean over those
orders, so no direction of reading the image is favoured.
"""

from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)
Part = Literal["positive", "negative", "absolute"]


ORDERS = 1000
"""Drawn orders of cells whose mean is a chance level: its standard error is below a hundredth of the level."""


def relevance_mass(scores: Array, mask: Array, part: Part = "positive") -> Array:
    """Share of the relevance that lies inside the mask.

    Args:
        scores: signed maps [..., row, column].
        mask: true inside, [..., row, column]; leading axes broadcast against those of `scores`.
        part: which relevance counts.

    Returns:
        0 to 1 per map; NaN without relevance of that part or with an empty mask.
    """
    values, inside = _flat(scores, mask)
    relevance = _part(values, part).clamp(min=0)
    total = relevance.sum(-1)
    share = (relevance * inside).sum(-1) / torch.where(total > 0, total, torch.nan)
    return _as_given(_known(share, values, inside, part), scores)


def relevance_rank(scores: Array, mask: Array, part: Part = "positive") -> Array:
    """Share of the K highest scores that lie inside the mask, K its size.

    Where the map has fewer than K scores of the wanted sign, the next ones in order fill up.

    Args:
        scores: signed maps [..., row, column].
        mask: true inside, [..., row, column]; leading axes broadcast against those of `scores`.
        part: which relevance is ranked.

    Returns:
        0 to 1 per map; NaN without relevance of that part or with an empty mask.
    """
    values, inside = _flat(scores, mask)
    size = inside.sum(-1, keepdim=True)
    hits = (_highest(_part(values, part), size) * inside).sum(-1)
    return _as_given(_known(hits / size.squeeze(-1).clamp(min=1), values, inside, part), scores)


def pointing_game(scores: Array, mask: Array, part: Part = "positive") -> Array:
    """Whether the highest score lies inside the mask.

    Args:
        scores: signed maps [..., row, column].
        mask: true inside, [..., row, column]; leading axes broadcast against those of `scores`.
        part: which relevance is looked at.

    Returns:
        1 or 0 per map, or the share inside of several that are equally high; NaN without relevance of that part or
        with an empty mask.
    """
    values, inside = _flat(scores, mask)
    ranked = _part(values, part)
    highest = (ranked == ranked.amax(-1, keepdim=True)).double()
    return _as_given(_known((highest * inside).sum(-1) / highest.sum(-1), values, inside, part), scores)


def average_precision(scores: Array, mask: Array, part: Part = "positive") -> Array:
    """Area under the precision-recall curve (AUPRC) of finding the mask's pixels by their score, as a step function.

    Pixels of equal score are found together.

    Args:
        scores: signed maps [..., row, column].
        mask: true inside, [..., row, column]; leading axes broadcast against those of `scores`.
        part: which relevance is ranked.

    Returns:
        0 to 1 per map; NaN without relevance of that part or with an empty mask.
    """
    values, inside = _flat(scores, mask)
    ranked, order = _part(values, part).sort(-1, descending=True)
    found = inside.gather(-1, order)
    place = torch.arange(1, found.shape[-1] + 1, device=found.device).expand(found.shape)
    ends = torch.cat([ranked[..., 1:] != ranked[..., :-1], torch.ones_like(found[..., :1], dtype=torch.bool)], -1)
    # The last place of each pixel's group of equal scores, looked up from behind.
    last = torch.where(ends, place, found.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    precision = found.cumsum(-1).gather(-1, last - 1) / last
    figures = (found * precision).sum(-1) / found.sum(-1).clamp(min=1)
    return _as_given(_known(figures, values, inside, part), scores)


def soft_mass(scores: Array, fractions: Array, part: Part = "positive") -> Array:
    """Share of the relevance, each pixel's counted by the share of the readers that marked it.

    Args:
        scores: signed maps [..., row, column].
        fractions: 0 to 1, [..., row, column]; leading axes broadcast against those of `scores`.
        part: which relevance counts.

    Returns:
        0 to 1 per map, 1 only where all readers agree; its chance level is the mean of `fractions`. NaN without
        relevance of that part or where no reader marked anything.
    """
    values, inside = _flat(scores, fractions, soft=True)
    relevance = _part(values, part).clamp(min=0)
    total = relevance.sum(-1)
    share = (relevance * inside).sum(-1) / torch.where(total > 0, total, torch.nan)
    return _as_given(_known(share, values, inside, part), scores)


def soft_rank(scores: Array, fractions: Array, part: Part = "positive") -> Array:
    """Readers' marks under the K highest scores as a share of all marks, K the pixels that any reader marked.

    Args:
        scores: signed maps [..., row, column].
        fractions: share of the readers that marked a pixel, 0 to 1; leading axes broadcast against those of `scores`.
        part: which relevance is ranked.

    Returns:
        0 to 1 per map; its chance level is K's share of the image. NaN without relevance of that part or where no
        reader marked anything.
    """
    values, inside = _flat(scores, fractions, soft=True)
    taken = _highest(_part(values, part), (inside > 0).double().sum(-1, keepdim=True))
    gathered = (taken * inside).sum(-1) / inside.sum(-1).clamp(min=1e-12)
    return _as_given(_known(gathered, values, inside, part), scores)


def chance(mask: Array) -> Array:
    """What a random map reaches on average in mass, rank and pointing: the mask's share of the image; NaN if empty."""
    inside = _tensor(mask).bool().double().flatten(-2)
    share = inside.mean(-1)
    return _as_given(torch.where(share > 0, share, torch.nan), mask)


def chance_precision(cells: Tensor, known: Tensor) -> Tensor:
    """Average precision that a random order of a map's cells reaches on average.

    With n cells of equal size, of which the mask covers the shares p_j, S = sum p_j, Q = sum p_j^2 and H_n the n-th
    harmonic number,

        E = 1/S [ H_n Q / n + (n - H_n) (S^2 - Q) / (n (n - 1)) ]

    which is above the mask's share of the image, the more so the fewer cells there are. Cells that count in part (at
    the frame of a cut-out) have no such formula: there it is the mean over `ORDERS` drawn orders, always the same ones.

    Args:
        cells: the mask's share of what counts of each cell of the map's own grid, 0 to 1, [..., row, column].
        known: share of each cell that counts, [..., row, column].

    Returns:
        One figure per mask; NaN if it is empty.
    """
    weights = known.double().flatten(-2)
    marked = cells.double().flatten(-2) * weights
    level = _exact_precision(marked, weights)
    cut = ((weights > 0) & (weights < 1)).any(-1)
    level[cut] = _drawn_precision(marked[cut], weights[cut])
    return level


def _exact_precision(shares: Tensor, counted: Tensor) -> Tensor:
    n, total, squares = counted.sum(-1), shares.sum(-1), (shares**2).sum(-1)
    harmonic = torch.digamma(n + 1) - torch.digamma(torch.ones_like(n))
    pairs = (n - harmonic) * (total**2 - squares) / (n * (n - 1)).clamp(min=1)
    return (harmonic * squares / n.clamp(min=1) + pairs) / torch.where(total > 0, total, torch.nan)


def _drawn_precision(marked: Tensor, weights: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    orders = torch.rand(ORDERS, weights.shape[-1], generator=generator).argsort(-1)
    found, passed = marked[..., orders], weights[..., orders]
    precision = found.cumsum(-1) / passed.cumsum(-1).clamp(min=1e-12)
    total = marked.sum(-1, keepdim=True)
    return ((found * precision).sum(-1) / torch.where(total > 0, total, torch.nan)).mean(-1)


def _highest(ranked: Tensor, size: Tensor) -> Tensor:
    """1 for the `size` highest scores, 0 for the others; equal ones at the edge share the places that are left."""
    last = ranked.sort(-1, descending=True).values.gather(-1, (size.long() - 1).clamp(min=0))
    above, equal = (ranked > last).double(), (ranked == last).double()
    return above + (size - above.sum(-1, keepdim=True)) / equal.sum(-1, keepdim=True) * equal


def _flat(scores: Array, mask: Array, soft: bool = False) -> tuple[Tensor, Tensor]:
    """Scores and mask as double tensors [..., pixel]."""
    values, inside = _tensor(scores), _tensor(mask)
    if values.shape[-2:] != inside.shape[-2:]:
        raise ValueError(
            f"a map and its mask must share one grid, got {tuple(values.shape[-2:])} and {tuple(inside.shape[-2:])}"
        )
    shape = np.broadcast_shapes(values.shape, inside.shape)
    marked = inside.to(values.device).double() if soft else inside.to(values.device).bool().double()
    return values.double().expand(shape).flatten(-2), marked.expand(shape).flatten(-2)


def _tensor(given: Array) -> Tensor:
    """As a tensor; an array is copied, because Torch takes neither a flipped view nor a read-only one."""
    return given.detach() if isinstance(given, Tensor) else torch.from_numpy(np.array(given, order="C"))


def _part(values: Tensor, part: Part) -> Tensor:
    parts = {"positive": lambda: values, "negative": lambda: -values, "absolute": lambda: values.abs()}
    if part not in parts:
        raise ValueError(f"part must be one of {', '.join(parts)}; got {part!r}")
    chosen: Tensor = parts[part]()
    return chosen


def _known(figures: Tensor, values: Tensor, inside: Tensor, part: Part) -> Tensor:
    """NaN where a figure has no meaning."""
    relevant = (_part(values, part) > 0).any(-1) & (inside.sum(-1) > 0)
    return torch.where(relevant, figures, torch.nan)


def _as_given(figures: Tensor, given: Array) -> Array:
    return figures if isinstance(given, Tensor) else figures.numpy()
