import numpy as np
import pytest
import torch

from lidc_cdam.crop_files import PADDING_HU, Crop, write_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, write_json
from lidc_cdam.geometry import Grid
from lidc_cdam.intensity import Intensity, Scaling, Statistics, fill_unread, read_cube, stack_images

KEYS = ("malignancy", "margin", "diameter")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(-1500, 1200, (6, 8, 8)).astype(np.int16)


def test_fit_then_apply_has_mean_zero_and_deviation_one(images):
    intensity = Intensity.fit(images)
    applied = intensity.apply(torch.from_numpy(images), 8)
    assert applied.dtype is torch.float32
    assert applied.shape == (6, 3, 8, 8)
    assert abs(float(applied.mean())) < 1e-5
    assert abs(float(applied.std(correction=0)) - 1) < 1e-5


def test_channels_are_equal_and_the_window_clips(images):
    intensity = Intensity(0.0, 1.0)
    applied = intensity.apply(torch.tensor([[[-3000.0, -1000.0], [400.0, 3000.0]]]), 2)
    torch.testing.assert_close(applied[0, 0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(applied[:, 0], applied[:, 1])
    assert torch.equal(applied[:, 0], applied[:, 2])


def test_invert_gives_the_clipped_hu_back(images):
    intensity = Intensity.fit(images)
    back = intensity.invert(intensity.apply(torch.from_numpy(images), 8))
    np.testing.assert_allclose(back.numpy(), np.clip(images, -1000, 400), atol=0.01)


def test_resizing_keeps_a_constant_and_a_centre_of_mass():
    image = torch.full((1, 32, 32), -900.0)
    image[0, 2:8, 20:28] = 100
    applied = Intensity(0.0, 1.0).apply(image, (224, 112))
    assert applied.shape == (1, 3, 224, 112)
    weights = applied[0, 0] - applied[0, 0].min()
    row = float((weights.sum(1) * torch.arange(224)).sum() / weights.sum())
    column = float((weights.sum(0) * torch.arange(112)).sum() / weights.sum())
    assert row == pytest.approx((4.5 + 0.5) * 7 - 0.5, abs=0.01)
    assert column == pytest.approx((23.5 + 0.5) * 3.5 - 0.5, abs=0.01)


def test_an_image_without_contrast_is_no_division_by_zero():
    assert Intensity.fit(np.zeros((1, 2, 2), np.int16)).deviation == 1


def test_scaling_goes_there_and_back():
    values = np.array([[0, 1.0, 5.0], [1, 3.0, 20.0], [1, 5.0, 8.0]])
    scaling = Scaling.fit(KEYS, values)
    scaled = scaling.to_model(values)
    np.testing.assert_array_equal(scaled[:, 0], values[:, 0])
    np.testing.assert_allclose(scaled[:, 1:].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled[:, 1:].std(0), 1, atol=1e-6)
    np.testing.assert_allclose(scaling.to_reader_scale(scaled)[:, 1:], values[:, 1:], rtol=1e-6)


def test_malignancy_is_a_probability_even_for_an_extreme_logit():
    scaling = Scaling.fit(("malignancy",), np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(scaling.to_reader_scale(np.array([[-2000.0], [0.0], [2000.0]]))[:, 0], [0, 0.5, 1])
    assert scaling.to_reader_scale(np.array([1.3]))[0] == pytest.approx(1 / (1 + np.exp(-1.3)))


def test_missing_and_constant_values():
    scaling = Scaling.fit(KEYS, np.array([[np.nan, 2.0, np.nan], [1.0, 2.0, 7.0], [0.0, 2.0, 9.0]]))
    assert scaling.mean == (0, 2, 8)
    assert scaling.deviation == (1, 1, 1)


def test_statistics_read_what_was_written(tmp_path, images):
    statistics = Statistics(Intensity.fit(images), Scaling.fit(KEYS, np.arange(12.0).reshape(4, 3)))
    statistics.write(tmp_path / "statistics.json")
    assert Statistics.read(tmp_path / "statistics.json") == statistics


@pytest.mark.parametrize("damage", [{"scaling": 3}, {"intensity": {"mean": 1}}, {"intensity": None}])
def test_damaged_statistics_are_one_sentence(tmp_path, images, damage):
    path = tmp_path / "statistics.json"
    Statistics(Intensity.fit(images), Scaling.fit(KEYS, np.arange(12.0).reshape(4, 3))).write(path)
    write_json(path, read_json(path) | damage)
    with pytest.raises(
        LidcCdamError, match=r"statistics.json must hold `intensity` and `scaling`.*train the fold again"
    ):
        Statistics.read(path)


def test_a_deviation_of_zero_is_refused():
    with pytest.raises(LidcCdamError, match="deviation above 0"):
        Intensity(0.0, 0.0)
    with pytest.raises(LidcCdamError, match="one mean and one deviation above 0 for each of margin"):
        Scaling(("margin",), (1.0,), (0.0,))


def test_stacking_takes_flipped_views():
    image = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert stack_images([image[::-1], image]).tolist() == [[[3, 4, 5], [0, 1, 2]], [[0, 1, 2], [3, 4, 5]]]


def padded(box: tuple[slice, slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """A cube of distinct values, and the same with everything outside `box` unread."""
    whole = np.arange(32**3, dtype=np.int32).reshape(32, 32, 32).astype(np.int16)
    cut = np.full_like(whole, PADDING_HU)
    cut[box] = whole[box]
    return whole, cut


def test_what_was_not_read_is_filled_by_mirroring():
    box = (slice(10, 20), slice(8, 28), slice(0, 32))
    whole, cut = padded(box)
    filled = fill_unread(cut)
    np.testing.assert_array_equal(filled[box], whole[box])
    np.testing.assert_array_equal(filled[9, 8:28], whole[10, 8:28])
    np.testing.assert_array_equal(filled[12, 7], whole[12, 8])
    np.testing.assert_array_equal(filled[12, 30], whole[12, 25])
    assert not (filled == PADDING_HU).any()


def test_a_cube_that_was_read_in_full_stays_the_same():
    whole, _ = padded((slice(0, 32),) * 3)
    assert fill_unread(whole) is whole


def test_a_hole_inside_the_box_takes_its_nearest_neighbour():
    box = (slice(4, 30), slice(4, 30), slice(4, 30))
    whole, cut = padded(box)
    cut[4, 4, 4] = PADDING_HU
    filled = fill_unread(cut)
    assert filled[4, 4, 4] in (whole[4, 4, 5], whole[4, 5, 4], whole[5, 4, 4])
    assert not (filled == PADDING_HU).any()


def test_a_crop_of_another_side_is_refused(tmp_path):
    small = np.zeros((8, 8, 8), dtype=np.int16)
    write_crop(tmp_path, "a", Crop(small, small.astype(np.uint8), (0.0, 0.0, 0.0)))
    with pytest.raises(LidcCdamError, match="must have 32 voxels a side"):
        read_cube(tmp_path, "a")


def test_statistics_keep_their_grid_and_older_ones_have_the_usual(tmp_path):
    made = Statistics(Intensity(0.3, 0.2), Scaling(("diameter",), (8.0,), (3.0,)), Grid(48, 0.7))
    made.write(tmp_path / "statistics.json")
    assert Statistics.read(tmp_path / "statistics.json") == made
    stored = read_json(tmp_path / "statistics.json")
    del stored["grid"]
    write_json(tmp_path / "statistics.json", stored)
    old = Statistics.read(tmp_path / "statistics.json")
    assert old.grid == Grid(32, 1.0)
    old.require_grid(tmp_path, Grid(32, 1.0))
    with pytest.raises(LidcCdamError, match=r"32 voxels of 1 mm a side.*48 voxels of 0\.7 mm.*--spacing-mm 1\."):
        old.require_grid(tmp_path, Grid(48, 0.7))
