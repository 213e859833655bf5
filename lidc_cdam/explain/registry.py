"""The table of estimators, and the one function that calls any of them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ParamSpec

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import check_images, evaluation_mode, in_chunks, token_grid
from lidc_cdam.explain.targets import Request, Targets
from lidc_cdam.model import NoduleModel

__all__ = [
    "EXPLAINERS",
    "RESOLUTIONS",
    "Explainer",
    "ScoreMaps",
    "check_request",
    "evaluation_mode",
    "explain",
    "find_explainer",
    "in_chunks",
    "register",
    "token_grid",
]

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
    concepts: bool = False
    """Whether it explains likenesses (`Concept`) besides outputs."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options, which are the function's keyword-only parameters."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


EXPLAINERS: dict[str, Explainer] = {}
"""Every estimator by name; an entry joins by `@register`."""


def register(
    name: str, title: str, concepts: bool = False
) -> Callable[[Callable[Options, ScoreMaps]], Callable[Options, ScoreMaps]]:
    """Enter a function into `EXPLAINERS`.

    Args:
        name: name on the command line and of the maps' folder.
        title: name for people.
        concepts: whether it explains likenesses (`Concept`) besides outputs.

    Raises:
        ValueError: the name is taken.
    """

    def enter(function: Callable[Options, ScoreMaps]) -> Callable[Options, ScoreMaps]:
        if name in EXPLAINERS:
            raise ValueError(f"an estimator named {name!r} is registered already")
        EXPLAINERS[name] = Explainer(name, function, title, concepts)
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
    targets: Targets = None,
    method: str = "cdam",
    resolution: str = "token",
    **options: Any,
) -> ScoreMaps:
    """Signed maps of what raises (positive) and lowers (negative) each output, on the model's own scale.

    Args:
        model: what to explain; its mode, gradients and hooks are the same afterwards.
        images: normalised images of the model's size (`intensity.Intensity.apply`).
        targets: what to explain, in the order wanted: keys out of `model.targets`, `Contrast`s and, by the CDAM
            methods, `Concept`s; all outputs by default (`target_names` has the maps' names).
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
    request = Request.of(model, targets)
    if request.concepts and not explainer.concepts:
        able = ", ".join(name for name, other in EXPLAINERS.items() if other.concepts)
        raise LidcCdamError(
            f"--method must be one of {able} to explain a concept such as {request.concepts[0].name!r}; got {method!r}."
        )
    maps = request.mix(explainer.function(model, images, list(request.readouts), **options))
    return F.interpolate(maps, images.shape[-2:], mode="nearest-exact") if resolution == "pixel" else maps


def check_request(
    model: NoduleModel, images: Float[Tensor, "..."], targets: str | Sequence[str] | None
) -> tuple[int, ...]:
    """Check what an estimator is given that explains outputs alone.

    Returns:
        The asked targets as indices into the model's outputs.

    Raises:
        LidcCdamError: images that do not fit the model, no image, or a target that the model does not have.
    """
    check_images(model, images)
    request = Request.of(model, targets)
    return tuple(model.targets.index(request.readouts[recipe[0][0]]) for recipe in request.recipes)


def _nearest(name: str, known: Sequence[str] | dict[str, Explainer]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
