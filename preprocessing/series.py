"""Find CT series in a folder of DICOM, whatever its layout, from headers alone.

Positions are DICOM patient coordinates (LPS), mm; row and column indices count from 0.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import asin, degrees
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lidc_cdam import quality
from lidc_cdam.compute import HERE, Pool, Workers
from lidc_cdam.errors import LidcCdamError
from preprocessing.crops import Frame
from preprocessing.index_cache import read_tree
from preprocessing.slices import PHANTOM, Common, Slice

SAME_Z_MM = 0.02
"""Slices nearer than this lie at one z (the finest spacing of LIDC-IDRI is 0.45 mm)."""
UNEVEN = 0.02
"""Share of the median spacing by which a step may differ before the spacing counts as irregular."""
GAP = 2.1
"""A step of more than this many median spacings is a gap. Two are known spacing changes (LIDC-IDRI-0672)."""
OFF_AXIS = 1e-3
"""Greatest part of a series' normal, or of the drift between its slices, that may lie in the axial plane."""
DRIFT_MM = 0.05
"""Slices whose corners differ by more lie beside each other."""
SAME_GRID = 1e-4
"""Spacings (mm) and directions that differ by no more are the same: less than a tenth of a pixel over 512 pixels."""


@dataclass(frozen=True)
class Series:
    """One CT series: its files by ascending z, duplicates included."""

    series_uid: str
    slices: tuple[Slice, ...]
    shape: tuple[int, int]
    """Rows and columns of each slice."""
    spacing_mm: tuple[float, float]
    """Distance of neighbouring rows and of neighbouring columns (PixelSpacing)."""
    orientation: tuple[float, ...]
    """ImageOrientationPatient: the direction in which the column index grows, then that of the row index."""
    off_grid: int = 0
    """Slices that were left out because their size, spacing or orientation is not that of most."""

    @property
    def positions_mm(self) -> tuple[float, ...]:
        """The different z, ascending."""
        return tuple(group[0].z_mm for group in self.by_position)

    @cached_property
    def by_position(self) -> list[tuple[Slice, ...]]:
        """The files at each z, ascending; several where slices are duplicated."""
        groups: list[list[Slice]] = []
        for one in self.slices:
            if groups and one.z_mm - groups[-1][0].z_mm < SAME_Z_MM:
                groups[-1].append(one)
            else:
                groups.append([one])
        return [tuple(sorted(group, key=lambda one: (one.number, one.folder, one.name))) for group in groups]

    def flags(self) -> tuple[str, ...]:
        """What is wrong with the series' slices, each a phrase of `quality`."""
        common = {one.common for one in self.slices}
        found = {
            quality.SYNTHETIC: any(one.description == PHANTOM for one in common),
            quality.DUPLICATE_SLICES: len(self.slices) > len(self.positions_mm),
            quality.RESCALE_DIFFERS: len({one.encoding for one in common}) > 1,
            quality.LOSSY: any(one.lossy for one in common),
            quality.SIDEWAYS_DRIFT: self._drift_mm() > DRIFT_MM,
        }
        return (*(flag for flag, holds in found.items() if holds), *spacing_flags(self.positions_mm))

    def frame(self) -> Frame:
        """Where the pixels lie in the patient.

        Raises:
            LidcCdamError: the slices are not axial, or drift sideways from one to the next (a tilted gantry).
        """
        columns, rows = self.orientation[:3], self.orientation[3:]
        drift = self._drift_mm() / max(self.slices[-1].z_mm - self.slices[0].z_mm, 1.0)
        tilt = max(abs(columns[2]), abs(rows[2]))
        if max(tilt, drift) > OFF_AXIS:
            raise LidcCdamError(
                f"Series {self.series_uid} must have axial slices stacked along z, but they are tilted by "
                f"{degrees(asin(min(tilt, 1))):.2f} degrees and drift sideways by {drift:.3f} mm per mm; "
                f"leave the series out (a preset's excluded_series)."
            )
        x, y = np.median(self._corners(), axis=0).tolist()
        return Frame((x, y), self.spacing_mm, (columns[0], columns[1]), (rows[0], rows[1]), True)

    def _corners(self) -> Float[np.ndarray, "slice 2"]:
        return np.array([one.corner_mm for one in self.slices])

    def _drift_mm(self) -> float:
        """Greatest difference of the slices' corners in x or y."""
        return float(np.ptp(self._corners(), axis=0).max())


