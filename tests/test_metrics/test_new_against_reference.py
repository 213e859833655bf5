"""The evaluation of maps: the twins against cases by hand and planted maps, the public functions against the twins."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from reference import (
    compactness,
    gaussian_blur,
    nearest_upsampled,
    perturbation_curve,
    pointing_game,
    relevance_mass,
    relevance_rank,
)
from reference_metrics import (
    Fill,
    all_corners,
    area_over,
    average_precision,
    blur_fill,
    box_pixels,
    box_r,
    box_sensitivity,
    chance_of_average_precision,
    chance_of_share,
    chance_of_soft_rank,
    completeness_error,
    deltas,
    discrimination_matrix,
    fidelity_curves,
    holm,
    linear_fill,
    mean_fill,
    order_of,
    pair_deltas,
    paired_difference,
    repeatability,
    soft_relevance_mass,
    soft_relevance_rank,
    spearman,
    units,
)
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from torch import Tensor

from lidc_cdam.metrics import localisation, perturbation
from lidc_cdam.metrics.boxes import box_sensitivity as fast_box_sensitivity
from lidc_cdam.metrics.differences import holm as fast_holm
from lidc_cdam.metrics.differences import paired_differences
from lidc_cdam.metrics.discrimination import Discrimination
from lidc_cdam.metrics.faithfulness import blur, fidelity
from lidc_cdam.metrics.inpainting import inpaint
from lidc_cdam.metrics.intervals import draw_weights
from lidc_cdam.metrics.measures import compactness as fast_compactness
from lidc_cdam.metrics.sanity import rank_correlation

# --- The twins themselves: fill-ins -----------------------------------------------------------------------------------


def test_a_hole_of_one_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    image = np.array([[[1.0, 2.0, 3.0], [4.0, 99.0, 6.0], [7.0, 8.0, 30.0]]])
    found = linear_fill(image, {(1, 1)})
    assert found[0, 1, 1] == pytest.approx((2 + 4 + 6 + 8) / 6 + (1 + 3 + 7 + 30) / 12)
    # In the corner only three neighbours exist; their weights 1/6, 1/6, 1/12 are scaled to one.
    assert linear_fill(image, {(0, 0)})[0, 0, 0] == pytest.approx((2 * 2 + 2 * 4 + 99) / 5)
    assert found[0, 0, 0] == 1


def test_in_painting_continues_a_ramp_and_a_constant() -> None:
    """Away from the border a plane is its own weighted mean, however large the hole."""
    y, x = np.mgrid[:9, :9].astype(float)
    image = np.stack([2 * y - 3 * x, np.full((9, 9), 5.0)])
    hole = {(row, column) for row in range(2, 7) for column in range(1, 6)}
    dirty = image.copy()
    for row, column in hole:
        dirty[:, row, column] = -77
    np.testing.assert_allclose(linear_fill(dirty, hole), image, atol=1e-12)


def test_in_painting_is_roads_without_its_noise() -> None:
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(2, 6, 7)), rng.random((6, 7)) < 0.4
    found = linear_fill(image, {(int(y), int(x)) for y, x in np.argwhere(~mask)})
    matrix, right = road.NoisyLinearImputer.setup_sparse_system(mask.astype(float), image, road.neighbors_weights)
    np.testing.assert_allclose(found[:, ~mask], np.linalg.solve(matrix.toarray(), right).T)
    np.testing.assert_array_equal(found[:, mask], image[:, mask])


def test_mean_and_blur_fill_only_what_is_perturbed() -> None:
    image = np.array([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]])
    np.testing.assert_array_equal(mean_fill(image, {(0, 1)})[:, 0, 1], [3, 1])
    np.testing.assert_array_equal(linear_fill(image, {(y, x) for y in (0, 1) for x in (0, 1)})[0], np.full((2, 2), 3))
    found = blur_fill(1.0, 4)(image, {(1, 1)})
    assert (found[0, 0] == [1, 2]).all()
    assert found[0, 1, 1] == gaussian_blur(image, 1.0, 4)[0, 1, 1] != 6


# --- The twins themselves: fidelity, boxes, discrimination ------------------------------------------------------------


def additive(weights: np.ndarray) -> Callable[[np.ndarray], float]:
    """The sum of weighted pixels of all channels."""
    return lambda image: float((weights * image).sum())


def black(image: np.ndarray, perturbed: set[tuple[int, int]]) -> np.ndarray:
    """A fill of zeros: an additive output then falls by weight times value."""
    changed = image.copy()
    for y, x in perturbed:
        changed[:, y, x] = 0
    return changed


def test_fidelity_by_hand() -> None:
    """Pixels worth 1, 2, 3, 4: most first 10, 6, 3, 1, 0 and least first 10, 9, 7, 4, 0."""
    image = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    found = fidelity_curves(additive(np.ones((2, 2))), image, [[0.1, 0.2], [0.3, 0.4]], black, 4)
    assert found.shares == [0, 0.25, 0.5, 0.75, 1]
    assert found.mif == [10, 6, 3, 1, 0]
    assert found.lif == [10, 9, 7, 4, 0]
    assert found.difference == [0, 3, 4, 3, 0]
    assert found.area == pytest.approx(25 * 10)
    assert order_of([[1, 1], [2, 1]], True) == [(1, 0), (0, 0), (0, 1), (1, 1)]
    assert order_of([[1, 1], [2, 1]], False) == [(0, 0), (0, 1), (1, 1), (1, 0)]


def test_no_order_of_pixels_beats_the_true_drops() -> None:
    image = np.array([[[1.0, -2.0], [3.0, 0.5]]])
    output = additive(np.ones((2, 2)))
    areas = {}
    for order in itertools.permutations(range(4)):
        scores = np.array(order).reshape(2, 2)
        areas[order] = fidelity_curves(output, image, scores.tolist(), black, 4).area
    assert max(areas, key=lambda order: areas[order]) == (2, 0, 3, 1)
    assert sum(areas.values()) == pytest.approx(0)


def test_with_a_fixed_fill_the_curve_is_the_older_twins() -> None:
    rng = np.random.default_rng(1)
    image, scores = rng.normal(size=(2, 5, 4)), rng.normal(size=(5, 4)).tolist()
    output = additive(rng.normal(size=(2, 5, 4)))
    found = fidelity_curves(output, image, scores, blur_fill(1.0, 4), 5)
    for curve, most_first in ((found.mif, True), (found.lif, False)):
        blurred = gaussian_blur(image, 1.0, 4)
        assert curve == pytest.approx(perturbation_curve(output, image, blurred, scores, found.shares, most_first))


def test_boxes_by_hand() -> None:
    assert box_pixels((1, 2), 2) == {(1, 2), (1, 3), (2, 2), (2, 3)}
    assert all_corners(3, 2, 2) == [(0, 0), (1, 0)]
    assert area_over([2, 4, 8], [0.5, 1.0, 0.0]) == pytest.approx(2 * 0.75 + 4 * 0.5)
    # Three boxes: sums 1, 2, 4 and drops 3, 1, 2, centred (-4/3, -1/3, 5/3) and (1, -1, 0).
    image = np.array([[[3.0, 1.0, 2.0]]])
    found = box_r(additive(np.ones((1, 3))), image, [[1, 2, 4]], black, [(0, 0), (0, 1), (0, 2)], 1)
    assert found == pytest.approx(-1 / math.sqrt(42 / 9 * 2))


def planted(
    seed: int, count: int = 3
) -> tuple[list[Callable[[np.ndarray], float]], np.ndarray, list[list[list[float]]]]:
    """Additive outputs of disjoint pixels, an image, and each output's true map."""
    rng = np.random.default_rng(seed)
    owner, weights = rng.integers(0, count, (6, 6)), rng.normal(size=(6, 6))
    image = rng.normal(size=(1, 6, 6))
    shares = [np.where(owner == target, weights, 0.0) for target in range(count)]
    return [additive(share) for share in shares], image, [(share * image[0]).tolist() for share in shares]


