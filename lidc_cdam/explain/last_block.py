"""A vision transformer cut before its last block: T, what enters the last attention layer, and z as a function of T."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import check_finite, check_gradients, not_a_vit
from lidc_cdam.model import NoduleModel

Tokens = Float[Tensor, "image token channel"]
Latents = Float[Tensor, "image latent"]
Read = Callable[[Latents], Float[Tensor, "image readout"]]
"""What is differentiated, as a function of the latent: outputs of the head, likenesses to concepts."""


@dataclass(frozen=True)
class Entry:
    """What arrives at the last block for a batch of images."""

    tokens: Tokens
    """T: the layer-normalised tokens; row 0 is [CLS], then registers, then patches."""
    residual: Tokens
    """x: the un-normalised residual stream, held fixed unless a method says otherwise."""
    extras: tuple[tuple[Any, ...], dict[str, Any]]
    """Further arguments that the backbone passes to its blocks (masks, rotary embeddings)."""
    attended: Float[Tensor, "image channel"]
    """What the attention layer returned for row 0."""
    outputs: Float[Tensor, "image output"]
    """f: the model's outputs."""


class LastBlock:
    """The last block and everything after it, of any timm-like vision transformer.

    The block itself is run, with only the output of its `norm1` put in place: layer scale, stochastic depth, q/k
    normalisation, fused attention, registers and mean pooling need no case of their own.
    """

    def __init__(self, model: NoduleModel) -> None:
        """Find the parts.

        Raises:
            LidcCdamError: the backbone has no last block with `norm1` and `attn` (the sentence names what is missing),
                or its parameters were made in inference mode.
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
            raise not_a_vit(model, missing)
        check_gradients(model)
        self.model = model
        self.block = block
        self.attention: Any = block.attn
        self._norm1 = block.norm1

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches ([CLS], registers)."""
        return int(self.model.backbone.num_prefix_tokens)

    def enter(self, images: Float[Tensor, "image channel row column"]) -> Entry:
        """Run the model once, without gradients, and keep what arrives at the last block.

        Raises:
            LidcCdamError: the last block does not put `norm1` right before `attn`, or the outputs are not finite.
        """
        caught: dict[str, Any] = {}

        def catch_block(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught["residual"], *rest = arguments
            caught["extras"] = (tuple(rest), named)

        def catch_tokens(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            caught["tokens"] = output

        def catch_attention(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            caught["entered"], caught["attended"] = arguments[0], output[:, 0].clone()

        with torch.no_grad(), ExitStack() as hooks:
            for handle in (
                self.block.register_forward_pre_hook(catch_block, with_kwargs=True),
                self._norm1.register_forward_hook(catch_tokens),
                self.attention.register_forward_hook(catch_attention),
            ):
                hooks.callback(handle.remove)
            outputs = self.model(images)
        if caught.get("entered") is None or caught["entered"] is not caught.get("tokens"):
            raise self._another_structure()
        check_finite(outputs)
        # Under autocast the layers work in another precision than the parameters, in which the rest is computed.
        dtype = next((parameter.dtype for parameter in self.block.parameters()), outputs.dtype)
        tokens, residual = caught["tokens"].to(dtype), caught["residual"].to(dtype)
        return Entry(tokens, residual, caught["extras"], caught["attended"], outputs)

    def latent(self, tokens: Tokens, entry: Entry) -> Latents:
        """The final latent z(T) if `tokens` came out of the last block's `norm1`, the residual stream unchanged."""
        more, named = entry.extras
        with _replaced_output(self._norm1, tokens):
            after = self.block(entry.residual, *more, **named)
        return self._pooled(after)

    def tail(self, tokens: Tokens, entry: Entry) -> Float[Tensor, "image output"]:
        """f(T): the model's outputs."""
        outputs: Tensor = self.model.head(self.latent(tokens, entry))
        return outputs

    def class_latent(
        self, attended: Float[Tensor, "row channel"], residual: Float[Tensor, "row channel"], entry: Entry
    ) -> Latents:
        """The latent z from [CLS] alone: what the attention layer returns for it, and its row of the residual stream.

        Right where every other token reaches z through that one attention row only.
        """
        more, named = entry.extras
        with _replaced_forward(self.attention, attended[:, None]):
            after = self.block(residual[:, None], *more, **named)
        return self._pooled(after)

    def normalise(self, residual: Tokens) -> Tokens:
        """T of another residual stream."""
        tokens: Tensor = self._norm1(residual)
        return tokens

    def gradients(self, tokens: Tokens, entry: Entry, read: Read) -> Float[Tensor, "readout image token channel"]:
        """Gradient of every readout by T, at `tokens`; works under `no_grad` and with frozen parameters.

        One forward pass of the tail and one backward pass per readout; the model's own `.grad` stays untouched.
        """
        with torch.enable_grad():
            inputs = tokens.detach().requires_grad_()
            readings = read(self.latent(inputs, entry)).sum(0)
            last = len(readings) - 1
            parts = [
                torch.autograd.grad(reading, inputs, retain_graph=index < last)[0]
                for index, reading in enumerate(readings)
            ]
        return torch.stack(parts)

    def check(self, entry: Entry) -> None:
        """Check that the model's outputs can be had back from T.

        Raises:
            LidcCdamError: they cannot, so that the maps would explain another model.
        """
        with torch.no_grad():
            again = self.tail(entry.tokens, entry)
        if not same(again, entry.outputs):
            raise self._another_structure()

    def reads_class_token_alone(self) -> bool:
        """Whether the latent depends on the final [CLS] token only: the others may be anything, even NaN."""
        return self._reads_alone(1)

    def reads_class_tokens(self) -> bool:
        """Whether row 0 is [CLS] and the latent depends on no patch, but on [CLS] and perhaps others before them."""
        return getattr(self.model.backbone, "cls_token", None) is not None and self._reads_alone(self.prefix)

    def _reads_alone(self, rows: int) -> bool:
        """Whether the latent depends on the first final tokens only."""
        weight = next(self.model.parameters())
        tokens = torch.full((1, self.prefix + 2, self.model.backbone.num_features), torch.nan).to(weight)
        tokens[:, :rows] = torch.linspace(-1, 1, tokens.shape[2]).to(weight)
        try:
            with torch.no_grad():
                alone, among = self._pooled(tokens[:, :rows]), self._pooled(tokens)
        except (IndexError, RuntimeError):  # the pooling looks for tokens that are not there
            return False
        return self.prefix > 0 and alone.shape == among.shape and bool(torch.isfinite(among).all())

    def _pooled(self, tokens: Tokens) -> Latents:
        return self.model.pool(self.model.backbone.norm(tokens))

    def _another_structure(self) -> LidcCdamError:
        return LidcCdamError(
            f"Maps on the last block need blocks that put `norm1` right before `attn` and are followed by `norm` and "
            f"the pooling alone, but {type(self.model.backbone).__name__} computes something else; use --backbone with "
            f"a row of `BACKBONES`."
        )


def same(found: Float[Tensor, "..."], expected: Float[Tensor, "..."]) -> bool:
    """Whether two computations of the same numbers agree: to 1e-3 of the largest in single precision."""
    tolerance = 3 * max(torch.finfo(found.dtype).eps, torch.finfo(expected.dtype).eps) ** 0.5
    allowed = tolerance * float(expected.abs().max())
    return torch.allclose(found.to(expected.dtype), expected, rtol=tolerance, atol=allowed, equal_nan=True)


@contextmanager
def _replaced_output(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Inside the block, `module` returns `output` whatever it is given."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced_forward(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Inside the block, `module` computes nothing and returns `output`."""
    before = vars(module).get("forward")
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
