"""One nodule's arrays and rows, loaded, and the CT pictures that a document shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Crop, Maps
from lidc_cdam.geometry import CENTRAL, take_view
from reports import figures
from reports.context import Case, Run, read_maps


@dataclass(frozen=True)
class Material:
    """One nodule's arrays and rows, loaded."""

    case: Case
    runs: tuple[Run, ...]
    cases: tuple[Case | None, ...]
    """The nodule's case in each run; None where a run does not have it."""
    crop: Crop
    maps: tuple[Maps | None, ...]

    @property
    def readers(self) -> int:
        """How many readers there are."""
        return len(self.case.readings) or int(self.crop.readers.max())

    @property
    def consensus(self) -> Bool[np.ndarray, "slice row column"]:
        """Voxels that at least half of the readers marked."""
        return self.crop.consensus(self.readers)

    @property
    def padded(self) -> Bool[np.ndarray, "slice row column"]:
        """Voxels outside what was read."""
        unread: np.ndarray = self.crop.hu == artifacts.PADDING_HU
        return unread

    @property
    def side_mm(self) -> float:
        """Side of the cube."""
        return float(self.crop.hu.shape[0] * self.crop.spacing_mm)

    @property
    def pairs(self) -> list[tuple[Run, Case]]:
        """The runs that have this nodule, each with its case."""
        return [(run, case) for run, case in zip(self.runs, self.cases, strict=True) if case is not None]

    def cut(self, view: str, index: int = CENTRAL) -> figures.Cut:
        """One slice of everything, as it is looked at."""
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
    crop = artifacts.read_crop(runs[0].data, case.nodule_id)
    maps = tuple(_maps(run, own) for run, own in zip(runs, cases, strict=True))
    return Material(case, tuple(runs), tuple(cases), crop, maps)


def _maps(run: Run, case: Case | None) -> Maps | None:
    if case is None:
        return None
    path = artifacts.maps_path(run.folder, case.fold, run.method, case.nodule_id)
    return read_maps(path) if path.exists() else None


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
