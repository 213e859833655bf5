"""The softmax matrices of attention layers, read while the model runs.

Fused attention computes no matrix, so that it is switched off inside the `with`, layer by layer, and back on after it;
the matrix is then what the layer's dropout returns. No forward function is replaced.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.last_block import LastBlock
from lidc_cdam.model import NoduleModel

Matrices = Float[Tensor, "image head query key"]


def attention_layers(model: NoduleModel) -> list[nn.Module]:
    """The attention layer of every block, the first block's first.

    Raises:
        LidcCdamError: a block has none.
    """
    LastBlock(model)
    layers = [block.attn for block in model.backbone.blocks if isinstance(getattr(block, "attn", None), nn.Module)]
    if len(layers) < len(model.backbone.blocks):
        raise _unreadable(model)
    return layers


@contextmanager
def softmax_matrices(
    model: NoduleModel, layers: Sequence[nn.Module], change: Callable[[Matrices], Matrices] | None = None
) -> Iterator[list[Tensor]]:
    """Inside the block, every forward pass of a layer adds its softmax matrix to the list.

    Args:
        model: which the layers belong to.
        layers: attention layers.
        change: what the layer goes on with in place of its matrix; the list holds that.

    Raises:
        LidcCdamError: a layer is no softmax attention; `Matrices` are looked at, never the layer's name.
    """
    found: list[Tensor] = []

    def keep(heads: int | None, output: Tensor) -> Tensor:
        if not _is_softmax(output) or output.shape[1] != heads:
            raise _unreadable(model)
        found.append(output if change is None else change(output))
        return found[-1]

    with ExitStack() as stack:
        for layer in layers:
            drop, heads = getattr(layer, "attn_drop", None), getattr(layer, "num_heads", None)
            if not isinstance(drop, nn.Module) or not hasattr(layer, "fused_attn"):
                raise _unreadable(model)
            stack.enter_context(_not_fused(layer))
            hook = drop.register_forward_hook(lambda module, given, output, heads=heads: keep(heads, output))
            stack.callback(hook.remove)
        yield found


def check_class_token(model: NoduleModel) -> None:
    """Check that the row of [CLS] is what a model's outputs are read from.

    Raises:
        LidcCdamError: there is no [CLS], or the head reads patches.
    """
    if not LastBlock(model).reads_class_tokens():
        raise LidcCdamError(
            f"This method reads the attention of [CLS], but the head of this model ({type(model.backbone).__name__}) "
            f"does not read a [CLS] token alone (it pools the patches, or there is none); use --method cdam or gradcam."
        )


def _is_softmax(matrix: Tensor) -> bool:
    if matrix.ndim != 4 or matrix.shape[2] != matrix.shape[3]:
        return False
    tolerance = 10 * torch.finfo(matrix.dtype).eps ** 0.5
    return bool((matrix >= 0).all()) and bool(((matrix.sum(-1) - 1).abs() < tolerance).all())


def _unreadable(model: NoduleModel) -> LidcCdamError:
    return LidcCdamError(
        f"This method needs the softmax matrix of every attention layer, which {type(model.backbone).__name__} does "
        f"not let be read; use --method cdam, or --backbone with a row of `BACKBONES`."
    )


@contextmanager
def _not_fused(layer: Any) -> Iterator[None]:
    before = layer.fused_attn
    layer.fused_attn = False
    try:
        yield
    finally:
        layer.fused_attn = before
