"""The reasons to leave a nodule out of a cohort."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lidc_cdam.geometry import CROP_SIDE
from preprocessing.annotations import IndexBox, Nodule, Scan, consensus
from preprocessing.clusters import MOST_READERS
from preprocessing.selection import Selection

PLANE = 512
"""Rows and columns of every LIDC-IDRI slice."""


def crop_inside(scan: Scan, box: IndexBox, side_mm: float = CROP_SIDE) -> bool:
    """Whether a cube around a box's centre stays inside the scan.

    The centre of the consensus' bounding box must be at least half a side away from the outermost voxel centres along
    row, column and z: a cube's samples can then all be interpolated. (Of the 869 nodules one is nearer than 20 mm to a
    border, LIDC-IDRI-0463_n01 with 14.6 mm; every distance between decides alike.)

    Args:
        scan: gives pixel spacing and slice positions; its plane has 512 x 512 pixels.
        box: the consensus' bounding box.
        side_mm: side of the cube.
    """
    row, column, index = box.centre
    z = float(np.interp(index, np.arange(len(scan.slice_z_mm)), scan.slice_z_mm))
    distances_mm = [z - scan.slice_z_mm[0], scan.slice_z_mm[-1] - z]
    for place in (row, column):
        distances_mm += [place * scan.pixel_spacing_mm, (PLANE - 1 - place) * scan.pixel_spacing_mm]
    return bool(min(distances_mm) >= side_mm / 2)


def _by_readers(nodule: Nodule, selection: Selection) -> str:
    readers = len(nodule.readings)
    if readers < selection.min_readers:
        return f"fewer than {selection.min_readers} readers"
    if readers > MOST_READERS:
        crowded = f"more than {MOST_READERS} readings in one cluster"
        return crowded if selection.crowded == "exclude" else ""
    most = selection.max_readers
    return f"more than {most} reader{'s' if most > 1 else ''}" if readers > most else ""


def _by_thickness(nodule: Nodule, selection: Selection) -> str:
    limit_mm = selection.max_slice_thickness_mm
    return f"slices thicker than {limit_mm:g} mm" if limit_mm and nodule.scan.slice_thickness_mm > limit_mm else ""


def _by_release(nodule: Nodule, selection: Selection) -> str:
    return "a scan of the initial release" if selection.exclude_initial and nodule.scan.is_from_initial else ""


def _by_series(nodule: Nodule, selection: Selection) -> str:
    return selection.excluded_series.get(nodule.scan.patient_id, "")


def _by_scan(nodule: Nodule, selection: Selection) -> str:
    return "on the patient's second scan" if selection.first_scan_only and nodule.scan.number > 1 else ""


def _by_place(nodule: Nodule, selection: Selection) -> str:
    if selection.require_crop_inside and not crop_inside(nodule.scan, consensus(nodule)[1]):
        return f"the {CROP_SIDE} mm cube leaves the scan"
    return ""


@dataclass(frozen=True)
class Rule:
    """One reason to leave nodules out."""

    title: str
    """What it looks at, in `excluded.csv` and in the flow figure."""
    reason: Callable[[Nodule, Selection], str]
    """Why a nodule is left out; empty where it is not."""


RULES: tuple[Rule, ...] = (
    Rule("number of readings", _by_readers),
    Rule("slice thickness", _by_thickness),
    Rule("release", _by_release),
    Rule("series named in the preset", _by_series),
    Rule("second scan", _by_scan),
    Rule("place in the scan", _by_place),
)
"""In this order; a nodule's first reason counts."""
