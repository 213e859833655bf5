"""Learning-rate schedules and optimisers: tables of pure functions."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from training.settings import TrainingSettings

WARM_UP = 0.1
"""Share of all steps over which the cosine schedule rises."""
FINAL = 1e-3
"""Lowest rate of every schedule as a share of the highest (base = max / 1000 in the authors' code)."""


def cosine(step: int, steps: int, cycles: int) -> float:
    """Linear rise over the first tenth, then half a cosine down to `FINAL`.

    Args:
        step: optimiser steps done, from 0.
        steps: all steps of the training.
        cycles: not used.

    Returns:
        The rate as a share of the highest.
    """
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def cyclic_triangular2(step: int, steps: int, cycles: int) -> float:
    """As torch's `CyclicLR(mode="triangular2")`: each of `cycles` triangles half as high as the one before."""
    half = steps / (2 * cycles)
    cycle = math.floor(1 + step / (2 * half))
    height = max(0.0, 1 - abs(step / half - 2 * cycle + 1))
    return FINAL + (1 - FINAL) * height / 2.0 ** (cycle - 1)


def exponential(step: int, steps: int, cycles: int) -> float:
    """Exponential decay from 1 to `FINAL`; the paper's main text has this kind of decay, its end is chosen here."""
    return float(FINAL ** (step / steps))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "cosine": cosine,
    "cyclic_triangular2": cyclic_triangular2,
    "exponential": exponential,
}
OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimiser(
    parameters: Iterable[nn.Parameter], settings: TrainingSettings, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimiser of the trainable parameters and its schedule over `steps` optimiser steps."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        # Decay of biases, norms' gains and the like pulls them to a value that means nothing.
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = OPTIMISERS[settings.optimiser]([group for group in groups if group["params"]], lr=settings.max_lr)  # type: ignore[call-arg]
    schedule, cycles = SCHEDULES[settings.schedule], settings.cycles
    return optimiser, LambdaLR(optimiser, lambda step: schedule(step, steps, cycles))
