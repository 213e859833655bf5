import numpy as np
import pytest

from lidc_cdam.geometry import (
    USUAL,
    VIEWS,
    Grid,
    central_index,
    central_slices,
    origin_of_cube,
    take_stack,
    take_view,
)


@pytest.fixture
def cube() -> np.ndarray:
    """Each voxel holds its own position: 10000 z + 100 y + x."""
    z, y, x = np.meshgrid(*(np.arange(4),) * 3, indexing="ij")
    return 10000 * z + 100 * y + x


def test_axial_is_seen_from_the_feet_with_the_front_up(cube):
    image = take_view(cube, "axial", 2)
    assert image[0, 0] == 20000
    assert image[0, 3] == 20003
    assert image[3, 0] == 20300
    assert VIEWS["axial"].letters == ("R", "L", "A", "P")


def test_coronal_and_sagittal_have_the_head_up(cube):
    coronal = take_view(cube, "coronal", 1)
    assert coronal[0, 0] == 30100
    assert coronal[3, 3] == 103
    sagittal = take_view(cube, "sagittal", 2)
    assert sagittal[0, 0] == 30002
    assert sagittal[3, 3] == 302
    assert VIEWS["sagittal"].letters == ("A", "P", "H", "F")


def test_the_central_voxel_lies_on_the_centre():
    origin = origin_of_cube((10.0, 20.0, -300.5))
    assert [coordinate + 16 for coordinate in origin] == [10.0, 20.0, -300.5]
    assert (USUAL.side, USUAL.spacing_mm, USUAL.central) == (32, 1.0, 16)
    assert origin_of_cube((10.0, 20.0, -300.5), Grid(9, 0.5)) == (8.0, 18.0, -302.5)


def test_training_draws_from_the_central_five():
    assert central_slices(32) == (14, 15, 16, 17, 18)
    assert central_slices(9) == (2, 3, 4, 5, 6)
    assert [central_index(side) for side in (8, 9, 48)] == [4, 4, 24]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("index", "count", "step", "slices"),
    [
        (2, 1, 1, [2]),
        (2, 3, 1, [1, 2, 3]),
        (1, 2, 1, [0, 1]),
        (1, 4, 1, [0, 0, 1, 2]),
        (0, 3, 1, [0, 0, 1]),
        (3, 3, 1, [2, 3, 3]),
        (0, 5, 2, [3, 1, 0, 2, 3]),
        (1, 3, 9, [0, 1, 2]),
    ],
)
def test_a_stack_is_neighbouring_slices_mirrored_at_the_cubes_faces(cube, view, index, count, step, slices):
    stack = take_stack(cube, view, index, count, step)
    np.testing.assert_array_equal(stack, np.stack([take_view(cube, view, place) for place in slices]))


def test_a_stack_needs_channels_and_an_index_in_the_cube(cube):
    for count, step in ((0, 1), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            take_stack(cube, "axial", 0, count, step)
    for index in (-1, 4):
        with pytest.raises(IndexError, match="from 0 to 3"):
            take_stack(cube, "axial", index, 3)
