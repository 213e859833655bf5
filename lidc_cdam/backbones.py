"""The vision transformers that a model can stand on: one row each."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError

HUB = "hub"


@dataclass(frozen=True)
class Backbone:
    """How to build one backbone."""

    architecture: str
    """timm's name of the architecture, without the weights' tag."""
    image_size: int = 224
    """Default side of the input, pixels."""
    tag: str = ""
    """timm's tag of the official weights; empty where timm has none."""
    official: str = ""
    """The official weights in words, for the error when they are not at hand."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Constructor arguments that the architecture's timm name does not fix."""


BACKBONES: dict[str, Backbone] = {
    "dino_vits8": Backbone("vit_small_patch8_224", tag="dino"),
    "dino_vitb8": Backbone("vit_base_patch8_224", tag="dino"),
    "dino_vits16": Backbone("vit_small_patch16_224", tag="dino"),
    "dino_vitb16": Backbone("vit_base_patch16_224", tag="dino"),
    "deit_small16": Backbone("deit_small_patch16_224", tag="fb_in1k"),
    "deit_base16": Backbone("deit_base_patch16_224", tag="fb_in1k"),
    "dinov2_vits14_reg": Backbone("vit_small_patch14_reg4_dinov2", tag="lvd142m"),
    "dinov2_vitb14_reg": Backbone("vit_base_patch14_reg4_dinov2", tag="lvd142m"),
    "swag_vitb16": Backbone(
        "vit_base_patch16_224", official="torchvision's ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1 (vit_b_16_lc_swag)"
    ),
    "vitb16": Backbone("vit_base_patch16_224", tag="augreg_in21k"),
    "vitl16": Backbone("vit_large_patch16_224", tag="augreg_in21k"),
    # 16 x 16 tokens of 2 mm over the 32 mm crop at its own resolution: fine enough to read a map, small enough for a
    # CPU. timm has no such row, so its smallest plain ViT is built with other dimensions.
    "tiny": Backbone(
        "vit_tiny_patch16_224",
        image_size=32,
        official="none: `tiny` is trained from scratch",
        arguments={"patch_size": 2, "embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2.0},
    ),
}
"""Every backbone by name."""


def build_backbone(
    name: str,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    dropout: float = 0.0,
) -> VisionTransformer:
    """A vision transformer without a classifier.

    Args:
        name: a key of `BACKBONES`.
        weights: None for random weights; `hub` for the official ones through timm; or the path of a `.safetensors`,
            `.pth` or `.pt` file in timm's, DINO's, DeiT's, DINOv2's or torchvision's layout. Position embeddings of
            another input size are resampled; a classifier in the file is left out.
        image_size: side, or height and width, of the input in pixels; the row's own by default.
        dropout: share of the values that training drops after the position embedding, in the projections and MLPs of
            the blocks and before the head, 0 to 1.

    Returns:
        The backbone with `num_classes` = 0; its `.backbone_name` is `name`.

    Raises:
        LidcCdamError: an unknown name, a size that the patches do not divide, or weights that are missing or do not
            fit.
    """
    row = _row(name)
    if not 0 <= dropout < 1:
        raise LidcCdamError(f"--dropout must be at least 0 and below 1; got {dropout}.")
    size = _checked_size(name, row, image_size)
    model = _create(row, size, dropout) if weights != HUB else _from_hub(name, row, size, dropout)
    if weights is not None and weights != HUB:
        load_weights(model, Path(weights))
    model.backbone_name = name
    return model


def _row(name: str) -> Backbone:
    if name not in BACKBONES:
        near = get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise LidcCdamError(f"--backbone must be one of {', '.join(BACKBONES)}; got {name!r}{hint}")
    return BACKBONES[name]


def _checked_size(name: str, row: Backbone, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    asked = row.image_size if image_size is None else image_size
    size = (asked, asked) if isinstance(asked, int) else (asked[0], asked[1])
    patch = row.arguments.get("patch_size") or _patch(row.architecture)
    if any(side < patch or side % patch for side in size):
        raise LidcCdamError(
            f"--image-size must be a multiple of {patch}, the patch of {name}; got {' x '.join(map(str, size))}."
        )
    return size


def _patch(architecture: str) -> int:
    found = re.search(r"patch(\d+)", architecture)
    return int(found.group(1)) if found else 16


def _create(row: Backbone, size: tuple[int, int], dropout: float, pretrained: bool = False) -> VisionTransformer:
    architecture = f"{row.architecture}.{row.tag}" if row.tag else row.architecture
    model: VisionTransformer = timm.create_model(
        architecture,
        pretrained=pretrained,
        num_classes=0,
        img_size=size,
        drop_rate=dropout,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        **row.arguments,
    )
    return model


def _from_hub(name: str, row: Backbone, size: tuple[int, int], dropout: float) -> VisionTransformer:
    official = f"timm's {row.architecture}.{row.tag} (model.safetensors)" if row.tag else row.official
    remedy = f"fetch the file on a machine with a network and give its path: --weights FILE ({official})."
    if not row.tag:
        raise LidcCdamError(f"--weights hub has no weights for {name}; use another --backbone, or {remedy}")
    try:
        return _create(row, size, dropout, pretrained=True)
    # The hub's client raises its own classes for "offline", httpx's, and plain OSErrors: all are Exceptions of I/O.
    except (OSError, RuntimeError, ValueError) as error:
        raise LidcCdamError(
            f"--weights hub could not fetch the weights of {name} ({type(error).__name__}); {remedy}"
        ) from error


def load_weights(backbone: VisionTransformer, path: Path) -> None:
    """Load a checkpoint's tensors into a backbone, strictly.

    Args:
        backbone: what to fill; a classifier in the file is left out.
        path: `.safetensors`, or what `torch.save` wrote (read without unpickling code).

    Raises:
        LidcCdamError: the file is missing or damaged, or its tensors are not the backbone's.
    """
    state = _without_classifier(_to_timm(read_tensors(path), backbone))
    expected = backbone.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = sorted(key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape)
    if missing or unexpected or wrong:
        parts = [
            f"{label} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
            for label, keys in (("lacks", missing), ("also has", unexpected), ("has another shape for", wrong))
            if keys
        ]
        raise LidcCdamError(
            f"--weights {path} must hold the tensors of the chosen backbone, but it {' and '.join(parts)}; "
            f"choose the --backbone that the file belongs to."
        )
    backbone.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Any]:
    """The named tensors of a `.safetensors`, `.pth` or `.pt` file, on the CPU.

    Raises:
        LidcCdamError: the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise LidcCdamError(f"{path} must be a file of weights (.safetensors, .pth, .pt), but there is none.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        raise LidcCdamError(f"{path} is damaged or holds no weights, and cannot be read; fetch it again.") from error
    if not isinstance(state, dict) or not state:
        raise LidcCdamError(f"{path} must hold named tensors, but it holds a {type(state).__name__}.")
    return state


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error


def _to_timm(state: dict[str, Any], backbone: VisionTransformer) -> dict[str, Tensor]:
    """A checkpoint's tensors under timm's names and on the backbone's grid."""
    inner = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), dict)), state)
    if "conv_proj.weight" in inner:
        inner = _from_torchvision(inner)
    converted: dict[str, Tensor] = checkpoint_filter_fn(dict(inner), backbone)
    return converted


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


def _from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in _TORCHVISION_NAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith("head.")}


def freeze_all_but_last(backbone: nn.Module, tensors: int | None) -> None:
    """Make only the last parameter tensors of a backbone trainable (SCIENCE.md 4's "layers").

    Args:
        backbone: any module.
        tensors: parameter tensors counted from the end in the order of `parameters()`; 50 are about the last four
            blocks of a ViT, 0 trains the head alone, None or more than there are trains all.

    Raises:
        LidcCdamError: `tensors` is negative.
    """
    if tensors is not None and tensors < 0:
        raise LidcCdamError(f"--trainable-layers must be 0 or more parameter tensors (or null for all); got {tensors}.")
    parameters = list(backbone.parameters())
    frozen = 0 if tensors is None else max(len(parameters) - tensors, 0)
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(index >= frozen)
