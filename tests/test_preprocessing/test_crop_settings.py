"""Cubes of any size, spacing and interpolation, and signed distances, against literal twins and SimpleITK."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from crop_reference import (
    Body,
    Ellipsoid,
    Rod,
    cube_points,
    draw,
    sigma_mm,
    signed_box_distance,
    smoothed,
    soft_centre,
    soft_volume_mm3,
    voxel_intervals,
)
from dicom_factory import AXIAL, Stack
from reference import sample_linear, sample_nearest

from lidc_cdam.crop_files import PADDING_HU
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import Grid
from preprocessing.annotations import IndexBox
from preprocessing.crops import (
    Block,
    CropSettings,
    Frame,
    centre_mm,
    consensus_box,
    cube_corners,
    cut_cube,
    surrounding_box,
)
from preprocessing.distances import surface_distance
from preprocessing.pixels import read_hu
from preprocessing.resample import INTERPOLATIONS, anti_alias
from preprocessing.series import index_series

IRREGULAR = (-12.0, -9.5, -7.0, -6.0, -3.5, -1.0, 1.5, 2.0, 4.5, 7.0, 9.5, 12.0, 14.5)
TURNS = {
    "identity": ((1.0, 0.0), (0.0, 1.0)),
    "both flipped": ((-1.0, 0.0), (0.0, -1.0)),
    "x flipped": ((-1.0, 0.0), (0.0, 1.0)),
    "transposed": ((0.0, 1.0), (1.0, 0.0)),
    "turned": ((0.8, 0.6), (-0.6, 0.8)),
}
CENTRE = (0.31, -0.77, 0.4)


def block_of(values: np.ndarray, z_mm: tuple[float, ...], turn: str = "identity", pixel_mm: float = 0.7) -> Block:
    """A block of given HU whose middle lies near 0, with its own random reader counts."""
    columns, rows = TURNS[turn]
    at_zero = Frame((0.0, 0.0), (pixel_mm, pixel_mm), columns, rows)
    x, y = at_zero.position_mm((values.shape[0] - 1) / 2, (values.shape[1] - 1) / 2)
    box = IndexBox((0, values.shape[0]), (0, values.shape[1]), (0, values.shape[2]))
    counts = np.random.default_rng(5).integers(0, 5, values.shape).astype(np.uint8)
    return Block(values.astype(np.int16), counts, box, Frame((-x, -y), (pixel_mm, pixel_mm), columns, rows), z_mm)


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 400, shape)


def axes_of(block: Block) -> tuple[list[float], list[float], list[float]]:
    """Positions (y, x, z) of the block's rows, columns and slices in a frame that is not turned."""
    (rows, columns, _), (x, y), step = block.hu.shape, block.frame.corner_mm, block.frame.spacing_mm[0]
    return [y + step * row for row in range(rows)], [x + step * column for column in range(columns)], list(block.z_mm)


# --- Size, spacing, anti-aliasing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "spacing_mm"), [(9, 0.4), (24, 0.7), (10, 2.5)])
def test_a_cube_of_any_grid_equals_its_twin(side: int, spacing_mm: float) -> None:
    block = block_of(noise((60, 58, 13)), IRREGULAR)
    crop, _ = cut_cube(block, CENTRE, CropSettings(side, spacing_mm))
    x, y, z = cube_points(CENTRE, side, spacing_mm)
    assert crop.hu.shape == (side,) * 3
    assert crop.spacing_mm == spacing_mm
    assert crop.origin_mm == pytest.approx((x[0], y[0], z[0]))
    compared = 0
    for level, down, across in np.random.default_rng(1).integers(0, side, (400, 3)):
        point = (y[down], x[across], z[level])
        hu, readers = (
            sample_linear(block.hu, axes_of(block), point),
            sample_nearest(block.readers, axes_of(block), point),
        )
        if hu is not None and readers is not None:
            compared += 1
            assert abs(int(crop.hu[level, down, across]) - hu) <= 0.501
            assert crop.readers[level, down, across] == readers
    assert compared > 150


