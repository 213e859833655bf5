"""DINO's, DeiT's and DINOv2's vision transformers, written from their publications upon the official files' tensors.

Each function takes a dictionary as the official file holds it and gives the final [CLS] token. Nothing of timm is used.
Double precision, but for DINOv2's position embeddings: their resampling is published in single precision.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
"""LayerNorm's epsilon in all three."""

State = Mapping[str, Tensor]


def official_shapes(width: int, depth: int, patch: int, patches: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file of DINO or DeiT; `patches` have a position each, and so has [CLS]."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{part}": (width,) for part in ("weight", "bias")}
        for layer, shape in linear.items():
            shapes |= {f"blocks.{block}.{layer}.weight": shape, f"blocks.{block}.{layer}.bias": shape[:1]}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def dinov2_shapes(width: int, depth: int, patch: int, patches: int, registers: int) -> dict[str, tuple[int, ...]]:
    """The same for DINOv2: LayerScale, a token for masked patches, registers."""
    shapes = official_shapes(width, depth, patch, patches)
    shapes |= {f"blocks.{block}.ls{part}.gamma": (width,) for block in range(depth) for part in (1, 2)}
    return shapes | {"mask_token": (1, width), "register_tokens": (1, registers, width)}


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of size one over the root of what they sum over; scales around one.

    Every number is a multiple of 2^-14 below 2^9, so that single precision adds two of them without rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        scale = ("norm" in name and name.endswith("weight")) or name.endswith("gamma")
        spread = 0.3 if len(shape) == 1 or "token" in name or name == "pos_embed" else math.prod(shape[1:]) ** -0.5
        state[name] = ((scale + spread * noise) * 2**14).round() / 2**14
    return state


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPS) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(x: Tensor, state: State, name: str, heads: int) -> Tensor:
    """Head by head; the rows of the joint projection are queries, keys and values, each head by head."""
    width = x.shape[-1] // heads
    query, key, value = linear(x, state, f"{name}.qkv").chunk(3, dim=-1)
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = query[..., part] @ key[..., part].transpose(-1, -2) * width**-0.5
        powers = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
        outputs.append(powers / powers.sum(dim=-1, keepdim=True) @ value[..., part])
    return linear(torch.cat(outputs, dim=-1), state, f"{name}.proj")


def mlp(x: Tensor, state: State, name: str) -> Tensor:
    hidden = linear(x, state, f"{name}.fc1")
    return linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), state, f"{name}.fc2")


def blocks(x: Tensor, state: State, heads: int) -> Tensor:
    """All blocks and the final norm: x + ls1 attention(norm1(x)), then x + ls2 MLP(norm2(x)); ls is 1 where absent."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for block in (f"blocks.{index}" for index in range(depth)):
        x = x + state.get(f"{block}.ls1.gamma", 1) * attention(
            layer_norm(x, state, f"{block}.norm1"), state, f"{block}.attn", heads
        )
        x = x + state.get(f"{block}.ls2.gamma", 1) * mlp(layer_norm(x, state, f"{block}.norm2"), state, f"{block}.mlp")
    return layer_norm(x, state, "norm")


def patch_tokens(images: Tensor, state: State) -> Tensor:
    """W p + b of every patch p, row by row: [image token channel]."""
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    side = weight.shape[-1]
    patches = images.unfold(2, side, side).unfold(3, side, side)
    return torch.einsum("nchwyx,dcyx->nhwd", patches, weight).flatten(1, 2) + bias


def dino_features(images: Tensor, state: State, heads: int) -> Tensor:
    """The final [CLS] token of DINO's and DeiT's transformer; as many positions in the file as there are patches."""
    state = {name: tensor.double() for name, tensor in state.items()}
    patches = patch_tokens(images.double(), state)
    cls = state["cls_token"].expand(len(images), -1, -1)
    return blocks(torch.cat([cls, patches], dim=1) + state["pos_embed"], state, heads)[:, 0]


def dinov2_features(images: Tensor, state: State, heads: int) -> Tensor:
    """The final [CLS] token of DINOv2 with registers, which join after the positions were added and have none.

    Positions are resampled to the image's grid: bicubic, antialiased, offset 0, in single precision.
    """
    position = state["pos_embed"].float()
    state = {name: tensor.double() for name, tensor in state.items()}
    side = state["patch_embed.proj.weight"].shape[-1]
    rows, columns = images.shape[2] // side, images.shape[3] // side
    stored = math.isqrt(position.shape[1] - 1)
    square = position[:, 1:].reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(square, size=(rows, columns), mode="bicubic", antialias=True)
    position = torch.cat([position[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1).double()
    cls = state["cls_token"].expand(len(images), -1, -1)
    x = torch.cat([cls, patch_tokens(images.double(), state)], dim=1) + position
    registers = state["register_tokens"].expand(len(images), -1, -1)
    return blocks(torch.cat([x[:, :1], registers, x[:, 1:]], dim=1), state, heads)[:, 0]


def cubic(x: float, a: float = -0.5) -> float:
    """Keys' kernel; a = -0.5 is what antialiased resampling uses."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def antialiased_weights(old: int, new: int) -> np.ndarray:
    """Bicubic resampling of one axis [new old]: the kernel widened by the reduction, samples at centres, sums one."""
    scale = old / new
    stretch = max(scale, 1.0)
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale
        for j in range(old):
            weights[i, j] = cubic((j + 0.5 - centre) / stretch)
        weights[i] /= weights[i].sum()
    return weights


def resampled_positions(position: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Positions [row column channel] on another grid, by `antialiased_weights` along both axes."""
    rows, columns = (antialiased_weights(old, new) for old, new in zip(position.shape[:2], grid, strict=True))
    return np.einsum("yr,xc,rcd->yxd", rows, columns, position)
