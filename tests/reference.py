"""Slow, literal twins of the mathematics, in double precision, written from the definitions and from nothing else.

Every function follows one definition word by word: plain loops, one token, pixel or patient at a time, no hooks and
no shortcuts, so that a reader can hold it against the equation. "Eq." counts as in Brocki, Binda and Chung,
*Class-Discriminative Attention Maps for Vision Transformers* (TMLR 2024; arXiv 2312.02364). The fast code is
compared with these functions; they never import it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import timm
import torch
from torch import Tensor, nn

Read = Callable[[Tensor], Tensor]
"""What is explained: the final latent [channel] to one number."""


# --- A tiny vision transformer with nothing at its default value ------------------------------------------------------


def random_vit(seed: int = 0, image_size: tuple[int, int] = (16, 16), **options: object) -> nn.Module:
    """A timm ViT in double precision whose every parameter, biases and LayerNorm included, is random."""
    settings = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 0}
    vit = timm.models.vision_transformer.VisionTransformer(img_size=image_size, **{**settings, **options})
    return randomise(vit, seed)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter with noise (scales of LayerNorm and LayerScale around one), double precision, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        scale = ("norm" in name and name.endswith("weight")) or name.endswith("gamma")
        parameter.data = 1 + 0.3 * noise if scale else 0.3 * noise
    return module


class PlainModel(nn.Module):
    """Backbone and head, nothing else: outputs [image target]."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def random_images(count: int, seed: int, size: tuple[int, int] = (16, 16)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- The transformer's parts ------------------------------------------------------------------------------------------


def linear(row: Tensor, layer: nn.Linear) -> Tensor:
    """W x + b of one row."""
    product = layer.weight @ row
    return product if layer.bias is None else product + layer.bias


def layer_norm(row: Tensor, norm: nn.Module) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gamma + beta of one row; the identity for an absent norm."""
    if isinstance(norm, nn.Identity):
        return row
    mean = row.sum() / len(row)
    variance = ((row - mean) ** 2).sum() / len(row)
    normal = (row - mean) / torch.sqrt(variance + norm.eps)
    return normal if norm.weight is None else normal * norm.weight + norm.bias


def gelu(row: Tensor) -> Tensor:
    """x Phi(x)."""
    return row * 0.5 * (1 + torch.erf(row / math.sqrt(2)))


def layer_scale(row: Tensor, scale: nn.Module) -> Tensor:
    return row if isinstance(scale, nn.Identity) else row * scale.gamma


def softmax(logits: Tensor) -> Tensor:
    powers = torch.exp(logits - logits.max())
    return powers / powers.sum()


def apply_head(latent: Tensor, head: nn.Module) -> Tensor:
    """A linear head, or linear-ReLU-linear."""
    if isinstance(head, nn.Linear):
        return linear(latent, head)
    if isinstance(head, nn.ReLU):
        return torch.where(latent > 0, latent, torch.zeros_like(latent))
    if isinstance(head, nn.Dropout | nn.Identity):
        return latent
    if isinstance(head, nn.Sequential):
        for part in head:
            latent = apply_head(latent, part)
        return latent
    raise TypeError(f"the twin knows no head of type {type(head).__name__}")


def head_projection(attn: nn.Module, part: int, head: int) -> tuple[Tensor, Tensor]:
    """W [width channel] and b [width] of one head; part 0 = query, 1 = key, 2 = value (timm stacks them so)."""
    width = attn.head_dim
    start = part * attn.num_heads * width + head * width
    weight = attn.qkv.weight[start : start + width]
    bias = torch.zeros(width, dtype=weight.dtype) if attn.qkv.bias is None else attn.qkv.bias[start : start + width]
    return weight, bias


def head_rows(attn: nn.Module, tokens: Tensor, part: int, head: int) -> list[Tensor]:
    """The query, key or value of every token in one head."""
    weight, bias = head_projection(attn, part, head)
    norm = (attn.q_norm, attn.k_norm, nn.Identity())[part]
    return [layer_norm(weight @ token + bias, norm) for token in tokens]


def attention_weights(attn: nn.Module, tokens: Tensor, head: int, row: int) -> Tensor:
    """Softmax(q_row K^T / sqrt(d_h)) of one head: one weight per token."""
    query = head_rows(attn, tokens, 0, head)[row]
    logits = [query @ key / math.sqrt(attn.head_dim) for key in head_rows(attn, tokens, 1, head)]
    return softmax(torch.stack(logits))


def attend(attn: nn.Module, tokens: Tensor) -> Tensor:
    """Multi-head self-attention [token channel] of already normalised tokens."""
    columns = []
    for head in range(attn.num_heads):
        queries, keys, values = (torch.stack(head_rows(attn, tokens, part, head)) for part in range(3))
        outputs = []
        for query in queries:
            weights = softmax(keys @ query / math.sqrt(attn.head_dim))
            outputs.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
        columns.append(torch.stack(outputs))
    joined = torch.cat(columns, dim=1)
    return torch.stack([linear(row, attn.proj) for row in joined])


def finish_block(block: nn.Module, residual: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block for one row: y = x + ls1(attention), y + ls2(MLP(norm2(y)))."""
    y = residual + layer_scale(attended, block.ls1)
    hidden = linear(gelu(linear(layer_norm(y, block.norm2), block.mlp.fc1)), block.mlp.fc2)
    return y + layer_scale(hidden, block.ls2)