def test_anti_aliasing_equals_its_twin() -> None:
    spacing_mm, pixel_mm = 2.0, 0.8
    block = block_of(noise((60, 58, 25), 2), tuple(np.arange(-18, 19, 1.5)), pixel_mm=pixel_mm)
    settings = CropSettings(8, spacing_mm, antialias=True)
    crop, _ = cut_cube(block, CENTRE, settings)
    plain, _ = cut_cube(block, CENTRE, CropSettings(8, spacing_mm))
    np.testing.assert_array_equal(crop.readers, plain.readers)
    x, y, z = cube_points(CENTRE, 8, spacing_mm)
    sigmas = (sigma_mm(spacing_mm, pixel_mm), sigma_mm(spacing_mm, pixel_mm), sigma_mm(spacing_mm, 1.5))
    assert sigmas == pytest.approx((0.7784, 0.7784, 0.5618), abs=1e-4)
    sampled = [(3, 4, 4), (4, 3, 5), (2, 5, 3)]
    for level, down, across in sampled:
        expected = smoothed(
            lambda point: sample_linear(block.hu, axes_of(block), point), (y[down], x[across], z[level]), sigmas, 0.4
        )
        # The twin's sum and the code's differ in their steps; noise of this size shows a wrong sigma at once.
        assert crop.hu[level, down, across] == pytest.approx(expected, abs=12)
        assert abs(int(crop.hu[level, down, across]) - int(plain.hu[level, down, across])) > 0
    assert crop.hu[1:-1].std() < 0.5 * plain.hu[1:-1].std()


def test_anti_aliasing_keeps_what_is_linear_and_leaves_finer_grids_alone() -> None:
    z, rows, columns = np.array(IRREGULAR), *np.mgrid[:60, :58] * 0.7
    block = block_of(100 + 20 * rows[..., None] - 10 * columns[..., None] + 30 * z, IRREGULAR)
    smooth, plain = (cut_cube(block, CENTRE, CropSettings(8, 2.0, antialias=on))[0] for on in (True, False))
    assert np.abs(smooth.hu[2:-2].astype(int) - plain.hu[2:-2]).max() <= 1
    block = block_of(noise((60, 58, 13)), IRREGULAR)
    fine, same = (cut_cube(block, CENTRE, CropSettings(16, 0.7, antialias=on))[0] for on in (True, False))
    np.testing.assert_array_equal(fine.hu, same.hu)


def test_a_blur_has_the_stated_width() -> None:
    blur = anti_alias(np.arange(0.0, 30.0, 3.0), 3.0, 0.6)
    offsets = blur.positions - 15
    weights = blur.weights[5]
    assert weights.sum() == pytest.approx(1)
    assert weights @ offsets == pytest.approx(0, abs=1e-9)
    # A Gaussian cut at three deviations has 0.973 of its variance.
    assert np.sqrt(weights @ offsets**2) == pytest.approx(sigma_mm(3.0, 0.6) * np.sqrt(0.9733), rel=0.01)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("turn", ["identity", "turned"])
def test_a_surrounding_box_holds_all_that_a_cube_needs(interpolation: str, antialias: bool, turn: str) -> None:
    settings = CropSettings(12, 1.6, interpolation, antialias)
    whole = block_of(noise((140, 138, 61)), tuple(np.arange(-30.0, 31.0)), turn)
    low, high = cube_corners(CENTRE, settings)
    box = surrounding_box(low, high, whole.frame, whole.hu.shape[:2], whole.z_mm, settings.support)
    part = Block(
        whole.hu[box.within(whole.box)],
        whole.readers[box.within(whole.box)],
        box,
        whole.frame,
        whole.z_mm[slice(*box.slice)],
    )
    assert part.hu.size < 0.5 * whole.hu.size
    np.testing.assert_array_equal(cut_cube(part, CENTRE, settings)[0].hu, cut_cube(whole, CENTRE, settings)[0].hu)


