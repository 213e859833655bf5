"""A vision transformer made linear at one image: what z-rules of relevance propagation and LibraGrad share.

Inside `linearised` the model gives the same numbers, but its layers hand on other gradients:

    norm        x -> w (x - mean x) / s + b     with the deviation s held fixed, so linear in x
    activation  x -> g x                        with the gate g = act(x) / x held fixed (its limit where x = 0)

Linear layers, layer scale and residual sums are linear as they are. With attention weights held fixed too, every output
is linear in the tokens but for biases, and f = sum of input times gradient + sum of biases times gradient: input times
gradient is then what the z-rule (LRP-0) gives, R_i = sum_j x_i w_ij / z_j R_j, where each bias keeps its share of z_j.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from timm import layers
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.model import NoduleModel

ACTIVATIONS = (nn.GELU, nn.ReLU, nn.SiLU, layers.GELU, layers.GELUTanh, layers.QuickGELU)
"""Functions of one number, x g(x)."""


@dataclass(frozen=True)
class Biased:
    """What a layer with a bias returned."""

    output: Float[Tensor, "image *token channel"]
    bias: Float[Tensor, " channel"]


@contextmanager
def linearised(modules: Iterable[nn.Module]) -> Iterator[list[Biased]]:
    """Inside the block, these modules and what is in them are linear; every output with a bias joins the list."""
    found: list[Biased] = []

    def hook(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.LayerNorm):
            output = _fixed_deviation(module, given[0])
        elif isinstance(module, ACTIVATIONS):
            output = _fixed_gate(module, given[0])
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor) and output.requires_grad:
            found.append(Biased(output, bias.detach()))
        return output

    kinds = (nn.LayerNorm, nn.Linear, *ACTIVATIONS)
    chosen = {inner: None for module in modules for inner in module.modules() if isinstance(inner, kinds)}
    with ExitStack() as stack:
        for module in chosen:
            stack.callback(module.register_forward_hook(hook).remove)
        yield found


def final_layers(model: NoduleModel) -> list[nn.Module]:
    """What follows the blocks."""
    names = ("norm", "fc_norm", "attn_pool", "head", "head_dist")
    present = [getattr(model.backbone, name, None) for name in names]
    return [*(module for module in present if isinstance(module, nn.Module)), model.head]


def leaf(tensor: Tensor) -> Tensor:
    """The same numbers, as something that gradients end at."""
    return tensor.detach().requires_grad_()


def check_complete(
    model: NoduleModel,
    outputs: Float[Tensor, "image output"],
    inputs: Sequence[Tensor],
    biased: Sequence[Biased],
) -> None:
    """Check that inputs and biases times their gradients add up to the first output of one image.

    Raises:
        LidcCdamError: they do not, so that the model has layers which the rules do not cover.
    """
    leaves = [*inputs, *(layer.output for layer in biased)]
    factors = [*inputs, *(layer.bias for layer in biased)]
    output = outputs[0, 0]
    slopes = torch.autograd.grad(output, leaves, retain_graph=True, materialize_grads=True)
    with torch.no_grad():
        parts = [factor * slope for factor, slope in zip(factors, slopes, strict=True)]
        missing = float(output - torch.stack([part.sum() for part in parts]).sum())
        scale = float(torch.stack([part.abs().sum() for part in parts]).sum())
    if not abs(missing) <= torch.finfo(outputs.dtype).eps ** 0.5 * scale:
        raise LidcCdamError(
            f"This method needs a vision transformer of softmax attention, layer norms and MLPs with one activation, "
            f"but {type(model.backbone).__name__} has other layers, for which it has no rule; use --method cdam."
        )


def _fixed_deviation(norm: nn.LayerNorm, x: Float[Tensor, "*token channel"]) -> Float[Tensor, "*token channel"]:
    centred = x - x.mean(-1, keepdim=True)
    output: Tensor = centred / (centred.detach().square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if norm.weight is not None:
        output = output * norm.weight
    return output if norm.bias is None else output + norm.bias


def _fixed_gate(activation: nn.Module, x: Float[Tensor, "*token channel"]) -> Float[Tensor, "*token channel"]:
    with torch.no_grad():
        nonzero = torch.where(x == 0, torch.finfo(x.dtype).eps, x)
        gate: Tensor = activation.forward(nonzero) / nonzero
    return x * gate
