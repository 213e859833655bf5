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
"""Side of a cube in voxels unless `extract` is told another; at 1 mm also in mm (paper, appendix)."""
DRAWN = 2
"""Training draws from the central slice and this many on either side of it."""


@dataclass(frozen=True)
class Grid:
    """The voxels of a folder's cubes: how many, how large."""

    side: int = CROP_SIDE
    """Voxels along each axis."""
    spacing_mm: float = 1.0
    """Distance of neighbouring voxels along each axis."""

    @property
    def central(self) -> int:
        """See `central_index`."""
        return central_index(self.side)

    def __str__(self) -> str:
        """In words, for messages."""
        return f"{self.side} voxels of {self.spacing_mm:g} mm a side"


USUAL = Grid()
"""The paper's: 32 voxels of 1 mm."""


def central_index(side: int) -> int:
    """Index of the voxel that lies on the centre of the consensus' bounding box, on each axis of a cube: half its side.

    Of the 32 voxels of the paper's cubes it is 16 (counted from 0); 16 voxels lie before it and 15 behind it.
    """
    return side // 2


def central_slices(side: int) -> tuple[int, ...]:
    """The five slices of a cube that training draws from, on each axis: 14 to 18 of 32."""
    middle = central_index(side)
    return tuple(range(middle - DRAWN, middle + DRAWN + 1))


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


def take_stack(
    cube: Shaped[np.ndarray, "slice row column"], view: str, index: int, count: int, step: int = 1
) -> Shaped[np.ndarray, "channel height width"]:
    """Neighbouring slices of one view as channels, for 2.5-D models.

    Channel c shows slice `index + (c - count // 2) * step`: the middle channel (of an even count the upper one of the
    two middle ones) is `take_view(cube, view, index)`. Beyond the cube the slices are mirrored at its face, the
    outermost slice first (..., 1, 0 | 0, 1, ...), as `intensity.fill_unread` mirrors tissue.

    Args:
        cube: any quantity on a cube's grid.
        view: a key of `VIEWS`.
        index: slice index of the middle channel along the view's axis.
        count: channels, at least 1.
        step: distance of neighbouring channels in slices, at least 1.

    Raises:
        ValueError: `count` or `step` is below 1.
        IndexError: `index` is not in the cube.
    """
    if count < 1 or step < 1:
        raise ValueError(f"count and step must be at least 1; got {count} and {step}")
    size = cube.shape[VIEWS[view].axis]
    if not 0 <= index < size:
        raise IndexError(f"index must be from 0 to {size - 1}; got {index}")
    places = (index + (np.arange(count) - count // 2) * step) % (2 * size)
    return np.stack([take_view(cube, view, int(place)) for place in np.minimum(places, 2 * size - 1 - places)])


def origin_of_cube(centre_mm: tuple[float, float, float], grid: Grid = USUAL) -> tuple[float, float, float]:
    """Position (x, y, z), mm, of voxel [0, 0, 0] of a cube whose central voxel lies on `centre_mm` (x, y, z).

    Args:
        centre_mm: x, y, z.
        grid: of the cube.
    """
    x, y, z = (coordinate - grid.central * grid.spacing_mm for coordinate in centre_mm)
    return (x, y, z)