def test_the_true_map_has_box_sensitivity_one_and_a_random_one_none() -> None:
    outputs, image, maps = planted(0)
    corners = {side: [all_corners(6, 6, side)] * 3 for side in (1, 2, 4)}
    curve, area = box_sensitivity(outputs, [image] * 3, maps, black, corners)
    assert curve == pytest.approx([1, 1, 1])
    assert area == pytest.approx(3)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(300, 6, 6)).tolist()
    found = [box_r(outputs[0], image, scores, black, all_corners(6, 6, 2), 2) for scores in noise]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(300)
    assert math.isnan(box_r(outputs[0], image, [[0.0] * 6] * 6, black, all_corners(6, 6, 2), 2))


def test_deltas_by_hand() -> None:
    matrix = [[9.0, 1.0, 2.0], [4.0, 5.0, 6.0], [0.0, 0.0, 3.0]]
    assert pair_deltas(matrix) == [[0, 8, 7], [1, 0, -1], [3, 3, 0]]
    assert deltas(matrix) == [7.5, 0, 3]
    assert discrimination_matrix(lambda read, explained: 10 * read + explained, 2) == [[0, 1], [10, 11]]


def both_figures(fill: Fill, maps: list, outputs: list, image: np.ndarray) -> list[list[float]]:
    """Deltas by fidelity and by boxes of 2 x 2."""
    corners = all_corners(6, 6, 2)
    by_fidelity = discrimination_matrix(
        lambda t, k: fidelity_curves(outputs[t], image, maps[k], fill, 9).area, len(maps)
    )
    by_boxes = discrimination_matrix(lambda t, k: box_r(outputs[t], image, maps[k], fill, corners, 2), len(maps))
    return [deltas(by_fidelity), deltas(by_boxes)]


