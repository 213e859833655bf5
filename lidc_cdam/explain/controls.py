"""Maps that know nothing of the model: what every estimator is measured beside."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.registry import ScoreMaps, check_request, register, token_grid
from lidc_cdam.model import NoduleModel


@register("random", "Random")
def random(
    model: NoduleModel,
    images: Float[Tensor, "image channel height width"],
    targets: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> ScoreMaps:
    """Independent scores, uniform between -1 and 1.

    The draw is seeded by the image's own values and the target, so that it neither depends on the batch nor repeats.

    Args:
        model: gives the token grid and the targets.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`; all by default.
        seed: another seed gives another set of maps.
    """
    indices = check_request(model, images, targets)
    keys = [model.targets[index] for index in indices]
    grid = token_grid(model, images)
    maps = [[_uniform(f"{seed}/{key}/{image_digest(image)}", grid) for key in keys] for image in images]
    return torch.from_numpy(np.array(maps)).to(images)


def _check_centre(sigma: float = 1.0) -> None:
    if sigma <= 0:
        raise LidcCdamError(f"--options.sigma must be above 0; got {sigma}.")


@register("centre", "Centred Gaussian", check=_check_centre, targeted=False)
def centre(
    model: NoduleModel,
    images: Float[Tensor, "image channel height width"],
    targets: str | Sequence[str] | None = None,
    *,
    sigma: float = 0.2,
) -> ScoreMaps:
    """exp(-r^2 / 2 sigma^2) around the image's centre, the same for every image and target.

    Args:
        model: gives the token grid and the targets.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`; all by default.
        sigma: width as a share of the image's side, above 0; 0.2 of a 32 mm crop are 6.4 mm.
    """
    indices = check_request(model, images, targets)
    _check_centre(sigma)
    rows, columns = (np.linspace(-0.5, 0.5, 2 * side + 1)[1::2] for side in token_grid(model, images))
    gaussian = np.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * sigma**2))
    return torch.from_numpy(gaussian).to(images).expand(len(images), len(indices), -1, -1).clone()


def image_digest(image: Float[Tensor, "channel height width"]) -> str:
    """SHA-256 of an image's values in single precision."""
    return hashlib.sha256(image.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def seed_of(key: str) -> int:
    """A seed that differs from key to key and is the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")


def _uniform(key: str, shape: tuple[int, int]) -> Float[np.ndarray, "row column"]:
    return np.random.default_rng(seed_of(key)).uniform(-1, 1, shape)
