"""CDAM without a backward pass through the attention layer.

Where z is the final [CLS] token, another token reaches it only through [CLS]'s attention row of the last block. With
per head q = W_Q T_0 + b_Q, the logits l_i = q . (W_K T_i) / sqrt(d_h) (b_K shifts all of them alike), their softmax a,
o = sum_j a_j W_V T_j + b_V, G = df/do, u_i = G . (W_V T_i) and m = sum_j a_j u_j,

    S_i = T_i . df/dT_i = sum_h a_i [ u_i + (u_i - m) l_i ]                      for every token but [CLS],
    S_0 = the same + sum_h sum_i a_i (u_i - m) p_i                               for [CLS], the query's own path,

with p_i = (W_Q T_0) . (W_K T_i) / sqrt(d_h), so that l_i = p_i + r_i with r_i = b_Q . (W_K T_i) / sqrt(d_h). The first
term is the value path, the second the attention-shift path. G takes one small backward pass through the rest of the
block, the norm and the head, of one token. Along the path s T of Integrated CDAM l_i(s) = s^2 p_i + s r_i.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lidc_cdam.explain.last_block import Entry, LastBlock, Read, Tokens, same
from lidc_cdam.explain.noise import Noise

Rows = Float[Tensor, "image step head token"]
TokenScores = Float[Tensor, "image readout token"]
HeadScores = Float[Tensor, "image readout head token"]

BUDGET = 2**20
"""Numbers in the largest array of a part of the work: 4 MiB in single precision, whatever the batch."""
TAIL_ROWS = 2**10
"""Most [CLS] tokens times readouts in one backward pass."""

LINEARS = ("qkv", "q_proj", "k_proj", "v_proj", "proj")
IDLE = {
    "q_norm": nn.Identity,
    "k_norm": nn.Identity,
    "norm": nn.Identity,
    "attn_drop": nn.Dropout,
    "proj_drop": nn.Dropout,
}
BIASES = ("q_bias", "k_bias", "v_bias")


def why_not(cut: LastBlock, entry: Entry) -> str | None:
    """Why the closed form does not hold for a model, as half a sentence; None where it does.

    The modules are looked at, never their names in a table, and the numbers have the last word: the [CLS] row of the
    attention layer and the outputs must come out as they did in the model.
    """
    rest, named = entry.extras
    given = [*rest, *named.values()]
    if any(value is not None and value is not False for value in given):
        return "its last block is given more than tokens (rotary embeddings, a mask)"
    reason = _not_plain(cut.attention)
    if reason is not None:
        return reason
    if not cut.reads_class_token_alone():
        return "its head reads more than the final [CLS] token"
    with torch.no_grad():
        attended = cut.attention.proj(_attended(cut.attention, entry.tokens))
        outputs = cut.model.head(cut.class_latent(attended, entry.residual[:, 0], entry))
    if not (same(attended, entry.attended) and same(outputs, entry.outputs)):
        return "its last block computes something else than softmax attention and a tail on each token"
    return None


def _not_plain(attention: Any) -> str | None:
    """What keeps an attention layer from being softmax(Q K^T / sqrt(d)) V of three linear maps."""
    kind = type(attention).__name__
    for name, module in attention.named_children():
        allowed = nn.Linear if name in LINEARS else IDLE.get(name)
        if type(module) is not allowed:
            return f"its last attention layer ({kind}) has `{name}`, a {type(module).__name__}"
    own = [*attention.named_parameters(recurse=False), *attention.named_buffers(recurse=False)]
    for name, _ in own:
        if name not in BIASES:
            return f"its last attention layer ({kind}) has `{name}`"
    split = all(isinstance(getattr(attention, name, None), nn.Linear) for name in ("q_proj", "k_proj", "v_proj"))
    if not hasattr(attention, "num_heads") or not hasattr(attention, "proj"):
        return f"its last attention layer ({kind}) lacks `num_heads` or `proj`"
    if not split and not isinstance(getattr(attention, "qkv", None), nn.Linear):
        return f"its last attention layer ({kind}) lacks `qkv`"
    inner = attention.proj.in_features
    widths = (
        [attention.k_proj.out_features, attention.v_proj.out_features] if split else [attention.qkv.out_features / 3]
    )
    if any(width != inner for width in widths):
        return f"its last attention layer ({kind}) shares keys or values between heads"
    return None


@dataclass(frozen=True)
class Projections:
    """The weights of a plain attention layer, head by head, in at least single precision."""

    query: Float[Tensor, "head width channel"]
    """W_Q / sqrt(d_h)."""
    query_bias: Float[Tensor, "head width"]
    """b_Q / sqrt(d_h)."""
    key: Float[Tensor, "head width channel"]
    """W_K; its bias cancels in the softmax."""
    value: Float[Tensor, "head width channel"]
    """W_V."""
    value_bias: Float[Tensor, "head width"]
    """b_V."""

    @classmethod
    def of(cls, attention: Any) -> "Projections":
        """Read a layer that `why_not` finds plain."""
        heads = attention.num_heads
        if getattr(attention, "qkv", None) is not None:
            weights = attention.qkv.weight.detach().chunk(3)
            fused = attention.qkv.bias
            biases = fused.detach().chunk(3) if fused is not None else [getattr(attention, b, None) for b in BIASES]
        else:
            layers = (attention.q_proj, attention.k_proj, attention.v_proj)
            weights, biases = tuple(layer.weight.detach() for layer in layers), [layer.bias for layer in layers]
        query, key, value = (_by_head(weight, heads) for weight in weights)
        zero = query.new_zeros(query.shape[:2])
        query_bias, _, value_bias = (zero if bias is None else _by_head(bias.detach(), heads) for bias in biases)
        scale = query.shape[1] ** -0.5
        return cls(query * scale, query_bias * scale, key, value, value_bias)


def _by_head(weights: Float[Tensor, "inner *rest"], heads: int) -> Float[Tensor, "head width *rest"]:
    return _precise(weights).reshape(heads, -1, *weights.shape[1:])


def _attended(attention: nn.Module, tokens: Tokens) -> Float[Tensor, "image inner"]:
    """The layer's output o for [CLS], its heads side by side."""
    layer, precise = Projections.of(attention), _precise(tokens)
    row = Row.of(layer, precise, precise.new_ones(1))
    return (Carrier(layer, precise, 1).gather(row.weights)[:, 0] + layer.value_bias).flatten(1).to(tokens.dtype)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Row:
    """[CLS]'s attention row at every step s of the path s T."""

    pull: Rows
    """p(s) = s^2 p."""
    logits: Rows
    """l(s) = s^2 p + s r."""
    weights: Rows
    """a(s)."""

    @classmethod
    def of(cls, layer: Projections, tokens: Tokens, steps: Float[Tensor, " step"]) -> "Row":
        """Neither keys nor anything of size N x D^2 is computed: q . (W_K T_i) = (W_K^T q) . T_i."""
        query = torch.einsum("hdc,ic->ihd", layer.query, tokens[:, 0])
        queries = torch.cat([query, layer.query_bias.expand_as(query)], 1)
        keys = layer.key.repeat(2, 1, 1)
        moving, fixed = (torch.einsum("ihd,hdc->ihc", queries, keys) @ tokens.mT).chunk(2, dim=1)
        along = steps[:, None, None]
        pull = along**2 * moving[:, None]
        logits = pull + along * fixed[:, None]
        return cls(pull, logits, logits.softmax(-1))