def spacing_flags(z_mm: Sequence[float]) -> tuple[str, ...]:
    """`quality.IRREGULAR_Z` and `quality.GAP` where ascending positions have them."""
    steps = np.diff(z_mm)
    if len(steps) < 2:
        return ()
    median = float(np.median(steps))
    irregular = bool((np.abs(steps - median) > max(UNEVEN * median, SAME_Z_MM)).any())
    found = {quality.IRREGULAR_Z: irregular, quality.GAP: bool((steps > GAP * median).any())}
    return tuple(flag for flag, holds in found.items() if holds)


@dataclass(frozen=True)
class SeriesIndex:
    """What a DICOM root holds."""

    root: Path
    series: dict[str, Series]
    """The CT series by SeriesInstanceUID."""
    others: dict[str, int]
    """Number of files left out, by kind."""

    def summary(self) -> str:
        """What was found, in words."""
        slices = sum(len(series.slices) for series in self.series.values())
        left = "".join(f", {count} x {kind}" for kind, count in sorted(self.others.items()))
        return f"{len(self.series)} wanted CT series with {slices} slices{left}"


def index_series(
    root: Path,
    wanted: Collection[str] | None = None,
    journal: Path | None = None,
    workers: Workers | Pool = HERE,
) -> SeriesIndex:
    """Index the CT slices below a folder by SeriesInstanceUID, from their headers, in one pass.

    Any layout and any file name will do. Only CT Image Storage is kept; everything else is counted by kind.

    Args:
        root: folder of DICOM files.
        wanted: SeriesInstanceUIDs to keep; all by default. Files of other CT series are counted.
        journal: where to keep what the headers say, so that the next call reads only files that changed since.
        workers: processes that read headers; the result is the same for any number.

    Raises:
        LidcCdamError: the root is missing, is not a folder, cannot be listed, or is empty.
    """
    if not root.is_dir():
        raise LidcCdamError(f"--dicom must be a folder of DICOM files, but {root} is {_what_is(root)}.")
    others: Counter[str] = Counter()
    slices: defaultdict[str, list[Slice]] = defaultdict(list)
    try:
        found = read_tree(root, others, journal, workers)
    except PermissionError as error:
        raise LidcCdamError(f"--dicom must be a folder that you may read, but {error.filename} refuses.") from error
    for one in found:
        if isinstance(one, str):
            others[one] += 1
        elif wanted is not None and one.common.series_uid not in wanted:
            others["CT image of a series not asked for"] += 1
        else:
            slices[one.common.series_uid].append(one)
    if not slices and not others:
        raise LidcCdamError(f"--dicom must be a folder of DICOM files, but {root} is empty.")
    series = {uid: _series_of(members) for uid, members in slices.items()}
    others["CT image off its series' grid"] += sum(one.off_grid for one in series.values())
    return SeriesIndex(root, series, dict(+others))


def _series_of(slices: Sequence[Slice]) -> Series:
    """One series from its slices, those left out that do not lie on the grid of most."""
    counts = Counter(one.common for one in slices)
    alike = {one: [other for other in counts if _is_same(one, other)] for one in counts}
    most = max(counts, key=lambda one: (sum(counts[other] for other in alike[one]), counts[one]))
    grid = set(alike[most])
    kept = [one for one in slices if one.common in grid]
    ordered = sorted(kept, key=lambda one: (one.z_mm, one.number, one.folder, one.name))
    off_grid = len(slices) - len(kept)
    return Series(most.series_uid, tuple(ordered), most.shape, most.spacing_mm, most.orientation, off_grid)


def _is_same(one: Common, other: Common) -> bool:
    """Whether two slices' pixels lie on one grid."""
    pairs = zip((*one.spacing_mm, *one.orientation), (*other.spacing_mm, *other.orientation), strict=True)
    return one.shape == other.shape and all(abs(a - b) <= SAME_GRID for a, b in pairs)


def _what_is(root: Path) -> str:
    return "a file" if root.exists() else "missing"
