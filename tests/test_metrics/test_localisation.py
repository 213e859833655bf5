from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lidc_cdam.metrics.localisation import (
    average_precision,
    chance,
    chance_precision,
    pointing_game,
    relevance_mass,
    relevance_rank,
)

FIGURES = (relevance_mass, relevance_rank, pointing_game)
MASK = np.zeros((8, 8), bool)
MASK[2:5, 2:6] = True


def test_values_by_hand() -> None:
    scores = np.array([[4.0, 3.0, -9.0], [2.0, 1.0, 0.0]])
    mask = np.array([[1, 0, 1], [1, 0, 0]], bool)
    assert relevance_mass(scores, mask) == pytest.approx(6 / 10)
    assert relevance_rank(scores, mask) == pytest.approx(2 / 3)
    assert pointing_game(scores, mask) == 1
    assert relevance_mass(scores, mask, "negative") == 1
    assert relevance_mass(scores, mask, "absolute") == pytest.approx(15 / 19)
    assert pointing_game(-scores, ~mask, "negative") == 0
    assert chance(mask) == 0.5


@pytest.mark.parametrize("figure", FIGURES)
def test_perfect_and_opposite_maps(figure: Callable[..., np.ndarray]) -> None:
    assert figure(np.where(MASK, 1.0, -1.0), MASK) == 1
    assert figure(np.where(MASK, -1.0, 1.0), MASK) == 0
    assert figure(np.where(MASK, -1.0, 1.0), MASK, "negative") == 1


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("block", [1, 2])
def test_a_random_map_scores_as_chance(figure: Callable[..., np.ndarray], block: int) -> None:
    drawn = np.random.default_rng(0).uniform(-1, 1, (4000, 8 // block, 8 // block))
    scores = drawn.repeat(block, axis=1).repeat(block, axis=2)
    found = figure(scores, MASK)
    # Within four standard errors of the mean.
    assert found.mean() == pytest.approx(float(chance(MASK)), abs=4 * found.std() / np.sqrt(4000))


@pytest.mark.parametrize("figure", FIGURES)
def test_a_constant_map_scores_exactly_as_chance(figure: Callable[..., np.ndarray]) -> None:
    assert figure(np.ones((8, 8)), MASK) == pytest.approx(float(chance(MASK)))


@pytest.mark.parametrize("figure", FIGURES)
def test_without_relevance_or_mask_there_is_no_answer(figure: Callable[..., np.ndarray]) -> None:
    assert np.isnan(figure(np.zeros((8, 8)), MASK))
    assert np.isnan(figure(np.full((8, 8), -1.0), MASK))
    assert not np.isnan(figure(np.full((8, 8), -1.0), MASK, "negative"))
    assert np.isnan(figure(np.ones((8, 8)), np.zeros((8, 8), bool)))
    assert np.isnan(chance(np.zeros((8, 8), bool)))


@pytest.mark.parametrize("figure", FIGURES)
def test_invariances(figure: Callable[..., np.ndarray]) -> None:
    scores = np.random.default_rng(1).normal(size=(5, 8, 8))
    once = figure(scores, MASK)
    np.testing.assert_allclose(figure(7 * scores, MASK), once)
    np.testing.assert_allclose(figure(scores[:, ::-1], MASK[::-1]), once)
    np.testing.assert_allclose(figure(np.swapaxes(scores, 1, 2), MASK.T), once)
    bigger = scores.repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_allclose(figure(bigger, MASK.repeat(3, axis=0).repeat(3, axis=1)), once)


@pytest.mark.parametrize("figure", FIGURES)
def test_batches_equal_single_maps_and_tensors_equal_arrays(figure: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    scores, masks = rng.normal(size=(4, 3, 8, 8)), rng.random((3, 8, 8)) < 0.3
    found = figure(scores, masks)
    assert found.shape == (4, 3)
    for target in range(4):
        for view in range(3):
            assert found[target, view] == figure(scores[target, view], masks[view])
    tensors = figure(torch.from_numpy(scores), torch.from_numpy(masks))
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_array_equal(tensors.numpy(), found)


def test_grids_must_agree() -> None:
    with pytest.raises(ValueError, match="share one grid"):
        relevance_mass(np.ones((4, 4)), MASK)
    # A TypeError where the tests run with the import hook that checks types.
    with pytest.raises((ValueError, TypeError), match="part"):
        relevance_mass(np.ones((8, 8)), MASK, "both")  # type: ignore[arg-type]


def test_a_random_order_reaches_the_chance_of_average_precision_where_a_frame_cuts_cells() -> None:
    generator = torch.Generator().manual_seed(3)
    read = torch.zeros(24, 24, dtype=torch.bool)
    read[5:22, 2:19] = True
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[9:17, 6:14] = True
    covered, counted = (F.adaptive_avg_pool2d(each[None].double(), (6, 6)) for each in (mask, read))
    level = float(chance_precision(covered / counted.clamp(min=1e-12), counted))
    maps = torch.rand(4000, 6, 6, generator=generator, dtype=torch.float64)
    pixels = F.interpolate(maps[None], (24, 24), mode="nearest-exact")[0].masked_fill(~read, -torch.inf)
    assert float(average_precision(pixels, mask).mean()) == pytest.approx(level, rel=0.02)
    whole = float(chance_precision(covered, torch.ones(1, 6, 6)))
    assert abs(whole - level) > 0.05 * level