def test_true_maps_discriminate_one_map_for_all_does_not_and_random_maps_do_by_chance_alone() -> None:
    outputs, image, maps = planted(2)
    for found in both_figures(black, maps, outputs, image):
        assert min(found) > 0
    assert both_figures(black, [maps[0]] * 3, outputs, image) == [[0, 0, 0], [0, 0, 0]]
    rng = np.random.default_rng(3)
    drawn = np.array([both_figures(black, rng.normal(size=(3, 6, 6)).tolist(), outputs, image) for _ in range(40)])
    for figure in (0, 1):
        values = drawn[:, figure].mean(1)
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(40)


# --- The twins themselves: localisation and chance --------------------------------------------------------------------

FRACTIONS = [[1.0, 0.75, 0.25], [0.5, 0.0, 0.0]]


def test_soft_figures_by_hand() -> None:
    scores = [[4.0, 1.0, 2.0], [-3.0, 3.0, 0.0]]
    assert soft_relevance_mass(scores, FRACTIONS) == pytest.approx((4 + 0.75 + 0.5) / 10)
    # K = 3 pixels with f >= 1/2: the highest are worth 1, 0, 0.25, the best 1, 0.75, 0.5.
    assert soft_relevance_rank(scores, FRACTIONS) == pytest.approx(1.25 / 2.25)
    assert soft_relevance_rank(scores, FRACTIONS, size=1) == 1
    assert math.isnan(soft_relevance_mass([[-1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]]))


def test_of_one_and_zero_the_soft_figures_are_the_hard_ones() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, mask = rng.normal(size=(4, 5)).tolist(), (rng.random((4, 5)) < 0.4).tolist()
        if any(map(any, mask)):
            assert soft_relevance_mass(scores, mask) == pytest.approx(relevance_mass(scores, mask))
            assert soft_relevance_rank(scores, mask) == pytest.approx(relevance_rank(scores, mask))


def test_tied_pixels_stand_for_every_order_of_themselves() -> None:
    scores = np.array([[3.0, 1.0, 1.0], [1.0, 2.0, 0.0]])
    broken = [scores - 1e-6 * np.array(order).reshape(2, 3) for order in itertools.permutations(range(6))]
    each = [soft_relevance_rank(one.tolist(), FRACTIONS) for one in broken]
    assert soft_relevance_rank(scores.tolist(), FRACTIONS) == pytest.approx(sum(each) / len(each))


def test_average_precision_by_hand_and_by_scikit_learn() -> None:
    """Marked at ranks 1 and 3: (1 + 2/3) / 2."""
    assert average_precision([[4.0, 3.0], [2.0, 1.0]], [[1, 0], [1, 0]]) == pytest.approx(5 / 6)
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, mask = rng.integers(0, 9, (4, 5)), rng.random((4, 5)) < 0.4
        expected = average_precision_score(mask.ravel(), scores.ravel()) if mask.any() else math.nan
        assert average_precision(scores.tolist(), mask.tolist()) == pytest.approx(expected, nan_ok=True)