def pool(backbone: nn.Module, rows: Tensor) -> Tensor:
    """The final latent: the normalised [CLS] row, or the mean of the patch rows."""
    normal = [layer_norm(row, backbone.norm) for row in rows]
    if backbone.global_pool == "token":
        return layer_norm(normal[0], backbone.fc_norm)
    patches = normal[backbone.num_prefix_tokens :]
    return layer_norm(sum(patches) / len(patches), backbone.fc_norm)


# --- The last block cut open ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A model stopped before its last attention layer, for one image."""

    model: nn.Module
    residual: Tensor
    """x [token channel]: the un-normalised stream that enters the last block; held fixed."""
    tokens: Tensor
    """T [token channel] = norm1(x): [CLS], registers, patches."""
    grid: tuple[int, int]

    @property
    def block(self) -> nn.Module:
        return self.model.backbone.blocks[-1]

    @property
    def prefix(self) -> int:
        return self.model.backbone.num_prefix_tokens

    def on_grid(self, scores: Tensor) -> Tensor:
        """Scores of all tokens to the patches' grid [row column]."""
        return scores[self.prefix :].reshape(self.grid)


def cut(model: nn.Module, image: Tensor) -> Cut:
    """Run embedding and all blocks but the last, row by row, and normalise what enters the last."""
    backbone = model.backbone
    weight, bias = backbone.patch_embed.proj.weight, backbone.patch_embed.proj.bias
    height, width = weight.shape[2:]
    rows, columns = image.shape[1] // height, image.shape[2] // width
    patches = []
    for row in range(rows):
        for column in range(columns):
            patch = image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            patches.append((weight * patch).sum(dim=(1, 2, 3)) + bias)
    prefix = [backbone.cls_token[0, 0]] if backbone.cls_token is not None else []
    prefix += list(backbone.reg_token[0]) if backbone.reg_token is not None else []
    if backbone.no_embed_class:
        stream = torch.stack([*prefix, *(torch.stack(patches) + backbone.pos_embed[0])])
    else:
        stream = torch.stack([*prefix, *patches]) + backbone.pos_embed[0]
    for block in backbone.blocks[:-1]:
        attended = attend(block.attn, torch.stack([layer_norm(row, block.norm1) for row in stream]))
        stream = torch.stack([finish_block(block, x, a) for x, a in zip(stream, attended, strict=True)])
    residual = stream.detach()
    tokens = torch.stack([layer_norm(row, backbone.blocks[-1].norm1) for row in residual]).detach()
    return Cut(model, residual, tokens, (rows, columns))


def latent_of(state: Cut, tokens: Tensor) -> Tensor:
    """The final latent z as a function of T, x held fixed."""
    attended = attend(state.block.attn, tokens)
    rows = [finish_block(state.block, x, a) for x, a in zip(state.residual, attended, strict=True)]
    return pool(state.model.backbone, torch.stack(rows))


def output_of(model: nn.Module, target: int) -> Read:
    """f_c: one output of the model's head, on the model's own scale."""
    return lambda latent: apply_head(latent, model.head)[target]


def similarity_to(example_latents: Sequence[Tensor]) -> Read:
    """s(z, z_concept), the dot product with the mean latent of the examples (Eq. 3)."""
    concept = sum(example_latents) / len(example_latents)
    return lambda latent: (latent * concept).sum()


