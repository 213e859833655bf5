"""What is measured of one nodule's maps by one method, one function a family of metrics (`FAMILIES`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from lidc_cdam.artifacts import CONSENSUS_LEVEL
from lidc_cdam.crop_files import Crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import central_index, take_view
from lidc_cdam.metrics.boxes import BoxDrops, box_area
from lidc_cdam.metrics.completeness import INTEGRATED, completeness
from lidc_cdam.metrics.discrimination import Discrimination, of_curves, output_indices
from lidc_cdam.metrics.faithfulness import LIF, MIF, curves
from lidc_cdam.metrics.intervals import known_mean
from lidc_cdam.metrics.localisation import (
    average_precision,
    chance,
    chance_precision,
    pointing_game,
    relevance_mass,
    relevance_rank,
    soft_mass,
    soft_rank,
)
from lidc_cdam.metrics.sanity import EVERY_WEIGHT, cascade, mean_correlation, rank_correlation
from lidc_cdam.metrics.settings import Measurement

PerTarget = Float64[np.ndarray, " target"]
LOCALISATION = (
    "relevance_mass",
    "relevance_mass_chance",
    "relevance_rank",
    "pointing_game",
    "auprc",
    "auprc_chance",
    "relevance_mass_soft",
    "relevance_mass_soft_chance",
    "relevance_rank_soft",
    "relevance_rank_soft_chance",
)
FIDELITY = ("fidelity_mif", "fidelity_lif", "fidelity")
REPEATED, RANDOMISED = "repeated_run", "label_randomised"
"""Figures of another run: another seed, and labels that mean nothing."""
SMALL = 0.05
"""Scores up to this share of the largest count as small in `compactness`."""


@dataclass(frozen=True)
class Outlines:
    """What the readers marked at the central slice of each view, on the grid of the model's input."""

    consensus: Bool[Tensor, "view height width"]
    fractions: Float[Tensor, "view height width"]
    """Share of the readers that marked the pixel."""
    read: Bool[Tensor, "view height width"]
    """The pixels that come from the scan; they hold the consensus."""

    @classmethod
    def of(
        cls,
        crop: Crop,
        known: Bool[np.ndarray, "..."],
        readers: int,
        views: Sequence[str],
        level: float,
        size: tuple[int, int],
    ) -> "Outlines":
        """Those of a crop.

        Args:
            crop: the nodule's.
            known: which of its voxels were read.
            readers: how many read it.
            views: keys of `geometry.VIEWS`.
            level: share of the readers that a voxel of the consensus needs.
            size: height and width of the model's input.
        """
        fractions = central_views(crop.readers, views) / max(readers, 1)
        return cls(
            on_input_grid(consensus_masks(crop, readers, views, level), size),
            F.interpolate(torch.from_numpy(fractions)[None], size, mode="nearest-exact")[0],
            on_input_grid(central_views(known, views), size),
        )


@dataclass(frozen=True)
class Case:
    """One nodule, the model that tests it, and what its maps are measured by."""

    model: Any
    """A `NoduleModel`, or anything that answers as one."""
    images: Float[Tensor, "view channel height width"]
    outlines: Outlines
    measurement: Measurement
    boxes: Callable[[], BoxDrops]
    """Outputs without boxes, computed at the first call, for all methods."""
    fresh: Callable[[], Any]
    """The same model with every weight fresh, made at the first call, for all nodules."""
    batch_size: int


@dataclass(frozen=True)
class Map:
    """A nodule's maps by one method."""

    method: str
    scores: Float[Tensor, "target view row column"]
    """Signed, on the method's own grid; one map repeated where it is not `targeted`."""
    targeted: bool
    options: Mapping[str, Any]
    again: Callable[[Any], Float[Tensor, "target view row column"]]
    """The same method's maps by another model, on the token grid."""
    other_folds: Callable[[], list[Float[Tensor, "target view row column"]]]
    """Maps by the run's other models, likewise."""
    other_runs: Mapping[str, Callable[[], Float[Tensor, "target view row column"]]]
    """By metric: maps by the same fold's model of another run."""


@dataclass(frozen=True)
class Found:
    """What one family found."""

    figures: dict[str, PerTarget]
    """By metric; NaN where a target has no answer."""
    curves: dict[str, Float64[np.ndarray, "..."]] = field(default_factory=dict)
    """What is drawn: the axis `percent`, and curves [target, point] by name."""
    reason: str = ""
    """Why figures are NaN, or what they cannot say."""
    scores: Float[Tensor, "target view row column"] | None = None
    """Maps to keep beside the figures, on the token grid."""


def measure_localisation(case: Case, given: Map) -> Found:
    """Where the positive relevance lies, on the pixels (nearest neighbour); mean over the views.

    Only what was read counts, also for chance: a map must not gain by avoiding the unread frame around a cut-out.
    """
    return Found(localisation(given.scores, case.outlines), reason=_outline_reason(case.outlines, given.scores))


