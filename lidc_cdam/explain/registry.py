"""The table of estimators, and the one function that calls any of them."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType
from typing import Any, ParamSpec, get_args

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
    "sum_over_patches",
    "token_grid",
]

RESOLUTIONS = ("token", "pixel", "native")
NATIVE = ("token", "pixel")
"""Grids on which estimators score: the backbone's patches, or the pixels of its input."""
Options = ParamSpec("Options")
ScoreMaps = Float[Tensor, "image target row column"]

KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a finite number", lambda v: isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v)),
    str: ("a word", lambda value: isinstance(value, str)),
    NoneType: ("null", lambda value: value is None),
}
"""Types of options: in words, and what is one. JSON knows them all; an option of another type is not checked."""


@dataclass(frozen=True)
class Explainer:
    """One estimator of importance."""

    name: str
    function: Callable[..., ScoreMaps]
    """`(model, images, targets, *, option=...)` -> signed maps on the grid that `native` names."""
    title: str
    """Name for people."""
    concepts: bool = False
    """Whether it explains likenesses (`Concept`) besides outputs."""
    native: str = "token"
    """One of `NATIVE`: the grid on which the estimator scores."""
    targeted: bool = True
    """Whether its map depends on the target; attention has one map for all."""
    check: Callable[..., None] | None = None
    """Called with the options of a call before any image is read; raises LidcCdamError at what cannot be."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options, which are the function's keyword-only parameters."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)

    def check_option(self, name: str, value: Any) -> None:
        """Check one option's name and type.

        Raises:
            LidcCdamError: it is unknown, or of another type than the function takes.
        """
        if name not in self.options:
            known = ", ".join(self.options) or "none"
            raise LidcCdamError(
                f"--options of {self.name} must be among: {known}; got {name!r}{_nearest(name, self.options)}"
            )
        annotation = inspect.signature(self.function).parameters[name].annotation
        kinds = get_args(annotation) or (annotation,)
        if all(kind in KINDS for kind in kinds) and not any(KINDS[kind][1](value) for kind in kinds):
            wanted = " or ".join(KINDS[kind][0] for kind in kinds)
            raise LidcCdamError(f"--options.{name} of {self.name} must be {wanted}; got {value!r}.")


EXPLAINERS: dict[str, Explainer] = {}
"""Every estimator by name; an entry joins by `@register`."""


def register(
    name: str,
    title: str,
    concepts: bool = False,
    check: Callable[..., None] | None = None,
    native: str = "token",
    targeted: bool = True,
) -> Callable[[Callable[Options, ScoreMaps]], Callable[Options, ScoreMaps]]:
    """Enter a function into `EXPLAINERS`.

    Args:
        name: name on the command line and of the maps' folder.
        title: name for people.
        concepts: whether it explains likenesses (`Concept`) besides outputs.
        check: takes the same options by name, checks their values and raises LidcCdamError.
        native: one of `NATIVE`: the grid on which the function's maps are.
        targeted: whether its map depends on the target.

    Raises:
        ValueError: the name is taken, or `native` is no grid.
    """

    def enter(function: Callable[Options, ScoreMaps]) -> Callable[Options, ScoreMaps]:
        if name in EXPLAINERS:
            raise ValueError(f"an estimator named {name!r} is registered already")
        if native not in NATIVE:
            raise ValueError(f"native must be one of {', '.join(NATIVE)}; got {native!r}")
        EXPLAINERS[name] = Explainer(name, function, title, concepts, native, targeted, check)
        return function

    return enter


def find_explainer(method: str, options: Mapping[str, Any]) -> Explainer:
    """The estimator called `method`, which must be able to work with `options`.

    Raises:
        LidcCdamError: the method, or an option of it, is unknown, or an option is none that it can work with.
    """
    if method not in EXPLAINERS:
        raise LidcCdamError(
            f"--method must be one of {', '.join(EXPLAINERS)}; got {method!r}{_nearest(method, EXPLAINERS)}"
        )
    explainer = EXPLAINERS[method]
    for name, value in options.items():
        explainer.check_option(name, value)
    if explainer.check is not None:
        explainer.check(**options)
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
        resolution: `token`, the backbone's own grid, where maps of pixels are summed over each patch; `pixel`, the
            input's grid, where maps of tokens are repeated (nearest neighbour); `native`, the method's own grid.
        **options: the method's own settings.

    Returns:
        One map per image and target; raw, neither clipped nor scaled.

    Raises:
        LidcCdamError: an unknown method, option, target or resolution, or images that do not fit the model.
    """
    explainer = find_explainer(method, options)
    if resolution not in RESOLUTIONS:
        raise LidcCdamError(f"--resolution must be one of {', '.join(RESOLUTIONS)}; got {resolution!r}.")
    request = Request.of(model, targets)
    if request.concepts and not explainer.concepts:
        able = ", ".join(name for name, other in EXPLAINERS.items() if other.concepts)
        raise LidcCdamError(
            f"--method must be one of {able} to explain a concept such as {request.concepts[0].name!r}; got {method!r}."
        )
    maps = request.mix(explainer.function(model, images, list(request.readouts), **options))
    if resolution in ("native", explainer.native):
        return maps
    if resolution == "pixel":
        return F.interpolate(maps, images.shape[-2:], mode="nearest-exact")
    return sum_over_patches(maps, token_grid(model, images))


def sum_over_patches(
    maps: Float[Tensor, "image target height width"], grid: tuple[int, int]
) -> Float[Tensor, "image target row column"]:
    """Maps of pixels on the token grid: each token's sum over its patch, so that a map keeps its total."""
    rows, columns = grid
    height, width = maps.shape[-2:]
    parts = maps.reshape(*maps.shape[:2], rows, height // rows, columns, width // columns)
    return parts.sum((3, 5))


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
    return f"; did you mean {near[0]!r}?" if near else "."