# --- B-splines --------------------------------------------------------------------------------------------------------


def test_a_spline_reproduces_a_cubic_along_irregular_slices_and_is_exact_at_voxels() -> None:
    z = np.array(IRREGULAR)
    heights = 0.3 * z**3 - 2 * z**2 + 5 * z
    block = block_of(np.broadcast_to(np.rint(heights), (30, 30, 13)), IRREGULAR)
    crop, _ = cut_cube(block, (0.0, 0.0, 0.0), CropSettings(20, 1.0, "bspline"))
    at = np.arange(-10.0, 10.0)
    # Whole HU at the slices leave a little more than half a HU between them.
    np.testing.assert_allclose(crop.hu[:, 10, 10], 0.3 * at**3 - 2 * at**2 + 5 * at, atol=1.6)
    linear, _ = cut_cube(block, (0.0, 0.0, 0.0), CropSettings(20, 1.0))
    assert np.abs(linear.hu[:, 10, 10] - (0.3 * at**3 - 2 * at**2 + 5 * at)).max() > 5


@pytest.mark.parametrize("turn", ["identity", "both flipped", "turned"])
def test_a_spline_equals_simpleitks(turn: str) -> None:
    block = block_of(noise((80, 80, 71), 4), tuple(np.arange(-35.0, 36.0)), turn)
    settings = CropSettings(16, 0.9, "bspline")
    crop, _ = cut_cube(block, CENTRE, settings)
    expected = resampled(image_of(block), crop.origin_mm, settings.grid, sitk.sitkBSpline3)
    assert np.abs(np.clip(expected, PADDING_HU + 1, 32767) - crop.hu).max() < 0.51


def test_a_spline_of_few_slices_and_its_overshoot_stay_in_range() -> None:
    for count in (1, 2, 3):
        values = np.full((30, 30, count), 50)
        block = block_of(values, tuple(np.arange(count) * 2.0))
        crop, _ = cut_cube(block, (0.0, 0.0, 0.0), CropSettings(8, 1.0, "bspline"))
        assert (crop.hu[4] == 50).all()
    edge = np.where(np.arange(30)[:, None, None] < 15, -4000, 32767) * np.ones((1, 30, 13))
    crop, _ = cut_cube(block_of(edge, IRREGULAR), (0.0, 0.0, 0.0), CropSettings(16, 0.5, "bspline"))
    assert (crop.hu.min(), crop.hu.max()) == (PADDING_HU + 1, 32767)


# --- Patient space against a foreign oracle ---------------------------------------------------------------------------


def image_of(block: Block) -> sitk.Image:
    """A block of regular slices as an image in the patient."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(block.hu, 2, 0)))
    (row, column), step = block.frame.spacing_mm, block.z_mm[1] - block.z_mm[0]
    image.SetSpacing((column, row, step))
    (a, b), (c, d) = block.frame.along_columns, block.frame.along_rows
    image.SetDirection((a, c, 0, b, d, 0, 0, 0, 1))
    image.SetOrigin((*block.frame.corner_mm, block.z_mm[0]))
    return image


def resampled(image: sitk.Image, origin: tuple[float, ...], grid: Grid, method: int) -> np.ndarray:
    """An image on a cube's grid [slice row column], by SimpleITK."""
    cube = sitk.Image([grid.side] * 3, sitk.sitkFloat64)
    cube.SetOrigin(origin)
    cube.SetSpacing((grid.spacing_mm,) * 3)
    return sitk.GetArrayFromImage(sitk.Resample(image, cube, sitk.Transform(), method, -5000.0, sitk.sitkFloat64))


def read_by_simpleitk(folder: Path, series_uid: str) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series_uid))
    return reader.Execute()