def localisation(scores: Float[Tensor, "target view row column"], outlines: Outlines) -> dict[str, PerTarget]:
    """The figures of `LOCALISATION` per target; NaN where no view has an answer.

    Args:
        scores: signed maps.
        outlines: the readers' marks; a view without any has no answer and is left out of the mean.
    """
    masks, read = outlines.consensus, outlines.read
    pixels = F.interpolate(scores.cpu().double(), masks.shape[-2:], mode="nearest-exact").masked_fill(~read, -torch.inf)
    share = read.double().mean((-2, -1))
    mass, soft = relevance_mass(pixels, masks), soft_mass(pixels, outlines.fractions)
    # Chance is told for the maps that have an answer, so that the two means are over the same maps.
    levels = [
        (level / share).expand(mass.shape).masked_fill(figure.isnan(), torch.nan)
        for level, figure in (
            (chance(masks), mass),
            (outlines.fractions.double().mean((-2, -1)), soft),
            (chance(outlines.fractions > 0), soft),
        )
    ]
    precision = average_precision(pixels, masks)
    grid = (scores.shape[-2], scores.shape[-1])
    covered, counted = (F.adaptive_avg_pool2d(each.double(), grid) for each in (masks, read))
    expected = chance_precision(covered / counted.clamp(min=1e-12), counted).expand(mass.shape)
    ranks = relevance_rank(pixels, masks), pointing_game(pixels, masks), precision
    rank_soft = soft_rank(pixels, outlines.fractions)
    levels.insert(1, expected.masked_fill(precision.isnan(), torch.nan))
    found = (mass, levels[0], *ranks, levels[1], soft, levels[2], rank_soft, levels[3])
    return {name: torch.nanmean(figures, 1).numpy() for name, figures in zip(LOCALISATION, found, strict=True)}


def measure_compactness(case: Case, given: Map) -> Found:
    """Share of the cells with |s| <= 0.05 max |s| on the method's own grid; mean over the views."""
    return Found({"compactness": compactness(given.scores).nanmean(1).cpu().numpy()})


def compactness(scores: Float[Tensor, "*map row column"]) -> Float[Tensor, "*map"]:
    """Share of a map's cells with |s| <= 0.05 max |s|; NaN for a map of zeros."""
    size = scores.abs().flatten(-2)
    largest = size.amax(-1, keepdim=True)
    share = (size <= SMALL * largest).double().mean(-1)
    return torch.where(largest.squeeze(-1) > 0, share, torch.nan)


def measure_fidelity(case: Case, given: Map) -> Found:
    """A_MIF, A_LIF, A_(LIF-MIF) of every output under every map, on the model's own scale; mean over the views."""
    targets, settings = len(given.scores), case.measurement
    # One map for all targets is perturbed once.
    maps = (given.scores if given.targeted else given.scores[:1]).movedim(0, 1)
    found = curves(case.model, case.images, maps, settings.steps, settings.fill, settings.blur_sigma, case.batch_size)
    values = found.values if given.targeted else found.values.repeat(targets, axis=2)
    whole = type(found)(found.percent, values)
    read = output_indices(None, len(case.images), targets)
    own = np.arange(targets)
    mif, lif = (whole.values[direction, :, own, own].mean(1) for direction in (MIF, LIF))
    areas = whole.areas[:, :, own, own].mean(1)
    figures = {"fidelity_mif": areas[MIF], "fidelity_lif": areas[LIF]}
    figures |= _discrimination("fidelity", of_curves(whole, read), case.model.targets)
    return Found(figures, {"percent": found.percent, "mif": mif - mif[:, :1], "lif": lif - lif[:, :1]})


def measure_boxes(case: Case, given: Map) -> Found:
    """r(b) and A_box of every output under every map, with one set of perturbed images for all methods."""
    drops = case.boxes()
    # A view whose map or output is constant has no answer and is left out of the mean.
    r = drops.correlations(given.scores.movedim(0, 1))
    own = np.arange(r.shape[1])
    areas = box_area(r, drops.percent).swapaxes(1, 2)
    figures = _discrimination("box", Discrimination(areas), case.model.targets)
    missing = np.isnan(areas).any()
    reason = "no correlation where a map or an output does not change" if missing else ""
    return Found(figures, {"percent": drops.percent, "r": known_mean(r[:, own, own], axis=0)}, reason)


def measure_randomised(case: Case, given: Map) -> Found:
    """The map of the same model with every weight fresh, and its rank correlation with the map."""
    scores = given.again(case.fresh())
    values = rank_correlation(given.again(case.model), scores).cpu().numpy().T
    return Found({f"randomised_{EVERY_WEIGHT}": known_mean(values, axis=0)}, scores=scores)


def measure_sanity(case: Case, given: Map) -> Found:
    """Rank correlation of the map with that of a model whose weights are fresh from the head down to each stage."""
    found = cascade(case.model, given.again, case.measurement.seed)
    return Found({f"randomised_{stage}": known_mean(values.cpu().numpy().T, axis=0) for stage, values in found.items()})


def measure_repeatability(case: Case, given: Map) -> Found:
    """Rank correlation of the map with those by the models of the run's other folds."""
    original, others = given.again(case.model), given.other_folds()
    if not others:
        return Found({"repeated_fold": np.full(len(given.scores), np.nan)}, reason="the run has one fold")
    return Found({"repeated_fold": known_mean(mean_correlation(original, others).cpu().numpy().T, axis=0)})


