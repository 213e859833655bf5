"""What an image shows a model of a nodule's cube: one slice or neighbouring ones, with or without the readers' mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int16

from lidc_cdam.artifacts import COHORT, DATASET, read_cohort, read_dataset
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import take_stack, take_view
from lidc_cdam.intensity import read_cube

Source = Int16[np.ndarray, "kind slice row column"]
"""A nodule's cube as images are taken from it: HU, and the consensus mask (0 or 1) where it is shown."""


@lru_cache(maxsize=2)
def _outlined(data: Path, changed: tuple[int, ...]) -> tuple[pd.Series, float]:
    """Number of readers of each nodule, and the consensus' level; kept, because a stage asks once per nodule."""
    return read_cohort(data)["readers"], read_dataset(data).consensus_level


def consensus_of(data: Path, nodule_id: str) -> Bool[np.ndarray, "slice row column"]:
    """The voxels of a nodule's cube that enough of its readers marked.

    Raises:
        LidcCdamError: a file is missing or damaged, or the nodule is not in the folder's cohort.
    """
    paths = (data / COHORT, data / DATASET)
    readers, level = _outlined(data, tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths))
    if nodule_id not in readers.index:
        raise LidcCdamError(
            f"{nodule_id} must be in the cohort of {data}, but it is not; "
            f"make {data} as it was when the run was trained."
        )
    return read_crop(data, nodule_id).consensus(int(readers[nodule_id]), level)


@dataclass(frozen=True)
class Channels:
    """The channels of a model's input."""

    stack: str = "slice"
    """`slice`: three equal channels; `adjacent`: the slice and its neighbours on either side."""
    step: int = 3
    """Slices between neighbouring channels of `adjacent`."""
    mask: bool = False
    """Whether a fourth channel shows the consensus of the readers, who must then have outlined the nodule."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Channels":
        """Those of a run's `config.yaml`; runs of earlier versions show a slice alone."""
        return cls(
            config.get("stack", "slice"), int(config.get("stack_step", 3)), bool(config.get("mask_channel", False))
        )

    @property
    def slices(self) -> int:
        """Different slices in an image."""
        return 3 if self.stack == "adjacent" else 1

    @property
    def count(self) -> int:
        """Channels of the model's input."""
        return 3 + self.mask

    def read(self, data: Path, nodule_id: str, side: int) -> Source:
        """A nodule's source.

        Args:
            data: folder of crops.
            nodule_id: which.
            side: voxels along each axis, as the folder's `dataset.json` says.

        Raises:
            LidcCdamError: the crop is missing or damaged, or has another side.
        """
        kinds = [read_cube(data, nodule_id, side)]
        if self.mask:
            kinds.append(consensus_of(data, nodule_id).astype(np.int16))
        return np.stack(kinds)

    def image(self, source: Source, view: str, index: int) -> Int16[np.ndarray, "plane row column"]:
        """The planes of one image: its different slices, HU, then the mask (0 or 1) of the middle one.

        Args:
            source: a nodule's.
            view: a key of `geometry.VIEWS`.
            index: slice index along the view's axis.
        """
        planes = take_stack(source[0], view, index, self.slices, self.step)
        return np.concatenate([planes, take_view(source[1], view, index)[None]]) if self.mask else planes


SLICE = Channels()
"""One slice, three times."""
