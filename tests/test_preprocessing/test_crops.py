from pathlib import Path

import numpy as np
import pytest
from dicom_factory import Stack, linear
from hypothesis import given, settings
from hypothesis import strategies as st

from lidc_cdam.crop_files import PADDING_HU
from lidc_cdam.geometry import USUAL
from preprocessing.annotations import IndexBox
from preprocessing.crops import (
    Block,
    Frame,
    centre_mm,
    consensus_box,
    cube_corners,
    cut_cube,
    surrounding_box,
)

REGULAR = tuple(np.arange(-40.0, 41.0, 2.5))
REGULAR_MM = tuple(np.arange(40.0))
IRREGULAR = tuple(np.cumsum([-40.0, *np.random.default_rng(0).choice([0.625, 1.25, 2.5], 70)]))
FLIPS = {
    "identity": ((1.0, 0.0), (0.0, 1.0)),
    "both": ((-1.0, 0.0), (0.0, -1.0)),
    "x": ((-1.0, 0.0), (0.0, 1.0)),
    "y": ((1.0, 0.0), (0.0, -1.0)),
    "transposed": ((0.0, 1.0), (1.0, 0.0)),
    "turned": ((0.8, 0.6), (-0.6, 0.8)),
}
SHAPE = (140, 150)


def frame(along_columns: tuple[float, float] = (1.0, 0.0), along_rows: tuple[float, float] = (0.0, 1.0)) -> Frame:
    """A frame of non-square pixels whose middle lies on (3, -5)."""
    at_zero = Frame((0.0, 0.0), (0.7, 0.6), along_columns, along_rows)
    x, y = at_zero.position_mm((SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2)
    return Frame((3 - x, -5 - y), at_zero.spacing_mm, along_columns, along_rows)


def block(hu, place: Frame, z_mm: tuple[float, ...] = REGULAR, readers=None, box: IndexBox | None = None) -> Block:
    """A block whose HU and reader counts are functions of (x, y, z)."""
    box = box or IndexBox((0, SHAPE[0]), (0, SHAPE[1]), (0, len(z_mm)))
    row, column = np.mgrid[slice(*box.row), slice(*box.column)]
    x, y = place.position_mm(row, column)
    x, y, z = x[..., None], y[..., None], np.array(z_mm)[slice(*box.slice)]
    values = np.rint(hu(x, y, z) + 0 * z).astype(np.int16)
    counts = np.zeros(values.shape, np.uint8) if readers is None else (readers(x, y, z)).astype(np.uint8)
    return Block(values, counts, box, place, tuple(float(one) for one in z))


def grid(origin: tuple[float, float, float]) -> tuple[np.ndarray, ...]:
    z, y, x = (
        origin[axis] + np.arange(32).reshape([-1 if axis == 2 - k else 1 for k in range(3)]) for axis in (2, 1, 0)
    )
    return x, y, z


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("z_mm", [REGULAR, IRREGULAR], ids=["regular", "irregular"])
def test_linear_hu_are_reproduced(flip: str, z_mm: tuple[float, ...]) -> None:
    place = frame(*FLIPS[flip])
    # Whole HU on the grid leave at most half a HU of rounding on input and on output.
    hu = linear((20, -30, 15), 100)
    crop, padded = cut_cube(block(hu, place, z_mm), (2.3, -4.1, 0.7))
    assert padded == 0
    assert crop.origin_mm == pytest.approx((-13.7, -20.1, -15.3))
    np.testing.assert_allclose(crop.hu, hu(*grid(crop.origin_mm)), atol=1.01)


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("z_mm", [REGULAR, IRREGULAR], ids=["regular", "irregular"])
def test_a_sphere_keeps_its_centre_and_volume(flip: str, z_mm: tuple[float, ...]) -> None:
    centre, radius = (4.2, -6.3, 1.4), 10.0
    fine = tuple(np.linspace(z_mm[0], z_mm[-1], 130)) if z_mm is REGULAR else z_mm

    def distance(x, y, z):
        return np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)

    made = block(
        lambda x, y, z: -np.clip(100 * (distance(x, y, z) - radius), -500, 500),
        frame(*FLIPS[flip]),
        fine,
        lambda x, y, z: 4 * (distance(x, y, z) <= radius),
    )
    crop, _ = cut_cube(made, (4.0, -6.0, 1.0))
    x, y, z = np.broadcast_arrays(*grid(crop.origin_mm))
    volume = 4 / 3 * np.pi * radius**3
    for inside in (crop.readers == 4, crop.hu >= 0):
        assert inside.sum() == pytest.approx(volume, rel=0.02)
        assert [axis[inside].mean() for axis in (x, y, z)] == pytest.approx(centre, abs=0.25)