def measure_other_run(metric: str, case: Case, given: Map) -> Found:
    """Rank correlation of the map with that by the same fold's model of another run."""
    found = rank_correlation(given.again(case.model), given.other_runs[metric]())
    return Found({metric: known_mean(found.cpu().numpy().T, axis=0)})


def measure_completeness(case: Case, given: Map) -> Found:
    """How far an integrated method's scores are from adding up to the change of the output; nothing for the others."""
    if given.method not in INTEGRATED:
        return Found({})
    sums, change = completeness(case.model, case.images, given.method, dict(given.options))
    gap = (sums - change).abs()
    return Found({"completeness_gap": _columns(gap), "completeness_change": _columns(change.abs())})


@dataclass(frozen=True)
class Family:
    """Metrics that are measured together."""

    measure: Callable[[Case, Map], Found]
    sampled: bool
    """Whether only some nodules of each fold are measured, because it is costly."""
    settings: tuple[str, ...]
    """Fields of `Measurement` that decide a value."""


FAMILIES: dict[str, Family] = {
    "localisation": Family(measure_localisation, False, ()),
    "compactness": Family(measure_compactness, False, ()),
    "fidelity": Family(measure_fidelity, True, ("steps", "fill", "blur_sigma", "seed")),
    "box": Family(measure_boxes, True, ("box_sides", "boxes", "fill", "blur_sigma", "seed")),
    "randomised": Family(measure_randomised, False, ("seed",)),
    "sanity": Family(measure_sanity, True, ("seed",)),
    "repeatability": Family(measure_repeatability, True, ("seed",)),
    "completeness": Family(measure_completeness, True, ("seed",)),
    REPEATED: Family(partial(measure_other_run, REPEATED), True, ("seed",)),
    RANDOMISED: Family(partial(measure_other_run, RANDOMISED), True, ("seed",)),
}
"""By the name that `--metrics` takes; the last two are measured where their run is given."""
OF_OTHERS = (REPEATED, RANDOMISED)
USUAL = "localisation,compactness,fidelity,randomised"


def on_input_grid(
    masks: Bool[np.ndarray, "view row column"], size: tuple[int, int]
) -> Bool[Tensor, "view height width"]:
    """Masks on the grid of the model's input, by nearest neighbour."""
    given = torch.from_numpy(np.ascontiguousarray(masks))
    return F.interpolate(given[None].float(), size, mode="nearest-exact")[0] > 0.5


def consensus_masks(
    crop: Crop, readers: int, views: Sequence[str], level: float = CONSENSUS_LEVEL
) -> Bool[np.ndarray, "view row column"]:
    """What at least the share `level` of the readers marked, at the central slice of each view."""
    return central_views(crop.consensus(readers, level), views)


def central_views(
    cube: Shaped[np.ndarray, "slice row column"], views: Sequence[str]
) -> Shaped[np.ndarray, "view row column"]:
    """The central slice of each view of a cube."""
    return np.stack([take_view(cube, view, central_index(len(cube))) for view in views])


def check_maps(scores: Float[Tensor, "target view row column"], size: tuple[int, int]) -> None:
    """Check that maps can be measured on a model's input.

    Raises:
        LidcCdamError: they are on a grid that the pixels are no whole multiple of, or hold NaN.
    """
    grid = tuple(scores.shape[-2:])
    if any(pixels % cells for pixels, cells in zip(size, grid, strict=True)):
        raise LidcCdamError(
            f"Maps must be on the tokens or the pixels of the model's input, {size[0]} x {size[1]} pixels, but they "
            f"are {grid[0]} x {grid[1]}; delete them and run `lidc-cdam explain` again."
        )
    if not bool(torch.isfinite(scores).all()):
        raise LidcCdamError(
            "Maps must hold finite numbers, but these hold NaN or infinity; run `lidc-cdam explain` again, and train "
            "the fold again if they still do."
        )


def _discrimination(name: str, found: Discrimination, targets: Sequence[str]) -> dict[str, PerTarget]:
    """Own figure, each output's figure under each other target's map, and Delta; mean over the views."""
    matrix = known_mean(found.matrix, axis=0)
    figures = {name: matrix.diagonal().copy(), f"{name}_delta": known_mean(found.delta, axis=0)}
    return figures | {f"{name}_by_{key}": matrix[:, index] for index, key in enumerate(targets)}


def _columns(values: Float[Tensor, "view target"]) -> PerTarget:
    return values.double().mean(0).cpu().numpy()


def _outline_reason(outlines: Outlines, scores: Float[Tensor, "target view row column"]) -> str:
    sizes = outlines.consensus.flatten(1).sum(1)
    if not bool(sizes.any()):
        return "the readers' consensus is in none of the slices shown"
    token = outlines.consensus[0].numel() // scores[0, 0].numel()
    if int(sizes.max()) < token:
        return f"the consensus ({int(sizes.max())} pixels) is smaller than one cell of the map ({token} pixels)"
    return ""
