"""What is measured of one nodule's maps: where the relevance lies, and whether the model uses what it points at."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lidc_cdam.artifacts import CONSENSUS_LEVEL
from lidc_cdam.crop_files import Crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import central_index, take_view
from lidc_cdam.metrics.faithfulness import fidelity
from lidc_cdam.metrics.localisation import chance, pointing_game, relevance_mass, relevance_rank
from lidc_cdam.model import NoduleModel

LOCALISATION = ("relevance_mass", "relevance_mass_chance", "relevance_rank", "pointing_game")
FIDELITY = ("fidelity_mif", "fidelity_lif", "fidelity")


@dataclass(frozen=True)
class Measurement:
    """Settings that decide a value of `explainers.csv`."""

    fidelity_nodules: int | None
    steps: int
    blur_sigma: float | None
    seed: int

    def __post_init__(self) -> None:
        if self.fidelity_nodules is not None and self.fidelity_nodules < 0:
            raise LidcCdamError(f"--fidelity-nodules must be at least 0; got {self.fidelity_nodules}.")
        if self.steps < 1:
            raise LidcCdamError(f"--steps must be at least 1; got {self.steps}.")
        if self.blur_sigma is not None and not self.blur_sigma > 0:
            raise LidcCdamError(f"--blur-sigma must be above 0 pixels; got {self.blur_sigma}.")

    def sample(self, nodule_ids: Sequence[str]) -> set[str]:
        """The nodules of a fold whose fidelity is measured; the same for every method."""
        ordered = sorted(nodule_ids, key=lambda key: hashlib.sha256(f"{self.seed}/{key}".encode()).hexdigest())
        return set(ordered[: self.fidelity_nodules])


def measure_localisation(
    scores: Float[Tensor, "target view row column"],
    masks: Bool[Tensor, "view height width"],
    read: Bool[Tensor, "view height width"],
) -> dict[str, Float[np.ndarray, " target"]]:
    """Where the positive relevance lies, on the mask's grid (nearest neighbour); mean over the views.

    Only what was read counts, also for chance: a map must not gain by avoiding the unread frame around a cut-out.

    Args:
        scores: signed maps on the token grid.
        masks: the readers' consensus; a view without it has no answer and is left out of the mean.
        read: the pixels that come from the scan; they hold the consensus.

    Returns:
        The four figures of `LOCALISATION` per target; NaN where no view has an answer.
    """
    pixels = F.interpolate(scores, masks.shape[-2:], mode="nearest-exact").masked_fill(~read, -torch.inf)
    mass = relevance_mass(pixels, masks)
    # Chance is told for the maps that have an answer, so that the two means are over the same maps.
    level = (chance(masks) / read.double().mean((-2, -1))).expand(mass.shape).masked_fill(mass.isnan(), torch.nan)
    found = (mass, level, relevance_rank(pixels, masks), pointing_game(pixels, masks))
    return {name: torch.nanmean(figures, 1).numpy() for name, figures in zip(LOCALISATION, found, strict=True)}


def measure_fidelity(
    model: NoduleModel,
    images: Float[Tensor, "view channel height width"],
    scores: Float[Tensor, "target view row column"],
    measurement: Measurement,
    batch_size: int,
) -> dict[str, Float[np.ndarray, " target"]]:
    """A_MIF, A_LIF and A_(LIF-MIF) per target on the model's own scale (logit or z-score); mean over the views."""
    targets, views = scores.shape[:2]
    found = fidelity(
        model,
        images.repeat(targets, 1, 1, 1),
        scores.flatten(0, 1),
        torch.arange(targets).repeat_interleave(views),
        measurement.steps,
        measurement.blur_sigma,
        batch_size=batch_size,
    )
    areas = (found.area_mif, found.area_lif, found.area)
    return {name: area.reshape(targets, views).mean(1) for name, area in zip(FIDELITY, areas, strict=True)}


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
