"""A classifier of natural images: a vision transformer and a linear head with one logit per class."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import timm
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from lidc_cdam.backbones import BACKBONES, HUB, build_backbone, weights_file
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.images import Classes, Input, input_of
from lidc_cdam.model import DESCRIPTION, NoduleModel
from lidc_cdam.weights import read_classifier

UNTAGGED_CROP = 0.875
"""Share of the shorter side that is shown to a backbone without published settings: 224 of 256 pixels, as the paper."""
Kind = TypeVar("Kind", bound="ImageClassifier")


class ImageClassifier(NoduleModel):
    """A backbone's final [CLS] latent, and a linear head with a logit per class.

    Its `targets` are the classes' keys, so that every estimator explains them as it explains a nodule's.
    """

    kind: ClassVar[str] = "images"

    def __init__(self, backbone: nn.Module, classes: Classes, shown: Input, backbone_name: str | None = None) -> None:
        """Put a fresh head on a backbone.

        Args:
            backbone: a timm vision transformer without a classifier (`build_backbone`).
            classes: what the logits stand for, in their order.
            shown: how images become its input.
            backbone_name: key of `BACKBONES`; known already if `build_backbone` made the backbone.
        """
        super().__init__(backbone, classes.keys, "linear", backbone_name)
        self.classes = classes
        self.shown = shown

    def _checked(self, targets: Sequence[str]) -> tuple[str, ...]:
        return tuple(targets)

    @property
    def black(self) -> Float[Tensor, " channel"]:
        """What a black pixel becomes."""
        return normalised(torch.zeros(1, 1, 1, 3, dtype=torch.uint8), self.shown).flatten()

    def prepare(self, images: Sequence[Image.Image]) -> Float[Tensor, "image channel row column"]:
        """Images (RGB) as the model's input."""
        return normalised(
            torch.stack([torch.from_numpy(self.shown.shown(image).copy()) for image in images]), self.shown
        )

    def digest(self) -> str:
        """SHA-256 of what decides its outputs: weights, classes and input."""
        told = hashlib.sha256(json.dumps([self._description()]).encode())
        for name, tensor in sorted(self.state_dict().items()):
            told.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return told.hexdigest()

    def _description(self) -> dict[str, Any]:
        return {**super()._description(), "titles": list(self.classes.titles), "input": asdict(self.shown)}

    @classmethod
    def _described(cls: type[Kind], stored: Any) -> Kind:
        height, width = stored["image_size"]
        backbone = build_backbone(stored["backbone"], None, (height, width), stored["dropout"])
        return cls(backbone, Classes(tuple(stored["targets"]), tuple(stored["titles"])), input_of(stored["input"]))


def normalised(
    images: UInt8[Tensor, "image row column channel"], shown: Input
) -> Float[Tensor, "image channel row column"]:
    """RGB from 0 to 255 as a model's input: each channel less its mean, over its deviation."""
    mean, sd = (torch.tensor(values, device=images.device) for values in (shown.mean, shown.sd))
    return ((images.float() / 255 - mean) / sd).movedim(3, 1).contiguous()


def published_input(name: str, image_size: int | None = None) -> Input:
    """How images become a backbone's input, as its publishers do it.

    Args:
        name: a key of `BACKBONES`.
        image_size: side of the input, pixels; the row's own by default.

    Raises:
        LidcCdamError: an unknown backbone.
    """
    if name not in BACKBONES:
        raise LidcCdamError(f"--backbone must be one of {', '.join(BACKBONES)}; got {name!r}.")
    row = BACKBONES[name]
    side = image_size or row.image_size
    if row.torchvision:
        from torchvision.models import get_weight

        used = get_weight(row.torchvision).transforms()
        return Input((side, side), tuple(used.mean), tuple(used.std), used.crop_size[0] / used.resize_size[0])
    if row.tag:
        config = timm.get_pretrained_cfg(f"{row.architecture}.{row.tag}")
        return Input((side, side), config.mean, config.std, config.crop_pct)
    return Input((side, side), crop_share=UNTAGGED_CROP)


def published_classifier(name: str, weights: str | Path) -> ImageClassifier:
    """A backbone with the classifier that was published in the same file.

    Args:
        name: a key of `BACKBONES`.
        weights: `hub`, or the path of the file.

    Raises:
        LidcCdamError: the weights are missing, do not fit, or hold no classifier.
    """
    path = weights_file(name, weights)
    backbone, found = build_backbone(name, path), read_classifier(path)
    if found is None:
        raise LidcCdamError(
            f"--model {name} must come with a classifier, but {path} holds a backbone alone; train one with "
            f"`lidc-cdam train --task images --backbone {name}`."
        )
    weight, bias = found
    model = ImageClassifier(backbone, _published_classes(len(bias)), published_input(name))
    model.head.load_state_dict({"weight": weight, "bias": bias})
    return model.eval()


def open_classifier(model: str, weights: str | None) -> ImageClassifier:
    """The classifier that a user names: the folder of a trained one, or a backbone with its own.

    Args:
        model: a folder that `train --task images` wrote, or a key of `BACKBONES`.
        weights: for a backbone, `hub` or a file.

    Raises:
        LidcCdamError: there is no such model, or it is one of nodules.
    """
    if (Path(model) / DESCRIPTION).is_file():
        if weights is not None:
            raise LidcCdamError(f"--weights belongs to a backbone, but --model {model} is a trained model; drop it.")
        return ImageClassifier.load(model)
    if model in BACKBONES:
        return published_classifier(model, weights or HUB)
    raise LidcCdamError(
        f"--model must be a folder that `lidc-cdam train --task images` wrote, or a backbone whose file holds a "
        f"classifier, such as deit_small16; got {model!r}."
    )


def _published_classes(count: int) -> Classes:
    """ImageNet's classes by their WordNet ids, where the number of outputs tells which set of them it is."""
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return Classes(tuple(map(str, range(count))))
    known = ImageNetInfo(subset)
    names = known.label_names()
    return Classes(tuple(names), tuple(known.label_name_to_description(name) for name in names))