def cut_from_dicom(root: Path, centre: tuple[float, float, float], settings: CropSettings) -> np.ndarray:
    """A cube out of a DICOM folder's only wanted series, by this project's reader."""
    (series,) = index_series(root).series.values()
    hu = np.stack([read_hu(one) for one in series.slices], axis=2)
    box = IndexBox((0, hu.shape[0]), (0, hu.shape[1]), (0, hu.shape[2]))
    block = Block(hu, np.zeros(hu.shape, np.uint8), box, series.frame(), series.positions_mm)
    return cut_cube(block, centre, settings)[0]


def rough(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    return np.rint(300 * np.sin(x / 3 + z) * np.cos(y / 2 - 0.3 * z) + 4 * x - 7 * y + 11 * z)


@pytest.mark.parametrize(
    "orientation",
    [AXIAL, (-1.0, 0, 0, 0, -1.0, 0), (-1.0, 0, 0, 0, 1.0, 0), (1.0, 0, 0, 0, -1.0, 0), (0, 1.0, 0, 1.0, 0, 0)],
)
def test_a_series_of_any_orientation_lies_where_simpleitk_says(orientation: tuple[float, ...], tmp_path: Path) -> None:
    z_mm = tuple(np.arange(30) * 1.5)
    stack = Stack(rough, z_mm, spacing_mm=(0.75, 0.6), corner_mm=(11, -7), orientation=orientation)
    stack.write(tmp_path)
    # The middle of the plane, wherever the orientation puts it.
    across, down = 32 * 0.6, 32 * 0.75
    x, y = (stack.corner_mm[axis] + across * orientation[axis] + down * orientation[3 + axis] for axis in (0, 1))
    settings = CropSettings(24, 0.9)
    crop = cut_from_dicom(tmp_path, (x + 0.2, y - 0.3, 21.0), settings)
    expected = resampled(read_by_simpleitk(tmp_path, stack.series_uid), crop.origin_mm, settings.grid, sitk.sitkLinear)
    assert crop.hu.std() > 50
    assert np.abs(expected - crop.hu).max() <= 0.501


# --- Signed distances -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", TURNS)
def test_distances_equal_their_twin(turn: str) -> None:
    block = block_of(noise((14, 12, 5)), (-4.0, -2.5, 0.0, 1.0, 4.0), turn, 0.9)
    block = Block(block.hu, block.readers, IndexBox((7, 21), (3, 15), (9, 14)), block.frame, block.z_mm)
    marked = np.zeros(block.hu.shape, bool)
    marked[4:9, 3:8, 1:4] = True
    marked[5:7, 4:6, 2] = marked[4, 3, 1:4] = False
    marked[11, 9, 0] = True
    x, y = block.frame.position_mm(7 + 6.2, 3 + 5.6)
    centre, grid = (x, y, -0.8), Grid(8, 1.1)
    found = surface_distance(block, marked, centre, grid)
    intervals = [
        voxel_intervals([0.9 * index for index in range(*block.box.row)]),
        voxel_intervals([0.9 * index for index in range(*block.box.column)]),
        voxel_intervals(block.z_mm),
    ]
    points = cube_points(centre, 8, 1.1)
    for level, down, across in np.random.default_rng(3).integers(0, 8, (60, 3)):
        row, column = block.frame.index(points[0][across], points[1][down])
        expected = signed_box_distance(marked, intervals, (0.9 * row, 0.9 * column, points[2][level]))
        assert found[level, down, across] == pytest.approx(expected, abs=1e-5)
    assert (found < 0).any()
    assert found.dtype == np.float32


@pytest.mark.parametrize("turn", TURNS)
def test_the_mask_is_where_the_distance_is_below_zero(turn: str) -> None:
    body = Ellipsoid((0.3, 1.2, -0.4), (9.0, 6.0, 7.0))
    block = draw(body, (0.7, 0.62), IRREGULAR, *TURNS[turn])
    crop, _ = cut_cube(block, CENTRE)
    distance = surface_distance(block, block.readers > 0, CENTRE, Grid())
    clear = np.abs(distance) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal((distance < 0)[clear], (crop.readers > 0)[clear])


# --- Bodies of known size ---------------------------------------------------------------------------------------------
# A voxel counts as marked if its centre is inside, as for a reader's outline. What lies between slices is unknown, so
# the bars hold where slices are fine against the body; docs/crops.md says what holds elsewhere.

FINE = {
    "0.46 x 0.46 x 0.6": ((0.46, 0.46), tuple(np.arange(-40, 40, 0.6)), 10.0),
    "0.7 x 0.6 x 1.25": ((0.7, 0.6), tuple(np.arange(-40, 40, 1.25)), 12.0),
    "0.75 x 0.75 x 2.5": ((0.75, 0.75), tuple(np.arange(-40, 40, 2.5)), 14.0),
    "irregular": ((0.7, 0.7), tuple(np.cumsum([-40.0, *([0.625, 1.25, 0.5, 2.5] * 16)])), 12.0),
    "0.98 x 0.98 x 5": ((0.98, 0.98), tuple(np.arange(-42.3, 42, 5.0)), 24.0),
}
FLIPS = ["identity", "both flipped", "x flipped", "transposed"]


def bodies(half_mm: float) -> dict[str, Body]:
    centre = (1.37, -2.21, 0.84)
    return {
        "sphere": Ellipsoid(centre, (half_mm,) * 3),
        "ellipsoid": Ellipsoid(centre, (1.15 * half_mm, half_mm, 0.95 * half_mm)),
        "rod": Rod(centre, 0.75 * half_mm, 1.7 * half_mm, (0.8, 0.5, 0.33)),
    }


@pytest.mark.parametrize("turn", FLIPS)
@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("kind", ["sphere", "ellipsoid", "rod"])
def test_volume_within_two_percent_and_centre_within_a_quarter_millimetre(name: str, kind: str, turn: str) -> None:
    pixel_mm, z_mm, half_mm = FINE[name]
    body = bodies(half_mm)[kind]
    block = draw(body, pixel_mm, z_mm, *TURNS[turn])
    centre = centre_mm(consensus_box(block.readers, 1, block.box), block.frame, block.z_mm)
    grid = Grid(40 if half_mm < 20 else 64)
    crop, _ = cut_cube(block, centre, CropSettings(grid.side))
    distance = surface_distance(block, block.readers > 0, centre, grid)
    assert soft_volume_mm3(distance, 1.0) == pytest.approx(body.volume_mm3, rel=0.02)
    assert np.abs(np.subtract(soft_centre(distance, crop.origin_mm, 1.0), body.centre)).max() < 0.25
    # A mask of 1 mm voxels from pixels of nearly 1 mm gains or loses up to a layer of voxels.
    assert crop.readers.sum() == pytest.approx(body.volume_mm3, rel=0.05 if pixel_mm[0] > 0.9 else 0.02)
    # Where the surface runs through voxels' centres the tie goes to the lower index: so half a voxel may come on top.
    marked = 1.0 - 2 * (crop.readers > 0)
    assert np.abs(np.subtract(soft_centre(marked, crop.origin_mm, 1.0), body.centre)).max() < 0.75


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"side": 7}, "--side must be from 8 to 256; got 7"),
        ({"spacing_mm": 0}, "--spacing-mm must be from 0.1 to 10; got 0"),
        ({"spacing_mm": float("nan")}, "--spacing-mm must be from 0.1 to 10; got nan"),
        ({"consensus_level": 0}, "--consensus-level must be above 0 and at most 1"),
        ({"consensus_level": 1.5}, "--consensus-level must be above 0 and at most 1"),
    ],
)
def test_a_setting_out_of_range_is_named(options: dict[str, float], words: str) -> None:
    with pytest.raises(LidcCdamError, match=words):
        CropSettings(**options)