def gradient(state: Cut, tokens: Tensor, read: Read) -> Tensor:
    """df/dT [token channel] at `tokens`."""
    point = tokens.clone().requires_grad_(True)
    return torch.autograd.grad(read(latent_of(state, point)), point)[0]


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """Sum_j left_ij right_ij, for each i."""
    scores = []
    for i in range(len(left)):
        total = torch.zeros((), dtype=left.dtype)
        for j in range(left.shape[1]):
            total = total + left[i, j] * right[i, j]
        scores.append(total)
    return torch.stack(scores)


# --- CDAM -------------------------------------------------------------------------------------------------------------


def cdam_scores(state: Cut, read: Read) -> Tensor:
    """S_i = sum_j T_ij df/dT_ij for every token (Eq. 2; with `similarity_to`, Eq. 4)."""
    return row_products(state.tokens, gradient(state, state.tokens, read))


def cdam_scores_by_differences(state: Cut, read: Read, step: float = 1e-4) -> Tensor:
    """The same without any gradient: S_i = df/de at e = 0 when row i is multiplied by 1 + e."""
    scores = []
    with torch.no_grad():
        for i in range(len(state.tokens)):
            values = []
            for sign in (1, -1):
                moved = state.tokens.clone()
                moved[i] = moved[i] * (1 + sign * step)
                values.append(read(latent_of(state, moved)))
            scores.append((values[0] - values[1]) / (2 * step))
    return torch.stack(scores)


def smooth_cdam_scores(state: Cut, read: Read, noise: Tensor) -> Tensor:
    """S = 1/n sum_m sum_j T~_ij df(T~)/dT~_ij with T~ = T + noise_m (Eq. 5).

    Args:
        state: the model before its last attention layer.
        read: what is explained.
        noise: [draw token channel], already multiplied by sigma; every row moves, the residual does not.
    """
    total = torch.zeros(len(state.tokens), dtype=state.tokens.dtype)
    for draw in noise:
        moved = state.tokens + draw
        total = total + row_products(moved, gradient(state, moved, read))
    return total / len(noise)


def smooth_cdam_sigma(state: Cut) -> float:
    """Sigma = 0.05 (max T - min T), the default of Eq. 5."""
    return 0.05 * float(max(state.tokens.flatten()) - min(state.tokens.flatten()))


def integrated_cdam_scores(state: Cut, read: Read, steps: int, baseline: Tensor | None = None) -> Tensor:
    """S = sum_j (T_ij - B_ij) 1/n sum_{m=1..n} df(B + m/n (T - B))/dT_ij (Eq. 6); B = 0 unless given."""
    start = torch.zeros_like(state.tokens) if baseline is None else baseline
    total = torch.zeros_like(state.tokens)
    for m in range(1, steps + 1):
        total = total + gradient(state, start + m / steps * (state.tokens - start), read)
    return row_products(state.tokens - start, total / steps)


def attention_scores(state: Cut) -> Tensor:
    """A_i = mean over heads of softmax(q_CLS K^T / sqrt(d_h))_i."""
    attn = state.block.attn
    heads = [attention_weights(attn, state.tokens, head, 0) for head in range(attn.num_heads)]
    return (sum(heads) / len(heads)).detach()


@dataclass(frozen=True)
class ClosedForm:
    """The two paths of every patch and prefix token to [CLS], per head: [head token]."""

    value: Tensor
    shift: Tensor
    attention: Tensor


