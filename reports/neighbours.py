"""Nodules like this one: the nearest in the model's latent space among those that the model was trained on."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Latents
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import central_index, take_view
from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports import figures
from reports.context import SAFE_NAME, Case, Run, title_of
from reports.words import plain, with_word

SHOWN = 4
"""How many of the nearest nodules a report shows."""
PIXELS = 96


@dataclass(frozen=True)
class Neighbour:
    """One training nodule."""

    nodule_id: str
    similarity: float
    """Cosine of the angle between the two latents, -1 to 1."""


def nearest(latents: Latents, nodule_id: str, count: int = SHOWN) -> tuple[list[Neighbour], float]:
    """The most similar training nodules, and the median similarity of all of them.

    Args:
        latents: of the fold that tests the nodule.
        nodule_id: the nodule.
        count: how many.

    Raises:
        LidcCdamError: the latents lack the nodule or any training nodule.
    """
    train = [place for place, role in enumerate(latents.roles) if role == "train"]
    if nodule_id not in latents.nodule_ids or not train:
        raise LidcCdamError(f"latents.npz must hold {nodule_id} and training nodules; run `lidc-cdam crossval` again.")
    own = _unit(latents.vectors[latents.nodule_ids.index(nodule_id)][None])[0]
    similarity = _unit(latents.vectors[train]) @ own
    order = np.argsort(-similarity, kind="stable")[:count]
    found = [Neighbour(latents.nodule_ids[train[int(place)]], float(similarity[place])) for place in order]
    return found, float(np.median(similarity))


def _unit(vectors: Float32[np.ndarray, "nodule latent"]) -> Float32[np.ndarray, "nodule latent"]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(length > 0, length, 1)
    return unit


def similar_section(run: Run, case: Case) -> dict[str, Any]:
    """The nearest training nodules with what their readers said, or the sentence that says what is missing.

    Args:
        run: the run.
        case: the nodule in it.
    """
    section: dict[str, Any] = {"title": title_of(run), "nodules": [], "own": [], "note": "", "missing": ""}
    if case.fold not in run.latents_sha256:
        section["missing"] = (
            f"Not known: fold_{case.fold}/{artifacts.LATENTS} is missing. The command that made the run "
            f"(`lidc-cdam crossval ...`), called again, adds it without training."
        )
        return section
    path = artifacts.fold_folder(run.folder, case.fold) / artifacts.LATENTS
    try:
        latents = _latents(path, run.latents_sha256[case.fold])
        found, median = nearest(latents, case.nodule_id)
    except LidcCdamError as error:
        section["missing"] = f"Not known: {str(error).replace(str(run.folder), 'RUN')}"
        return section
    cohort = _cohort(run.data, (run.data / artifacts.COHORT).stat().st_mtime_ns)
    section["nodules"] = [_shown(run, cohort, one, case) for one in found]
    section["own"] = _ratings(cohort, case.nodule_id)
    section["note"] = (
        f"Of the {latents.roles.count('train')} nodules that this model (fold {case.fold}) was trained on, those whose "
        f"latents point in nearly the same direction (cosine; the median over all of them is {median:.3f}). What the "
        f"model takes for alike need not look alike to a reader."
    )
    return section


@lru_cache(maxsize=2)
def _latents(path: Path, digest: str) -> Latents:
    """A fold's latents, read once per process while the file stays the same."""
    return artifacts.read_latents(path)


@lru_cache(maxsize=2)
def _cohort(data: Path, changed: int) -> pd.DataFrame:
    return artifacts.read_cohort(data)


def _shown(run: Run, cohort: pd.DataFrame, one: Neighbour, case: Case) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "nodule_id": one.nodule_id,
        "similarity": f"{one.similarity:.3f}",
        "ratings": _ratings(cohort, one.nodule_id),
        "svg": "",
        "alt": f"Axial CT of {one.nodule_id}, lung window.",
        "same_patient": False,
    }
    if one.nodule_id in cohort.index:
        row: dict[Hashable, Any] = cohort.loc[one.nodule_id].to_dict()
        shown["same_patient"] = bool(row["patient_id"] == case.patient_id)
        shown["svg"] = _picture(run, one.nodule_id, int(row["readers"]))
    return shown


def _ratings(cohort: pd.DataFrame, nodule_id: str) -> list[tuple[str, str]]:
    """What a nodule's readers said, target by target; nothing for a nodule that the cohort lacks."""
    if nodule_id not in cohort.index:
        return []
    row: dict[Hashable, Any] = cohort.loc[nodule_id].to_dict()
    return [
        (target.title, plain(with_word(target, float(row[target.key]), median=target is MALIGNANCY)))
        for target in TARGETS.values()
    ]


def _picture(run: Run, nodule_id: str, readers: int) -> str:
    """The axial CT with the consensus; empty where the crop cannot be read, which its own report tells."""
    if not SAFE_NAME.fullmatch(nodule_id):
        return ""
    try:
        crop = crop_files.read_crop(run.data, nodule_id)
    except LidcCdamError:
        return ""
    depth, side_mm = central_index(len(crop.hu)), float(len(crop.hu) * crop.spacing_mm)
    consensus = take_view(crop.consensus(readers, run.consensus_level), "axial", depth)
    image = figures.ct_image(take_view(crop.hu, "axial", depth), figures.LUNG, side_mm, PIXELS)
    return figures.outlined_picture(image, consensus, side_mm)
