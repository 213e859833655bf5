"""A small world of image files: coloured patches in ImageNet's folder layout, a random backbone, a classifier."""

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from lidc_cdam.backbones import BACKBONES, build_backbone
from lidc_cdam.classifier import ImageClassifier
from lidc_cdam.images import Classes, Input

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def picture(colour, seed, size=(40, 36)):
    """An image of one colour with some noise, width and height `size`."""
    noise = np.random.default_rng(seed).normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8))


def write_layout(root, per_class=6, roles=("train", "val")):
    """`root/<role>/<class>/<k>.png`, or `root/<class>/<k>.png` with `roles` = ("",)."""
    for role in roles:
        for index, colour in enumerate(COLOURS):
            for k in range(per_class):
                path = root / role / colour / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(colour, 1000 * index + 10 * k + (role == "val")).save(path)
    return root


def write_backbone(path):
    """Random weights of `tiny`, as a file."""
    torch.manual_seed(0)
    save_file(build_backbone("tiny").state_dict(), path)
    return path


def write_published(path, classes=5):
    """Random weights of `tiny` with a classifier of its own, in timm's layout."""
    torch.manual_seed(1)
    row = BACKBONES["tiny"]
    model = timm.create_model(row.architecture, num_classes=classes, img_size=row.image_size, **row.arguments)
    torch.nn.init.normal_(model.head.weight)
    save_file(model.state_dict(), path)
    return model.eval()


def write_classifier(folder, side=16):
    """An untrained classifier of the three colours on images of 16 x 16 pixels, 8 x 8 tokens."""
    torch.manual_seed(2)
    shown = Input((side, side))
    model = ImageClassifier(build_backbone("tiny", image_size=side), Classes(tuple(COLOURS)), shown)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    model.save(folder)
    return model.eval()
