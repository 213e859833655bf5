"""LeGrad: how strongly the attention of every block could still be moved towards an output."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.passes import Call, Images, Readings, TokenScores, gradients
from lidc_cdam.explain.registry import ScoreMaps, register
from lidc_cdam.explain.softmax import attention_layers, softmax_matrices
from lidc_cdam.explain.targets import Targets
from lidc_cdam.model import NoduleModel


def _check(blocks: int | None = None, batch_size: int = 1) -> None:
    check_size(batch_size)
    if blocks is not None and blocks < 1:
        raise LidcCdamError(f"--options.blocks must be at least 1; got {blocks}.")


@register("legrad", "LeGrad", concepts=True, check=_check)
def legrad(
    model: NoduleModel,
    images: Images,
    targets: Targets = None,
    *,
    blocks: int | None = None,
    batch_size: int = 64,
) -> ScoreMaps:
    """S_i = mean over blocks l, heads and queries of (ds_c^l/da^l)^+ for the key i.

    s_c^l is output c as the final norm and the head read it from the mean of block l's tokens ([CLS] and registers
    among them), and a^l the softmax matrix of the same block: the gradient runs through one block only. Bousselham et
    al., LeGrad (ICCV 2025), checked against the authors' released code, whose final scaling to 0 to 1 is left out.
    Scores are 0 or more; the map of a `Contrast` is the combination of the outputs' maps.

    Args:
        model: what to explain.
        images: normalised images of the model's size.
        targets: keys out of `model.targets`, `Concept`s and `Contrast`s; all outputs by default.
        blocks: how many of the last blocks take part; all by default.
        batch_size: images at a time, at most; changes no map.

    Raises:
        LidcCdamError: a block has no softmax attention, or there are fewer blocks.
    """
    _check(blocks)
    call = Call.of(model, images, targets, batch_size, matrices="all")
    layers = attention_layers(model)
    if blocks is not None and blocks > len(layers):
        raise LidcCdamError(f"--options.blocks must be at most {len(layers)}, the blocks of the model; got {blocks}.")
    used = layers[-(blocks or len(layers)) :]
    outputs = list(model.backbone.blocks)[-len(used) :]

    def scores(chunk: Images) -> TokenScores:
        with torch.enable_grad(), softmax_matrices(model, used) as matrices, _outputs(outputs) as features:
            call.forward(chunk.requires_grad_())
            readings = [_read(call, tokens) for tokens in features]
        parts = []
        for reading, matrix in zip(readings, matrices, strict=True):
            slopes = torch.stack([slope for (slope,) in gradients(reading, [matrix])], 1)
            parts.append(slopes.clamp(min=0).mean((2, 3)))
        return torch.stack(parts).mean(0)

    return call.token_maps(scores)


def _read(call: Call, tokens: Tensor) -> Readings:
    """Readouts of the mean of some tokens, which stands in for [CLS] and every other token that the head may read."""
    backbone = call.model.backbone
    rows = int(backbone.num_prefix_tokens) + 1
    mean = tokens.mean(1, keepdim=True).expand(-1, rows, -1)
    return call.request.read(call.model, call.model.pool(backbone.norm(mean)))


@contextmanager
def _outputs(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside the block, every forward pass of a module adds its output to the list."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        found.append(output)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(keep).remove)
        yield found