MASK = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
SOFT = [[0, 0, 0.25, 0], [0.25, 1, 0.75, 0], [0, 0.5, 0.25, 0], [0, 0, 0, 0]]
LOCALISATION: dict[str, tuple[Callable[..., float], list, Callable[..., float]]] = {
    "relevance_mass": (relevance_mass, MASK, chance_of_share),
    "relevance_rank": (lambda scores, mask: soft_relevance_rank(scores, mask), MASK, chance_of_share),
    "pointing_game": (pointing_game, MASK, chance_of_share),
    "auprc": (average_precision, MASK, lambda mask, *grid: chance_of_average_precision(mask, *grid)),
    "soft_mass": (soft_relevance_mass, SOFT, chance_of_share),
    "soft_rank": (soft_relevance_rank, SOFT, chance_of_soft_rank),
}


@pytest.mark.parametrize("name", LOCALISATION)
def test_a_planted_map_is_perfect_and_its_opposite_is_not(name: str) -> None:
    figure, inside, _ = LOCALISATION[name]
    truth = np.array(inside)
    perfect = np.where(truth == 1, 1.0, 0.0) if name == "soft_mass" else truth
    assert figure(perfect.tolist(), inside) == pytest.approx(1)
    assert figure((1 - 2 * truth).tolist(), inside) < 0.3


@pytest.mark.parametrize("grid", [(4, 4), (2, 2)])
@pytest.mark.parametrize("name", LOCALISATION)
def test_a_random_map_scores_as_chance(name: str, grid: tuple[int, int]) -> None:
    """On pixels and on tokens; the figure's mean lies within four standard errors."""
    figure, inside, chance = LOCALISATION[name]
    drawn = np.random.default_rng(0).uniform(-1, 1, (1500, *grid))
    found = np.array([figure(nearest_upsampled(scores.tolist(), 4, 4), inside) for scores in drawn])
    found = found[~np.isnan(found)]
    expected = chance(inside, *grid) if name == "auprc" else chance(inside)
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / math.sqrt(len(found)))


def test_chance_of_average_precision_is_the_mean_over_all_orders() -> None:
    mask = [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]]
    assert units(mask, 1, 3) == [3, 0, 1]
    orders = [nearest_upsampled([list(order)], 2, 6) for order in itertools.permutations((1.0, 2.0, 3.0))]
    mean = sum(average_precision(scores, mask) for scores in orders) / 6
    assert chance_of_average_precision(mask, 1, 3) == pytest.approx(mean)
    assert mean > chance_of_share(mask)


def test_the_fewer_the_units_the_higher_the_chance_of_average_precision() -> None:
    """A nodule of one token among 196 has five times what its share says."""
    mask = np.zeros((28, 28), int)
    mask[10:12, 10:12] = 1
    share = chance_of_share(mask.tolist())
    assert chance_of_average_precision(mask.tolist(), 14, 14) > 5 * share
    assert chance_of_average_precision(mask.tolist(), 28, 28) < 3 * share


# --- The twins themselves: agreement of maps and of methods -----------------------------------------------------------


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        first, second = rng.integers(-4, 5, (2, 4, 5))
        assert spearman(first.tolist(), second.tolist()) == pytest.approx(spearmanr(first, second, axis=None)[0])
    assert spearman([[1.0, 2.0, 3.0]], [[10.0, 200.0, 201.0]]) == pytest.approx(1)
    assert math.isnan(spearman([[1.0, 2.0]], [[5.0, 5.0]]))


def test_repeatability_is_the_mean_over_pairs() -> None:
    """Ranks 123, 132 and 321 correlate by .5, -1 and -.5."""
    assert repeatability([[[1.0, 2.0, 3.0]], [[1.0, 3.0, 2.0]], [[3.0, 2.0, 1.0]]]) == pytest.approx(-1 / 3)
    assert completeness_error([[1.0, 2.0], [-0.5, 0.0]], 5.0, 3.0) == pytest.approx(0.25)


