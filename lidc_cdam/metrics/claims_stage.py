"""`evaluate --claims`: what the paper says of biomarker maps, measured on a run's stored maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float

from lidc_cdam.artifacts import (
    EXPLAINER_COLUMNS,
    PREDICTIONS,
    SCHEMA,
    fold_folder,
    maps_path,
    read_cohort,
    read_dataset,
    read_maps,
    read_predictions,
    write_table,
)
from lidc_cdam.cause_files import causes_path, read_causes
from lidc_cdam.crop_files import distance_path, read_crop, read_distance
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import write_json
from lidc_cdam.geometry import central_index
from lidc_cdam.intensity import was_read
from lidc_cdam.metrics.cause_pictures import draw_claims
from lidc_cdam.metrics.causes import map_correlation
from lidc_cdam.metrics.claims import curved_and_flat, levels, mean_curvature, profile, regions, signed_distance
from lidc_cdam.metrics.claims_table import lines_of_claims, summarise
from lidc_cdam.metrics.intervals import known_mean
from lidc_cdam.metrics.measures import central_views
from lidc_cdam.progress import say, track
from lidc_cdam.runs import fold_numbers, read_config

CLAIMS, COMPARISON = "claims.csv", "claims.json"
FINE = 4
"""Pixels along a voxel of the grid on which maps and regions meet."""
Row = dict[str, str | int | float]


@dataclass(frozen=True, eq=False)
class Ground:
    """One nodule's regions at the central slice of each view, on the fine grid."""

    distance_mm: Float[np.ndarray, "view height width"]
    places: tuple[Mapping[str, Bool[np.ndarray, "height width"]], ...]
    """By view and name."""
    read: Bool[np.ndarray, "view height width"]


def evaluate_claims(run: Path, methods: Sequence[str], replicates: int, seed: int) -> None:
    """Measure where a run's stored maps are positive and negative, and whether the paper's claims hold.

    Writes RUN/claims.csv, one row per nodule, method, target and figure, RUN/claims.json with 95 % intervals over
    patients, and RUN/figures/claims.png and .svg; prints the claims.

    Args:
        run: folder of a run whose maps by `methods` are made.
        methods: estimators.
        replicates: bootstrap replicates of each interval.
        seed: of the bootstrap.

    Raises:
        LidcCdamError: a nodule's maps or crop are missing, or none has a surface.
    """
    config = read_config(run)
    data = Path(config["data"])
    views = tuple(str(view) for view in config["views"])
    cohort, level = read_cohort(data), read_dataset(data).consensus_level
    tested = [
        (fold, str(nodule_id), str(patient))
        for fold in fold_numbers(run, PREDICTIONS)
        for nodule_id, patient in _patients(run, fold).items()
    ]
    rows: list[Row] = []
    profiles: list[tuple[str, str, str, np.ndarray]] = []
    for fold, nodule_id, patient in track(tested, "Measuring the claims"):
        ground = ground_of(data, nodule_id, int(cohort["readers"][nodule_id]), level, views)
        for method in methods:
            path = maps_path(run, fold, method, nodule_id)
            maps = read_maps(path)
            central = central_index(ground.read.shape[-1] // FINE)
            if maps.views != views or central not in maps.slices:
                raise LidcCdamError(
                    f"{path} must hold maps of {', '.join(views)} at slice {central}; delete it and run `lidc-cdam "
                    f"explain --run {run} --method {method}` again."
                )
            scores = maps.scores[:, :, maps.slices.index(central)].astype(np.float64)
            identity: Row = {"nodule_id": nodule_id, "patient_id": patient, "fold": fold, "method": method}
            figures, curve = measure(scores, ground)
            for index, target in enumerate(maps.targets):
                rows += [
                    {**identity, "target": target, "metric": name, "value": float(v[index])}
                    for name, v in figures.items()
                ]
                profiles.append((nodule_id, method, target, curve[index]))
            for one, other in combinations(range(len(maps.targets)), 2):
                value = map_correlation(scores[one], scores[other])
                name = f"correlation_{maps.targets[other]}"
                rows.append({**identity, "target": maps.targets[one], "metric": name, "value": value})
    table = pd.DataFrame(rows)
    write_table(run / CLAIMS, table, EXPLAINER_COLUMNS)
    found: dict[str, Any] = summarise(table, profiles, cohort, replicates, seed)
    write_json(run / COMPARISON, {"schema": SCHEMA, **found})
    draw_claims(found, run / "figures" / "claims")
    for line in lines_of_claims(found):
        say(line)
    say(f"Measured the claims on {len(tested)} nodules; see {run / CLAIMS} and {run / COMPARISON}.")


def _patients(run: Path, fold: int) -> dict[str, str]:
    table = read_predictions(fold_folder(run, fold) / PREDICTIONS)
    return dict(zip(table["nodule_id"], table["patient_id"], strict=True))


def ground_of(data: Path, nodule_id: str, readers: int, level: float, views: Sequence[str]) -> Ground:
    """A nodule's regions; those of its spicules too where it is a phantom with known causes.

    Args:
        data: folder of crops.
        nodule_id: which.
        readers: how many marked it.
        level: share of them that a voxel of the consensus needs.
        views: keys of `geometry.VIEWS`.
    """
    crop = read_crop(data, nodule_id)
    if distance_path(data, nodule_id).exists():
        distance = read_distance(data, nodule_id)
    else:
        distance = signed_distance(crop.consensus(readers, level), crop.spacing_mm)
    curvature = mean_curvature(distance, crop.spacing_mm)
    away, bent = (_fine(central_views(cube, views), "bilinear") for cube in (distance, curvature))
    read = _fine(central_views(was_read(crop.hu), views), "nearest-exact") > 0.5
    places: list[dict[str, Bool[np.ndarray, "height width"]]] = [
        {**regions(far), **curved_and_flat(far, curve)} for far, curve in zip(away, bent, strict=True)
    ]
    if causes_path(data, nodule_id).exists():
        spicules = _fine(central_views(read_causes(data, nodule_id)["spiculation"], views), "nearest-exact") > 0.5
        places = [{**place, "spicules": mask} for place, mask in zip(places, spicules, strict=True)]
    return Ground(away, tuple(places), read)


def measure(
    scores: Float[np.ndarray, "target view row column"], ground: Ground
) -> tuple[dict[str, Float[np.ndarray, " target"]], Float[np.ndarray, "target bin"]]:
    """Levels and shares of one nodule's maps, and their profiles; means over the views that have an answer."""
    found: dict[str, list[np.ndarray]] = {}
    curves = []
    for view, places in enumerate(ground.places):
        pixels = _fine(scores[:, view], "nearest-exact", ground.read.shape[-2:])
        for name, values in levels(pixels, places, ground.read[view]).items():
            found.setdefault(name, []).append(values)
        curves.append(profile(pixels, ground.distance_mm[view], ground.read[view]))
    return {name: known_mean(np.stack(values), axis=0) for name, values in found.items()}, known_mean(
        np.stack(curves), axis=0
    )


def _fine(images: np.ndarray, mode: str, size: tuple[int, ...] | None = None) -> Float[np.ndarray, "image h w"]:
    """Images on the fine grid of a crop."""
    given = torch.from_numpy(np.ascontiguousarray(images)).double()[None]
    wanted = size or tuple(FINE * side for side in images.shape[-2:])
    smooth = {"align_corners": False} if mode == "bilinear" else {}
    found: np.ndarray = F.interpolate(given, wanted, mode=mode, **smooth)[0].numpy()
    return found
