"""The signed scales of a run's maps: one limit per model (a fold's) and target over all of its nodules."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Maps
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import VIEWS
from lidc_cdam.map_files import random_maps_path, read_random_maps
from lidc_cdam.progress import track
from lidc_cdam.vocabulary import TARGETS

SCALE_PERCENTILE = 99.0
"""The limit of a signed scale: this percentile of |score| over one target's maps by one model, which is one fold's.

Models of different folds, and targets of one model, can differ tenfold in the size of their scores, so one limit for
all would blank some.
"""

Limits = dict[int, dict[str, float]]
"""Limit of the signed scale by fold and target; a fold without maps has none."""


@dataclass(frozen=True)
class Scales:
    """What one method's maps of a run share."""

    limits: Limits = field(default_factory=dict)
    mapped: dict[int, int] = field(default_factory=dict)
    """Nodules that have maps, by fold."""


def read_scales(run: Path, method: str, rows: Sequence[tuple[int, str]]) -> Scales:
    """Read every map of a method and find the limits.

    Args:
        run: the run's folder.
        method: whose maps.
        rows: fold and nodule of each prediction.
    """
    paths = [(fold, artifacts.maps_path(run, fold, method, nodule)) for fold, nodule in rows]
    return _scales(paths, read_maps, f"{method} maps")


def read_random_scales(run: Path, method: str, rows: Sequence[tuple[int, str]]) -> Scales:
    """Likewise of the maps by the same models with random weights, which `evaluate` keeps.

    A model with random weights is another model, so it has limits of its own.

    Args:
        run: the run's folder.
        method: whose maps.
        rows: fold and nodule of each prediction.
    """
    paths = [(fold, random_maps_path(run, fold, method, nodule)) for fold, nodule in rows]
    return _scales(paths, read_checked_random_maps, f"{method} maps of random weights")


def _scales(paths: Sequence[tuple[int, Path]], read: Callable[[Path], Maps], what: str) -> Scales:
    scores: dict[int, dict[str, list[Float32[np.ndarray, " score"]]]] = {}
    mapped: dict[int, int] = {}
    for fold, path in track([(fold, path) for fold, path in paths if path.exists()], f"Reading {what}"):
        # A damaged file decides no scale; the report of its own nodule tells of it.
        with suppress(LidcCdamError):
            maps = read(path)
            mapped[fold] = mapped.get(fold, 0) + 1
            for key, own in zip(maps.targets, maps.scores, strict=True):
                scores.setdefault(fold, {}).setdefault(key, []).append(np.abs(own).ravel())
    limits = {
        fold: {key: _limit(np.concatenate(own)) for key, own in of_fold.items()}
        for fold, of_fold in sorted(scores.items())
    }
    return Scales(limits, mapped)


def methods_with_maps(run: Path, folds: Sequence[int]) -> list[str]:
    """Keys of the estimators whose maps a run holds, in alphabetical order."""
    folders = (artifacts.fold_folder(run, fold) / "maps" for fold in folds)
    return sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()})


def read_maps(path: Path) -> Maps:
    """Maps whose scores are all finite and whose targets and views are known.

    Raises:
        LidcCdamError: the file is damaged or breaks the contract.
    """
    return _checked(artifacts.read_maps(path), path, "explain")


def read_checked_random_maps(path: Path) -> Maps:
    """Likewise, those by a model with random weights (`map_files.random_maps_path`)."""
    return _checked(read_random_maps(path), path, "evaluate")


def _checked(maps: Maps, path: Path, command: str) -> Maps:
    expected = (len(maps.targets), len(maps.views), len(maps.slices))
    known = set(maps.targets) <= set(TARGETS) and set(maps.views) <= set(VIEWS)
    if maps.scores.ndim != 5 or maps.scores.shape[:3] != expected or not known or not np.isfinite(maps.scores).all():
        raise LidcCdamError(
            f"{path} must hold finite scores [target, view, slice, row, column] that fit its names, but it does not; "
            f"delete it and run `lidc-cdam {command}` again."
        )
    return maps


def plain_limits(limits: Limits) -> Mapping[str, Mapping[str, float]]:
    """Limits as JSON keeps them."""
    return {str(fold): dict(of_fold) for fold, of_fold in limits.items()}


def rows_of(predictions: pd.DataFrame) -> list[tuple[int, str]]:
    """Fold and nodule of each row of a table of predictions."""
    return [(int(fold), nodule) for fold, nodule in zip(predictions["fold"], predictions["nodule_id"], strict=True)]


def _limit(scores: Float32[np.ndarray, " score"]) -> float:
    limit = float(np.percentile(scores, SCALE_PERCENTILE))
    # Two significant digits, upwards: a printed limit is the limit itself.
    return _round_up(limit) if limit > 0 else 1.0


def _round_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.6g}")
