"""A DATA folder and synthetic DICOM of one real LIDC scan, small enough for a test: real readings, made-up HU."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dicom_factory import Hu, Stack, linear

from lidc_cdam import artifacts, provenance
from preprocessing.annotations import Nodule, Scan, load_nodules
from preprocessing.cohort import tables
from preprocessing.index_cache import SERIES_INDEX
from preprocessing.selection import Selection

PATIENT = "LIDC-IDRI-0003"
CORNER_MM = (-170.0, -180.0)
SLICES = (60, 100)
"""The slices that the three nodules' cubes need, and a few more."""


def nodules() -> list[Nodule]:
    """The scan's three nodules with at least three readers."""
    return [nodule for nodule in load_nodules(patients=[PATIENT]) if len(nodule.readings) >= 3]


def write_cohort(data: Path, patients: Sequence[str] = (PATIENT,), **rules: object) -> None:
    """Make DATA with a cohort of some patients' nodules."""
    selection = Selection(**rules)
    cohort, excluded, readings = tables(load_nodules(patients=patients, **selection.grouping), selection)
    config = {"preset": "small", "selection": asdict(selection), "rules_sha256": selection.digest}
    provenance.begin(data, "cohort", config).finish()
    artifacts.write_table(data / artifacts.COHORT, cohort, artifacts.COHORT_COLUMNS)
    artifacts.write_table(data / artifacts.EXCLUDED, excluded, artifacts.EXCLUDED_COLUMNS)
    artifacts.write_table(data / artifacts.READINGS, readings, artifacts.READING_COLUMNS)


def stack_of(scan: Scan, hu: Hu | None = None) -> Stack:
    """The scan's slices around its nodules, with HU that are linear in x, y and z unless given."""
    return Stack(
        hu or linear((2, -1.5, 3), -100),
        scan.slice_z_mm[slice(*SLICES)],
        series_uid=scan.series_uid,
        shape=(512, 512),
        spacing_mm=(scan.pixel_spacing_mm,) * 2,
        corner_mm=CORNER_MM,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path, but for provenance and the index of series.

    Those hold versions and a commit, and the paths and times of the files that were read.
    """
    apart = (provenance.FILE, SERIES_INDEX)
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in apart]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
