import numpy as np
import pytest
import torch
from known_model import SIDE, Regions, bright_images, true_maps

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics.boxes import box_drops, box_sensitivity, box_sides, draw_corners
from lidc_cdam.metrics.perturbation import Perturbed

SIDES = (3, 8, 15)


@pytest.fixture
def model() -> Regions:
    return Regions()


@pytest.fixture
def images() -> torch.Tensor:
    return bright_images(2)


def test_equals_the_definition_box_by_box(model: Regions, images: torch.Tensor) -> None:
    scores = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = box_sensitivity(model, images, scores, torch.tensor([1, 3]), SIDES, boxes=20, seed=4, fill="mean")
    corners = draw_corners(2, np.array(SIDES), 20, (SIDE, SIDE), 4)
    pixels = scores.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for image, target in enumerate((1, 3)):
        for index, side in enumerate(SIDES):
            sums, drops = [], []
            for row, column in corners[image, index]:
                without = images[image, None].clone()
                box = (slice(row, row + side), slice(column, column + side))
                without[0, :, *box] = images[image].mean((-2, -1))[:, None, None]
                sums.append(float(pixels[image, *box].sum()))
                drops.append(float((model(images[image, None]) - model(without))[0, target]))
            assert found.r[image, index] == pytest.approx(np.corrcoef(sums, drops)[0, 1], abs=1e-5)
    assert found.percent.tolist() == [100 * side / SIDE for side in SIDES]
    np.testing.assert_allclose(found.area, np.trapezoid(found.r, found.percent))


def test_the_true_map_is_perfect_and_a_random_one_is_chance(model: Regions, images: torch.Tensor) -> None:
    background = Perturbed.of(images, "mean").ends()[1]
    truth = true_maps(model, images, background)
    span = 100 * (SIDES[-1] - SIDES[0]) / SIDE
    for target in range(4):
        found = box_sensitivity(model, images, truth[:, target], target, SIDES, fill="mean")
        np.testing.assert_allclose(found.area, span, rtol=1e-3)
    many = bright_images(40, seed=1)
    noise = torch.randn(40, 8, 8, generator=torch.Generator().manual_seed(1))
    chance = box_sensitivity(model, many, noise, 0, SIDES, boxes=50, fill="mean")
    assert abs(chance.area.mean()) < 3 * chance.area.std() / np.sqrt(40)


def test_one_set_of_perturbed_images_serves_all_maps(model: Regions, images: torch.Tensor) -> None:
    drops = box_drops(model, images, SIDES, boxes=10, seed=1)
    assert model.calls == 2 * (1 + 3 * 10)
    maps = torch.randn(2, 7, 16, 16, generator=torch.Generator().manual_seed(2))
    together = drops.correlations(maps)
    assert together.shape == (2, 7, 4, 3)
    alone = box_sensitivity(model, images, maps[:, 5], 2, SIDES, boxes=10, seed=1)
    np.testing.assert_allclose(together[:, 5, 2], alone.r)


@pytest.mark.parametrize("fill", ["blur", "mean", "linear"])
def test_batches_change_nothing(model: Regions, images: torch.Tensor, fill: str) -> None:
    found = [box_drops(model, images, SIDES, 6, 0, None, fill, size).drops for size in (1, 7, 64)]  # type: ignore[arg-type]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)


def test_a_constant_map_or_output_has_no_correlation(images: torch.Tensor) -> None:
    def still(given: torch.Tensor) -> torch.Tensor:
        return torch.stack([given.mean((1, 2, 3)), torch.full((len(given),), 3.0)], 1)

    drops = box_drops(still, images, SIDES, boxes=10)
    found = drops.correlations(torch.stack([torch.full((2, 8, 8), 0.1), torch.rand(2, 8, 8)], 1))
    assert np.isnan(found[:, 0]).all()
    assert np.isnan(found[:, 1, 1]).all()
    assert np.isfinite(found[:, 1, 0]).all()


def test_usual_sides_scale_with_the_image() -> None:
    assert box_sides(None, 224).tolist() == [16, 32, 48, 64, 96]
    assert box_sides(None, 32).tolist() == [2, 5, 7, 9, 14]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sides": [0, 4]}, r"--box-sides must be whole numbers from 1 to 31 pixels; got \[0, 4\]\."),
        ({"sides": [32]}, r"--box-sides must .* got \[32\]\."),
        ({"boxes": 2}, r"--boxes must be at least 3, or nothing can be correlated; got 2\."),
        ({"batch_size": 0}, r"--batch-size must be at least 1"),
    ],
)
def test_settings_out_of_range(model: Regions, images: torch.Tensor, options: dict, sentence: str) -> None:
    with pytest.raises(LidcCdamError, match=sentence):
        box_drops(model, images, **options)
