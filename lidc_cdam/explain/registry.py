"""The table of estimators, and what every one of them shares: checked arguments and a model left as it was."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.model import NoduleModel

RESOLUTIONS = ("token", "pixel")
Options = ParamSpec("Options")
ScoreMaps = Float[Tensor, "image target row column"]


@dataclass(frozen=True)
class Explainer:
    """One estimator of importance."""

    name: str
    function: Callable[..., ScoreMaps]
    """`(model, images, targets, *, option=...)` -> signed maps on the token grid."""
    title: str
    """Name for people."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options, which are the function's keyword-only parameters."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


EXPLAINERS: dict[str, Explainer] = {}
"""Every estimator by name; an entry joins by `@register`."""


def register(name: str, title: str) -> Callable[[Callable[Options, ScoreMaps]], Callable[Options, ScoreMaps]]:
    """Enter a function into `EXPLAINERS`.

    Args:
        name: name on the command line and of the maps' folder.
        title: name for people.

    Raises:
        ValueError: the name is taken.
    """

    def enter(function: Callable[Options, ScoreMaps]) -> Callable[Options, ScoreMaps]:
        if name in EXPLAINERS:
            raise ValueError(f"an estimator named {name!r} is registered already")
        EXPLAINERS[name] = Explainer(name, function, title)
        return function

    return enter


def find_explainer(method: str, options: Sequence[str] = ()) -> Explainer:
    """The estimator called `method`, which must know all `options`.

    Raises:
        LidcCdamError: the method, or an option of it, is unknown.
    """
    if method not in EXPLAINERS:
        raise LidcCdamError(
            f"--method must be one of {', '.join(EXPLAINERS)}; got {method!r}{_nearest(method, EXPLAINERS)}."
        )
    explainer = EXPLAINERS[method]
    for option in options:
        if option not in explainer.options:
            known = ", ".join(explainer.options) or "none"
            raise LidcCdamError(
                f"--options of {method} must be among: {known}; got {option!r}{_nearest(option, explainer.options)}."
            )
    return explainer


def explain(
    model: NoduleModel,
    images: Float[Tensor, "image channel height width"],
    targets: str | Sequence[str] | None = None,
    method: str = "cdam",
    resolution: str = "token",
    **options: Any,
) -> ScoreMaps:
    """Signed maps of what raises (positive) and lowers (negative) each output, on the model's own scale.

    Args:
        model: what to explain; its mode, gradients and hooks are the same afterwards.
        images: normalised images of the model's size (`intensity.Intensity.apply`).
        targets: keys out of `model.targets`, in the order wanted; all by default.
        method: a key of `EXPLAINERS`.
        resolution: `token`, the backbone's own grid; `pixel`, the same values on the input's grid (nearest neighbour).
        **options: the method's own settings.

    Returns:
        One map per image and target; raw, neither clipped nor scaled.

    Raises:
        LidcCdamError: an unknown method, option, target or resolution, or images that do not fit the model.
    """
    explainer = find_explainer(method, tuple(options))
    if resolution not in RESOLUTIONS:
        raise LidcCdamError(f"--resolution must be one of {', '.join(RESOLUTIONS)}; got {resolution!r}.")
    maps = explainer.function(model, images, targets, **options)
    return F.interpolate(maps, images.shape[-2:], mode="nearest-exact") if resolution == "pixel" else maps


def check_request(
    model: NoduleModel, images: Float[Tensor, "..."], targets: str | Sequence[str] | None
) -> tuple[int, ...]:
    """Check what every estimator is given.

    Returns:
        The asked targets as indices into the model's outputs.

    Raises:
        LidcCdamError: images of another size than the model's, no image, or a target that the model does not have.
    """
    height, width = model.image_size
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != (3, height, width):
        raise LidcCdamError(
            f"Images to explain must have the shape [image, 3, {height}, {width}] with at least one image, "
            f"got {list(images.shape)}; make them with `Intensity.apply(images_hu, model.image_size)`."
        )
    keys = model.targets if targets is None else ((targets,) if isinstance(targets, str) else tuple(targets))
    if not keys:
        raise LidcCdamError(f"--targets must name at least one of this model's targets, {', '.join(model.targets)}.")
    for key in keys:
        if key not in model.targets:
            raise LidcCdamError(
                f"--targets must be among this model's targets, {', '.join(model.targets)}; "
                f"got {key!r}{_nearest(str(key), model.targets)}."
            )
    return tuple(model.targets.index(key) for key in keys)


def token_grid(model: NoduleModel) -> tuple[int, int]:
    """Rows and columns of the backbone's patch tokens."""
    rows, columns = model.backbone.patch_embed.grid_size
    return int(rows), int(columns)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside the block, each back in its own mode after it, whatever happens."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_chunks(images: Float[Tensor, "image ..."], size: int) -> Iterator[Float[Tensor, "chunk ..."]]:
    """Consecutive parts of at most `size` images.

    Raises:
        LidcCdamError: `size` is below 1.
    """
    if size < 1:
        raise LidcCdamError(f"--batch-size must be at least 1 image; got {size}.")
    yield from torch.split(images, size)


def _nearest(name: str, known: Sequence[str] | dict[str, Explainer]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
