"""What is known of a phantom beside its crop: where each biomarker has its cause, and crops in which one is changed.

Both lie on the crop's grid. A counterfactual is kept as what it adds to the crop's HU: 0 where nothing changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int16

from lidc_cdam.artifacts import read_arrays
from lidc_cdam.crop_files import PADDING_HU
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from lidc_cdam.map_files import crop_digest
from lidc_cdam.vocabulary import BIOMARKERS

STEP = "causes"
"""The command that writes these files."""
Mask = Bool[np.ndarray, "slice row column"]


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """Crops of one phantom in which one biomarker has other values."""

    own: float
    """The value of the phantom itself: a rating, a code of calcification, or the readers' mean diameter in mm."""
    values: Float64[np.ndarray, " change"]
    """The other values; as many as made a difference."""
    added_hu: Int16[np.ndarray, "change slice row column"]
    """What each adds to the crop."""
    crop_sha256: str
    """Digest of the crop that it is added to (`map_files.crop_digest`)."""

    def cube(self, hu: Int16[np.ndarray, "slice row column"], change: int) -> Int16[np.ndarray, "slice row column"]:
        """The crop with one change; what was not read stays so."""
        changed: np.ndarray = np.where(hu == PADDING_HU, hu, hu + self.added_hu[change]).astype(np.int16)
        return changed


def causes_path(data: Path, nodule_id: str) -> Path:
    """`DATA/causes/<nodule_id>.npz`."""
    return data / "causes" / f"{nodule_id}.npz"


def counterfactuals_path(data: Path, nodule_id: str, key: str) -> Path:
    """`DATA/counterfactuals/<nodule_id>/<key>.npz`, `key` that of a biomarker."""
    return data / "counterfactuals" / nodule_id / f"{key}.npz"


def has_causes(data: Path, nodule_id: str) -> bool:
    """Whether all of a nodule's files are there."""
    paths = [counterfactuals_path(data, nodule_id, biomarker.key) for biomarker in BIOMARKERS]
    return all(path.exists() for path in (*paths, causes_path(data, nodule_id)))


def write_causes(data: Path, nodule_id: str, masks: Mapping[str, Mask]) -> None:
    """Write a phantom's cause masks by biomarker key."""
    arrays: dict[str, Any] = dict(masks)
    with replacing(causes_path(data, nodule_id)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_causes(data: Path, nodule_id: str) -> dict[str, Mask]:
    """Read a phantom's cause masks by biomarker key, in the vocabulary's order.

    Raises:
        LidcCdamError: the file is missing or damaged.
    """
    return read_arrays(causes_path(data, nodule_id), [biomarker.key for biomarker in BIOMARKERS], STEP)


def write_counterfactuals(data: Path, nodule_id: str, key: str, found: Counterfactuals) -> None:
    """Write a phantom's crops with another value of one biomarker."""
    with replacing(counterfactuals_path(data, nodule_id, key)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            own=np.array(found.own),
            values=found.values,
            added_hu=found.added_hu,
            crop_sha256=np.array(found.crop_sha256),
        )


def read_counterfactuals(data: Path, nodule_id: str, key: str) -> Counterfactuals:
    """Read a phantom's crops with another value of one biomarker.

    Raises:
        LidcCdamError: the file is missing, damaged, or of another crop than the folder holds now.
    """
    path = counterfactuals_path(data, nodule_id, key)
    stored = read_arrays(path, ("own", "values", "added_hu", "crop_sha256"), STEP)
    digest = str(stored["crop_sha256"])
    if digest != crop_digest(data, nodule_id):
        raise LidcCdamError(
            f"{path} must belong to the crop of {nodule_id} in {data}, but that has changed; delete {data / 'causes'} "
            f"and {data / 'counterfactuals'}, then run `lidc-cdam {STEP}` again."
        )
    return Counterfactuals(float(stored["own"]), stored["values"].astype(np.float64), stored["added_hu"], digest)
