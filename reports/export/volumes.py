"""Volumes for 3D Slicer, ITK-SNAP and scripts: NIfTI and NRRD, each at its place in the patient."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from lidc_cdam.files import replacing, write_text
from lidc_cdam.nifti import write_nifti
from reports.export.subject import Layer, Subject

LOADER = "open_in_slicer.py"
"""Loads a nodule's volumes: `Slicer --python-script open_in_slicer.py`."""


def write_volumes(subject: Subject, folder: Path, ending: str) -> list[Path]:
    """Write the crop, what readers marked and the maps.

    Args:
        subject: the nodule.
        folder: its own.
        ending: `nii.gz` or `nrrd`.

    Returns:
        The files, and a script that opens them.
    """
    layers = _layers(subject)
    paths = [folder / f"{name}.{ending}" for name in layers]
    for path, layer in zip(paths, layers.values(), strict=True):
        WRITERS[ending](path, layer)
    loader = folder / LOADER
    write_text(loader, _loader(ending, list(layers)))
    return [*paths, loader]


def _layers(subject: Subject) -> dict[str, Layer]:
    layers = {
        "ct": subject.layer(subject.crop.hu),
        "consensus": subject.consensus,
        "reader_fraction": subject.agreement,
    }
    for number, mask in enumerate(subject.readers if subject.readers is not None else (), 1):
        layers[f"reader_{number}"] = subject.layer(mask.astype(np.uint8))
    return layers | {f"{subject.run.method}_{target}": layer for target, layer in subject.maps().items()}


def _write_nifti(path: Path, layer: Layer) -> None:
    write_nifti(path, layer.values, layer.origin_mm, layer.spacing_mm, "lidc-cdam; research use only")


def _write_nrrd(path: Path, layer: Layer) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(layer.values))
    image.SetOrigin(layer.origin_mm)
    image.SetSpacing((layer.spacing_mm,) * 3)
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


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
