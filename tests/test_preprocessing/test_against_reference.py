"""Resampling and readers' masks against the slow literal twins, and the twins against known cases."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from reference import contour_pixels, reading_pixels, sample_linear, sample_nearest
from scipy.ndimage import map_coordinates

from lidc_cdam.crop_files import read_crop
from preprocessing.annotations import IndexBox, Nodule, consensus, load_nodules, reader_counts
from preprocessing.crops import Block, Frame, centre_mm, consensus_box, cut_cube
from preprocessing.jobs import ScanJob
from preprocessing.series import index_series

IRREGULAR_Z = (-10.0, -8.0, -7.5, -4.0, -1.0)

# --- The twins themselves ---------------------------------------------------------------------------------------------


def axes(shape: tuple[int, int, int], spacing: float, z: tuple[float, ...]) -> tuple[list[float], list[float], list]:
    return [i * spacing for i in range(shape[0])], [i * spacing for i in range(shape[1])], list(z)


def test_linear_sampling_is_exact_on_a_plane_at_irregular_slices() -> None:
    frame = axes((4, 5, 5), 0.7, IRREGULAR_Z)
    y, x, z = np.meshgrid(*frame, indexing="ij")
    block = 3 + 2 * y - 5 * x + 0.25 * z
    for point in [(0.0, 0.0, -10.0), (1.1, 2.2, -7.9), (2.0, 2.7, -1.0), (0.3, 0.9, -2.2)]:
        expected = 3 + 2 * point[0] - 5 * point[1] + 0.25 * point[2]
        assert sample_linear(block, frame, point) == pytest.approx(expected)
    assert sample_linear(block, frame, (0, 0, -10.01)) is None


def test_linear_sampling_agrees_with_scipy_on_a_regular_grid() -> None:
    block = np.random.default_rng(0).normal(size=(5, 6, 4))
    frame = axes(block.shape, 2.0, (0.0, 2.0, 4.0, 6.0))
    points = np.random.default_rng(1).uniform(0, 1, (20, 3)) * [8, 10, 6]
    expected = map_coordinates(block, (points / 2).T, order=1)
    np.testing.assert_allclose([sample_linear(block, frame, tuple(point)) for point in points], expected)


def test_nearest_sampling_takes_the_nearest_slice_in_mm() -> None:
    block = np.arange(5.0)[None, None, :] * np.ones((2, 2, 1))
    frame = axes(block.shape, 1.0, IRREGULAR_Z)
    assert [sample_nearest(block, frame, (0, 0, z)) for z in (-9.1, -8.9, -7.7, -5.8, -5.7, -5.75)] == [
        0.0,
        1.0,
        2.0,
        2.0,
        3.0,
        None,
    ]


def test_a_contours_own_points_are_outside() -> None:
    ring = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1), (2, 1)]
    expected = np.zeros((5, 5), dtype=bool)
    expected[2, 2] = True
    np.testing.assert_array_equal(contour_pixels(ring, (5, 5)), expected)


# --- The fast code ----------------------------------------------------------------------------------------------------

FRAMES = {
    "plain": Frame((-20.3, 11.7), (0.7, 0.7)),
    "row_and_column_spacing_differ": Frame((-20.3, 11.7), (0.9, 0.7)),
    "rotated_by_a_half_turn": Frame((24.1, 60.2), (0.7, 0.7), (-1.0, 0.0), (0.0, -1.0)),
    "mirrored": Frame((24.1, 11.7), (0.7, 0.7), (-1.0, 0.0), (0.0, 1.0)),
}
Z = (-320.0, -317.5, -315.0, -314.0, -311.5, -306.5, -304.0, -301.5, -299.0, -296.5, -294.0, -291.5, -289.0)


def random_block(frame: Frame, seed: int = 0) -> Block:
    rng = np.random.default_rng(seed)
    box = IndexBox((3, 63), (5, 65), (7, 7 + len(Z)))
    hu = rng.integers(-1000, 400, box.shape).astype(np.int16)
    return Block(hu, rng.integers(0, 5, box.shape).astype(np.uint8), box, frame, Z)


def ascending_axes(block: Block) -> tuple[tuple[list[float], list[float], list[float]], tuple[slice, ...]]:
    """Positions (y, x, z) of the block's rows, columns and slices, and how to turn the block so that they ascend."""
    frame, box = block.frame, block.box
    y = [frame.corner_mm[1] + row * frame.spacing_mm[0] * frame.along_rows[1] for row in range(*box.row)]
    x = [frame.corner_mm[0] + column * frame.spacing_mm[1] * frame.along_columns[0] for column in range(*box.column)]
    turn = tuple(slice(None, None, -1 if axis[0] > axis[-1] else 1) for axis in (y, x, list(Z)))
    return (sorted(y), sorted(x), list(Z)), turn


