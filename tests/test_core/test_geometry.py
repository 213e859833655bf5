import numpy as np
import pytest

from lidc_cdam.geometry import CENTRAL, CENTRAL_SLICES, CROP_SIDE, VIEWS, origin_of_cube, take_view


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
    assert [coordinate + CENTRAL for coordinate in origin] == [10.0, 20.0, -300.5]
    assert CENTRAL_SLICES[2] == CENTRAL == CROP_SIDE // 2
