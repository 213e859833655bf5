"""Two digits side by side: which maps tell one from the other? Real small data (scikit-learn's digits), a tiny ViT.

    python benchmarks/digits.py --out digits_out

writes the images and their two-class list, trains the classifier (seconds), runs `explain --images` and
`evaluate --images` for every estimator, and writes `digits.csv` (the table) and `digits.png` (the maps).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from lidc_cdam.artifacts import read_maps
from lidc_cdam.backbones import BACKBONES, Backbone, build_backbone
from lidc_cdam.classifier import ImageClassifier
from lidc_cdam.explain import EXPLAINERS
from lidc_cdam.explain.image_stage import explain_images
from lidc_cdam.files import read_json
from lidc_cdam.images import Classes, Input, image_map_path, read_image
from lidc_cdam.metrics.image_stage import Perturbation, evaluate_images
from lidc_cdam.metrics.image_summary import SHOWN as METRICS
from lidc_cdam.metrics.text_tables import cell
from reports.overlays import INK, font, map_panel, shown_panel

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


SHOWN = ("cdam", "integrated_cdam", "smooth_cdam", "attention", "rollout", "relevance_propagation", "gradcam")
SHOWN_PIXELS = ("input_gradient", "integrated_gradients", "smoothgrad")
EXAMPLES, CELL, EDGE, LINE, LABEL = 3, 84, 8, 34, 22
"""Images in the picture; pixels: side of a cell, between cells, of a line of words, of a digit beside its row."""


def draw_maps(out: Path, images: Path, methods: Sequence[str], target: Path) -> None:
    """Each method's maps of both digits, for the first images; one scale for all images of a method, printed below."""
    table = pd.read_csv(images / "classes.csv", dtype=str).head(EXAMPLES)
    limits = {method: map_limit(out, method) for method in methods}
    width = EDGE + LABEL + (len(methods) + 1) * (CELL + EDGE)
    made = Image.new("RGB", (width, 2 * LINE + len(table) * 2 * (CELL + EDGE) - EDGE), "white")
    draw = ImageDraw.Draw(made)
    for column, method in enumerate(methods, 1):
        left = EDGE + LABEL + column * (CELL + EDGE)
        words = method.replace("_", "\n", 1) if len(method) > 9 else method
        draw.multiline_text((left, 4), words, INK, font(11, bold=True), spacing=1)
        draw.text((left, made.height - LINE + 10), f"±{limits[method]:.2g}", INK, font(11))
    draw.text((EDGE, made.height - LINE + 10), "full colour at", INK, font(11))
    for row, pair in enumerate(table.itertuples(index=False)):
        image, *classes = pair
        shown = np.asarray(read_image(images / image))
        for line, key in enumerate(sorted(classes, key=list(image[4:6]).index)):
            upper = LINE + (2 * row + line) * (CELL + EDGE)
            if line == 0:
                made.paste(shown_panel(shown).resize((CELL, CELL)), (EDGE, upper + (CELL + EDGE) // 2))
            draw.text((EDGE + CELL + LABEL, upper + CELL // 2), key, INK, font(15, bold=True), anchor="rm")
            for column, method in enumerate(methods, 1):
                maps = read_maps(image_map_path(out, method, image))
                panel = map_panel(shown, maps.scores[maps.targets.index(key), 0, 0], limits[method])
                made.paste(panel.resize((CELL, CELL)), (EDGE + LABEL + column * (CELL + EDGE), upper))
    made.save(target)


def map_limit(out: Path, method: str) -> float:
    """Score of the full colour: the 99th percentile over a method's maps."""
    scores = [np.abs(read_maps(path).scores).ravel() for path in sorted((out / "maps" / method).glob("*.npz"))]
    return float(np.percentile(np.concatenate(scores), 99)) or 1.0


def table_of(summary: dict[str, Any]) -> pd.DataFrame:
    """Methods as rows, metrics with their intervals as columns."""
    rows = [
        {"method": method} | {title: cell(figures.get(metric), form) for metric, (title, form) in METRICS.items()}
        for method, figures in summary["methods"].items()
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Make the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("digits_out"))
    parser.add_argument("--images", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    BACKBONES[NAME] = ROW
    images, model, maps = (chosen.out / name for name in ("images", "model", "maps"))
    classes = write_images(images, chosen.images)
    if not (model / "model.json").exists():
        train_classifier().save(model)
    for method in EXPLAINERS:
        explain_images(images, str(model), maps, method, classes=classes, pictures=False)
    measured = chosen.out / "evaluation"
    evaluate_images(images, str(model), measured, Perturbation(), list(EXPLAINERS), classes)
    table = table_of(read_json(measured / "images_explainers.json"))
    table.to_csv(chosen.out / "digits.csv", index=False)
    draw_maps(maps, images, (*SHOWN, *SHOWN_PIXELS), chosen.out / "digits.png")
    print(f"| {' | '.join(table.columns)} |\n|{'---|' * len(table.columns)}")
    for row in table.itertuples(index=False):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