def test_a_paired_difference_by_hand() -> None:
    first, second, patients = [5.0, 3.0, 1.0], [1.0, 2.0, 3.0], ["a", "a", "b"]
    draws = [["a", "a"], ["a", "b"], ["b", "a"], ["b", "b"]]
    found = paired_difference(first, second, patients, draws)
    # Differences 4, 1 (a) and -2 (b): the draws' means are 2.5, 1, 1, -2.
    assert found.value == pytest.approx(1)
    assert found.low == pytest.approx(-2 + 3 * 0.075)
    assert found.high == pytest.approx(1 + 1.5 * 0.925)
    assert found.p == pytest.approx(2 * 2 / 5)
    assert paired_difference(first, first, patients, draws).p == 1


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2 kept at 0.06, 0.4."""
    assert holm([0.03, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.02]) == [0.02]


# --- The public functions ---------------------------------------------------------------------------------------------


def wavy(images: Tensor) -> Tensor:
    """A nonlinear function of images with three outputs."""
    places = torch.arange(images[0].numel(), dtype=images.dtype).reshape(images.shape[1:])
    return torch.stack([torch.tanh((images * torch.sin(places * k)).sum((1, 2, 3)) / 3) for k in (1, 2, 3)], dim=1)


def answer(target: int) -> Callable[[np.ndarray], float]:
    return lambda image: float(wavy(torch.from_numpy(image)[None])[0, target])


def scene(count: int = 2) -> tuple[Tensor, Tensor]:
    """Images and maps on their pixels."""
    generator = torch.Generator().manual_seed(0)
    images, maps = (torch.randn(count, *shape, 8, 8, generator=generator, dtype=torch.float64) for shape in ((2,), ()))
    return images, maps


FILLS: dict[str, Fill] = {"blur": blur_fill(1.2, round(4 * 1.2)), "mean": mean_fill, "linear": linear_fill}


@pytest.mark.parametrize("fill", FILLS)
def test_fidelity_with_every_fill_equals_its_twin(fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin solves for in-painted pixels exactly; the method, iterating, is asked for the same here."""
    monkeypatch.setattr(perturbation, "inpaint", partial(inpaint, tolerance=1e-13))
    images, maps = scene()
    # Six steps: the last in-paints where nothing is left.
    found = fidelity(wavy, images, maps, 1, steps=6, blur_sigma=1.2, fill=fill, batch_size=5)
    for i in range(2):
        twin = fidelity_curves(answer(1), images[i].numpy(), maps[i].tolist(), FILLS[fill], 6)
        np.testing.assert_allclose(found.mif[i], twin.mif, atol=1e-9)
        np.testing.assert_allclose(found.lif[i], twin.lif, atol=1e-9)
        assert found.area[i] == pytest.approx(twin.area)


SIDES = (2, 4)


def test_box_sensitivity_tends_to_the_correlation_over_all_boxes() -> None:
    """Against every box of the image in place of the method's own draws: within five standard errors of r."""
    images, maps = scene()
    curve = fast_box_sensitivity(wavy, images, maps, 1, SIDES, boxes=3000, seed=0, blur_sigma=1.2).r
    for i, place in itertools.product(range(2), range(len(SIDES))):
        side = SIDES[place]
        exact = box_r(answer(1), images[i].numpy(), maps[i].tolist(), FILLS["blur"], all_corners(8, 8, side), side)
        assert curve[i, place] == pytest.approx(exact, abs=5 / math.sqrt(3000))


