"""One nodule's arrays and rows, loaded, and the CT pictures that a document shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Maps
from lidc_cdam.crop_files import Crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import central_index, take_view
from lidc_cdam.map_files import random_maps_path
from reports import figures
from reports.context import Case, Run
from reports.scales import read_checked_random_maps, read_maps


@dataclass(frozen=True)
class Material:
    """One nodule's arrays and rows, loaded."""

    case: Case
    runs: tuple[Run, ...]
    cases: tuple[Case | None, ...]
    """The nodule's case in each run; None where a run does not have it."""
    crop: Crop
    maps: tuple[Maps | None, ...]
    random_maps: tuple[Maps | None, ...]
    """Those of the same models with random weights; None where `evaluate` has kept none that can be read."""

    @property
    def readers(self) -> int:
        """How many readers there are."""
        return len(self.case.readings) or int(self.crop.readers.max())

    @property
    def consensus(self) -> Bool[np.ndarray, "slice row column"]:
        """Voxels that enough of the readers marked (`Run.consensus_level`)."""
        return self.crop.consensus(self.readers, self.runs[0].consensus_level)

    @property
    def padded(self) -> Bool[np.ndarray, "slice row column"]:
        """Voxels outside what was read."""
        unread: np.ndarray = self.crop.hu == crop_files.PADDING_HU
        return unread

    @property
    def side_mm(self) -> float:
        """Side of the cube."""
        return float(self.crop.hu.shape[0] * self.crop.spacing_mm)

    @property
    def pairs(self) -> list[tuple[Run, Case]]:
        """The runs that have this nodule, each with its case."""
        return [(run, case) for run, case in zip(self.runs, self.cases, strict=True) if case is not None]

    @property
    def central(self) -> int:
        """Index of the central slice of each view."""
        return central_index(len(self.crop.hu))

    def cut(self, view: str, depth: int | None = None) -> figures.Cut:
        """One slice of everything, as it is looked at; the central one by default."""
        index = self.central if depth is None else depth
        return figures.Cut(
            view,
            take_view(self.crop.hu, view, index),
            take_view(self.crop.readers, view, index),
            take_view(self.consensus, view, index),
            take_view(self.padded, view, index),
            self.side_mm,
        )


def load(runs: Sequence[Run], cases: Sequence[Case | None]) -> Material:
    """Read one nodule's arrays.

    Raises:
        LidcCdamError: the crop or its mask is missing or damaged, or a map is damaged.
    """
    case = next(case for case in cases if case is not None)
    crop = crop_files.read_crop(runs[0].data, case.nodule_id)
    maps = tuple(_maps(run, own) for run, own in zip(runs, cases, strict=True))
    random_maps = tuple(_random_maps(run, own) for run, own in zip(runs, cases, strict=True))
    return Material(case, tuple(runs), tuple(cases), crop, maps, random_maps)


def _maps(run: Run, case: Case | None) -> Maps | None:
    if case is None:
        return None
    path = artifacts.maps_path(run.folder, case.fold, run.method, case.nodule_id)
    return read_maps(path) if path.exists() else None


def _random_maps(run: Run, case: Case | None) -> Maps | None:
    if case is None:
        return None
    path = random_maps_path(run.folder, case.fold, run.method, case.nodule_id)
    try:
        return read_checked_random_maps(path) if path.exists() else None
    except LidcCdamError:
        return None


@dataclass
class Pictures:
    """CT images that several pictures of a document share, by identifier."""

    shared: dict[str, str] = field(default_factory=dict)

    def use(self, cut: figures.Cut, window: figures.Window, name: str) -> str:
        """The element that shows a CT; the image itself is kept once."""
        identifier = f"ct-{name}-{window.key}"
        if identifier not in self.shared:
            self.shared[identifier] = figures.ct_image(cut.hu, window, cut.side_mm)
        return f'<use href="#{identifier}"/>'
