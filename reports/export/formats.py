"""The table of formats: what each writes of one nodule, file by file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from reports.context import Case, Run
from reports.export.capture import captures, encapsulated_pdf
from reports.export.grids import Extent
from reports.export.parametric_map import parametric_map
from reports.export.segmentation import agreement_segmentation, readers_segmentation
from reports.export.source import near, read_source
from reports.export.structured_report import predictions_report, readers_report
from reports.export.subject import Subject
from reports.export.volumes import write_volumes


@dataclass(frozen=True)
class Item:
    """One nodule to export."""

    run: Run
    case: Case
    cohort: dict[str, Any]
    formats: tuple[str, ...]
    extent: Extent
    files: tuple[Path, ...]
    """Of its source series; empty where none was asked for."""
    out: Path

    @property
    def folder(self) -> Path:
        """The nodule's own."""
        return self.out / self.case.nodule_id


Writer = Callable[[Subject, Item], Iterator[Path]]
"""Writes the files of a format one after the other and names each as soon as it is whole."""


@dataclass(frozen=True)
class Format:
    """One row of the table of formats."""

    write: Writer
    placed: bool = False
    """Whether its objects lie in the source series' space, which takes that series' headers."""


def _volumes(ending: str) -> Writer:
    return lambda subject, item: write_volumes(subject, item.folder, ending)


def _captures(subject: Subject, item: Item) -> Iterator[Path]:
    for made in captures(subject):
        yield _save(made, item.folder / f"sc_{made.InstanceNumber:02d}.dcm")


def _report(subject: Subject, item: Item) -> Iterator[Path]:
    yield _save(encapsulated_pdf(subject), item.folder / "report.dcm")


def _segmentations(subject: Subject, item: Item) -> Iterator[Path]:
    source = _source(subject, item)
    yield _save(readers_segmentation(subject, source, item.extent), item.folder / "seg_readers.dcm")
    yield _save(agreement_segmentation(subject, source, item.extent), item.folder / "seg_agreement.dcm")


def _reports(subject: Subject, item: Item) -> Iterator[Path]:
    source = _source(subject, item)
    segmentation = readers_segmentation(subject, source, item.extent)
    # The reports point at the segments, so the object that holds them is written too.
    yield _save(segmentation, item.folder / "seg_readers.dcm")
    yield _save(readers_report(subject, segmentation, source), item.folder / "sr_readers.dcm")
    yield _save(predictions_report(subject, segmentation, source), item.folder / "sr_predictions.dcm")


def _maps(subject: Subject, item: Item) -> Iterator[Path]:
    source, limits = _source(subject, item), subject.run.limits.get(subject.case.fold, {})
    found = {target: layer for target, layer in subject.maps().items() if target in limits}
    if not found:
        raise LidcCdamError(
            f"{subject.nodule_id} has no {subject.run.method} maps to export as pmap; run `lidc-cdam explain --run RUN "
            f"--method {subject.run.method}` first."
        )
    for target, layer in found.items():
        made = parametric_map(subject, target, layer, source, item.extent, limits[target])
        yield _save(made, item.folder / f"pmap_{subject.run.method}_{target}.dcm")


FORMATS: dict[str, Format] = {
    "nifti": Format(_volumes("nii.gz")),
    "nrrd": Format(_volumes("nrrd")),
    "sc": Format(_captures),
    "pdf": Format(_report),
    "seg": Format(_segmentations, placed=True),
    "sr": Format(_reports, placed=True),
    "pmap": Format(_maps, placed=True),
}
"""What `--format` takes, in the order of use."""


def _source(subject: Subject, item: Item) -> list[Dataset]:
    """Headers of the nodule's series.

    Raises:
        LidcCdamError: the crop does not lie in patient coordinates, or the series is not at hand.
    """
    if not subject.patient:
        raise LidcCdamError(
            f"The crop of {subject.nodule_id} must lie in patient coordinates, but it comes from a pack without them; "
            f"extract it with --dicom, or export it as nifti, nrrd, sc or pdf."
        )
    if not item.files:
        raise LidcCdamError(f"--dicom must hold series {subject.series_uid} of {subject.nodule_id}, but it does not.")
    source = read_source(item.files, subject.patient_id)
    return near(source, subject.consensus) if item.extent == "crop" else source


def _save(made: Dataset, path: Path) -> Path:
    # pydicom hides what a file system says (a full disk has no number then), so it writes into memory.
    stream = BytesIO()
    made.save_as(stream, enforce_file_format=True)
    with replacing(path) as temporary:
        temporary.write_bytes(stream.getbuffer())
    return path
