"""Axes, views and the step from a voxel index to a patient position.

A cube is an array [slice, row, column] = [z, y, x] in DICOM's patient axes (LPS): column grows to the patient's left,
row to the back, slice to the head. Its directions are the identity, so every cube of every scan lies the same way. A
view is a 2-D image [row, column] of such a cube **as it is looked at**: axial from the feet, coronal from the front,
sagittal from the left, head up. Models, maps and reports all use this one orientation.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

CROP_SIDE = 32
"""Side of a cube in voxels; at 1 mm also in mm (paper, appendix)."""
CENTRAL = 16
"""Index of the voxel that lies on the centre of the consensus' bounding box, on each axis."""
CENTRAL_SLICES: tuple[int, ...] = (14, 15, 16, 17, 18)
"""Slices that training draws from."""


@dataclass(frozen=True)
class View:
    """One way to cut a cube into images."""

    key: str
    title: str
    axis: int
    """Axis of the cube [slice, row, column] that the view's slice index runs along."""
    flip_rows: bool
    """Whether the image's rows run against the cube's axis (head up)."""
    letters: tuple[str, str, str, str]
    """Anatomical letters at the image's left, right, top and bottom edge."""


VIEWS: dict[str, View] = {
    view.key: view
    for view in (
        View("axial", "Axial", 0, False, ("R", "L", "A", "P")),
        View("coronal", "Coronal", 1, True, ("R", "L", "H", "F")),
        View("sagittal", "Sagittal", 2, True, ("A", "P", "H", "F")),
    )
}


def stack_view(
    images: Shaped[np.ndarray, "*kind index height width"], view: str
) -> Shaped[np.ndarray, "*kind slice row column"]:
    """The cube whose images `take_view` gives back: `take_view(stack_view(images, view), view, i)` is `images[i]`.

    Args:
        images: all images of `view`, in the order of the cube's own axis; leading axes are kept.
        view: a key of `VIEWS`.
    """
    chosen = VIEWS[view]
    upright = images[..., ::-1, :] if chosen.flip_rows else images
    return np.moveaxis(upright, -3, chosen.axis - 3)


def take_view(
    cube: Shaped[np.ndarray, "slice row column"], view: str, index: int
) -> Shaped[np.ndarray, "height width"]:
    """The image of `view` at `index` along the view's axis (counted from 0 in the cube's own direction).

    Args:
        cube: any quantity on a cube's grid.
        view: a key of `VIEWS`.
        index: slice index along the view's axis.

    Returns:
        The image as it is looked at; a view on the cube's memory.
    """
    chosen = VIEWS[view]
    image: np.ndarray = np.moveaxis(cube, chosen.axis, 0)[index]
    return image[::-1] if chosen.flip_rows else image


def origin_of_cube(
    centre_mm: tuple[float, float, float], spacing_mm: float = 1.0, central: int = CENTRAL
) -> tuple[float, float, float]:
    """Position (x, y, z), mm, of voxel [0, 0, 0] of a cube whose voxel [central] * 3 lies on `centre_mm` (x, y, z)."""
    x, y, z = (coordinate - central * spacing_mm for coordinate in centre_mm)
    return (x, y, z)
