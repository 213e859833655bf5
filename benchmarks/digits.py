"""Two digits side by side: which maps tell one from the other? Real small data (scikit-learn's digits), a tiny ViT.

    python benchmarks/digits.py --out digits_out

writes the images and their two-class list, trains the classifier (seconds), runs `explain --images` and
`evaluate --images` for every estimator, and writes `digits.csv` (the table) and `digits.png` (the maps).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int
from PIL import Image
from sklearn.datasets import load_digits

from lidc_cdam.backbones import BACKBONES, Backbone, build_backbone
from lidc_cdam.classifier import ImageClassifier
from lidc_cdam.images import Classes, Input

SIDE, DIGIT, TOP = 16, 8, 4
"""Pixels: side of an image, of a digit in it, and from the upper edge to a digit."""
TRAINING = 1200
"""Digits that train; the other 597 make the images that are explained."""
NAME = "digits"
ROW = Backbone(
    "vit_tiny_patch16_224",
    image_size=SIDE,
    arguments={"patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0},
)
"""4 x 4 tokens: each digit covers four."""
STEPS, BATCH, RATE = 400, 64, 3e-3
Pairs = tuple[Float32[np.ndarray, "image row column"], Int[np.ndarray, "image 2"]]


def draw_pairs(part: str, count: int, seed: int) -> Pairs:
    """Images of two different digits side by side, and which digits they are.

    Args:
        part: `train` or `test`; the two have no digit's picture in common.
        count: how many images.
        seed: of the choice.

    Returns:
        Brightness from 0 to 1, and the left and the right digit.
    """
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    places = order[:TRAINING] if part == "train" else order[TRAINING:]
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(10)[:2] for _ in range(count)])
    images = np.zeros((count, SIDE, SIDE), np.float32)
    for side in range(2):
        for digit in range(10):
            wanted = np.flatnonzero(drawn[:, side] == digit)
            chosen = rng.choice(places[data.target[places] == digit], len(wanted))
            images[wanted, TOP : TOP + DIGIT, side * DIGIT : (side + 1) * DIGIT] = data.images[chosen] / 16
    return images, drawn


def train_classifier(seed: int = 0, steps: int = STEPS) -> ImageClassifier:
    """A tiny vision transformer that says which digits an image shows: ten logits, trained from scratch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shown = Input((SIDE, SIDE), (0.25,) * 3, (0.35,) * 3)
        model = ImageClassifier(build_backbone(NAME), Classes(tuple("0123456789")), shown)
        optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.15)
        images, digits = draw_pairs("train", steps * BATCH, seed)
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(images[start : start + BATCH, None]).expand(-1, 3, -1, -1)
            wanted = torch.zeros(BATCH, 10).scatter_(1, torch.from_numpy(digits[start : start + BATCH]), 1.0)
            loss = F.binary_cross_entropy_with_logits(model((pixels - shown.mean[0]) / shown.sd[0]), wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def write_images(folder: Path, count: int, seed: int = 1) -> Path:
    """Write test images, and the list of their two classes: the digit that is read alternates between the sides.

    Returns:
        The list.
    """
    images, digits = draw_pairs("test", count, seed)
    rows = []
    for index, (image, pair) in enumerate(zip(images, digits, strict=True)):
        name = f"{index:03}_{pair[0]}{pair[1]}.png"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * 255).astype(np.uint8)).save(folder / name)
        own, other = (pair[index % 2], pair[1 - index % 2])
        rows.append({"image": name, "class": own, "other_class": other})
    pd.DataFrame(rows).to_csv(folder / "classes.csv", index=False)
    return folder / "classes.csv"