class Carrier:
    """W_V T, or T with W_V still to be applied: whichever takes less work for what is to come."""

    def __init__(self, layer: Projections, tokens: Tokens, vectors: int) -> None:
        """Choose.

        Args:
            layer: its weights.
            tokens: T.
            vectors: how many vectors G per image and head are to be multiplied with every W_V T_i.
        """
        self._weights = layer.value
        self._tokens = tokens
        self._values: Tensor | None = None
        if vectors > layer.value.shape[1]:
            values = tokens @ layer.value.flatten(0, 1).T
            self._values = values.reshape(*tokens.shape[:2], *layer.value.shape[:2])

    def gather(self, rows: Rows) -> Float[Tensor, "image step head width"]:
        """sum_j row_j W_V T_j."""
        if self._values is not None:
            return torch.einsum("isht,ithd->ishd", rows, self._values)
        gathered = (rows.flatten(1, 2) @ self._tokens).reshape(*rows.shape[:3], -1)
        return torch.einsum("ishc,hdc->ishd", gathered, self._weights)

    def spread(
        self, vectors: Float[Tensor, "image step readout head width"]
    ) -> Iterator[Float[Tensor, "image step readout token"]]:
        """G . (W_V T_i), head by head."""
        heads = vectors.shape[3]
        if self._values is not None:
            for head in range(heads):
                spread = vectors[:, :, :, head].flatten(1, 2) @ self._values[:, :, head].mT
                yield spread.reshape(*vectors.shape[:3], -1)
        else:
            pulled = torch.einsum("isrhd,hdc->isrhc", vectors, self._weights).flatten(1, 3)
            yield from (pulled @ self._tokens.mT).reshape(*vectors.shape[:4], -1).unbind(3)


