"""Slow, literal twins of what CDAM explains beside classes: concepts, contrasts, and the paths and heads of a map.

As in `reference.py`: double precision, one definition at a time, nothing shared with the fast code. T is the matrix of
normalised tokens that enter the last attention layer, x the un-normalised stream that enters the last block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from reference import (
    Cut,
    Read,
    cdam_scores,
    finish_block,
    head_projection,
    layer_norm,
    linear,
    pool,
    row_products,
    softmax,
)
from torch import Tensor, nn

# --- What is read from the latent -------------------------------------------------------------------------------------


def mean_latent(latents: Sequence[Tensor]) -> Tensor:
    """z_concept, the mean latent of the example images (Eq. 3)."""
    total = torch.zeros_like(latents[0])
    for latent in latents:
        total = total + latent
    return total / len(latents)


def dot_similarity(concept: Tensor) -> Read:
    """s(z, z_concept) = sum_j z_j z_concept_j."""
    return lambda latent: sum(a * b for a, b in zip(latent, concept, strict=True))


def cosine_similarity(concept: Tensor) -> Read:
    """s(z, z_concept) = z . z_concept / (|z| |z_concept|)."""

    def read(latent: Tensor) -> Tensor:
        lengths = torch.sqrt((latent**2).sum()) * torch.sqrt((concept**2).sum())
        return (latent * concept).sum() / lengths

    return read


def negative_distance(concept: Tensor) -> Read:
    """s(z, z_concept) = -|z - z_concept|, the Euclidean distance with its sign turned: nearer is more alike."""
    return lambda latent: -torch.sqrt(((latent - concept) ** 2).sum())


def contrast(reads: Mapping[str, Read], weights: Mapping[str, float]) -> Read:
    """Sum_c w_c f_c, one number: not the maps are combined here but what they explain."""

    def read(latent: Tensor) -> Tensor:
        total = torch.zeros((), dtype=latent.dtype)
        for name, weight in weights.items():
            total = total + weight * reads[name](latent)
        return total

    return read


# --- A map cut into heads and paths -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """Scores of every token by the head and by the way on which it reaches the output: [head token]."""

    value: Tensor
    """Through what the token says, its value, the attention held fixed."""
    shift: Tensor
    """Through whom the tokens attend to, their queries and keys, the values held fixed."""

    @property
    def total(self) -> Tensor:
        return (self.value + self.shift).sum(dim=0)


def attend_to_copies(attn: nn.Module, copies: Sequence[Sequence[Tensor]]) -> Tensor:
    """Attention [token channel] in which every head and each of query, key and value reads its own copy of T.

    Args:
        attn: timm's attention layer.
        copies: for each head the three copies [token channel] of T for query, key and value.
    """
    norms = (attn.q_norm, attn.k_norm, nn.Identity())
    columns = []
    for head, parts in enumerate(copies):
        rows = []
        for part, tokens in enumerate(parts):
            weight, bias = head_projection(attn, part, head)
            rows.append(torch.stack([layer_norm(weight @ token + bias, norms[part]) for token in tokens]))
        queries, keys, values = rows
        weights = [softmax(keys @ query / math.sqrt(attn.head_dim)) for query in queries]
        columns.append(torch.stack([row @ values for row in weights]))
    joined = torch.cat(columns, dim=1)
    return torch.stack([linear(row, attn.proj) for row in joined])


def decomposed_scores(state: Cut, read: Read) -> Paths:
    """S_i = sum_j T_ij df/dT_ij, split by the product rule over every place at which T_i enters the attention layer.

    T enters 3 H times: as query, key and value of each head. Each place gets its own copy of T, so that df/dT is the
    sum of the gradients of the copies; the value path is that of the value copy, the attention-shift path the rest.
    For a patch token of a model that reads [CLS] these are the two terms of the closed form (SCIENCE.md 5).
    """
    attn = state.block.attn
    copies = [[state.tokens.clone().requires_grad_(True) for _ in range(3)] for _ in range(attn.num_heads)]
    attended = attend_to_copies(attn, copies)
    rows = [finish_block(state.block, x, a) for x, a in zip(state.residual, attended, strict=True)]
    output = read(pool(state.model.backbone, torch.stack(rows)))
    flat = [copy for parts in copies for copy in parts]
    slopes = torch.autograd.grad(output, flat, allow_unused=True, materialize_grads=True)
    value, shift = [], []
    for head in range(attn.num_heads):
        by_query, by_key, by_value = (row_products(state.tokens, slope) for slope in slopes[3 * head : 3 * head + 3])
        value.append(by_value)
        shift.append(by_query + by_key)
    return Paths(torch.stack(value), torch.stack(shift))


# --- Noise in pairs, and the variant that moves the block's input -----------------------------------------------------


def antithetic(draws: Tensor, count: int) -> Tensor:
    """The first `count` of d_0, -d_0, d_1, -d_1, ...: every draw is followed by its mirror image."""
    pairs = [signed for draw in draws for signed in (draw, -draw)]
    return torch.stack(pairs[:count])


def moved_block_input(state: Cut, stream: Tensor) -> Cut:
    """The model with another stream x before its last block: T = norm1(x) follows, and so does the residual."""
    tokens = torch.stack([layer_norm(row, state.block.norm1) for row in stream]).detach()
    return replace(state, residual=stream, tokens=tokens)


def smooth_scores_of_block_input(state: Cut, read: Read, noise: Tensor) -> Tensor:
    """S = 1/n sum_m sum_j T~_ij df/dT~_ij with T~ = norm1(x + noise_m): Eq. 5 with the block's input moved, not T.

    Args:
        state: the model before its last block.
        read: what is explained.
        noise: [draw token channel], already multiplied by sigma.
    """
    total = torch.zeros(len(state.tokens), dtype=state.tokens.dtype)
    for draw in noise:
        total = total + cdam_scores(moved_block_input(state, state.residual + draw), read)
    return total / len(noise)


def smooth_sigma_of_block_input(state: Cut) -> float:
    """Sigma = 0.05 (max x - min x): the default of Eq. 5, of what is moved."""
    return 0.05 * float(max(state.residual.flatten()) - min(state.residual.flatten()))


def integrated_scores_of_block_input(state: Cut, read: Read, steps: int) -> Tensor:
    """S = 1/n sum_{m=1..n} sum_j T^m_ij df/dT^m_ij with T^m = norm1(m/n x): Eq. 6 with the block's input moved.

    T^m is T itself, but for LayerNorm's epsilon: only the residual follows the path.
    """
    total = torch.zeros(len(state.tokens), dtype=state.tokens.dtype)
    for m in range(1, steps + 1):
        total = total + cdam_scores(moved_block_input(state, m / steps * state.residual), read)
    return total / steps
