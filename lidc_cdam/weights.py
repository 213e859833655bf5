"""Files of weights in their publishers' layouts, recognised by their keys and read under timm's names."""

import argparse
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lidc_cdam.errors import LidcCdamError

LISTED = 6
"""How many tensors an error names before it counts the rest."""

_NUMBER: Any = np.float64(0).__reduce__()[0]
_BESIDE_TENSORS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
]
"""What full checkpoints hold beside tensors: DINO's and DeiT's settings, and learning rates as NumPy wrote them before
and since version 2. None of it runs code of the file's."""


@dataclass(frozen=True)
class Plan:
    """The dimensions of a vision transformer that its tensors' shapes give away."""

    width: int
    depth: int
    patch: int
    registers: int

    def __str__(self) -> str:
        return f"width {self.width}, {self.depth} blocks, {self.patch}-pixel patches, {self.registers} registers"


def plan_of(state: Mapping[str, Tensor]) -> Plan:
    """The dimensions behind tensors with timm's names."""
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    return Plan(width, len(blocks), patch, registers)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a vision transformer under timm's names, without a classifier.

    Args:
        path: `.safetensors`, or what `torch.save` wrote, in timm's layout or an official one: facebookresearch/dino
            (backbone alone or full checkpoint, whose teacher is taken as published), DeiT, DINOv2 with or without
            registers, torchvision.

    Raises:
        LidcCdamError: the file is missing or damaged, a distilled DeiT, or in no known layout.
    """
    state = _official(path)
    # DINOv2's token for masked patches serves its training alone.
    return {key: part for key, part in state.items() if not key.startswith("head.") and key != "mask_token"}


def read_classifier(path: Path) -> tuple[Float[Tensor, "class latent"], Float[Tensor, " class"]] | None:
    """Weight and bias of the linear classifier that a file holds beside its vision transformer; None without one.

    Raises:
        LidcCdamError: as `read_checkpoint`.
    """
    state = _official(path)
    for name in ("head", "head.head"):
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        width = state["cls_token"].shape[-1] if "cls_token" in state else None
        if weight is not None and bias is not None and weight.ndim == 2 and weight.shape[1] == width:
            return weight.float(), bias.float()
    return None


def _official(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in a known layout under timm's names."""
    state = _unwrapped(read_tensors(path))
    if "dist_token" in state:
        raise LidcCdamError(
            f"--weights {path} holds a distilled DeiT, whose second class token (dist_token) no backbone here has; "
            f"use the file of the same DeiT without distillation (its name has no `distilled`)."
        )
    if "conv_proj.weight" in state:
        state = _from_torchvision(state)
    if {"register_tokens", "cls_token", "pos_embed"} <= state.keys():
        state = _from_dinov2(state)
    projection = state.get("patch_embed.proj.weight")
    if not all(isinstance(part, Tensor) for part in state.values()) or projection is None or projection.ndim != 4:
        raise LidcCdamError(
            f"--weights {path} must hold a vision transformer in the layout of timm, DINO, DeiT, DINOv2 or "
            f"torchvision, but it holds {_listed(list(state))}; convert it, or choose an official file."
        )
    return state


def read_tensors(path: Path) -> dict[str, Any]:
    """The named tensors of a `.safetensors`, `.pth` or `.pt` file, on the CPU, read without running its code.

    Raises:
        LidcCdamError: the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise LidcCdamError(f"{path} must be a file of weights (.safetensors, .pth, .pt), but there is none.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        raise LidcCdamError(
            f"{path} is damaged or holds no weights that can be read (.safetensors, or tensors that torch.save "
            f"wrote); fetch or make it again."
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise LidcCdamError(f"{path} must hold named tensors, but it holds a {type(state).__name__} without names.")
    return state


def fill(backbone: VisionTransformer, state: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors with timm's names into a backbone, strictly; position embeddings are resampled to its grid.

    Raises:
        LidcCdamError: tensors are missing, left over or of another shape.
    """
    expected = backbone.state_dict()
    state = dict(state)
    if "pos_embed" in state and state["pos_embed"].ndim == 3:
        state["pos_embed"] = _on_grid(state["pos_embed"], backbone)
    faults = {
        "lacks": expected.keys() - state.keys(),
        "also has": state.keys() - expected.keys(),
        "has another shape for": {k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape},
    }
    if any(faults.values()):
        told = " and ".join(f"{label} {_listed(sorted(keys))}" for label, keys in faults.items() if keys)
        raise LidcCdamError(
            f"--weights {path} must hold the tensors of the chosen backbone, but it {told}; "
            f"choose the --backbone that the file belongs to."
        )
    backbone.load_state_dict(state)


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(map(str, keys[:LISTED])) + more


def _torch_load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_BESIDE_TENSORS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """The transformer's own entries: out of a training checkpoint, without its wrappers' prefixes."""
    inner = next((state[key] for key in ("teacher", "model", "state_dict") if isinstance(state.get(key), dict)), state)
    inner = {key.removeprefix("module."): part for key, part in inner.items()}
    prefix = "backbone."
    if any(key.startswith(prefix) for key in inner):
        # What stands beside the backbone is DINO's projection head, or the head of a model of this project.
        return {key.removeprefix(prefix): part for key, part in inner.items() if key.startswith(prefix)}
    return inner


_TORCHVISION_NAMES = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.", "head."),
)
"""torchvision's names of a ViT's tensors and timm's, as patterns applied in turn."""


def _from_torchvision(state: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in _TORCHVISION_NAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def _from_dinov2(state: Mapping[str, Any]) -> dict[str, Any]:
    """DINOv2 adds [CLS]'s position before the registers join; timm keeps the sum, and positions for patches only."""
    inner = dict(state)
    position = inner["pos_embed"]
    inner["reg_token"] = inner.pop("register_tokens")
    inner["cls_token"] = inner["cls_token"] + position[:, :1]
    inner["pos_embed"] = position[:, 1:]
    return inner


def _on_grid(
    position: Float[Tensor, "1 stored channel"], backbone: VisionTransformer
) -> Float[Tensor, "1 token channel"]:
    """Position embeddings of a square grid resampled to the backbone's: bicubic, antialiased, corners not aligned.

    This is what DINOv2 publishes for its models with registers (`interpolate_antialias`, `interpolate_offset` 0).
    A grid that is not square can only be the backbone's own, and stays.
    """
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    stored = position.shape[1] - prefix
    side = math.isqrt(max(stored, 0))
    if side == 0 or side**2 != stored:
        return position
    grid = list(backbone.patch_embed.grid_size)
    resampled: Tensor = resample_abs_pos_embed(position, grid, [side, side], num_prefix_tokens=prefix)
    return resampled