def closed_form(state: Cut, read: Read, mute: Mapping[int, Sequence[int]] | None = None) -> ClosedForm:
    """S_ic = sum_h a_i [G.(W_V T_i) + (G.(v_i - o)) (q.(W_K T_i)) / sqrt(d_h)], valid for i > 0.

    Args:
        state: the model before its last attention layer; its head must read [CLS], without q/k normalisation.
        read: what is explained.
        mute: tokens per head whose attention logit is set to minus infinity (for Eq. 9).
    """
    attn, tokens = state.block.attn, state.tokens
    width = attn.head_dim
    weights, values, outputs = [], [], []
    for head in range(attn.num_heads):
        query = head_rows(attn, tokens, 0, head)[0]
        logits = torch.stack([query @ key / math.sqrt(width) for key in head_rows(attn, tokens, 1, head)])
        for token in (mute or {}).get(head, ()):
            logits[token] = -math.inf
        weights.append(softmax(logits))
        values.append(head_rows(attn, tokens, 2, head))
        outputs.append(sum(a * v for a, v in zip(weights[-1], values[-1], strict=True)))
    o = torch.stack(outputs).detach().requires_grad_(True)
    finished = finish_block(state.block, state.residual[0], linear(o.flatten(), attn.proj))
    backbone = state.model.backbone
    latent = layer_norm(layer_norm(finished, backbone.norm), backbone.fc_norm)
    slope = torch.autograd.grad(read(latent), o)[0]
    value = torch.zeros(attn.num_heads, len(tokens), dtype=tokens.dtype)
    shift = torch.zeros_like(value)
    for head in range(attn.num_heads):
        query = head_rows(attn, tokens, 0, head)[0]
        key_weight, value_weight = head_projection(attn, 1, head)[0], head_projection(attn, 2, head)[0]
        for i, token in enumerate(tokens):
            a = weights[head][i]
            value[head, i] = a * (slope[head] @ (value_weight @ token))
            pull = slope[head] @ (values[head][i] - o[head])
            shift[head, i] = a * pull * (query @ (key_weight @ token)) / math.sqrt(width)
    return ClosedForm(value.detach(), shift.detach(), torch.stack(weights).detach())


# --- Localisation -----------------------------------------------------------------------------------------------------

Grid = Sequence[Sequence[float]]