class ClosedForm:
    """The estimators on a model for which `why_not` finds nothing; scores are of all tokens, [CLS] included."""

    def __init__(self, cut: LastBlock, entry: Entry, read: Read, readouts: int) -> None:
        """Take the weights.

        Args:
            cut: the model, cut.
            entry: what arrived at the last block.
            read: what is differentiated.
            readouts: how many readouts that gives.
        """
        self._cut, self._entry, self._read, self._readouts = cut, entry, read, readouts
        self._layer = Projections.of(cut.attention)
        self._tokens = _precise(entry.tokens)
        self._residual = entry.residual[:, 0]

    def scores(self) -> TokenScores:
        """S_ic = sum_j T_ij df_c/dT_ij (Eq. 2)."""
        return self._along(self._tokens, self._residual, self._tokens.new_ones(1))

    def integrated(self, n: int) -> TokenScores:
        """Eq. 6 with B = 0: n steps on the path s T."""
        steps = self._tokens.new_tensor([m / n for m in range(1, n + 1)])
        return self._along(self._tokens, self._residual, steps)

    def smooth(self, noise: Noise) -> TokenScores:
        """Eq. 5: the mean over noisy copies of T."""
        tokens, one = self._tokens, self._tokens.new_ones(1)
        width = noise.width(tokens)
        total, draws = torch.zeros(()).to(tokens), noise.draws(tokens)
        size = max(1, BUDGET // tokens.numel())
        for start in range(0, noise.n, size):
            copies = min(size, noise.n - start)
            noisy = tokens.new_empty(len(tokens), copies, *tokens.shape[1:])
            for place, draw in enumerate(islice(draws, copies)):
                torch.addcmul(tokens, width, draw, out=noisy[:, place])
            scores = self._along(noisy.flatten(0, 1), self._residual.repeat_interleave(copies, 0), one)
            total = total + scores.reshape(len(tokens), copies, *scores.shape[1:]).sum(1)
        return total / noise.n

    def paths(self) -> tuple[HeadScores, HeadScores]:
        """The plain scores head by head: through the values, and through the attention weights."""
        row = Row.of(self._layer, self._tokens, self._tokens.new_ones(1))
        carrier = Carrier(self._layer, self._tokens, self._readouts)
        gathered = carrier.gather(row.weights)
        gradient = self._tail(gathered + self._layer.value_bias, self._residual)[:, 0]
        carried = torch.stack([head[:, 0] for head in carrier.spread(gradient[:, None])], 2)
        mean = torch.einsum("irhd,ihd->irh", gradient, gathered[:, 0])[..., None]
        moved = row.weights * (carried - mean)
        shift = moved * row.logits
        shift[..., 0] += (moved * row.pull).sum(-1)
        return row.weights * carried, shift

    def _along(self, tokens: Tokens, residual: Float[Tensor, "image channel"], steps: Tensor) -> TokenScores:
        """Mean over the steps s of T_i . df/dT_i at s T, a part of the images at a time."""
        largest = len(steps) * self._readouts * len(self._layer.query) * tokens.shape[1]
        size = max(1, BUDGET // largest)
        pairs = zip(torch.split(tokens, size), torch.split(residual, size), strict=True)
        return torch.cat([self._part(part, rows, steps) for part, rows in pairs])

    def _part(self, tokens: Tokens, residual: Float[Tensor, "image channel"], steps: Tensor) -> TokenScores:
        row = Row.of(self._layer, tokens, steps)
        carrier = Carrier(self._layer, tokens, len(steps) * self._readouts)
        pulled = row.weights * row.pull
        gathered, turned = carrier.gather(torch.cat([row.weights, pulled], 1)).chunk(2, dim=1)
        gradient = self._tail(steps[:, None, None] * gathered + self._layer.value_bias, residual)
        mean = torch.einsum("isrhd,ishd->isrh", gradient, gathered)
        # a (u + (u - m) l) = kept u - lost m
        lost = row.weights * row.logits
        kept = row.weights + lost
        total = -(mean.movedim(1, 3).flatten(2) @ lost.transpose(1, 2).flatten(1, 2))
        for head, carried in enumerate(carrier.spread(gradient)):
            total += (carried * kept[:, :, None, head]).sum(1)
        total[..., 0] += torch.einsum("isrhd,ishd->ir", gradient, turned)
        total[..., 0] -= torch.einsum("isrh,ish->ir", mean, pulled.sum(-1))
        return total / len(steps)

    def _tail(
        self, attended: Float[Tensor, "image step head width"], residual: Float[Tensor, "image channel"]
    ) -> Float[Tensor, "image step readout head width"]:
        """G = df/do for every readout: the rest of the block, the norm and the head, of [CLS] alone."""
        rows = attended.flatten(2).flatten(0, 1)
        beside = residual.repeat_interleave(attended.shape[1], 0)
        size = max(1, TAIL_ROWS // self._readouts)
        pairs = zip(torch.split(rows, size), torch.split(beside, size), strict=True)
        gradient = torch.cat([self._tail_gradient(part, other) for part, other in pairs], 1)
        return gradient.reshape(-1, *attended.shape).movedim(0, 2)

    def _tail_gradient(
        self, attended: Float[Tensor, "row inner"], residual: Float[Tensor, "row channel"]
    ) -> Float[Tensor, "readout row inner"]:
        with torch.enable_grad():
            inputs = attended.to(residual.dtype, copy=True).requires_grad_()
            readings = self._read(self._cut.class_latent(self._cut.attention.proj(inputs), residual, self._entry))
            # One backward pass for all readouts: row c of the identity asks for readout c of every row.
            seeds = torch.eye(self._readouts).to(readings)[:, None].expand(-1, len(readings), -1)
            gradient = torch.autograd.grad(readings, inputs, seeds, is_grads_batched=True)[0]
        return _precise(gradient)
