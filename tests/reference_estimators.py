"""Slow, literal twins of the importance estimators beside CDAM, on a vision transformer written out by hand.

As in `reference.py`: double precision, one row at a time, nothing shared with the fast code. One image [channel row
column] goes through the whole transformer; every block's stream x, normalised tokens T and attention A are kept, so
that a definition can be read off. Maps are [row column]: on the token grid, or on pixels where the docstring says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from reference import Read, apply_head, gelu, head_rows, layer_norm, layer_scale, linear, softmax
from torch import Tensor, nn

# --- What a gradient sees of a transformer ----------------------------------------------------------------------------


def held_layer_norm(row: Tensor, norm: nn.Module) -> Tensor:
    """LayerNorm whose standard deviation is a constant for the gradient: what is left is linear in the row."""
    if isinstance(norm, nn.Identity):
        return row
    centred = row - row.sum() / len(row)
    deviation = torch.sqrt((centred**2).sum() / len(row) + norm.eps).detach()
    return centred / deviation * norm.weight + norm.bias


def held_gelu(row: Tensor) -> Tensor:
    """X Phi(x) whose gate Phi(x) is a constant for the gradient."""
    return row * (0.5 * (1 + torch.erf(row / math.sqrt(2)))).detach()


@dataclass(frozen=True)
class Rules:
    """How the gradient passes what is not linear; the values are the same under all rules."""

    norm: Callable[[Tensor, nn.Module], Tensor] = layer_norm
    gelu: Callable[[Tensor], Tensor] = gelu
    attention: Callable[[Tensor], Tensor] = lambda weights: weights


PLAIN = Rules()
LIBRA = Rules(held_layer_norm, held_gelu, Tensor.detach)
"""LibraGrad (Mehri, Soleymani Baghshah and Pilehvar, CVPR 2025; arXiv 2411.16760).

Branches that the output is not proportional to get no gradient, so that input times gradient, summed over the input and
all biases, is the output again: of attention only the values (queries and keys are constants), of LayerNorm all but the
deviation, of GELU all but the gate. As in the authors' code (their preset `LibraGrad`: attention `LineX_1`, LayerNorm
`LineX_1`, GELU `LineX_ZO`). Products of two branches (SwiGLU) halve the gradient of both there; no twin has any.
"""


# --- The transformer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """One image's way through the model."""

    model: nn.Module
    streams: list[Tensor]
    """X [token channel] that enters each block, and at the end what leaves the last."""
    tokens: list[Tensor]
    """T = norm1(x) [token channel] of each block."""
    attention: list[Tensor]
    """A [head token token] of each block; rows are those who look, columns those who are looked at."""
    attended: Tensor
    """The last attention layer's output [token channel], projected and scaled."""
    latent: Tensor
    grid: tuple[int, int]

    def on_grid(self, scores: Tensor) -> Tensor:
        """Scores of all tokens to the patches' grid [row column]."""
        return scores[self.model.backbone.num_prefix_tokens :].reshape(self.grid).detach()