def nearest_upsampled(tokens: Grid, height: int, width: int) -> list[list[float]]:
    """Every pixel takes the score of the token whose patch it lies in."""
    rows, columns = len(tokens), len(tokens[0])
    return [[float(tokens[y * rows // height][x * columns // width]) for x in range(width)] for y in range(height)]


def relevance_mass(scores: Grid, mask: Grid) -> float:
    """Share of the positive relevance that lies inside the mask (CLEVR-XAI)."""
    inside = total = 0.0
    for score_row, mask_row in zip(scores, mask, strict=True):
        for score, marked in zip(score_row, mask_row, strict=True):
            relevance = max(float(score), 0.0)
            total += relevance
            inside += relevance if marked else 0.0
    return inside / total if total > 0 else math.nan


def relevance_rank(scores: Grid, mask: Grid) -> float:
    """Share of the K highest pixels that lie inside the mask, K the mask's size (CLEVR-XAI); no ties at rank K."""
    pixels = [(float(s), bool(m)) for sr, mr in zip(scores, mask, strict=True) for s, m in zip(sr, mr, strict=True)]
    size = sum(marked for _, marked in pixels)
    best = sorted(pixels, key=lambda pixel: -pixel[0])[:size]
    return sum(marked for _, marked in best) / size


def pointing_game(scores: Grid, mask: Grid) -> float:
    """One where the highest pixel lies inside the mask; of equally high ones, the share that does."""
    pixels = [(float(s), bool(m)) for sr, mr in zip(scores, mask, strict=True) for s, m in zip(sr, mr, strict=True)]
    top = max(score for score, _ in pixels)
    hits = [marked for score, marked in pixels if score == top]
    return sum(hits) / len(hits)


def compactness(scores: Grid) -> float:
    """Share of pixels with |s| <= 0.05 max |s|."""
    values = [abs(float(score)) for row in scores for score in row]
    limit = 0.05 * max(values)
    return sum(value <= limit for value in values) / len(values)


# --- Faithfulness -----------------------------------------------------------------------------------------------------

Output = Callable[[np.ndarray], float]
"""One image [channel row column] to one output."""


def mirrored(index: int, length: int) -> int:
    """Index in the image mirrored at its edges, the border pixel repeated: -1 is 0, -2 is 1."""
    while not 0 <= index < length:
        index = -1 - index if index < 0 else 2 * length - 1 - index
    return index


def gaussian_blur(image: np.ndarray, sigma_px: float, radius: int) -> np.ndarray:
    """sum_d g(d) I(p + d) / sum_d g(d), g = exp(-|d|^2 / (2 sigma^2)), |d| <= radius along each axis, mirrored."""
    channels, height, width = image.shape
    offsets = range(-radius, radius + 1)
    weight = {(dy, dx): math.exp(-(dy**2 + dx**2) / (2 * sigma_px**2)) for dy in offsets for dx in offsets}
    total = sum(weight.values())
    blurred = np.zeros_like(image, dtype=np.float64)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                value = 0.0
                for (dy, dx), g in weight.items():
                    value += g * image[c, mirrored(y + dy, height), mirrored(x + dx, width)]
                blurred[c, y, x] = value / total
    return blurred


def perturbation_curve(
    output: Output, image: np.ndarray, blurred: np.ndarray, scores: Grid, shares: Sequence[float], most_first: bool
) -> list[float]:
    """Outputs after the first `share` of the pixels, by score, took the blurred image's values in all channels."""
    height, width = image.shape[1:]
    pixels = [(float(scores[y][x]), y * width + x) for y in range(height) for x in range(width)]
    order = sorted(pixels, key=lambda pixel: -pixel[0] if most_first else pixel[0])
    curve = []
    for share in shares:
        changed = image.copy()
        for _, place in order[: round(share * height * width)]:
            changed[:, place // width, place % width] = blurred[:, place // width, place % width]
        curve.append(output(changed))
    return curve


def area_percent(shares: Sequence[float], curve: Sequence[float]) -> float:
    """Area under a curve by trapezia, the perturbed share in percent (0 to 100)."""
    area = 0.0
    for left in range(len(shares) - 1):
        area += 100 * (shares[left + 1] - shares[left]) * (curve[left] + curve[left + 1]) / 2
    return area


def pearson(first: Sequence[float], second: Sequence[float]) -> float:
    mean_first, mean_second = sum(first) / len(first), sum(second) / len(second)
    products = sum((a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True))
    squares = [sum((a - mean_first) ** 2 for a in first), sum((b - mean_second) ** 2 for b in second)]
    return products / math.sqrt(squares[0] * squares[1])


def box_correlation(
    output: Output,
    image: np.ndarray,
    blurred: np.ndarray,
    scores: Grid,
    corners: Sequence[tuple[int, int]],
    side: int,
) -> float:
    """Pearson r between a box's sum of scores and the drop of the output when the box is blurred."""
    sums, drops = [], []
    for top, left in corners:
        changed, total = image.copy(), 0.0
        for y in range(top, top + side):
            for x in range(left, left + side):
                changed[:, y, x] = blurred[:, y, x]
                total += float(scores[y][x])
        sums.append(total)
        drops.append(output(image) - output(changed))
    return pearson(sums, drops)


# --- Intervals and agreement ------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the order statistics."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def bootstrap_statistics(
    patients: Sequence[str], draws: Sequence[Sequence[str]], statistic: Callable[[list[int]], float]
) -> list[float]:
    """The statistic of each drawn cohort: all rows of every drawn patient, as often as the patient was drawn."""
    results = []
    for draw in draws:
        rows = []
        for drawn in draw:
            for row, patient in enumerate(patients):
                if patient == drawn:
                    rows.append(row)
        results.append(statistic(rows))
    return results


def auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Share of (positive, negative) pairs in the right order; a tie counts one half."""
    wins = pairs = 0.0
    for label_a, score_a in zip(labels, scores, strict=True):
        for label_b, score_b in zip(labels, scores, strict=True):
            if label_a == 1 and label_b == 0:
                pairs += 1
                wins += 1.0 if score_a > score_b else 0.5 if score_a == score_b else 0.0
    return wins / pairs


def icc_one_way(groups: Sequence[Sequence[float]]) -> float:
    """ICC(1) = (MSB - MSW) / (MSB + (k0 - 1) MSW), k0 = (N - sum k^2 / N) / (n - 1) for unequal groups."""
    values = [value for group in groups for value in group]
    grand = sum(values) / len(values)
    between = within = 0.0
    for group in groups:
        mean = sum(group) / len(group)
        between += len(group) * (mean - grand) ** 2
        within += sum((value - mean) ** 2 for value in group)
    msb, msw = between / (len(groups) - 1), within / (len(values) - len(groups))
    k0 = (len(values) - sum(len(group) ** 2 for group in groups) / len(values)) / (len(groups) - 1)
    return (msb - msw) / (msb + (k0 - 1) * msw)


def mean_pair_difference(groups: Sequence[Sequence[float]]) -> float:
    """Mean |difference| of two readers of one nodule, over all pairs of all nodules."""
    differences = [abs(a - b) for group in groups for place, a in enumerate(group) for b in group[place + 1 :]]
    return sum(differences) / len(differences)


def noise_floor(groups: Sequence[Sequence[float]]) -> float:
    """Least z-scored MSE to expect: MSW * mean(1 / k) / variance of the groups' means.

    A perfect predictor of what infinitely many readers would say on average still misses the mean of k readers by
    MSW / k, and targets are z-scored by the deviation of the means.
    """
    means = [sum(group) / len(group) for group in groups]
    within = sum((value - mean) ** 2 for group, mean in zip(groups, means, strict=True) for value in group)
    msw = within / sum(len(group) - 1 for group in groups)
    centre = sum(means) / len(means)
    spread = sum((mean - centre) ** 2 for mean in means) / len(means)
    return msw * sum(1 / len(group) for group in groups) / len(groups) / spread


# --- Volumes and contours ---------------------------------------------------------------------------------------------


def bracket(positions: Sequence[float], value: float) -> tuple[int, float] | None:
    """(lower index, weight of the upper neighbour) of `value` among ascending positions; None outside them."""
    if not positions[0] <= value <= positions[-1]:
        return None
    if len(positions) == 1:
        return 0, 0.0
    for index in range(len(positions) - 1):
        if positions[index] <= value <= positions[index + 1]:
            return index, (value - positions[index]) / (positions[index + 1] - positions[index])
    raise AssertionError("positions must ascend")


def sample_linear(
    block: np.ndarray,
    axes_mm: tuple[Sequence[float], Sequence[float], Sequence[float]],
    point_mm: tuple[float, float, float],
) -> float | None:
    """Trilinear value of block [row column slice] at a point (y, x, z) mm; None outside the voxels' centres.

    Args:
        block: values at the voxels' centres.
        axes_mm: ascending positions of the rows (y), columns (x) and slices (z); z may be irregular.
        point_mm: where, in the same frame.
    """
    places = [bracket(axis, coordinate) for axis, coordinate in zip(axes_mm, point_mm, strict=True)]
    if any(place is None for place in places):
        return None
    value = 0.0
    for corner in np.ndindex(2, 2, 2):
        weight, index = 1.0, []
        for (low, upper), side in zip(places, corner, strict=True):
            weight *= upper if side else 1 - upper
            index.append(low + side)
        if weight > 0:
            value += weight * float(block[tuple(index)])
    return value


def sample_nearest(
    block: np.ndarray,
    axes_mm: tuple[Sequence[float], Sequence[float], Sequence[float]],
    point_mm: tuple[float, float, float],
) -> float | None:
    """Value of the voxel whose centre is nearest along each axis; None outside the centres or where two tie."""
    index = []
    for axis, coordinate in zip(axes_mm, point_mm, strict=True):
        if bracket(axis, coordinate) is None:
            return None
        distances = [abs(position - coordinate) for position in axis]
        best = min(distances)
        if sum(distance < best + 1e-6 for distance in distances) > 1:
            return None
        index.append(distances.index(best))
    return float(block[tuple(index)])


def inside_polygon(polygon: Sequence[tuple[int, int]], row: int, column: int) -> bool:
    """Even-odd rule: a ray to larger columns crosses the boundary an odd number of times."""
    crossings = 0
    for (r0, c0), (r1, c1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (r0 > row) != (r1 > row) and column < c0 + (row - r0) * (c1 - c0) / (r1 - r0):
            crossings += 1
    return crossings % 2 == 1


def contour_pixels(polygon: Sequence[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """Pixels inside a contour; its own points are outside the nodule, by LIDC's rule."""
    mask = np.zeros(shape, dtype=bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            mask[row, column] = inside_polygon(polygon, row, column)
    for row, column in polygon:
        mask[row, column] = False
    return mask


def reading_pixels(
    included: Sequence[Sequence[tuple[int, int]]],
    excluded: Sequence[Sequence[tuple[int, int]]],
    shape: tuple[int, int],
) -> np.ndarray:
    """One slice of one reading: inside any inclusion contour, outside every exclusion contour and its points."""
    mask = np.zeros(shape, dtype=bool)
    for polygon in included:
        mask |= contour_pixels(polygon, shape)
        for row, column in polygon:
            mask[row, column] = False
    for polygon in excluded:
        mask &= ~contour_pixels(polygon, shape)
        for row, column in polygon:
            mask[row, column] = False
    return mask
