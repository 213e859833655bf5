"""What the page's interactive viewer reads: the cube, the readers' counts and the token grids, small and exact."""

import base64
import zlib
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Maps
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import VIEWS
from lidc_cdam.map_files import read_volume, volume_folder, volume_targets
from reports import figures
from reports.context import Case, Run
from reports.maps import CONTOUR_SHARE
from reports.material import Material
from reports.scales import Limits, read_maps

MOST_VOLUME_BYTES = 2_500_000
"""Room for volumes of scores in a page, before they are packed: all nine targets of a 32 mm cube fit."""


def viewer_data(material: Material, document: dict[str, Any]) -> dict[str, Any]:
    """Everything the viewer draws, as JSON can hold it.

    Args:
        material: the nodule.
        document: what `reports.sections.document` gives.
    """
    crop, record = material.crop, material.case.record
    return {
        "nodule": document["nodule_id"],
        "research": document["research"],
        "synthetic": document["synthetic"],
        "side": len(crop.hu),
        "spacing": crop.spacing_mm,
        "origin": list(crop.origin_mm),
        "patient": record is not None and record.geometry == "patient",
        "unread": crop_files.PADDING_HU,
        "readers": material.readers,
        "level": material.runs[0].consensus_level,
        "central": material.central,
        "hu": packed(crop.hu.astype("<i2")),
        "marked": packed(crop.readers),
        "each": _each_reader(material),
        "views": [
            {"key": view.key, "title": view.title, "axis": view.axis, "flip": view.flip_rows, "letters": view.letters}
            for view in VIEWS.values()
        ],
        "windows": [
            {"key": window.key, "level": window.level_hu, "width": window.width_hu} for window in figures.WINDOWS
        ],
        "colours": {
            "raises": figures.ORANGE,
            "lowers": figures.BLUE,
            "above": figures.ABOVE,
            "below": figures.BELOW,
            "consensus": figures.CONSENSUS,
            "reader": figures.ANY_READER,
        },
        "opacity": figures.OPACITY,
        "dimmed": figures.DIMMED,
        "contour": CONTOUR_SHARE,
        "targets": [{"key": row["key"], "title": row["title"]} for row in document["targets"]],
        "layers": [layer for index in range(len(material.runs)) for layer in _layers(material, index)],
    }


def packed(array: Shaped[np.ndarray, "..."]) -> str:
    """An array's bytes (little-endian, C order), deflated, in base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


def _each_reader(material: Material) -> dict[str, Any] | None:
    """What each reader marked, as bits of a voxel's number; None where extraction saw only how many they were."""
    try:
        stored = crop_files.read_reader_masks(material.runs[0].data, material.case.nodule_id)
    except LidcCdamError:
        return None
    if stored is None or stored[0].shape[1:] != material.crop.hu.shape:
        return None
    bits = sum(mask.astype("<u2") << place for place, mask in enumerate(stored[0]))
    return {"count": len(stored[0]), "bits": packed(np.asarray(bits, "<u2"))}


def _layers(material: Material, index: int) -> list[dict[str, Any]]:
    """The maps of one run: those that the document shows, and those of other methods that lie beside them."""
    run, case, maps = material.runs[index], material.cases[index], material.maps[index]
    if case is None:
        return []
    layers = [] if maps is None else _layer(run.method, maps, run.limits, case)
    layers += _volume_layer(material, run, case)
    random_maps = material.random_maps[index]
    # Beside the maps alone: the viewer opens with the first layer, which must be the model's own.
    if maps is not None and random_maps is not None:
        layers += _layer(f"{run.method}, random weights", random_maps, run.random_limits, case)
    for method, limits in run.beside.items():
        other = _read_beside(run, case, method)
        layers += [] if other is None else _layer(method, other, limits, case)
    return layers


def _volume_layer(material: Material, run: Run, case: Case) -> list[dict[str, Any]]:
    """The volumes of the shown method (`explain --volume`), where there are some and a page can hold them."""
    folder = volume_folder(run.folder, case.fold, run.method, case.nodule_id)
    known = run.limits.get(case.fold, {})
    targets = [key for key in volume_targets(folder) if key in known]
    if not targets or len(targets) * material.crop.hu.size * 4 > MOST_VOLUME_BYTES:
        return []
    try:
        cubes = [read_volume(folder, key).mean for key in targets]
    except LidcCdamError:
        return []
    if any(cube.shape != material.crop.hu.shape for cube in cubes):
        return []
    return [
        {
            "method": f"{run.method}, every slice",
            "cube": True,
            "targets": targets,
            "limits": {key: known[key] for key in targets},
            "scores": packed(np.stack(cubes).astype("<f4")),
        }
    ]


def _read_beside(run: Run, case: Case, method: str) -> Maps | None:
    """Another method's maps; a missing or damaged file leaves that method out."""
    try:
        return read_maps(artifacts.maps_path(run.folder, case.fold, method, case.nodule_id))
    except LidcCdamError:
        return None


def _layer(method: str, maps: Maps, limits: Limits, case: Case) -> list[dict[str, Any]]:
    known = limits.get(case.fold, {})
    if not set(maps.targets) <= set(known):
        return []
    return [
        {
            "method": method,
            "targets": maps.targets,
            "views": maps.views,
            "slices": maps.slices,
            "rows": maps.scores.shape[-2],
            "columns": maps.scores.shape[-1],
            "limits": {key: known[key] for key in maps.targets},
            "scores": packed(maps.scores.astype("<f4")),
        }
    ]