def test_the_central_voxel_lies_on_the_centre_of_the_box() -> None:
    readers = np.zeros((9, 11, 6), np.uint8)
    readers[2:6, 3:8, 1:4] = 2
    readers[5, 9, 5] = 1
    box = consensus_box(readers, 4, IndexBox((40, 49), (50, 61), (7, 13)))
    assert box == IndexBox((42, 46), (53, 58), (8, 11))
    place = frame()
    x, y, z = centre_mm(box, place, REGULAR)
    assert (x, y) == pytest.approx(place.position_mm(43.5, 55))
    assert z == REGULAR[9]
    assert centre_mm(box, place, REGULAR[8:12], first=8) == (x, y, z)
    crop, _ = cut_cube(block(linear((10, 0, 0)), place), (x, y, z))
    assert np.add(crop.origin_mm, USUAL.central) == pytest.approx((x, y, z))


def test_a_centre_between_slices_of_different_steps() -> None:
    box = IndexBox((0, 1), (0, 1), (0, 4))
    assert centre_mm(box, frame(), (0.0, 1.0, 4.0, 5.0))[2] == pytest.approx(2.5)
    assert centre_mm(IndexBox((0, 1), (0, 1), (1, 4)), frame(), (0.0, 1.0, 4.0, 5.0))[2] == 4.0


def test_half_of_the_readers_is_enough_and_none_is_an_error() -> None:
    readers = np.array([0, 1, 2], np.uint8).reshape(1, 1, 3)
    box = IndexBox((0, 1), (0, 1), (0, 3))
    assert consensus_box(readers, 4, box).slice == (2, 3)
    assert consensus_box(readers, 3, box).slice == (2, 3)
    assert consensus_box(readers, 2, box).slice == (1, 3)
    with pytest.raises(ValueError, match="no voxel"):
        consensus_box(readers, 5, box)


def test_what_was_not_read_is_padded_and_counted() -> None:
    place = Frame((0.0, 0.0), (1.0, 1.0))
    made = block(
        linear((0, 0, 0), 50), place, (0.0, 2.0, 4.0), lambda x, y, z: x + y + z < 0, IndexBox((0, 64), (0, 10), (0, 3))
    )
    crop, padded = cut_cube(made, (4.0, 30.0, 2.0))
    # Read: columns 0-9 and the heights inside the slices' extent: from above -1 to 5.
    inside = np.zeros((32, 32, 32), bool)
    inside[14:20, :, 12:22] = True
    inside[13, :, 12:22] = False
    np.testing.assert_array_equal(crop.hu != PADDING_HU, inside)
    assert (crop.hu[inside] == 50).all()
    assert padded == pytest.approx(1 - inside.mean())
    assert not crop.readers[~inside].any()


def test_a_single_slice_fills_one_voxel() -> None:
    made = block(linear((0, 0, 0), 50), frame(), (0.0,))
    crop, padded = cut_cube(made, (0.0, 0.0, 0.0))
    assert padded == pytest.approx(31 / 32)
    assert (crop.hu[USUAL.central] == 50).all()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(FLIPS)),
    st.tuples(*[st.floats(-15, 15)] * 2, st.floats(-24, 24)),
    st.booleans(),
)
def test_the_surrounding_box_is_all_that_a_cube_needs(
    flip: str, centre: tuple[float, float, float], irregular: bool
) -> None:
    z_mm = IRREGULAR if irregular else REGULAR
    place = frame(*FLIPS[flip])
    hu = linear((11, 7, -9))
    box = surrounding_box(*cube_corners(centre), place, SHAPE, z_mm)
    small, share = cut_cube(block(hu, place, z_mm, box=box), centre)
    whole, expected = cut_cube(block(hu, place, z_mm), centre)
    np.testing.assert_array_equal(small.hu, whole.hu)
    assert share == expected


