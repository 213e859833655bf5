"""Class-discriminative attention maps: the paper's three estimators and the exact split of a map.

Brocki, Binda and Chung, Class-Discriminative Attention Maps for Vision Transformers (TMLR 2024), Eq. 2 to 6. T is the
matrix of layer-normalised tokens that enter the last attention layer, f_c one output on the model's own scale or the
likeness to a concept. All rows of T move, [CLS] and registers too; the un-normalised residual stream is held fixed. A
map is positive where a token raises the output. It explains the last block and the head, nothing before them.

Each is computed in closed form (`closed_form`) where that holds, and with gradients through the last block elsewhere
(`by_autograd`); `method_used` says which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.by_autograd import ByAutograd
from lidc_cdam.explain.closed_form import ClosedForm, why_not
from lidc_cdam.explain.inputs import check_images, check_size, in_chunks, token_grid, undisturbed
from lidc_cdam.explain.last_block import Entry, LastBlock
from lidc_cdam.explain.noise import Noise, check_copies
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.targets import Request, Targets
from lidc_cdam.model import NoduleModel

Images = Float[Tensor, "image channel height width"]
Form = ClosedForm | ByAutograd
CLOSED_FORM, AUTOGRAD = "closed form", "autograd"
MOVED = ("tokens", "block_input")


def _check_cdam(batch_size: int = 1) -> None:
    check_size(batch_size)


def _check_integrated(n: int = 1, perturb: str = MOVED[0], batch_size: int = 1) -> None:
    check_size(batch_size)
    check_copies(n)
    if perturb not in MOVED:
        raise LidcCdamError(f"--options.perturb must be one of {', '.join(MOVED)}; got {perturb!r}.")


def _check_smooth(perturb: str = MOVED[0], batch_size: int = 1, **noise: Any) -> None:
    _check_integrated(perturb=perturb, batch_size=batch_size)
    Noise(**noise)


@register("cdam", "CDAM", concepts=True, check=_check_cdam)
def cdam(model: NoduleModel, images: Images, targets: Targets = None, *, batch_size: int = 64) -> ScoreMaps:
    """S_ic = sum_j T_ij df_c/dT_ij (Eq. 2) on the token grid.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        batch_size: images at a time, which bounds the memory and changes nothing else.
    """
    return _maps(model, images, targets, batch_size, lambda form: form.scores())


@register("smooth_cdam", "Smooth CDAM", concepts=True, check=_check_smooth)
def smooth_cdam(
    model: NoduleModel,
    images: Images,
    targets: Targets = None,
    *,
    n: int = 50,
    sigma: float | None = None,
    seed: int = 0,
    antithetic: bool = False,
    perturb: str = "tokens",
    batch_size: int = 64,
) -> ScoreMaps:
    """S_ic = 1/n sum_m sum_j T~_ij df_c(T~)/dT~_ij with T~ = T + N(0, sigma^2) (Eq. 5) on the token grid.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        n: number of noisy copies.
        sigma: standard deviation of the noise; 0.05 (max T - min T) of each image by default.
        seed: seed of the noise; every image gets the same n draws, so that its map does not depend on the batch.
        antithetic: whether the second of each two copies carries the first's noise with the opposite sign, which
            cancels what is linear in the noise: fewer copies for the same accuracy.
        perturb: `tokens`, the definition; or `block_input`, the un-normalised input of the last block, as one released
            implementation does it (for comparison, by autograd).
        batch_size: images at a time, which bounds the memory and changes nothing else.
    """
    _check_integrated(perturb=perturb)
    noise = Noise(n, sigma, seed, antithetic)
    return _maps(model, images, targets, batch_size, lambda form: form.smooth(noise), perturb)


@register("integrated_cdam", "Integrated CDAM", concepts=True, check=_check_integrated)
def integrated_cdam(
    model: NoduleModel,
    images: Images,
    targets: Targets = None,
    *,
    n: int = 50,
    perturb: str = "tokens",
    batch_size: int = 64,
) -> ScoreMaps:
    """S_ic = sum_j (T_ij - B_ij) 1/n sum_m df_c(B + m/n (T - B))/dT_ij with B = 0 (Eq. 6) on the token grid.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        n: number of steps from B to T.
        perturb: `tokens`, the definition, whose scores of all tokens add up to f(T) - f(B); or `block_input`, the
            un-normalised input of the last block, as one released implementation does it (for comparison, by autograd;
            its scores do not add up, because the block's norm takes the path's scale away).
        batch_size: images at a time, which bounds the memory and changes nothing else.
    """
    _check_integrated(n, perturb)
    return _maps(model, images, targets, batch_size, lambda form: form.integrated(n), perturb)


@dataclass(frozen=True)
class Decomposition:
    """A plain map split exactly: head by head, and by the way in which a token acts."""

    value: Float[Tensor, "image target head row column"]
    """Value path: what the token brings into [CLS], at the attention that it gets."""
    shift: Float[Tensor, "image target head row column"]
    """Attention-shift path: what it takes from or leaves to other tokens by drawing attention to itself."""

    @property
    def maps(self) -> ScoreMaps:
        """The map: the sum over heads and both paths."""
        return (self.value + self.shift).sum(2)


def decompose(model: NoduleModel, images: Images, targets: Targets = None, *, batch_size: int = 64) -> Decomposition:
    """Split `cdam`'s maps into attention heads and into value path and attention-shift path.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        batch_size: images at a time, which bounds the memory and changes nothing else.

    Raises:
        LidcCdamError: the closed form, which the split is read from, does not hold for the model.
    """

    def split(form: Form) -> Tensor:
        if isinstance(form, ByAutograd):
            raise LidcCdamError(
                f"Only maps with a closed form can be decomposed, but of this model {obstacle(model)}; "
                f"explain it as a whole with --method cdam."
            )
        return torch.stack(form.paths(), 2)

    paths = _maps(model, images, targets, batch_size, split)
    return Decomposition(paths[:, :, 0], paths[:, :, 1])


def method_used(model: NoduleModel) -> str:
    """How the maps of a model are computed: `closed form` or `autograd`.

    Raises:
        LidcCdamError: they cannot be.
    """
    return CLOSED_FORM if obstacle(model) is None else AUTOGRAD


def obstacle(model: NoduleModel) -> str | None:
    """Why the closed form does not hold for a model, as half a sentence; None where it does.

    One random image is run through the model.

    Raises:
        LidcCdamError: the model cannot be explained.
    """
    cut = LastBlock(model)
    weight = next(model.parameters())
    image = torch.randn(1, model.channels, *model.image_size, generator=torch.Generator().manual_seed(0))
    with undisturbed(model):
        entry = cut.enter(image.to(weight))
        reason = why_not(cut, entry)
        if reason is not None:
            cut.check(entry)
    return reason


def _maps(
    model: NoduleModel,
    images: Images,
    targets: Targets,
    batch_size: int,
    estimate: Callable[[Form], Float[Tensor, "image readout *path token"]],
    perturb: str = MOVED[0],
) -> Float[Tensor, "image target *path row column"]:
    """Scores of the patch tokens on their grid, a part of the images at a time."""
    cut, request = LastBlock(model), Request.of(model, targets)
    check_images(model, images)
    weight = next(model.parameters())
    parts = []
    with undisturbed(model):
        for chunk in in_chunks(images, batch_size):
            entry = cut.enter(chunk.to(weight))
            with torch.autocast(weight.device.type, enabled=False):
                parts.append(estimate(_form(cut, entry, request, perturb))[..., cut.prefix :])
    maps = request.mix(torch.cat(parts))
    return maps.reshape(*maps.shape[:-1], *token_grid(model, images))


def _form(cut: LastBlock, entry: Entry, request: Request, perturb: str) -> Form:
    read = partial(request.read, cut.model)
    if perturb == MOVED[0] and why_not(cut, entry) is None:
        return ClosedForm(cut, entry, read, len(request.readouts))
    return ByAutograd(cut, entry, read, block_input=perturb != MOVED[0])
