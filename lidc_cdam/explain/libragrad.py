"""LibraGrad: gradients balanced between the branches of a transformer, so that input times gradient adds up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.linear import check_complete, final_layers, leaf, linearised
from lidc_cdam.explain.passes import Call, Images, TokenScores, gradients
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.softmax import attention_layers, softmax_matrices
from lidc_cdam.explain.targets import Targets
from lidc_cdam.model import NoduleModel


def _check(biases: bool = False, batch_size: int = 1) -> None:
    check_size(batch_size)


@register("libragrad", "LibraGrad", concepts=True, check=_check)
def libragrad(
    model: NoduleModel, images: Images, targets: Targets = None, *, biases: bool = False, batch_size: int = 64
) -> ScoreMaps:
    """S_i = sum_j x_ij df_c/dx_ij with LibraGrad's gradients, x being the tokens that enter the first block.

    The forward pass is the model's own; going back, attention weights are held fixed (no gradient by queries and
    keys), the deviation of every layer norm is, and so is the gate g of every activation x g(x). Mehri, Soleymani
    Baghshah and Pilehvar, LibraGrad (CVPR 2025), the Input x Gradient and, with `biases`, the FullGrad of its
    comparison; checked against the authors' released code. Outputs are explained as they are, before any softmax.
    Gated MLPs (SwiGLU), of which the authors halve the gradient, are in no backbone here and are refused.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default. The likeness to a
            concept is differentiated as it is.
        biases: add to each token the biases' shares, sum_j b_j df_c/dy_ij over layers y = ... + b, which makes the
            scores of all tokens add up to the output less what the layers after the pooling add.
        batch_size: images at a time, at most; changes no map.

    Raises:
        LidcCdamError: a block has no softmax attention, or the model has layers without a rule.
    """
    call = Call.of(model, images, targets, batch_size, matrices="all")
    return call.token_maps(lambda chunk: token_scores(call, chunk, biases))


def token_scores(call: Call, images: Images, biases: bool = False) -> TokenScores:
    """The scores of all tokens, [CLS] and registers included."""
    model = call.model
    modules = [*model.backbone.blocks, *final_layers(model)]
    layers = attention_layers(model)
    with (
        torch.enable_grad(),
        _entering(model) as entered,
        linearised(modules) as biased,
        softmax_matrices(model, layers, torch.Tensor.detach),
    ):
        latents = model.embed(images)
        tokens = entered[0]
        check_complete(model, model.head(latents), [tokens], biased)
        readings = call.request.read(model, latents)
    shared = [layer for layer in biased if biases and layer.output.ndim == tokens.ndim]
    scores = []
    for slope, *others in gradients(readings, [tokens, *(layer.output for layer in shared)]):
        score = (tokens.detach() * slope).sum(-1)
        scores.append(score + sum((other @ layer.bias for other, layer in zip(others, shared, strict=True)), 0 * score))
    return torch.stack(scores, 1)


@contextmanager
def _entering(model: NoduleModel) -> Iterator[list[Tensor]]:
    """Inside the block, gradients end at the tokens that enter the first block, which join the list."""
    found: list[Tensor] = []

    def cut(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        found.append(leaf(given[0]))
        return (found[-1], *given[1:])

    handle = model.backbone.blocks[0].register_forward_pre_hook(cut)
    try:
        yield found
    finally:
        handle.remove()
