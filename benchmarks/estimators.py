"""What every estimator costs, in plain forward passes, and what its maps look like.

    python benchmarks/estimators.py cost [--backbone dino_vits8] [--targets 8] [--rounds 1]
    python benchmarks/estimators.py picture --run RUN --data DATA --nodule ID [--fold 0] [--pair spiculation,diameter]

`cost` writes docs/estimators.csv: processor time of one thread for one image at the backbone's size and all targets in
one call, by that of a plain `torch.inference_mode` forward pass timed right before and after it (median over rounds).
The methods that run n = 50 copies of the whole model are timed with n = 2 and the copies' time is multiplied: their
cost is a multiple of n by construction. With --targets 1 the cost per target shows.

`picture` writes docs/estimators.png: the maps of two targets by every estimator on the central axial slice of one
nodule, each on its own grid and on a scale of its own, the same for both targets, with zero transparent.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lidc_cdam.artifacts import fold_folder, read_dataset
from lidc_cdam.backbones import build_backbone
from lidc_cdam.channels import Channels
from lidc_cdam.explain import EXPLAINERS, explain
from lidc_cdam.intensity import STATISTICS, Statistics
from lidc_cdam.model import NoduleModel
from lidc_cdam.runs import read_config
from lidc_cdam.vocabulary import BIOMARKERS
from reports.figures import DIMMED, LUNG, colourise

DOCS = Path(__file__).parents[1] / "docs"
COPIES = 50
TIMED = 2
LEGEND = (
    "orange: above zero\nblue: below zero\nclear: zero\n\n\N{PLUS-MINUS SIGN} full colour,\none scale for\nboth targets"
)
WHOLE_MODEL = ("smoothgrad", "integrated_gradients")
"""Methods that run copies of the image through the whole model."""


def world(name: str, targets: int) -> tuple[NoduleModel, Tensor]:
    """A random model with this many outputs, and one image."""
    torch.manual_seed(0)
    model = NoduleModel(build_backbone(name), [biomarker.key for biomarker in BIOMARKERS])
    model.targets = tuple(f"output {index}" for index in range(targets))
    model.head = nn.Linear(model.backbone.num_features, targets)
    return model.eval(), torch.randn(1, 3, *model.image_size)


def seconds(job: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    job()
    return time.process_time() - start


def forwards(model: NoduleModel, images: Tensor, method: str) -> float:
    """Time of a method's call in forward passes."""

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    options = {"n": TIMED} if method in WHOLE_MODEL else {}
    before = seconds(forward)
    taken = seconds(lambda: explain(model, images, method=method, resolution="native", **options))
    ratio = 2 * taken / (before + seconds(forward))
    return ratio * COPIES / TIMED if method in WHOLE_MODEL else ratio


def cost(backbone: str, targets: int, rounds: int) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    for method in EXPLAINERS:  # what a method loads once is not what an image costs
        explain(*world("tiny", 1), method=method)
    model, images = world(backbone, targets)
    rows = []
    for method in EXPLAINERS:
        ratio = statistics.median(forwards(model, images, method) for _ in range(rounds))
        rows.append((backbone, targets, method, f"{ratio:.3g}"))
        print(*rows[-1], flush=True)
    with (DOCS / "estimators.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("backbone", "targets", "method", "forwards"), *rows])


def picture(run: Path, data: Path, nodule: str, fold: int, pair: list[str]) -> None:
    """Draw the maps of two targets by every estimator."""
    import matplotlib.pyplot as plt

    model, fitted = NoduleModel.load(fold_folder(run, fold)), Statistics.read(fold_folder(run, fold) / STATISTICS)
    channels, grid = Channels.of(read_config(run)), read_dataset(data).grid
    planes = channels.image(channels.read(data, nodule, grid.side), "axial", grid.central)
    image = fitted.intensity.apply(torch.from_numpy(planes).float()[None], model.image_size)
    slice_hu = planes[len(planes) // 2] if planes.ndim == 3 else planes
    figure, axes = plt.subplots(4, 8, figsize=(12, 7.6), layout="constrained")
    cells = axes.reshape(-1, 2)
    show(cells[0][0], slice_hu, None, 0)
    cells[0][0].set_title("The slice", fontsize=9, loc="left")
    cells[0][1].axis("off")
    cells[0][1].text(0, 0.5, LEGEND, fontsize=8, va="center", linespacing=1.6)
    for cell, (method, explainer) in zip(cells[1:], EXPLAINERS.items(), strict=True):
        options = {"baseline": fitted.intensity.black} if "baseline" in explainer.options else {}
        maps = explain(model, image, pair, method, "native", **options)[0].numpy()
        limit = float(abs(maps).max())
        for axis, target, scores in zip(cell, pair, maps, strict=True):
            show(axis, slice_hu, scores, limit)
            axis.set_xlabel(target, fontsize=7, labelpad=2)
        cell[0].set_title(explainer.title, fontsize=9, loc="left")
        cell[1].set_title(f"\N{PLUS-MINUS SIGN}{limit:.2g}", fontsize=8, loc="right")
    figure.savefig(DOCS / "estimators.png", dpi=110)


def show(axis: Any, slice_hu: np.ndarray, scores: np.ndarray | None, limit: float) -> None:
    """A slice, and scores over it: orange above zero, blue below."""
    low, high = LUNG.range_hu
    extent = (0, 1, 1, 0)
    axis.imshow(slice_hu, cmap="gray", vmin=low, vmax=high, extent=extent)
    if scores is not None:
        axis.imshow(np.zeros_like(slice_hu, float), cmap="gray", vmin=0, alpha=DIMMED, extent=extent)
        axis.imshow(colourise(scores, limit), interpolation="nearest", extent=extent)
    axis.set(xticks=[], yticks=[])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "picture"])
    parser.add_argument("--backbone", default="dino_vits8")
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nodule")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--pair", default="spiculation,diameter")
    options = parser.parse_args()
    if options.what == "cost":
        cost(options.backbone, options.targets, options.rounds)
    else:
        picture(options.run, options.data, options.nodule, options.fold, options.pair.split(","))


if __name__ == "__main__":
    main()
