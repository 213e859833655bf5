"""Stage `export`: a run's nodules in the formats of other programs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import typst
from pydicom.dataset import Dataset

from lidc_cdam import artifacts, provenance
from lidc_cdam.compute import map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from lidc_cdam.progress import say
from reports.context import SAFE_NAME, Case, Run, chosen_nodules, open_run
from reports.export.capture import captures, encapsulated_pdf
from reports.export.grids import Extent
from reports.export.parametric_map import parametric_map
from reports.export.segmentation import agreement_segmentation, readers_segmentation
from reports.export.source import find_sources, near, read_source
from reports.export.stow import send
from reports.export.structured_report import predictions_report, readers_report
from reports.export.subject import Subject, cohort_rows, subject_of
from reports.export.volumes import write_volumes
from reports.facts import without_paths
from reports.material import load

EXPORTED = "exported.csv"
COLUMNS = ("nodule_id", "format", "file")


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


Writer = Callable[[Subject, Item], list[Path]]


def _volumes(ending: str) -> Writer:
    return lambda subject, item: write_volumes(subject, item.folder, ending)


def _captures(subject: Subject, item: Item) -> list[Path]:
    return [_save(made, item.folder / f"sc_{made.InstanceNumber:02d}.dcm") for made in captures(subject)]


def _report(subject: Subject, item: Item) -> list[Path]:
    return [_save(encapsulated_pdf(subject), item.folder / "report.dcm")]


def _segmentations(subject: Subject, item: Item) -> list[Path]:
    source = _source(subject, item)
    return [
        _save(readers_segmentation(subject, source, item.extent), item.folder / "seg_readers.dcm"),
        _save(agreement_segmentation(subject, source, item.extent), item.folder / "seg_agreement.dcm"),
    ]


def _reports(subject: Subject, item: Item) -> list[Path]:
    source = _source(subject, item)
    segmentation = readers_segmentation(subject, source, item.extent)
    # The reports point at the segments, so the object that holds them is written too.
    return [
        _save(segmentation, item.folder / "seg_readers.dcm"),
        _save(readers_report(subject, segmentation, source), item.folder / "sr_readers.dcm"),
        _save(predictions_report(subject, segmentation, source), item.folder / "sr_predictions.dcm"),
    ]


def _maps(subject: Subject, item: Item) -> list[Path]:
    source, limits = _source(subject, item), subject.run.limits.get(subject.case.fold, {})
    found = {target: layer for target, layer in subject.maps().items() if target in limits}
    if not found:
        raise LidcCdamError(
            f"{subject.nodule_id} has no {subject.run.method} maps to export as pmap; run `lidc-cdam explain --run RUN "
            f"--method {subject.run.method}` first."
        )
    return [
        _save(
            parametric_map(subject, target, layer, source, item.extent, limits[target]),
            item.folder / f"pmap_{subject.run.method}_{target}.dcm",
        )
        for target, layer in found.items()
    ]


@dataclass(frozen=True)
class Format:
    """One row of the table of formats."""

    write: Writer
    placed: bool = False
    """Whether its objects lie in the source series' space, which takes that series' headers."""


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


def export(
    run: Path,
    out: Path,
    format: list[str],  # noqa: A002 - the option's name
    method: str = "cdam",
    data: Path | None = None,
    dicom: Path | None = None,
    extent: Extent = "crop",
    nodules: list[str] | None = None,
    stow: str | None = None,
    workers: int = 1,
) -> None:
    """Write a run's nodules for other programs, one folder each: volumes, and DICOM objects of the source study.

    nifti and nrrd: the crop, the consensus, each reader, the share of readers and the maps, with a script that opens
    them in 3D Slicer. sc: key pictures as RGB Secondary Capture. pdf: the case report in DICOM. seg: the consensus and
    each reader, and their agreement as a fraction. sr: TID 1500 reports of the readers' ratings and of the predictions,
    in the published LIDC codes. pmap: the signed maps as 32-bit floats, one series a target. seg, sr and pmap refer to
    the source series, so they need --dicom. Identifiers are the cohort's pseudonyms; nothing else of a source header is
    taken along.

    Args:
        run: Folder of a finished `crossval`.
        out: Folder for the files.
        format: Of nifti, nrrd, sc, pdf, seg, sr, pmap; several by comma.
        method: Whose maps; all slices where `explain --volume` wrote them, else the central axial one.
        data: Folder of the crops; by default the one that the run's config.yaml names.
        dicom: Folder of the source DICOM files, in any layout.
        extent: Of seg and pmap: crop, the cube's own grid; full, the grid of every source slice, as some viewers want.
        nodules: Only these nodule ids; by default every test nodule.
        stow: Address of a DICOMweb service that the DICOM files are sent to (http://localhost:8042/dicom-web).
        workers: Processes that work at the same time.

    Raises:
        LidcCdamError: an option, an artefact or the service is not as it must be, or `out` holds another export.
    """
    formats = _formats(format, dicom)
    if dicom is not None and not dicom.is_dir():
        raise LidcCdamError(f"--dicom must be a folder of DICOM files, but {dicom} is no folder.")
    facts, cases = open_run(run, method, data)
    known = {case.nodule_id: case for case in cases}
    chosen = [known[nodule] for nodule in chosen_nodules(list(known), nodules, run)]
    config = {"method": method, "extent": extent, "formats": list(formats), "nodules": nodules}
    inputs: dict[str, Path | str] = {"run": facts.config_sha256, "predictions": run / artifacts.PREDICTIONS}
    record = provenance.begin(out, "export", config, inputs, "export into another --out")
    if record.finished and _all_there(out):
        say(f"{len(chosen)} nodules are exported already in {out}.")
    else:
        rows, failed = _export(facts, chosen, formats, dicom, extent, out, workers)
        _write_tables(out, rows, failed)
        if not failed:
            record.finish(nodules=len(chosen))
        told = f"Exported {len(chosen) - len(failed)} nodules as {', '.join(formats)} to {out}"
        explained = facts.limits or any(run.glob(f"fold_*/volumes/{method}"))
        if not explained and set(formats) - {"seg", "sr"}:
            command = f"lidc-cdam explain --run {run} --method {method}"
            say(f"{run} has no {method} maps, so none are exported; run `{command}`, then export into another --out.")
        say(f"{told}; {len(failed)} failed, {out / artifacts.FAILED} says why." if failed else f"{told}.")
        if len(failed) == len(chosen):
            raise LidcCdamError(f"No nodule could be exported; the first: {failed[0]['reason']}")
    if stow is not None:
        files = [out / name for name in _exported(out)["file"] if str(name).endswith(".dcm")]
        say(f"{send(stow, files)} DICOM objects are stored at {stow}.")


def _formats(asked: Sequence[str], dicom: Path | None) -> tuple[str, ...]:
    names = list(dict.fromkeys(name.strip().lower() for name in asked))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise LidcCdamError(f"--format must name at least one of {', '.join(FORMATS)}; got {got}.")
    placed = [name for name in names if FORMATS[name].placed]
    if placed and dicom is None:
        raise LidcCdamError(
            f"--format {', '.join(placed)} refers to the source series: give the folder of its DICOM files with "
            f"--dicom, or choose among {', '.join(name for name, form in FORMATS.items() if not form.placed)}."
        )
    return tuple(name for name in FORMATS if name in names)


def _export(
    facts: Run,
    cases: Sequence[Case],
    formats: tuple[str, ...],
    dicom: Path | None,
    extent: Extent,
    out: Path,
    workers: int,
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the files, and rows of the nodules that failed."""
    cohort = cohort_rows(facts.data, [case.nodule_id for case in cases])
    wanted = {str(row["series_uid"]) for row in cohort.values()}
    placed = dicom is not None and any(FORMATS[name].placed for name in formats)
    sources = find_sources(dicom, wanted) if placed and dicom is not None else {}
    items = [
        Item(
            replace(facts, summary={}),
            case,
            cohort.get(case.nodule_id, {}),
            formats,
            extent,
            tuple(sources.get(str(cohort.get(case.nodule_id, {}).get("series_uid")), ())),
            out,
        )
        for case in cases
    ]
    order = {case.nodule_id: place for place, case in enumerate(cases)}
    found = sorted(map_items(_work, items, "Exporting", workers), key=lambda rows: order[rows[0]["nodule_id"]])
    rows = [row for part in found for row in part]
    return [row for row in rows if "file" in row], [row for row in rows if "reason" in row]


def _work(item: Item) -> list[dict[str, str]]:
    """Write one nodule's files; a row for each, or one row with the reason why not."""
    nodule_id = item.case.nodule_id
    try:
        if not SAFE_NAME.fullmatch(nodule_id):
            raise LidcCdamError("nodule_id must be letters, digits, dots, dashes and underscores to name a folder")
        if not item.cohort:
            raise LidcCdamError(f"{nodule_id} must be in {artifacts.COHORT}, but it is not; run `cohort` again")
        subject = subject_of(load((item.run,), (item.case,)), item.cohort)
        rows: dict[str, dict[str, str]] = {}
        for name in item.formats:
            for path in FORMATS[name].write(subject, item):
                place = path.relative_to(item.out).as_posix()
                rows.setdefault(place, {"nodule_id": nodule_id, "format": name, "file": place})
    except (LidcCdamError, ValueError, typst.TypstError) as error:
        return [{"nodule_id": nodule_id, "series_uid": "", "reason": without_paths(str(error), (item.run,))}]
    return list(rows.values())


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
    with replacing(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)
    return path


def _write_tables(out: Path, rows: Sequence[dict[str, str]], failed: Sequence[dict[str, str]]) -> None:
    artifacts.write_table(out / EXPORTED, pd.DataFrame(rows, columns=list(COLUMNS)), COLUMNS)
    path = out / artifacts.FAILED
    if failed:
        artifacts.write_table(path, pd.DataFrame(failed), artifacts.FAILED_COLUMNS)
    else:
        path.unlink(missing_ok=True)


def _exported(out: Path) -> pd.DataFrame:
    return artifacts.read_table(out / EXPORTED, COLUMNS, "export")


def _all_there(out: Path) -> bool:
    return (out / EXPORTED).exists() and all((out / str(name)).exists() for name in _exported(out)["file"])