def test_ties_do_not_depend_on_where_a_block_begins() -> None:
    place = Frame((-166.3, -171.699997), (0.7, 0.7))
    noise = np.random.default_rng(1)
    values = noise.integers(-1000, 400, (120, 120, 33)).astype(np.int16)
    counts = noise.integers(0, 5, values.shape).astype(np.uint8)
    whole = Block(values, counts, IndexBox((0, 120), (0, 120), (0, 33)), place, REGULAR)
    centre = (*place.position_mm(60.5, 59.5), (REGULAR[15] + REGULAR[16]) / 2)
    expected, _ = cut_cube(whole, centre)
    for start in range(1, 33, 3):
        box = IndexBox((start, 119), (start + 1, 120), (4, 30))
        part = values[box.within(whole.box)]
        crop, _ = cut_cube(Block(part, counts[box.within(whole.box)], box, place, REGULAR[4:30]), centre)
        np.testing.assert_array_equal(crop.hu, expected.hu)
        np.testing.assert_array_equal(crop.readers, expected.readers)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tie_goes_to_the_voxel_of_the_lower_index(axis: int) -> None:
    counts = np.arange(60, dtype=np.uint8).reshape([-1 if axis == one else 1 for one in range(3)])
    counts = np.broadcast_to(counts, (60, 60, 60)).copy()
    box = IndexBox((0, 60), (0, 60), (0, 60))
    made = Block(counts.astype(np.int16), counts, box, Frame((0.1, 0.2), (0.7, 0.7)), tuple(np.arange(60.0)))
    centre = (*made.frame.position_mm(30.5, 30.5), 30.5)
    crop, _ = cut_cube(made, centre)
    assert crop.readers[USUAL.central, USUAL.central, USUAL.central] == 30


@pytest.mark.parametrize("axis", [0, 1])
def test_a_position_on_the_border_of_what_was_read_has_its_hu(axis: int) -> None:
    # The last pixel, of 0.5 mm, ends at 9.75 mm: exactly where a voxel of the cube lies.
    shape = (20, 120) if axis == 0 else (120, 20)
    readers = np.full((*shape, 40), 3, np.uint8)
    box = IndexBox((0, shape[0]), (0, shape[1]), (0, 40))
    made = Block(np.full(readers.shape, -700, np.int16), readers, box, Frame((0.0, 0.0), (0.5, 0.5)), REGULAR_MM)
    crop, _ = cut_cube(made, (20.0, 8.75, 20.0) if axis == 0 else (8.75, 20.0, 20.0))
    inside = crop.readers == 3
    assert inside.any(axis=(0, 2 - axis)).nonzero()[0].tolist() == list(range(8, 18))
    assert set(crop.hu[inside].tolist()) == {-700}
    assert set(crop.hu[~inside].tolist()) == {PADDING_HU}


def test_a_written_slice_lies_where_its_frame_says(tmp_path: Path) -> None:
    from preprocessing.pixels import read_hu
    from preprocessing.series import index_series

    stack = Stack(
        linear((3, -2, 0), 10), (1.0, 2.0), corner_mm=(30.0, 20.0), orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    )
    stack.write(tmp_path)
    (series,) = index_series(tmp_path).series.values()
    place, hu = series.frame(), read_hu(series.slices[0])
    x, y = place.position_mm(5, 9)
    assert (x, y) == (30 - 9 * 0.75, 20 - 5 * 0.75)
    assert hu[5, 9] == round(10 + 3 * x - 2 * y)
    assert place.index(x, y) == pytest.approx((5, 9))