@pytest.mark.parametrize("name", FRAMES)
def test_a_cube_equals_its_twin(name: str) -> None:
    block = random_block(FRAMES[name])
    (y, x, z), turn = ascending_axes(block)
    centre = (sum(x) / len(x) + 0.13, sum(y) / len(y) - 0.21, -304.37)
    cube, padded = cut_cube(block, centre)
    compared = {"hu": 0, "readers": 0}
    for index in np.random.default_rng(1).integers(0, 32, (1500, 3)):
        point = (centre[1] + index[1] - 16, centre[0] + index[2] - 16, centre[2] + index[0] - 16)
        hu = sample_linear(block.hu[turn], (y, x, z), point)
        if hu is not None:
            compared["hu"] += 1
            assert abs(int(cube.hu[tuple(index)]) - hu) <= 0.501
        readers = sample_nearest(block.readers[turn], (y, x, z), point)
        if readers is not None:
            compared["readers"] += 1
            assert cube.readers[tuple(index)] == readers
    assert min(compared.values()) > 1000
    assert cube.origin_mm == pytest.approx([coordinate - 16 for coordinate in centre])
    assert padded == pytest.approx(literal_padded_share(centre, (y, x, z)))


def literal_padded_share(centre: tuple[float, float, float], axes_mm: tuple[list[float], ...]) -> float:
    """Share of a cube's voxels beyond the outer faces of the outermost voxels."""
    inside = 1
    for coordinate, axis in zip((centre[1], centre[0], centre[2]), axes_mm, strict=True):
        low, high = axis[0] - (axis[1] - axis[0]) / 2, axis[-1] + (axis[-1] - axis[-2]) / 2
        inside *= sum(low <= coordinate + step - 16 <= high for step in range(32))
    return 1 - inside / 32**3


def test_padding_is_outside_and_only_there() -> None:
    frame = FRAMES["plain"]
    block = random_block(frame)
    centre = (frame.corner_mm[0] + 5 * 0.7, frame.corner_mm[1] + 30 * 0.7, -300.2)
    cube, padded = cut_cube(block, centre)
    # The block's first column is its column 5, on the centre; half a pixel (0.35 mm) before it the unknown begins.
    assert (cube.readers[:, :, :16] == 0).all()
    assert len(np.unique(cube.hu[:, :, :16])) == 1
    assert len(np.unique(cube.hu[5:-5, 10:-10, 16])) > 100
    assert padded == pytest.approx(literal_padded_share(centre, ascending_axes(block)[0]))


def test_the_centre_is_that_of_the_voxels_at_least_half_of_the_readers_marked() -> None:
    readers = np.zeros((6, 7, 5), dtype=np.uint8)
    readers[0, 0, 0] = 1
    readers[2:4, 3:6, 1:4] = 2
    frame = Frame((10.0, 20.0), (0.5, 0.8))
    box = consensus_box(readers, 4, IndexBox((100, 106), (200, 207), (30, 35)))
    assert box == IndexBox((102, 104), (203, 206), (31, 34))
    z = [-9.0, -8.0, -6.0, -1.0, 0.0]
    assert centre_mm(box, frame, z, first=30) == pytest.approx((10 + 204 * 0.8, 20 + 102.5 * 0.5, -6.0))


@pytest.fixture(scope="module")
def nodules() -> list[Nodule]:
    """Some real nodules, with holes, several outlines a slice and many readers among them."""
    return load_nodules(patients=["LIDC-IDRI-0001", "LIDC-IDRI-0003", "LIDC-IDRI-0004"])


def corner(box: IndexBox) -> np.ndarray:
    return np.array([box.row[0], box.column[0], box.slice[0]])


def test_reader_counts_and_consensus_equal_their_twins(nodules: list[Nodule]) -> None:
    for nodule in nodules[:4]:
        counts, box = reader_counts(nodule)
        expected = np.zeros(box.shape, dtype=int)
        for reading in nodule.readings:
            for place, index in enumerate(range(*box.slice)):
                rings = {True: [], False: []}
                for contour in reading.contours:
                    if contour.slice_index == index:
                        points = [(int(r) - box.row[0], int(c) - box.column[0]) for r, c in contour.points]
                        rings[contour.inclusion].append(points)
                expected[:, :, place] += reading_pixels(rings[True], rings[False], box.shape[:2])
        np.testing.assert_array_equal(counts, expected)
        mask, tight = consensus(nodule)
        marked = np.argwhere(2 * expected >= len(nodule.readings)) + corner(box)
        assert sorted(map(tuple, marked)) == sorted(map(tuple, np.argwhere(mask) + corner(tight)))
        assert [tight.row, tight.column, tight.slice] == [(int(axis.min()), int(axis.max()) + 1) for axis in marked.T]


