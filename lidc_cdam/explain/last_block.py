"""A vision transformer cut before its last block: T, what enters the last attention layer, and f as a function of T."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.model import NoduleModel

Tokens = Float[Tensor, "image token channel"]


@dataclass(frozen=True)
class Entry:
    """What arrives at the last block for a batch of images."""

    tokens: Tokens
    """T: the layer-normalised tokens; row 0 is [CLS], then registers, then patches."""
    residual: Tokens
    """x: the un-normalised residual stream, held fixed by every method here."""
    extras: tuple[tuple[Any, ...], dict[str, Any]]
    """Further arguments that the backbone passes to its blocks (masks, rotary embeddings)."""
    outputs: Float[Tensor, "image target"]
    """f: the model's outputs."""


class LastBlock:
    """The last block and everything after it, of any timm-like vision transformer.

    The block itself is run, with only the output of its `norm1` put in place: layer scale, stochastic depth, q/k
    normalisation, fused attention, registers and mean pooling need no case of their own.
    """

    def __init__(self, model: NoduleModel) -> None:
        """Find the parts.

        Raises:
            LidcCdamError: the backbone has no last block with `norm1` and `attn`; the sentence names what is missing.
        """
        backbone = model.backbone
        blocks = getattr(backbone, "blocks", None)
        block: Any = blocks[-1] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else None
        present = {
            ".blocks": block,
            ".blocks[-1].norm1": getattr(block, "norm1", None),
            ".blocks[-1].attn": getattr(block, "attn", None),
            ".norm": getattr(backbone, "norm", None),
            ".num_prefix_tokens": getattr(backbone, "num_prefix_tokens", None),
        }
        missing = [name for name, part in present.items() if part is None]
        if missing:
            raise LidcCdamError(
                f"Maps on the last block need a vision transformer as timm builds it, but {type(backbone).__name__} "
                f"lacks {', '.join(missing)}; use a backbone of `BACKBONES`."
            )
        self._model = model
        self._block = block
        self._norm1 = block.norm1

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches ([CLS], registers)."""
        return int(self._model.backbone.num_prefix_tokens)

    def enter(self, images: Float[Tensor, "image channel row column"]) -> Entry:
        """Run the model once, without gradients, and keep what arrives at the last block.

        Raises:
            LidcCdamError: the model's outputs cannot be had back from T, so that its maps would explain another model.
        """
        caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def catch(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught.append((arguments, named))

        with torch.no_grad():
            handle = self._block.register_forward_pre_hook(catch, with_kwargs=True)
            try:
                outputs = self._model(images)
            finally:
                handle.remove()
            (residual, *rest), named = caught[0]
            entry = Entry(self._norm1(residual), residual, (tuple(rest), named), outputs)
            self._check(entry)
        return entry

    def tail(self, tokens: Tokens, entry: Entry) -> Float[Tensor, "image target"]:
        """f(T): the model's outputs if `tokens` came out of the last block's `norm1`, the residual stream unchanged."""
        more, named = entry.extras
        with _replaced_output(self._norm1, tokens):
            after = self._block(entry.residual, *more, **named)
        backbone = self._model.backbone
        outputs: Tensor = self._model.head(self._model.pool(backbone.norm(after)))
        return outputs

    def gradients(
        self, tokens: Tokens, entry: Entry, targets: Sequence[int]
    ) -> Float[Tensor, "target image token channel"]:
        """df_c/dT at `tokens`, for each target; works under `no_grad` and with frozen parameters.

        One forward pass of the tail and one backward pass per target; the model's own `.grad` stays untouched.
        """
        with torch.enable_grad():
            inputs = tokens.detach().requires_grad_()
            outputs = self.tail(inputs, entry).sum(0)
            last = len(targets) - 1
            parts = [
                torch.autograd.grad(outputs[target], inputs, retain_graph=index < last)[0]
                for index, target in enumerate(targets)
            ]
        return torch.stack(parts)

    def _check(self, entry: Entry) -> None:
        again, outputs = self.tail(entry.tokens, entry), entry.outputs
        tolerance = 3 * torch.finfo(outputs.dtype).eps ** 0.5  # 1e-3 in single precision
        allowed = tolerance * float(outputs.abs().max())
        if not torch.allclose(again, outputs, rtol=tolerance, atol=allowed, equal_nan=True):
            raise LidcCdamError(
                f"Maps on the last block need blocks that put `norm1` before `attn` and are followed by `norm` and the "
                f"pooling alone, but {type(self._model.backbone).__name__} computes something else; "
                f"use a backbone of `BACKBONES`."
            )


@contextmanager
def _replaced_output(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Inside the block, `module` returns `output` whatever it is given."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()
