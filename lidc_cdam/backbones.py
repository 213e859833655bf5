"""The vision transformers that a model can stand on: one row each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lidc_cdam import hub
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.weights import Plan, fill, plan_of, read_checkpoint

HUB = "hub"


@dataclass(frozen=True)
class Backbone:
    """How to build one backbone."""

    architecture: str
    """timm's name of the architecture, without the weights' tag."""
    image_size: int = 224
    """Default side of the input, pixels."""
    tag: str = ""
    """timm's tag of the weights that `hub` means; empty where they are not timm's."""
    torchvision: str = ""
    """torchvision's name of the weights that `hub` means, where they are torchvision's."""
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
    "swag_vitb16": Backbone("vit_base_patch16_224", torchvision="ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1"),
    "vitb16": Backbone("vit_base_patch16_224", tag="augreg_in21k"),
    "vitl16": Backbone("vit_large_patch16_224", tag="augreg_in21k"),
    # 8 x 8 tokens of 4 mm, wider and deeper: what trains best from scratch on a CPU within a quarter of an hour a fold.
    "small": Backbone(
        "vit_tiny_patch16_224",
        image_size=32,
        arguments={
            "patch_size": 4,
            "embed_dim": 128,
            "depth": 6,
            "num_heads": 4,
            "mlp_ratio": 3.0,
            "init_values": 0.1,
            "drop_path_rate": 0.1,
        },
    ),
    # 16 x 16 tokens of 2 mm over the 32 mm crop at its own resolution: fine enough to read a map, small enough for a
    # CPU. timm has no such row, so its smallest plain ViT is built with other dimensions.
    "tiny": Backbone(
        "vit_tiny_patch16_224",
        image_size=32,
        arguments={"patch_size": 2, "embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2.0},
    ),
}
"""Every backbone by name."""


def build_backbone(
    name: str,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    dropout: float = 0.0,
    channels: int = 3,
) -> VisionTransformer:
    """A vision transformer without a classifier.

    Args:
        name: a key of `BACKBONES`.
        weights: None for random weights; `hub` for the published ones, out of Hugging Face's or torch's cache or
            fetched into it; or the path of a `.safetensors`, `.pth` or `.pt` file in timm's, DINO's, DeiT's, DINOv2's
            or torchvision's layout. Position embeddings of another input size are resampled; a classifier in the
            file is left out.
        image_size: side, or height and width, of the input in pixels; the row's own by default.
        dropout: share of the values that training drops after the position embedding, in the projections and MLPs of
            the blocks and before the head, 0 to 1.
        channels: of the input, at least 3; a file's weights read the first three, and those of further ones start at 0.

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
    path = published_weights(name) if weights == HUB else weights
    if path is None:
        model = _create(row, size, dropout, channels)
    else:
        # Random numbers, which the file replaces, would take longer than the file itself.
        with torch.device("meta"):
            model = _create(row, size, dropout)
        load_weights(model.to_empty(device="cpu"), name, Path(path))
        _widen_input(model, channels)
    model.backbone_name = name
    return model


def published_weights(name: str) -> Path:
    """The file that `hub` means for a backbone, in a local cache; fetched into it if need be.

    Raises:
        LidcCdamError: an unknown name, no published weights, or a cache without them and no way to fetch them.
    """
    row = _row(name)
    if row.torchvision:
        return hub.torchvision_file(row.torchvision)
    if row.tag:
        return hub.timm_file(f"{row.architecture}.{row.tag}")
    raise LidcCdamError(
        f"--weights hub has no weights for {name}, which is trained from scratch; give the path of a model "
        f"trained earlier (`train` on nodules and `crossval` also do without --weights)."
    )


def weights_file(name: str, weights: str | Path) -> Path:
    """The file that `--weights` names for a backbone: `hub` or a path.

    Raises:
        LidcCdamError: there is no such file, or as `published_weights`.
    """
    if weights == HUB:
        return published_weights(name)
    path = Path(weights)
    if not path.is_file():
        raise LidcCdamError(
            f"--weights must be {HUB!r} or a file of weights (.safetensors, .pth, .pt); {path} is none."
        )
    return path


def load_weights(backbone: VisionTransformer, name: str, path: Path) -> None:
    """Load a file's tensors into a backbone, strictly.

    Args:
        backbone: what to fill.
        name: its name in `BACKBONES`.
        path: a file as `build_backbone` takes it.

    Raises:
        LidcCdamError: the file is missing or damaged, or its tensors are not the backbone's.
    """
    state = read_checkpoint(path)
    wanted, found = plan_of(backbone.state_dict()), plan_of(state)
    if wanted != found:
        fitting = [other for other, row in BACKBONES.items() if _plan(row) == found]
        advice = (
            f"choose --backbone {' or '.join(fitting)}" if fitting else "it fits no --backbone; choose another file"
        )
        raise LidcCdamError(f"--weights {path} must fit {name} ({wanted}), but it has {found}; {advice}.")
    fill(backbone, state, path)


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


def _widen_input(backbone: VisionTransformer, channels: int) -> None:
    """Let a backbone take more channels, which change nothing until they are trained."""
    narrow = backbone.patch_embed.proj
    if channels > narrow.in_channels:
        wide = nn.Conv2d(channels, narrow.out_channels, narrow.kernel_size, narrow.stride)
        with torch.no_grad():
            wide.weight.zero_()[:, : narrow.in_channels] = narrow.weight
        wide.bias = narrow.bias
        backbone.patch_embed.proj = wide


def _create(row: Backbone, size: tuple[int, int], dropout: float = 0.0, channels: int = 3) -> VisionTransformer:
    model: VisionTransformer = timm.create_model(
        row.architecture,
        in_chans=channels,
        num_classes=0,
        img_size=size,
        drop_rate=dropout,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        **row.arguments,
    )
    return model


def _plan(row: Backbone) -> Plan:
    with torch.device("meta"):
        return plan_of(_create(row, (row.image_size, row.image_size)).state_dict())


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