def test_a_hole_and_its_outline_are_cut_out() -> None:
    outer = [(0, c) for c in range(9)] + [(r, 8) for r in range(1, 9)]
    outer += [(8, c) for c in range(7, -1, -1)] + [(r, 0) for r in range(7, 0, -1)]
    hole = [(3, 3), (3, 4), (3, 5), (4, 5), (5, 5), (5, 4), (5, 3), (4, 3)]
    expected = np.zeros((9, 9), dtype=bool)
    expected[1:8, 1:8] = True
    expected[3:6, 3:6] = False
    np.testing.assert_array_equal(reading_pixels([outer], [hole], (9, 9)), expected)


@pytest.mark.data
def test_a_cube_from_dicom_equals_an_independent_resampling(shared_data: Path, tmp_path: Path) -> None:
    """From pydicom's pixels and positions alone: literal masks, literal centre, literal interpolation."""
    (nodule,) = load_nodules(patients=["LIDC-IDRI-0001"])
    slices = read_slices(shared_data / "LIDC-IDRI" / "LIDC-IDRI-0001", nodule)
    axes_mm, marked = literal_counts(nodule, slices)
    box = [(places.min(), places.max()) for places in np.nonzero(2 * marked >= len(nodule.readings))]
    y, x, z = ((axis[low] + axis[high]) / 2 for axis, (low, high) in zip(axes_mm, box, strict=True))

    series = index_series(shared_data / "LIDC-IDRI", {nodule.scan.series_uid}).series[nodule.scan.series_uid]
    assert ScanJob(tmp_path, True, series, (nodule,)).run() == []
    cube = read_crop(tmp_path, nodule.nodule_id)
    assert cube.origin_mm == pytest.approx((x - 16, y - 16, z - 16), abs=1e-3)
    hu = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices], axis=2)
    compared = 0
    for index in np.random.default_rng(0).integers(0, 32, (600, 3)):
        point = (y + index[1] - 16, x + index[2] - 16, z + index[0] - 16)
        assert abs(int(cube.hu[tuple(index)]) - sample_linear(hu, axes_mm, point)) <= 0.51
        readers = sample_nearest(marked, axes_mm, point)
        if readers is not None:
            compared += 1
            assert cube.readers[tuple(index)] == readers
    assert compared > 400


def read_slices(folder: Path, nodule: Nodule) -> list[pydicom.Dataset]:
    """The files within 20 mm of the nodule by ascending z; rows and columns run along y and x."""
    heights = [nodule.scan.slice_z_mm[c.slice_index] for reading in nodule.readings for c in reading.contours]
    found = []
    for path in folder.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        near = (
            "ImagePositionPatient" in header and min(heights) - 20 < header.ImagePositionPatient[2] < max(heights) + 20
        )
        if header.SeriesInstanceUID == nodule.scan.series_uid and near:
            found.append(pydicom.dcmread(path))
    assert list(map(float, found[0].ImageOrientationPatient)) == [1, 0, 0, 0, 1, 0]
    return sorted(found, key=lambda one: one.ImagePositionPatient[2])


def literal_counts(
    nodule: Nodule, slices: list[pydicom.Dataset]
) -> tuple[tuple[list[float], list[float], list[float]], np.ndarray]:
    """Positions (y, x, z) of the scan's rows, columns and slices, and how many readers marked each voxel."""
    first = slices[0]
    rows, columns = int(first.Rows), int(first.Columns)
    row_mm, column_mm = map(float, first.PixelSpacing)
    x0, y0, _ = map(float, first.ImagePositionPatient)
    z = [float(one.ImagePositionPatient[2]) for one in slices]
    counts = np.zeros((rows, columns, len(z)), dtype=np.uint8)
    for reading in nodule.readings:
        points = np.concatenate([contour.points for contour in reading.contours])
        (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0) + 1
        for contour in reading.contours:
            ring = [(int(row - top), int(column - left)) for row, column in contour.points]
            pixels = contour_pixels(ring, (int(bottom - top), int(right - left)))
            place = z.index(nodule.scan.slice_z_mm[contour.slice_index])
            counts[top:bottom, left:right, place] += pixels
    return ([y0 + i * row_mm for i in range(rows)], [x0 + i * column_mm for i in range(columns)], z), counts
