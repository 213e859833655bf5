"""Learning-rate schedules and optimisers: tables of pure functions."""

import math
import re
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lidc_cdam.model import NoduleModel
from training.settings import TrainingSettings

FINAL = 1e-3
"""Lowest rate of every schedule as a share of the highest (base = max / 1000 in the authors' code)."""


def warm_cosine(step: int, steps: int, warm_up: float) -> float:
    """Share of the highest rate: a linear rise over `warm_up` of the steps, then half a cosine to `FINAL`."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def cosine(step: int, steps: int, settings: TrainingSettings) -> float:
    """Linear rise over the first `warm_up` of the steps, then half a cosine down to `FINAL`.

    Args:
        step: optimiser steps done, from 0.
        steps: all steps of the training.
        settings: its `warm_up`.

    Returns:
        The rate as a share of the highest.
    """
    return warm_cosine(step, steps, settings.warm_up)


def cyclic_triangular2(step: int, steps: int, settings: TrainingSettings) -> float:
    """As torch's `CyclicLR(mode="triangular2")`: each of `cycles` triangles half as high as the one before."""
    half = steps / (2 * settings.cycles)
    cycle = math.floor(1 + step / (2 * half))
    height = max(0.0, 1 - abs(step / half - 2 * cycle + 1))
    return FINAL + (1 - FINAL) * height / 2.0 ** (cycle - 1)


def exponential(step: int, steps: int, settings: TrainingSettings) -> float:
    """Exponential decay from 1 to `FINAL`; the paper's main text has this kind of decay, its end is chosen here."""
    return float(FINAL ** (step / steps))


SCHEDULES: dict[str, Callable[[int, int, TrainingSettings], float]] = {
    "cosine": cosine,
    "cyclic_triangular2": cyclic_triangular2,
    "exponential": exponential,
}
OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimiser(
    model: NoduleModel, settings: TrainingSettings, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimiser of a model's trainable parameters and its schedule over `steps` optimiser steps.

    Biases, norms' gains and the like do not decay: decay would pull them to a value that means nothing. With
    `layer_decay` d, parameters `k` blocks before the head learn at d^k of the schedule's rate (Clark et al. 2020).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_distance(name, model), parameter.ndim >= 2].append(parameter)
    decay = settings.layer_decay or 1.0
    rows = [
        {"params": members, "weight_decay": settings.weight_decay * matrix, "lr": settings.max_lr * decay**distance}
        for (distance, matrix), members in sorted(groups.items())
    ]
    optimiser = OPTIMISERS[settings.optimiser](rows, lr=settings.max_lr)  # type: ignore[call-arg]
    schedule = SCHEDULES[settings.schedule]
    return optimiser, LambdaLR(optimiser, lambda step: schedule(step, steps, settings))


def _distance(name: str, model: NoduleModel) -> int:
    """Blocks from a parameter to the head: 0 for the head and the last norm, the most for embeddings."""
    if not name.startswith("backbone.") or name.startswith(("backbone.norm.", "backbone.fc_norm.")):
        return 0
    depth = len(model.backbone.blocks)
    found = re.match(r"backbone\.blocks\.(\d+)\.", name)
    return depth - int(found.group(1)) if found else depth + 1
