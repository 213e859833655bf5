"""The `phantom` command: synthetic CT of real readings, as DICOM scans and as a nodule pack."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from lidc_cdam import provenance
from lidc_cdam.artifacts import write_table
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from lidc_cdam.progress import say, track
from lidc_cdam.quality import SYNTHETIC
from preprocessing.annotations import IndexBox, Nodule, Scan, load_nodules, reader_counts
from preprocessing.crops import Frame
from preprocessing.pack import COLUMNS, FRAME_COLUMNS, NODULES, cutout_box, cutout_path
from preprocessing.phantom import Phantom, stored_hu
from preprocessing.phantom_dicom import IMAGE_SIDE, ORIENTATION, in_plane_origin_mm
from preprocessing.phantom_look import generator_for
from preprocessing.phantom_parts import slice_spacing_mm

MARGIN_MM = 24.0
"""What a phantom cut-out holds around the consensus, on all sides: a 32 mm cube around it needs no padding."""
THICKEST_MM = 3.0
"""Widest slice spacing of a scan that is written as DICOM: small nodules would vanish between wider ones."""


def phantom(out: Path, scans: int = 2, nodules: int = 96, seed: int = 0) -> None:
    """Write synthetic CT made from real LIDC-IDRI readings: whole scans as DICOM, and a nodule pack.

    Bodies come from the readers' contours, looks from their ratings; the chest around them is drawn. The images are
    synthetic: results on them say nothing about real nodules.

    Args:
        out: folder to write; it gets `dicom/` (a DICOM root) and `pack/` (a nodule pack).
        scans: scans to write as DICOM: those with labelled nodules and, at most 3 mm apart, the fewest slices.
        nodules: nodules in the pack, of other patients: as many benign as malignant ones, spread over patients.
        seed: decides the choice of nodules and everything drawn.
    """
    for name, value in (("scans", scans), ("nodules", nodules)):
        if value < 0:
            raise LidcCdamError(f"--{name} must be at least 0; got {value}.")
    record = provenance.begin(out, "phantom", {"scans": scans, "nodules": nodules, "seed": seed})
    if record.finished:
        say(f"The phantoms in {out} are finished; nothing to do.")
        return
    known = load_nodules()
    by_series = scans_of(known)
    chosen_scans = choose_scans(known, scans)
    for members in chosen_scans:
        Phantom(members[0], members[1:], seed).write_dicom(out / "dicom")
    chosen = choose_nodules(known, nodules, seed, {members[0].scan.patient_id for members in chosen_scans})
    _write_pack(chosen, by_series, out / "pack", seed)
    record.finish(scans=[members[0].scan.series_uid for members in chosen_scans], nodules=len(chosen))
    say(f"{len(chosen_scans)} phantom scans in {out / 'dicom'} and {len(chosen)} phantom nodules in {out / 'pack'}.")


def label_of(nodule: Nodule) -> int | None:
    """Malignancy label of a nodule with 3 or 4 readers: 0 benign, 1 malignant; None for all others."""
    if len(nodule.readings) not in (3, 4):
        return None
    middle = median(reading.ratings["malignancy"] for reading in nodule.readings)
    return None if middle == 3 else int(middle > 3)


def scans_of(nodules: Sequence[Nodule]) -> dict[str, list[Nodule]]:
    """Nodules by series UID, in their order."""
    members: dict[str, list[Nodule]] = defaultdict(list)
    for nodule in nodules:
        members[nodule.scan.series_uid].append(nodule)
    return members


def choose_scans(nodules: Sequence[Nodule], count: int) -> list[list[Nodule]]:
    """Nodules of the `count` regular first scans with fewest slices that hold at least one labelled nodule."""
    able = [
        members
        for members in scans_of(nodules).values()
        if _is_regular(members[0].scan)
        and slice_spacing_mm(members[0].scan) <= THICKEST_MM
        and any(label_of(nodule) is not None for nodule in members)
    ]
    if len(able) < count:
        raise LidcCdamError(
            f"--scans must be at most {len(able)}, the scans that phantoms can be made of; got {count}."
        )
    able.sort(key=lambda members: (len(members[0].scan.slice_z_mm), members[0].scan.patient_id))
    return able[:count]


def choose_nodules(nodules: Sequence[Nodule], count: int, seed: int, without: Collection[str]) -> list[Nodule]:
    """Labelled nodules of regular first scans, half of them malignant, from as many patients as can be.

    Args:
        nodules: to choose from.
        count: how many.
        seed: decides the choice.
        without: patients to leave out.
    """
    able = [nodule for nodule in nodules if nodule.scan.patient_id not in without and _is_regular(nodule.scan)]
    chosen: list[Nodule] = []
    for label, number in enumerate((count - count // 2, count // 2)):
        of_label = [nodule for nodule in able if label_of(nodule) == label]
        if len(of_label) < number:
            raise LidcCdamError(f"--nodules must be at most {2 * len(of_label)}; got {count}.")
        chosen += _spread(of_label, number, generator_for(seed, "choose", str(label)))
    return sorted(chosen, key=lambda nodule: nodule.nodule_id)


def _spread(nodules: Sequence[Nodule], count: int, generator: np.random.Generator) -> list[Nodule]:
    """`count` nodules in a drawn order, each patient's first before any patient's second."""
    turns: dict[str, int] = defaultdict(int)
    ranked: list[tuple[int, int, int]] = []
    for index in generator.permutation(len(nodules)):
        patient = nodules[index].scan.patient_id
        ranked.append((turns[patient], len(ranked), int(index)))
        turns[patient] += 1
    return [nodules[index] for _, _, index in sorted(ranked)[:count]]


def _is_regular(scan: Scan) -> bool:
    steps = np.diff(scan.slice_z_mm)
    return scan.number == 1 and bool(np.allclose(steps, slice_spacing_mm(scan), atol=0.05))


def _write_pack(chosen: Sequence[Nodule], by_series: Mapping[str, Sequence[Nodule]], pack: Path, seed: int) -> None:
    rows = []
    for nodule in track(chosen, "Phantom nodules"):
        scan = nodule.scan
        frame = Frame(in_plane_origin_mm(scan, IMAGE_SIDE), (scan.pixel_spacing_mm,) * 2)
        box = cutout_box(nodule, frame, (IMAGE_SIDE, IMAGE_SIDE), MARGIN_MM)
        path = cutout_path(pack, nodule.nodule_id)
        if not path.exists():
            made = Phantom(nodule, by_series[scan.series_uid], seed)
            readers, _ = reader_counts(nodule, box)
            with replacing(path) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, hu=stored_hu(made, box), readers=readers, flags=np.array([SYNTHETIC]))
        rows.append(_pack_row(nodule, box, frame))
    columns = (*COLUMNS, *FRAME_COLUMNS)
    write_table(pack / NODULES, pd.DataFrame(rows, columns=list(columns)), columns)


def _pack_row(nodule: Nodule, box: IndexBox, frame: Frame) -> tuple[object, ...]:
    scan = nodule.scan
    positions = scan.slice_z_mm[slice(*box.slice)]
    return (
        nodule.nodule_id,
        scan.patient_id,
        scan.study_uid,
        scan.series_uid,
        " ".join(str(reading.annotation_id) for reading in nodule.readings),
        *box.row,
        *box.column,
        *box.slice,
        scan.pixel_spacing_mm,
        " ".join(f"{z:.10g}" for z in positions),
        len(scan.slice_z_mm),
        *frame.position_mm(box.row[0], box.column[0]),
        positions[0],
        *ORIENTATION,
    )
