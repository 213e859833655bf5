"""What the metrics of maps cost beside bare forward passes, and beside pixel flipping in Quantus.

    python benchmarks/evaluate.py                             # the paper's input: minutes on a CPU
    python benchmarks/evaluate.py --image-size 96 --steps 4   # the same ratios, quicker

Quantus is GPL and no dependency: it is compared where it is found, and left out with a sentence where it is not.

    pip install --no-deps --target /tmp/quantus "quantus==0.6.*"
    PYTHONPATH=/tmp/quantus python benchmarks/evaluate.py     # install what it says is missing the same way

Time is the processor's, of one thread, which other work on the machine disturbs little. Of one nodule's image, eight
outputs and one map per output:

* share: of the full metric set's time (localisation, compactness, fidelity, box sensitivity), what the model's own
  forward passes take. Bar: 85 %.
* one target: Quantus' PixelFlipping, once by falling and once by rising scores, over our two curves. Bar: 2.5.
* matrix: the same for every output under every map, 64 pairs, each of which is a call of Quantus of the same cost; the
  time of one call is measured and taken 64 times. Bar: 16.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidc_cdam.backbones import build_backbone
from lidc_cdam.explain import explain
from lidc_cdam.metrics.boxes import box_drops
from lidc_cdam.metrics.faithfulness import curves
from lidc_cdam.metrics.measures import (
    Case,
    Map,
    Outlines,
    measure_boxes,
    measure_compactness,
    measure_fidelity,
    measure_localisation,
)
from lidc_cdam.metrics.settings import Measurement
from lidc_cdam.model import NoduleModel
from lidc_cdam.vocabulary import BIOMARKERS

SHARE_BAR, ONE_BAR, MATRIX_BAR = 0.85, 2.5, 16
Job = Callable[[], object]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--backbone", default="dino_vits8")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build_backbone(chosen.backbone, image_size=chosen.image_size)
    model = NoduleModel(backbone, [biomarker.key for biomarker in BIOMARKERS]).eval()
    image = torch.randn(1, 3, chosen.image_size, chosen.image_size)
    scores = explain(model, image, method="cdam")
    print(f"{chosen.backbone}, {chosen.image_size} px, {chosen.steps} steps, torch {torch.__version__}, one thread")
    share(model, image, scores, chosen)
    beside_quantus(model, image, scores, chosen)


def share(model: NoduleModel, image: Tensor, scores: Tensor, chosen: argparse.Namespace) -> None:
    """How much of the full metric set is spent in the model."""
    spent = [0.0]
    plain = model.forward

    def timed(images: Tensor) -> Tensor:
        began = time.process_time()
        outputs = plain(images)
        spent[0] += time.process_time() - began
        return outputs

    model.forward = timed  # type: ignore[method-assign]
    try:
        took = clock(lambda: full_set(model, image, scores, chosen))
    finally:
        del model.forward
    found = spent[0] / took
    print(f"full metric set: {took:.1f} s, of which {found:.1%} in the model (bar {SHARE_BAR:.0%})")


def full_set(model: NoduleModel, image: Tensor, scores: Tensor, chosen: argparse.Namespace) -> None:
    """Every family that needs no other model, of one method."""
    marks = torch.zeros(1, *image.shape[-2:], dtype=torch.bool)
    marks[:, 30:60, 30:60] = True
    outlines = Outlines(marks, marks.double(), torch.ones_like(marks))

    def drops() -> Any:
        return box_drops(model, image, boxes=chosen.boxes, batch_size=chosen.batch_size)

    case = Case(model, image, outlines, Measurement(steps=chosen.steps), drops, lambda: model, chosen.batch_size)
    given = Map("cdam", scores.movedim(0, 1), True, {}, lambda other: scores, list, {})
    for measure in (measure_localisation, measure_compactness, measure_fidelity, measure_boxes):
        measure(case, given)


def beside_quantus(model: NoduleModel, image: Tensor, scores: Tensor, chosen: argparse.Namespace) -> None:
    """The same pixel flipping by both."""

    def ours(maps: Tensor) -> Job:
        return lambda: curves(model, image, maps, chosen.steps, "mean", batch_size=chosen.batch_size)

    repeated = image.expand(2 * chosen.steps, -1, -1, -1)

    def forwards() -> None:
        with torch.no_grad():
            for part in torch.split(repeated, chosen.batch_size):
                model(part)

    one, all_maps, bare = clock(ours(scores[:, :1])), clock(ours(scores)), clock(forwards)
    calls = 2 * chosen.steps
    print(f"one target, both curves: {one:.2f} s ({one / bare:.2f} of {calls} bare forwards); 8 x 8: {all_maps:.2f} s")
    try:
        quantus = quantus_call(model, image, scores, chosen.steps)
    except ImportError as error:
        print(f"Quantus is left out: {error}. See the head of this file for how to get it.")
        return
    theirs = clock(lambda: quantus(1)) + clock(lambda: quantus(-1))
    print(f"Quantus, one target, both curves: {theirs:.2f} s ({theirs / bare:.2f} of the bare forwards)")
    print(f"one target: {theirs / one:.2f} times faster (bar {ONE_BAR})")
    print(f"8 x 8 matrix: {64 * theirs / all_maps:.1f} times faster (bar {MATRIX_BAR})")


def quantus_call(model: NoduleModel, image: Tensor, scores: Tensor, steps: int) -> Callable[[int], object]:
    """Pixel flipping of the first target by falling (1) or rising (-1) scores.

    Raises:
        ImportError: Quantus, or what it needs, is missing.
    """
    import quantus

    side = image.shape[-1]
    pixels = torch.nn.functional.interpolate(scores[:, :1], (side, side), mode="nearest-exact").numpy()
    metric = quantus.PixelFlipping(
        features_in_step=side * side // steps,
        perturb_baseline="mean",
        disable_warnings=True,
        display_progressbar=False,
        normalise=False,
        abs=False,
    )
    targets = np.zeros(1, dtype=np.int64)
    return lambda sign: metric(model, image.numpy(), targets, sign * pixels, device="cpu", softmax=False)


def clock(job: Job) -> float:
    """Processor time of a job, seconds."""
    began = time.process_time()
    job()
    return time.process_time() - began


if __name__ == "__main__":
    main()