def test_box_sensitivity_of_an_additive_output_is_one_for_its_own_map() -> None:
    images, _ = scene()
    weights = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def plain(changed: Tensor) -> Tensor:
        return (weights * changed).sum((1, 2, 3))[:, None]

    own = (weights * (images - blur(images, 1.2))).sum(1)
    curves = [
        fast_box_sensitivity(plain, images, sign * own, 0, SIDES, boxes=20, seed=0, blur_sigma=1.2).r
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(curves[0], 1)
    np.testing.assert_allclose(curves[1], -1)


def any_marked(fractions: list[list[float]]) -> int:
    """K of `localisation.soft_rank`: the pixels that any reader marked."""
    return sum(fraction > 0 for row in fractions for fraction in row)


FIGURES: dict[str, tuple[Callable[..., Any], Callable[..., float]]] = {
    "soft mass": (localisation.soft_mass, soft_relevance_mass),
    "soft rank": (
        localisation.soft_rank,
        lambda scores, marks: soft_relevance_rank(scores, marks, any_marked(marks)),
    ),
    "chance of soft rank": (
        lambda _, marks: localisation.chance(marks > 0),
        lambda _, marks: chance_of_soft_rank(marks, any_marked(marks)),
    ),
    "AUPRC": (
        lambda scores, marks: localisation.average_precision(scores, marks >= 0.5),
        lambda scores, marks: average_precision(scores, (np.array(marks) >= 0.5).tolist()),
    ),
    "compactness": (
        lambda scores, _: fast_compactness(torch.from_numpy(scores)),
        lambda scores, _: compactness(scores),
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_a_map_equal_their_twins(name: str) -> None:
    fast, twin = FIGURES[name]
    rng = np.random.default_rng(0)
    for trial in range(12):
        # Half of the maps are upsampled tokens, full of ties.
        tokens = rng.normal(size=(2, 3) if trial % 2 else (4, 6))
        scores = np.array(nearest_upsampled(tokens.tolist(), 4, 6))
        marks = rng.integers(0, 5, (4, 6)) / 4
        marks[0, 0] = 1.0
        assert float(fast(scores, marks)) == pytest.approx(twin(scores.tolist(), marks.tolist()), nan_ok=True)


@pytest.mark.parametrize("grid", [(2, 3), (4, 6)])
def test_chance_of_average_precision_equals_its_twin(grid: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random((4, 6)) < 0.4
    cells = torch.from_numpy(mask.reshape(grid[0], 4 // grid[0], grid[1], 6 // grid[1]).mean((1, 3)))
    found = float(localisation.chance_precision(cells, torch.ones(grid, dtype=torch.bool)))
    assert found == pytest.approx(chance_of_average_precision(mask.tolist(), *grid))


def test_deltas_of_a_matrix_equal_their_twin() -> None:
    matrix = np.random.default_rng(0).normal(size=(8, 8))
    found = Discrimination(matrix[None])
    np.testing.assert_allclose(found.delta[0], deltas(matrix.tolist()))
    np.testing.assert_allclose(found.pairs[0], pair_deltas(matrix.tolist()))


@pytest.mark.parametrize("values", [[0.03, 0.01, 0.4, 0.02], [0.5, 0.001, 0.001, 0.2, 0.049], [0.9]])
def test_holms_correction_equals_its_twin(values: Sequence[float]) -> None:
    np.testing.assert_allclose(fast_holm(values), holm(values))


def test_paired_differences_equal_their_twin() -> None:
    """Three methods on eight patients' nodules, over the very same draws of patients."""
    rng = np.random.default_rng(0)
    names = pd.MultiIndex.from_product([["a", "b", "c"], ["m"]], names=["method", "metric"])
    wide = pd.DataFrame(rng.normal(size=(20, 3)), columns=names)
    patients = [f"p{number}" for number in rng.integers(0, 8, 20)]
    found = paired_differences(wide, patients, 700, 5)
    first = [patients.index(patient) for patient in dict.fromkeys(patients)]
    draws = [
        [patients[row] for row in first for _ in range(int(weights[row]))] for weights in draw_weights(patients, 700, 5)
    ]
    twins = {
        (one, other): paired_difference(list(wide[one, "m"]), list(wide[other, "m"]), patients, draws)
        for one, other in itertools.combinations("abc", 2)
    }
    corrected = holm([twin.p for twin in twins.values()])
    for record, (pair, twin), p_holm in zip(found, twins.items(), corrected, strict=True):
        assert (record["first"], record["second"]) == pair
        for key in ("value", "low", "high", "p"):
            assert record[key] == pytest.approx(getattr(twin, key)), (pair, key)
        assert record["p_holm"] == pytest.approx(p_holm)


def test_rank_correlation_of_maps_equals_its_twin() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.integers(-4, 5, (2, 4, 5)).astype(float)
        found = float(rank_correlation(torch.from_numpy(first), torch.from_numpy(second)))
        assert found == pytest.approx(spearman(first.tolist(), second.tolist()))
