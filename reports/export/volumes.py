"""Volumes for 3D Slicer, ITK-SNAP and scripts: NIfTI and NRRD, each at its place in the patient."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lidc_cdam.files import replacing, write_text
from lidc_cdam.nifti import LEVEL, write_nifti
from reports.export.subject import Layer, Subject

LOADER = "open_in_slicer.py"
"""Loads a nodule's volumes: `Slicer --python-script open_in_slicer.py`."""


def write_volumes(subject: Subject, folder: Path, ending: str) -> Iterator[Path]:
    """Write the crop, what readers marked, the maps, and a script that opens them all.

    Args:
        subject: the nodule.
        folder: its own.
        ending: `nii.gz` or `nrrd`.

    Yields:
        Each file as soon as it is whole; the script comes last.
    """
    layers = _layers(subject)
    for name, layer in layers.items():
        path = folder / f"{name}.{ending}"
        WRITERS[ending](path, layer)
        yield path
    write_text(folder / LOADER, _loader(ending, list(layers)))
    yield folder / LOADER


def _layers(subject: Subject) -> dict[str, Layer]:
    layers = {
        "ct": subject.layer(subject.crop.hu),
        "consensus": subject.consensus,
        "reader_fraction": subject.agreement,
    }
    for number, mask in enumerate(subject.readers if subject.readers is not None else (), 1):
        layers[f"reader_{number}"] = subject.layer(mask.astype(np.uint8))
    return layers | {f"{subject.run.method}_{target}": layer for target, layer in subject.maps().items()}


NOTE = "lidc-cdam; research use only"
NRRD_TYPES = {"uint8": "uint8", "int16": "int16", "float32": "float"}


def _write_nifti(path: Path, layer: Layer) -> None:
    write_nifti(path, layer.values, layer.origin_mm, layer.spacing_mm, NOTE)


def _write_nrrd(path: Path, layer: Layer) -> None:
    """The header is made here, as for NIfTI: ITK may say nothing when a disk is full."""
    values, step = layer.values, layer.spacing_mm
    fields = {
        "type": NRRD_TYPES[values.dtype.name],
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, values.shape[::-1])),
        "space directions": f"({step},0,0) (0,{step},0) (0,0,{step})",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        "space origin": f"({','.join(str(float(place)) for place in layer.origin_mm)})",
        "content": NOTE,
    }
    header = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    raw = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(header.encode("ascii") + gzip.compress(raw, LEVEL, mtime=0))


WRITERS: dict[str, Callable[[Path, Layer], None]] = {"nii.gz": _write_nifti, "nrrd": _write_nrrd}
"""How a layer is written, by the file's ending."""


def _loader(ending: str, names: list[str]) -> str:
    """A script for 3D Slicer: the CT in a lung window, masks as segmentations, maps with zero in the middle."""
    masks = [
        name for name in names if name == "consensus" or (name.startswith("reader_") and name != "reader_fraction")
    ]
    maps = [name for name in names if name not in ("ct", "reader_fraction", *masks)]
    return f'''"""Research use only - not for diagnosis. Run with: Slicer --python-script {LOADER}"""
import os
import slicer
import vtk

here = os.path.dirname(os.path.abspath(__file__))
ct = slicer.util.loadVolume(os.path.join(here, "ct.{ending}"))
ct.GetDisplayNode().AutoWindowLevelOff()
ct.GetDisplayNode().SetWindowLevel(1500, -600)
for name in {masks!r}:
    slicer.util.loadSegmentation(os.path.join(here, name + ".{ending}"))
colours = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLProceduralColorNode", "blue lowers, orange raises")
table = vtk.vtkDiscretizableColorTransferFunction()
for place, red, green, blue in ((-1, 0.25, 0.59, 1), (0, 0, 0, 0), (1, 1, 0.55, 0.08)):
    table.AddRGBPoint(place, red, green, blue)
for name in {maps!r}:
    volume = slicer.util.loadVolume(os.path.join(here, name + ".{ending}"), {{"show": False}})
    limit = max(abs(value) for value in volume.GetImageData().GetScalarRange()) or 1.0
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(2 * limit, 0)
    colours.SetAndObserveColorTransferFunction(table)
    volume.GetDisplayNode().SetAndObserveColorNodeID(colours.GetID())
slicer.util.setSliceViewerLayers(background=ct)
slicer.util.resetSliceViews()
'''