def embed(backbone: nn.Module, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """[CLS], registers and W p + b of every patch p, with their positions: [token channel], and the patches' grid."""
    weight, bias = backbone.patch_embed.proj.weight, backbone.patch_embed.proj.bias
    height, width = weight.shape[2:]
    rows, columns = image.shape[1] // height, image.shape[2] // width
    patches = []
    for y in range(rows):
        for x in range(columns):
            patch = image[:, y * height : (y + 1) * height, x * width : (x + 1) * width]
            token = torch.stack([(kernel * patch).sum() for kernel in weight])
            patches.append(token if bias is None else token + bias)
    registers = [] if backbone.reg_token is None else list(backbone.reg_token[0])
    prefix = [backbone.cls_token[0, 0], *registers]
    first = len(prefix) if backbone.no_embed_class else 0
    stream = [*prefix, *patches]
    for place, position in enumerate(backbone.pos_embed[0]):
        stream[first + place] = stream[first + place] + position
    return torch.stack(stream), (rows, columns)


def attention_of(attn: nn.Module, tokens: Tensor) -> Tensor:
    """Softmax_j(q_i . k_j / sqrt(d_h)) for every head, row i and column j."""
    heads = []
    for head in range(attn.num_heads):
        queries, keys = head_rows(attn, tokens, 0, head), head_rows(attn, tokens, 1, head)
        logits = [[(query * key).sum() / math.sqrt(attn.head_dim) for key in keys] for query in queries]
        heads.append(torch.stack([softmax(torch.stack(row)) for row in logits]))
    return torch.stack(heads)


def attend(attn: nn.Module, tokens: Tensor, weights: Tensor) -> Tensor:
    """W_O [o_1 .. o_H] + b with o_h = sum_j A_hij v_hj, for every row i."""
    values = [head_rows(attn, tokens, 2, head) for head in range(attn.num_heads)]
    rows = []
    for i in range(len(tokens)):
        looks = [
            [weight * value for weight, value in zip(w[i], v, strict=True)]
            for w, v in zip(weights, values, strict=True)
        ]
        rows.append(linear(torch.cat([sum(parts) for parts in looks]), attn.proj))
    return torch.stack(rows)


def feed_forward(block: nn.Module, row: Tensor, rules: Rules) -> Tensor:
    """Ls2(W_2 gelu(W_1 norm2(y) + b_1) + b_2) of one row."""
    hidden = rules.gelu(linear(rules.norm(row, block.norm2), block.mlp.fc1))
    return layer_scale(linear(hidden, block.mlp.fc2), block.ls2)


def trace(model: nn.Module, image: Tensor, rules: Rules = PLAIN) -> Trace:
    """Embedding, blocks x + ls1 attention(norm1 x), then y + ls2 MLP(norm2 y), and the final norm of [CLS]."""
    backbone = model.backbone
    stream, grid = embed(backbone, image)
    stream = torch.stack([rules.norm(row, backbone.norm_pre) for row in stream])
    streams, normal, maps, attended = [stream], [], [], stream
    for block in backbone.blocks:
        tokens = torch.stack([rules.norm(row, block.norm1) for row in stream])
        weights = rules.attention(attention_of(block.attn, tokens))
        attended = torch.stack([layer_scale(row, block.ls1) for row in attend(block.attn, tokens, weights)])
        stream = torch.stack([x + a for x, a in zip(stream, attended, strict=True)])
        stream = torch.stack([y + feed_forward(block, y, rules) for y in stream])
        streams.append(stream)
        normal.append(tokens)
        maps.append(weights)
    latent = rules.norm(rules.norm(stream[0], backbone.norm), backbone.fc_norm)
    return Trace(model, streams, normal, maps, attended, latent, grid)


# --- Attention alone: one map for every target ------------------------------------------------------------------------


def attention(model: nn.Module, image: Tensor) -> Tensor:
    """A_i = mean over heads of the last block's attention of [CLS] to token i."""
    run = trace(model, image)
    return run.on_grid(mean_of_heads(run.attention[-1])[0])


def mean_of_heads(weights: Tensor) -> Tensor:
    return sum(weights) / len(weights)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Sum_k left_ik right_kj."""
    result = torch.zeros(len(left), right.shape[1], dtype=left.dtype)
    for i in range(len(left)):
        for j in range(right.shape[1]):
            result[i, j] = sum(left[i, k] * right[k, j] for k in range(len(right)))
    return result


def rolled_out(maps: Sequence[Tensor]) -> Tensor:
    """A~_L .. A~_1 with A~ = (A + I) / 2, A the mean over heads (Abnar and Zuidema 2020, attention rollout).

    Args:
        maps: attention [head token token] of the first block, the second, ...
    """
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)
    total = identity
    for weights in maps:
        total = product((mean_of_heads(weights) + identity) / 2, total)
    return total


def rollout(model: nn.Module, image: Tensor) -> Tensor:
    """The row of [CLS] of the rolled-out attention."""
    run = trace(model, image)
    return run.on_grid(rolled_out([weights.detach() for weights in run.attention])[0])


# --- Gradients of pixels ----------------------------------------------------------------------------------------------


def image_gradient(model: nn.Module, image: Tensor, read: Read, rules: Rules = PLAIN) -> Tensor:
    """df/dx [channel row column]."""
    point = image.clone().requires_grad_(True)
    return torch.autograd.grad(read(trace(model, point, rules).latent), point)[0]


def over_channels(values: Tensor) -> Tensor:
    """The sum over an image's channels: pixels [row column]."""
    return sum(values)


def input_gradient(model: nn.Module, image: Tensor, read: Read) -> Tensor:
    """X df/dx of every pixel, summed over its channels; signed; on pixels."""
    return over_channels(image * image_gradient(model, image, read))


def smoothgrad_sigma(image: Tensor) -> float:
    """0.15 of the input's range: 0.15 (max x - min x)."""
    return 0.15 * float(max(image.flatten()) - min(image.flatten()))


def smoothgrad(model: nn.Module, image: Tensor, read: Read, noise: Tensor) -> Tensor:
    """1/n sum_m df(x + noise_m)/dx, signed, summed over channels; on pixels (Smilkov et al. 2017).

    Args:
        model: backbone and head.
        image: x [channel row column].
        read: what is explained.
        noise: [draw channel row column], already multiplied by sigma.
    """
    total = torch.zeros_like(image)
    for draw in noise:
        total = total + image_gradient(model, image + draw, read)
    return over_channels(total / len(noise))


def integrated_gradients(model: nn.Module, image: Tensor, read: Read, baseline: Tensor, steps: int) -> Tensor:
    """(x - b) 1/n sum_{m=1..n} df(b + m/n (x - b))/dx, summed over channels; on pixels (Sundararajan et al. 2017)."""
    total = torch.zeros_like(image)
    for m in range(1, steps + 1):
        total = total + image_gradient(model, baseline + m / steps * (image - baseline), read)
    return over_channels((image - baseline) * total / steps)


def summed_over_patches(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map of pixels on the token grid: the sum over each patch."""
    height, width = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    sums = torch.zeros(grid, dtype=pixels.dtype)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            sums[y // height, x // width] += pixels[y, x]
    return sums


# --- Gradients of tokens and of attention -----------------------------------------------------------------------------


def gradcam(model: nn.Module, image: Tensor, read: Read, signed: bool = False) -> Tensor:
    """Sum_k w_k T_ik, w_k = mean over patch tokens i of df/dT_ik, T the last block's norm1 (as pytorch-grad-cam).

    Args:
        model: backbone and head.
        image: [channel row column].
        read: what is explained.
        signed: without the ReLU at the end, which the published method has.
    """
    run = trace(model, image)
    slope = torch.autograd.grad(read(run.latent), run.tokens[-1])[0]
    prefix = model.backbone.num_prefix_tokens
    weights = sum(slope[prefix:]) / len(slope[prefix:])
    scores = torch.stack([(weights * row).sum() for row in run.tokens[-1]])
    return run.on_grid(scores if signed else torch.where(scores > 0, scores, torch.zeros_like(scores)))


def positive(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.zeros_like(values))


def relevance_propagation(model: nn.Module, image: Tensor, read: Read) -> Tensor:
    """R = I, then block by block R <- R + A R with A = mean_h (dA * A)^+; the row of [CLS] (Chefer et al. 2021a)."""
    run = trace(model, image)
    slopes = torch.autograd.grad(read(run.latent), run.attention)
    relevance = torch.eye(len(run.streams[0]), dtype=image.dtype)
    for weights, slope in zip(run.attention, slopes, strict=True):
        relevance = relevance + product(mean_of_heads(positive(slope * weights)).detach(), relevance)
    return run.on_grid(relevance[0])


def legrad(model: nn.Module, image: Tensor, read: Read, layers: Sequence[int] | None = None) -> Tensor:
    """1/L sum_l 1/(h n) sum_{heads, rows} (ds^l/dA^l)^+ of every column (Bousselham et al., ICCV 2025; 2404.03214).

    S^l is the output that the model would give after block l: f(norm(mean over all n tokens of the stream)), so every
    block has an output of its own, which is differentiated by this block's attention alone. As in the paper's method
    section and in the authors' code (`compute_legrad_clip`: mean over tokens, final norm, classifier, gradient by the
    attention map, ReLU, mean over heads and rows, [CLS] column dropped, sum over layers). The paper scales the result
    to 0..1 for pictures; maps here are raw.

    Args:
        model: backbone and head.
        image: [channel row column].
        read: what is explained, as a function of a latent.
        layers: indices of the blocks, all by default (as in the paper; its code starts at the last but one).
    """
    run = trace(model, image)
    chosen = range(len(run.attention)) if layers is None else layers
    total = torch.zeros(len(run.streams[0]), dtype=image.dtype)
    for layer in chosen:
        stream = run.streams[layer + 1]
        latent = layer_norm(layer_norm(sum(stream) / len(stream), model.backbone.norm), model.backbone.fc_norm)
        slope = positive(torch.autograd.grad(read(latent), run.attention[layer], retain_graph=True)[0])
        for head in slope:
            for row in head:
                total = total + row / (slope.shape[0] * slope.shape[1])
    return run.on_grid(total / len(chosen))


def libragrad(model: nn.Module, image: Tensor, read: Read) -> Tensor:
    """Sum_j x_ij df/dx_ij with LIBRA's gradient, x the stream that enters the first block: Libra Input x Gradient.

    The authors' input is this stream (tokens with their positions). With biases it is complete: `libra_completeness`.
    """
    run = trace(model, image, LIBRA)
    slope = torch.autograd.grad(read(run.latent), run.streams[0])[0]
    return run.on_grid(torch.stack([(x * g).sum() for x, g in zip(run.streams[0], slope, strict=True)]))


def libragrad_of_pixels(model: nn.Module, image: Tensor, read: Read) -> Tensor:
    """The same with the image as input: x df/dx with LIBRA's gradient, summed over channels; on pixels."""
    return over_channels(image * image_gradient(model, image, read, LIBRA))


def libra_completeness(model: nn.Module, image: Tensor, read: Read) -> tuple[float, float]:
    """Input and biases times LIBRA's gradient, summed, and the output: equal (FullGrad-completeness)."""
    run = trace(model, image, LIBRA)
    output = read(run.latent)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias") and "patch_embed" not in name]
    parts = [run.streams[0], *biases]
    slopes = torch.autograd.grad(output, parts, allow_unused=True, materialize_grads=True)
    return float(sum((p * slope).sum().detach() for p, slope in zip(parts, slopes, strict=True))), float(
        output.detach()
    )


# --- Layer-wise relevance propagation of the last layer ---------------------------------------------------------------


def z_rule(inputs: Tensor, weight: Tensor, outputs: Tensor, relevance: Tensor) -> Tensor:
    """R_i = sum_j x_i w_ji / z_j R_j, z the layer's outputs, bias included: what falls to the bias is lost.

    Args:
        inputs: x [input].
        weight: w [output input].
        outputs: z = W x + b [output].
        relevance: R [output] of the outputs.
    """
    result = torch.zeros_like(inputs)
    for i in range(len(inputs)):
        for j in range(len(outputs)):
            if relevance[j] != 0:
                result[i] = result[i] + inputs[i] * weight[j, i] / outputs[j] * relevance[j]
    return result


def norm_weight(row: Tensor, norm: nn.Module) -> Tensor:
    """LayerNorm at a held deviation is linear: W_ji = gamma_j ([i = j] - 1/n) / deviation."""
    size = len(row)
    deviation = torch.sqrt(((row - row.sum() / size) ** 2).sum() / size + norm.eps)
    weight = torch.zeros(size, size, dtype=row.dtype)
    for j in range(size):
        for i in range(size):
            weight[j, i] = norm.weight[j] * ((1.0 if i == j else 0.0) - 1 / size) / deviation
    return weight


def through_norm(row: Tensor, norm: nn.Module, relevance: Tensor) -> Tensor:
    if isinstance(norm, nn.Identity):
        return relevance
    return z_rule(row, norm_weight(row, norm), layer_norm(row, norm), relevance)


def through_head(latent: Tensor, head: nn.Module, target: int) -> Tensor:
    """Relevance of the latent: all of it starts at the output of the target, R = f_c; ReLU lets it pass."""
    layers = [
        part for part in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(part, nn.Dropout)
    ]
    inputs = [latent]
    for layer in layers:
        inputs.append(apply_head(inputs[-1], layer))
    relevance = torch.zeros_like(inputs[-1])
    relevance[target] = inputs[-1][target]
    for layer, before, after in zip(reversed(layers), inputs[-2::-1], inputs[:0:-1], strict=True):
        if isinstance(layer, nn.Linear):
            relevance = z_rule(before, layer.weight, after, relevance)
    return relevance


def through_feed_forward(block: nn.Module, row: Tensor, relevance: Tensor) -> Tensor:
    """Through LayerScale (a product with constants: passes), fc2, GELU (passes), fc1 and norm2."""
    normal = layer_norm(row, block.norm2)
    before = linear(normal, block.mlp.fc1)
    hidden = gelu(before)
    relevance = z_rule(hidden, block.mlp.fc2.weight, linear(hidden, block.mlp.fc2), relevance)
    relevance = z_rule(normal, block.mlp.fc1.weight, before, relevance)
    return through_norm(row, block.norm2, relevance)


def attention_relevance(model: nn.Module, image: Tensor, target: int) -> Tensor:
    """R [head token] of the last block's softmax weights in the row of [CLS], by LRP's z-rule.

    From f_c through head, final norm, the sum y + MLP(y), the sum x + attention(x), the projection, and o = sum_j A_j
    v_j with the values as its weights. A sum shares by size, R_a = a / (a + b) R; GELU, ReLU and LayerScale let
    relevance pass; LayerNorm is linear at a held deviation.
    """
    with torch.no_grad():
        run = trace(model, image)
        backbone, block = model.backbone, model.backbone.blocks[-1]
        end, x, a = run.streams[-1][0], run.streams[-2][0], run.attended[0]
        y = x + a
        relevance = through_head(run.latent, model.head, target)
        relevance = through_norm(layer_norm(end, backbone.norm), backbone.fc_norm, relevance)
        relevance = through_norm(end, backbone.norm, relevance)
        added = feed_forward(block, y, PLAIN)
        relevance = y / end * relevance + through_feed_forward(block, y, added / end * relevance)
        relevance = a / y * relevance
        values = [torch.stack(head_rows(block.attn, run.tokens[-1], 2, h)) for h in range(block.attn.num_heads)]
        outputs = [run.attention[-1][h, 0] @ values[h] for h in range(block.attn.num_heads)]
        joined = torch.cat(outputs)
        relevance = z_rule(joined, block.attn.proj.weight, linear(joined, block.attn.proj), relevance)
        width = block.attn.head_dim
        return torch.stack(
            [
                z_rule(run.attention[-1][h, 0], values[h].T, outputs[h], relevance[h * width : (h + 1) * width])
                for h in range(block.attn.num_heads)
            ]
        )


def partial_lrp(model: nn.Module, image: Tensor, target: int) -> Tensor:
    """The positive part of the attention's relevance, its mean over heads, the row of [CLS] (Voita et al. 2019)."""
    return trace(model, image).on_grid(mean_of_heads(positive(attention_relevance(model, image, target))))
