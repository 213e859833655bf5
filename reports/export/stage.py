"""Stage `export`: a run's nodules in the formats of other programs."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lidc_cdam import artifacts, provenance
from lidc_cdam.compute import map_items
from lidc_cdam.crop_files import crop_path, mask_path, reader_masks_path
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import alone
from lidc_cdam.map_files import volume_folder, volume_path, volume_targets
from lidc_cdam.progress import say
from reports.context import DOCUMENTS, SAFE_NAME, UNSAFE_NAME, Case, Run, chosen_nodules, open_run
from reports.export.formats import FORMATS, Item
from reports.export.grids import Extent
from reports.export.listing import is_whole, listed, read_exported, write_exported, write_failed, write_format
from reports.export.source import find_sources
from reports.export.stow import check_address, send, without_login
from reports.export.subject import Subject, cohort_rows, subject_of
from reports.facts import without_paths
from reports.material import load
from reports.words import nodules as counted

MOST_REASON = 600
"""Characters of a reason in `failed.csv`."""


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
        format: Of nifti, nrrd, sc, pdf, seg, sr, pmap; several by comma. A later call can add some to the same folder.
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
    if stow is not None:
        _check_stow(stow, formats)
    facts, cases = open_run(run, method, data)
    known = {case.nodule_id: case for case in cases}
    chosen = [known[nodule] for nodule in chosen_nodules(list(known), nodules, run)]
    named = None if nodules is None else sorted(set(nodules))
    config = {"method": method, "extent": extent, "nodules": named}
    inputs: dict[str, Path | str] = {
        "run": facts.config_sha256,
        "predictions": run / artifacts.PREDICTIONS,
        "crops and maps": _shown(facts, chosen),
    }
    provenance.refuse_others(out, DOCUMENTS)
    record = provenance.begin(out, "export", config, inputs, "export into another --out")
    finished = _finished_formats(out) if record.finished else set()
    if finished.issuperset(formats) and is_whole(out):
        verb = "is" if len(chosen) == 1 else "are"
        say(f"{counted(len(chosen))} {verb} exported already in {out}.")
    else:
        items = _items(facts, chosen, formats, dicom, extent, out)
        with alone(out, f"Another `lidc-cdam export` writes into {out}; waiting for it.", ".held-export"):
            failed = _export(items, out, workers)
            if not failed:
                record.finish(nodules=len(chosen), formats=[name for name in FORMATS if name in {*finished, *formats}])
        _tell(facts, items, failed, out)
    if stow is not None:
        table = read_exported(out)
        names = dict.fromkeys(str(name) for name in table["file"][table["format"].isin(formats)])
        files = [out / name for name in names if name.endswith(".dcm")]
        sent = send(stow, files)
        say(f"{sent} DICOM {'object is' if sent == 1 else 'objects are'} stored at {without_login(stow)}.")


def _finished_formats(out: Path) -> set[str]:
    """Formats that earlier calls have made of every nodule."""
    record = provenance.read_record(out, "export") or {}
    return set(record.get("results", {}).get("formats", ()))


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


def _check_stow(stow: str, formats: Sequence[str]) -> None:
    check_address(stow)
    if not set(formats) - {"nifti", "nrrd"}:
        sent = ", ".join(name for name in FORMATS if name not in ("nifti", "nrrd"))
        raise LidcCdamError(
            f"--stow sends DICOM files, but --format {', '.join(formats)} makes none; choose among {sent}, or leave "
            f"--stow out."
        )


def _shown(facts: Run, cases: Sequence[Case]) -> str:
    """Digest of the crops, masks, maps and volumes of what is exported: `explain --volume` makes another export."""
    digests = {}
    for case in (case for case in cases if SAFE_NAME.fullmatch(case.nodule_id)):
        volumes = volume_folder(facts.folder, case.fold, facts.method, case.nodule_id)
        paths = (
            crop_path(facts.data, case.nodule_id),
            mask_path(facts.data, case.nodule_id),
            reader_masks_path(facts.data, case.nodule_id),
            artifacts.maps_path(facts.folder, case.fold, facts.method, case.nodule_id),
            *(volume_path(volumes, target) for target in volume_targets(volumes)),
        )
        digests[case.nodule_id] = [provenance.sha256(path) if path.is_file() else "" for path in paths]
    return provenance.sha256_of(digests)


def _items(
    facts: Run, cases: Sequence[Case], formats: tuple[str, ...], dicom: Path | None, extent: Extent, out: Path
) -> list[Item]:
    cohort = cohort_rows(facts.data, [case.nodule_id for case in cases])
    wanted = {str(row["series_uid"]) for row in cohort.values()}
    placed = dicom is not None and any(FORMATS[name].placed for name in formats)
    sources = find_sources(dicom, wanted) if placed and dicom is not None else {}
    return [
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


def _export(items: Sequence[Item], out: Path, workers: int) -> list[dict[str, str]]:
    """Make what is missing and write both tables; a row for each format of each nodule that failed."""
    order = {item.case.nodule_id: place for place, item in enumerate(items)}
    failed: list[dict[str, str]] = []
    try:
        for rows in map_items(_work, items, "Exporting", workers):
            failed += rows
    except BaseException:
        # What is finished stays, so it is listed; on a full disk each nodule's own list says it until the next call.
        with suppress(OSError):
            write_exported(out, items)
        raise
    failed.sort(key=lambda row: order[row["nodule_id"]])
    write_failed(out, failed, items[0].formats if items else ())
    write_exported(out, items)
    return failed


def _work(item: Item) -> list[dict[str, str]]:
    """Make the formats of one nodule that are missing; a row for each that failed, with its reason."""
    done = listed(item)
    missing = [name for name in item.formats if name not in done]
    if not missing:
        return []
    try:
        subject = _subject(item)
    except (LidcCdamError, ValueError) as error:
        return [_failed(item, name, error) for name in missing]
    failed = []
    for name in missing:
        try:
            done[name] = write_format(subject, item, name, done)
        except (LidcCdamError, ValueError) as error:
            failed.append(_failed(item, name, error))
    return failed


def _subject(item: Item) -> Subject:
    nodule_id = item.case.nodule_id
    if not SAFE_NAME.fullmatch(nodule_id):
        raise LidcCdamError(UNSAFE_NAME)
    if not item.cohort:
        raise LidcCdamError(f"{nodule_id} must be in {artifacts.COHORT}, but it is not; run `cohort` again")
    return subject_of(load((item.run,), (item.case,)), item.cohort)


def _failed(item: Item, name: str, error: Exception) -> dict[str, str]:
    reason = " ".join(without_paths(str(error), (item.run,)).split())[:MOST_REASON]
    series = str(item.cohort.get("series_uid", ""))
    return {"nodule_id": item.case.nodule_id, "series_uid": series, "format": name, "reason": reason}


def _is_explained(item: Item) -> bool:
    """Whether there are maps or volumes of a nodule."""
    run, case = item.run, item.case
    folder = volume_folder(run.folder, case.fold, run.method, case.nodule_id)
    return artifacts.maps_path(run.folder, case.fold, run.method, case.nodule_id).exists() or bool(
        volume_targets(folder)
    )


def _tell(facts: Run, items: Sequence[Item], failed: Sequence[dict[str, str]], out: Path) -> None:
    """Say what was exported and what was not.

    Raises:
        LidcCdamError: nothing was exported.
    """
    formats, method = items[0].formats if items else (), facts.method
    bare = [item for item in items if SAFE_NAME.fullmatch(item.case.nodule_id) and not _is_explained(item)]
    if bare and set(formats) - {"seg", "sr"}:
        command = f"lidc-cdam explain --run {facts.folder} --method {method}"
        have = "1 nodule has" if len(bare) == 1 else f"{len(bare)} nodules have"
        whose = f"{facts.folder} has" if len(bare) == len(items) else have
        say(f"{whose} no {method} maps, so none are exported; run `{command}`, then export into another --out.")
    if items and len(failed) == len(items) * len(formats):
        raise LidcCdamError(f"No nodule could be exported; the first: {failed[0]['reason']}")
    broken = {row["nodule_id"] for row in failed}
    told = f"Exported {counted(len(items) - len(broken))} as {', '.join(formats)} to {out}"
    if broken:
        some = "1 nodule is" if len(broken) == 1 else f"{len(broken)} nodules are"
        told += f"; {some} not whole: {out / artifacts.FAILED} names each format and why"
    say(f"{told}.")
