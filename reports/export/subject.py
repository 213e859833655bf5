"""What is exported of one nodule: its volumes with their place, and its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped
from scipy.ndimage import map_coordinates

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Maps
from lidc_cdam.crop_files import Crop, read_reader_masks
from lidc_cdam.geometry import central_index
from lidc_cdam.map_files import read_volume, volume_folder, volume_targets
from reports.context import Case, Run
from reports.material import Material

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Layer:
    """Values on a grid of cubes with identity directions in LPS."""

    values: Shaped[np.ndarray, "slice row column"]
    origin_mm: Point
    """Position (x, y, z) of voxel [0, 0, 0]'s centre."""
    spacing_mm: float

    @property
    def corners_mm(self) -> Float[np.ndarray, "8 3"]:
        """Positions (x, y, z) of the corners of a box that reaches one voxel beyond the outermost centres."""
        low = np.array(self.origin_mm) - self.spacing_mm
        high = low + (np.array(self.values.shape[::-1]) + 1) * self.spacing_mm
        return np.array(list(product(*zip(low, high, strict=True))))

    def at(self, points_mm: Float[np.ndarray, "*place 3"], order: int, outside: float = 0.0) -> np.ndarray:
        """Values at positions (x, y, z).

        Args:
            points_mm: the positions.
            order: 0 takes the nearest voxel, 1 interpolates.
            outside: value of positions beyond the outermost voxels' faces.
        """
        index = (points_mm - np.array(self.origin_mm)) / self.spacing_mm
        places = np.moveaxis(index[..., ::-1], -1, 0)
        sizes = np.array(self.values.shape).reshape(3, *[1] * (places.ndim - 1))
        inside = ((places >= -0.5) & (places < sizes - 0.5)).all(0)
        clipped = np.clip(places, 0, sizes - 1)
        found = map_coordinates(self.values.astype(np.float64), clipped, order=order, mode="nearest")
        return np.where(inside, found, outside)


@dataclass(frozen=True)
class Subject:
    """One nodule of a run."""

    nodule_id: str
    patient_id: str
    study_uid: str
    series_uid: str
    run: Run
    case: Case
    material: Material
    patient: bool
    """Whether its crop lies in patient coordinates; else in the scan's own frame."""
    readers: Bool[np.ndarray, "reading slice row column"] | None
    """What each reader marked; None where the extraction saw only their number."""
    place: int = 0
    """Among the nodules of its study in the cohort, from 0."""

    @property
    def crop(self) -> Crop:
        """HU and reader counts."""
        return self.material.crop

    def layer(self, values: Shaped[np.ndarray, "slice row column"]) -> Layer:
        """Values on the crop's grid."""
        return Layer(values, self.crop.origin_mm, self.crop.spacing_mm)

    @property
    def consensus(self) -> Layer:
        """What enough of the readers marked, 0 or 1."""
        return self.layer(self.material.consensus.astype(np.uint8))

    @property
    def agreement(self) -> Layer:
        """Share of the readers that marked each voxel."""
        return self.layer((self.crop.readers / max(self.material.readers, 1)).astype(np.float32))

    def maps(self) -> dict[str, Layer]:
        """The signed, raw scores of each target.

        All slices of a target where `explain --volume` has written them; else the central axial slice of the token
        maps, repeated over each token's voxels.
        """
        folder = volume_folder(self.run.folder, self.case.fold, self.run.method, self.nodule_id)
        volumes = {target: read_volume(folder, target) for target in volume_targets(folder)}
        whole = {key: Layer(volume.mean, volume.origin_mm, volume.spacing_mm) for key, volume in volumes.items()}
        stored = self.material.maps[0]
        return ({} if stored is None else self._central(stored)) | whole

    def _central(self, stored: Maps) -> dict[str, Layer]:
        side = len(self.crop.hu)
        central = central_index(side)
        if "axial" not in stored.views or central not in stored.slices:
            return {}
        view, place = stored.views.index("axial"), stored.slices.index(central)
        x, y, z = self.crop.origin_mm
        origin = (x, y, z + central * self.crop.spacing_mm)
        return {
            target: Layer(repeat_tokens(scores[view, place], side)[None], origin, self.crop.spacing_mm)
            for target, scores in zip(stored.targets, stored.scores, strict=True)
        }


def repeat_tokens(scores: Float32[np.ndarray, "row column"], side: int) -> Float32[np.ndarray, "side side"]:
    """A token map on a slice's voxels: each takes the token on which its centre lies."""
    rows, columns = ((2 * np.arange(side) + 1) * tokens // (2 * side) for tokens in scores.shape)
    repeated: np.ndarray = scores[rows][:, columns]
    return repeated


def subject_of(material: Material, cohort: Mapping[str, Any]) -> Subject:
    """One nodule's exportable content.

    Args:
        material: what a report shows of it.
        cohort: its row, as `cohort_rows` gives it.

    Raises:
        LidcCdamError: a file is damaged.
    """
    case, run = material.case, material.runs[0]
    readers = read_reader_masks(run.data, case.nodule_id)
    return Subject(
        case.nodule_id,
        case.patient_id,
        str(cohort["study_uid"]),
        str(cohort["series_uid"]),
        run,
        case,
        material,
        case.record is not None and case.record.geometry == "patient",
        None if readers is None else readers[0],
        int(cohort["place"]),
    )


def cohort_rows(data: Path, nodule_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of `cohort.csv` by nodule, each with the nodule's `place` among those of its study."""
    table = artifacts.read_cohort(data)
    table = table.assign(place=table.groupby("study_uid", dropna=False).cumcount())
    return {
        key: {str(name): value for name, value in table.loc[key].items()} for key in nodule_ids if key in table.index
    }
