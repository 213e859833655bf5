"""The fast measurements against the slow literal twins, and the twins against hand-made cases."""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reference import (
    area_percent,
    auc,
    bootstrap_statistics,
    box_correlation,
    compactness,
    gaussian_blur,
    icc_one_way,
    mean_pair_difference,
    nearest_upsampled,
    noise_floor,
    pearson,
    percentile,
    perturbation_curve,
    pointing_game,
    relevance_mass,
    relevance_rank,
)
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lidc_cdam.metrics import localisation, weighted
from lidc_cdam.metrics.agreement import agreement, reader_auc
from lidc_cdam.metrics.faithfulness import blur, fidelity
from lidc_cdam.metrics.intervals import Weights, bootstrap, difference, draw_weights
from lidc_cdam.vocabulary import TARGETS

# --- The twins themselves ---------------------------------------------------------------------------------------------


def test_localisation_of_a_hand_made_map() -> None:
    scores = [[4.0, -9.0], [1.0, 3.0]]
    mask = [[True, True], [False, False]]
    assert relevance_mass(scores, mask) == pytest.approx(4 / 8)
    assert relevance_rank(scores, mask) == pytest.approx(1 / 2)
    assert pointing_game(scores, mask) == 1
    assert pointing_game([[4.0, 0.0], [4.0, 3.0]], mask) == 0.5
    assert compactness([[10.0, -0.5], [0.51, 0.0]]) == pytest.approx(2 / 4)


def test_upsampling_gives_every_pixel_its_patchs_score() -> None:
    found = nearest_upsampled([[1, 2, 3], [4, 5, 6]], 4, 6)
    assert found == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2


def test_the_literal_blur_is_a_gaussian() -> None:
    image = np.random.default_rng(0).normal(size=(1, 9, 11))
    expected = gaussian_filter(image[0], 1.3, mode="reflect", radius=5)
    np.testing.assert_allclose(gaussian_blur(image, 1.3, 5)[0], expected, atol=1e-12)


def test_area_of_known_curves() -> None:
    shares = [0, 0.1, 0.5, 1]
    assert area_percent(shares, [2.0] * 4) == pytest.approx(200)
    assert area_percent(shares, [1 - share for share in shares]) == pytest.approx(50)


def test_statistics_agree_with_the_usual_packages() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 9, 40).astype(float)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert percentile(list(scores), 97.5) == pytest.approx(np.percentile(scores, 97.5))
    assert pearson(list(scores), list(labels)) == pytest.approx(np.corrcoef(scores, labels)[0, 1])


def test_agreement_of_hand_made_readers() -> None:
    assert icc_one_way([[1, 1], [2, 2], [5, 5]]) == 1
    groups = [[1.0, 3.0], [2.0, 4.0], [6.0, 8.0]]
    # MSB = 2 * var(2, 3, 7) = 14, MSW = 2
    assert icc_one_way(groups) == pytest.approx(12 / 16)
    assert mean_pair_difference(groups) == 2
    assert noise_floor(groups) == pytest.approx(2 / 2 / np.var([2, 3, 7]))


def test_icc_estimates_the_share_of_variance_between_nodules() -> None:
    rng = np.random.default_rng(2)
    groups = [list(centre + rng.normal(0, 1, 3 + i % 2)) for i, centre in enumerate(rng.normal(0, 2, 4000))]
    assert icc_one_way(groups) == pytest.approx(4 / 5, abs=0.02)


CEILING = {
    "subtlety": (0.38, 0.73, 0.301),
    "calcification": (0.70, 0.27, 0.104),
    "sphericity": (0.26, 0.87, 0.429),
    "margin": (0.42, 0.79, 0.271),
    "lobulation": (0.35, 0.85, 0.334),
    "spiculation": (0.45, 0.72, 0.245),
    "texture": (0.54, 0.39, 0.184),
    "diameter": (0.94, 1.60, 0.017),
    "malignancy": (0.55, 0.95, 0.179),
}
"""ICC(1), mean difference of two readers, noise floor: computed once for the project's documents, n = 869."""


@pytest.fixture(scope="session")
def readings_of_cohort() -> dict[str, list[list[float]]]:
    """By target, the 3 or 4 readings of each of the 869 nodules with a malignancy label."""
    from preprocessing.annotations import load_nodules

    nodules = [nodule for nodule in load_nodules() if len(nodule.readings) in (3, 4)]
    nodules = [n for n in nodules if statistics.median(r.ratings["malignancy"] for r in n.readings) != 3]
    assert len(nodules) == 869
    return {
        key: [[r.diameter_mm if key == "diameter" else float(r.ratings[key]) for r in n.readings] for n in nodules]
        for key in TARGETS
    }


@pytest.mark.parametrize("key", TARGETS)
def test_the_human_ceiling_is_reproduced(readings_of_cohort: dict[str, list[list[float]]], key: str) -> None:
    groups, (icc, difference, floor) = readings_of_cohort[key], CEILING[key]
    assert icc_one_way(groups) == pytest.approx(icc, abs=0.0051)
    assert mean_pair_difference(groups) == pytest.approx(difference, abs=0.0051)
    assert noise_floor(groups) == pytest.approx(floor, abs=0.00055)


def test_box_correlation_of_an_additive_output_is_one_for_its_own_map() -> None:
    rng = np.random.default_rng(4)
    weights, image = rng.normal(size=(6, 6)), np.ones((1, 6, 6))
    corners = [(int(y), int(x)) for y, x in rng.integers(0, 4, (12, 2))]

    def output(changed: np.ndarray) -> float:
        return float((weights * changed[0]).sum())

    assert box_correlation(output, image, 0 * image, weights, corners, 3) == pytest.approx(1)
    assert box_correlation(output, image, 0 * image, -weights, corners, 3) == pytest.approx(-1)
    assert abs(box_correlation(output, image, 0 * image, rng.normal(size=(6, 6)), corners, 3)) < 0.95


# --- The fast code: localisation and fidelity -------------------------------------------------------------------------

maps = arrays.arrays(np.float64, (4, 5), elements=st.floats(-10, 10).map(lambda value: round(value, 3)), unique=True)
masks = arrays.arrays(bool, (4, 5))
quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@quick
@given(maps, masks)
def test_localisation_equals_its_twins(scores: np.ndarray, mask: np.ndarray) -> None:
    for fast, twin in (
        (localisation.relevance_mass, relevance_mass),
        (localisation.relevance_rank, relevance_rank),
        (localisation.pointing_game, pointing_game),
    ):
        for part, signed in (("positive", scores), ("negative", -scores)):
            found = float(fast(scores, mask, part=part))
            if mask.any() and (signed > 0).any():
                assert found == pytest.approx(twin(signed.tolist(), mask.tolist()))
            else:
                assert math.isnan(found)


@quick
@given(maps, masks.filter(lambda mask: mask.any()), st.floats(0.01, 100))
def test_localisation_knows_no_unit_and_all_of_the_image_is_all_of_the_relevance(
    scores: np.ndarray, mask: np.ndarray, unit: float
) -> None:
    for figure in (localisation.relevance_mass, localisation.relevance_rank, localisation.pointing_game):
        np.testing.assert_allclose(figure(unit * scores, mask), figure(scores, mask))
        if (scores > 0).any():
            assert float(figure(scores, np.ones_like(mask))) == pytest.approx(1)


def test_ties_stand_for_every_order_of_themselves() -> None:
    """The pixels of one token are tied: the literal mean over all orders of the tied pixels."""
    scores, mask = np.array([[3.0, 1.0, 1.0], [1.0, 2.0, 0.0]]), np.array([[True, False, True], [True, False, False]])
    ranks = []
    for order in itertools.permutations(range(6)):
        broken = scores - 1e-6 * np.array(order).reshape(2, 3)
        ranks.append(relevance_rank(broken.tolist(), mask.tolist()))
    assert float(localisation.relevance_rank(scores, mask)) == pytest.approx(sum(ranks) / len(ranks))


def test_a_random_map_scores_as_chance() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:9, 5:13] = True
    scores = np.random.default_rng(0).uniform(-1, 1, (3000, 16, 16))
    for figure in (localisation.relevance_mass, localisation.relevance_rank, localisation.pointing_game):
        found = figure(scores, np.tile(mask, (len(scores), 1, 1)))
        assert found.mean() == pytest.approx(mask.mean(), abs=0.02)
    assert float(localisation.chance(mask)) == pytest.approx(mask.mean())


@pytest.mark.parametrize("name", ["relevance_mass", "relevance_rank", "pointing_game"])
def test_one_mask_serves_many_maps(name: str) -> None:
    scores = np.random.default_rng(0).normal(size=(3, 2, 4, 4))
    mask = np.eye(4, dtype=bool)
    figure = getattr(localisation, name)
    np.testing.assert_array_equal(figure(scores, mask), figure(scores, np.tile(mask, (3, 2, 1, 1))))


@pytest.mark.parametrize("name", ["relevance_mass", "relevance_rank", "pointing_game"])
def test_maps_and_masks_may_be_flipped_views_of_memory(name: str) -> None:
    scores, mask = np.random.default_rng(0).normal(size=(4, 4)), np.tri(4, dtype=bool)
    figure = getattr(localisation, name)
    np.testing.assert_array_equal(figure(scores[::-1], mask[::-1]), figure(scores, mask))


def wavy(images: Tensor) -> Tensor:
    """A nonlinear function of images with two outputs."""
    places = torch.arange(images[0].numel(), dtype=images.dtype).reshape(images.shape[1:])
    return torch.stack([torch.tanh((images * torch.sin(places * k)).sum((1, 2, 3)) / 3) for k in (1, 2)], dim=1)


@pytest.mark.parametrize("output", ["model", "probability"])
@pytest.mark.parametrize("grid", [(6, 8), (3, 4)])
def test_fidelity_equals_its_twin(grid: tuple[int, int], output: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 2, 6, 8, generator=generator, dtype=torch.float64)
    scores = torch.randn(2, *grid, generator=generator, dtype=torch.float64)
    found = fidelity(wavy, images, scores, torch.tensor([1, 0]), steps=7, blur_sigma=1.2, output=output, batch_size=5)
    shares = [step / 7 for step in range(8)]
    for i, target in enumerate((1, 0)):

        def answer(image: np.ndarray, target: int = target) -> float:
            value = float(wavy(torch.from_numpy(image)[None])[0, target])
            return 1 / (1 + math.exp(-value)) if output == "probability" else value

        image = images[i].numpy()
        # scipy's kernel ends at 4 sigma.
        blurred = gaussian_blur(image, 1.2, round(4 * 1.2))
        pixels = nearest_upsampled(scores[i].tolist(), 6, 8)
        curves = {most: perturbation_curve(answer, image, blurred, pixels, shares, most) for most in (True, False)}
        np.testing.assert_allclose(found.mif[i], curves[True], atol=1e-10)
        np.testing.assert_allclose(found.lif[i], curves[False], atol=1e-10)
        exact = [round(48 * share) / 48 for share in shares]
        np.testing.assert_allclose(found.percent, [100 * share for share in exact])
        assert found.area_mif[i] == pytest.approx(area_percent(exact, curves[True]))
        assert found.area[i] == pytest.approx(area_percent(exact, curves[False]) - area_percent(exact, curves[True]))


def test_the_default_blur_is_fourteen_pixels_at_224() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.float64)
    scores = torch.randn(1, 16, 16, generator=generator, dtype=torch.float64)
    default = fidelity(wavy, images, scores, 0, steps=3)
    np.testing.assert_allclose(default.mif, fidelity(wavy, images, scores, 0, steps=3, blur_sigma=1.0).mif)


def test_the_right_map_of_an_additive_output_beats_random_and_its_negative() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    weights = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    drop = weights * (images - blur(images, 2.0))[:, 0]

    def additive(changed: Tensor) -> Tensor:
        return (weights * changed[:, 0]).sum((1, 2))[:, None]

    right, wrong, constant = (
        fidelity(additive, images, scores, 0, steps=16, blur_sigma=2.0).area
        for scores in (drop, -drop, torch.ones_like(drop))
    )
    assert (right > 0).all()
    np.testing.assert_allclose(wrong, -right, atol=1e-8)
    np.testing.assert_allclose(constant, 0, atol=1e-12)


# --- The fast code: agreement and intervals ---------------------------------------------------------------------------


def as_columns(groups: list[list[float]]) -> tuple[pd.Series, pd.Series]:
    """One row per reading, in a mixed order."""
    rows = pd.DataFrame([(value, f"n{place}") for place, group in enumerate(groups) for value in group])
    rows = rows.sample(frac=1, random_state=0)
    return rows[0], rows[1]


@pytest.mark.parametrize("key", TARGETS)
def test_agreement_equals_its_twin(readings_of_cohort: dict[str, list[list[float]]], key: str) -> None:
    groups = readings_of_cohort[key]
    found = agreement(*as_columns(groups))
    assert found.icc == pytest.approx(icc_one_way(groups))
    assert found.mean_difference == pytest.approx(mean_pair_difference(groups))
    assert found.noise_floor == pytest.approx(noise_floor(groups))


def test_one_reader_against_the_median_of_the_others(readings_of_cohort: dict[str, list[list[float]]]) -> None:
    groups = readings_of_cohort["malignancy"]
    scores, labels = [], []
    for group in groups:
        for place, rating in enumerate(group):
            others = statistics.median([*group[:place], *group[place + 1 :]])
            if others != 3:
                scores.append(rating)
                labels.append(int(others > 3))
    ratings, nodules = as_columns(groups)
    found = reader_auc(pd.DataFrame({"nodule_id": nodules, "malignancy": ratings}))
    assert found == pytest.approx(tied_auc(labels, scores))
    assert found == pytest.approx(0.863, abs=0.0006)


def tied_auc(labels: list[int], scores: list[float]) -> float:
    """`auc` for few different scores: pairs are counted by score."""
    wins = 0.0
    for high in set(scores):
        for low in set(scores):
            pairs = sum(lab for lab, s in zip(labels, scores, strict=True) if s == high) * sum(
                1 - lab for lab, s in zip(labels, scores, strict=True) if s == low
            )
            wins += pairs * (1.0 if high > low else 0.5 if high == low else 0.0)
    return wins / (sum(labels) * (len(labels) - sum(labels)))


PATIENTS = ["c", "a", "a", "b", "d", "d", "d", "e", "f", "f", "g", "g", "h", "h", "i"]


def as_draws(weights: Weights) -> list[list[str]]:
    """The patients that each row of weights drew, as often as it did."""
    first = {patient: PATIENTS.index(patient) for patient in set(PATIENTS)}
    return [[patient for patient in sorted(first) for _ in range(int(row[first[patient]]))] for row in weights]


def test_replicates_draw_whole_patients_as_many_as_there_are() -> None:
    weights = draw_weights(PATIENTS, 400, seed=3)
    for row, draw in zip(weights, as_draws(weights), strict=True):
        assert len(draw) == len(set(PATIENTS))
        assert [draw.count(patient) for patient in PATIENTS] == list(row)
    # Each patient is drawn once on average, with the binomial's variance (1 - 1/n).
    assert weights.mean() == pytest.approx(1, abs=0.05)
    assert weights[:, 0].var() == pytest.approx(1 - 1 / len(set(PATIENTS)), abs=0.2)


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_equal_their_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, len(PATIENTS))
    first, second = (np.round(labels * 0.7 + rng.normal(size=len(labels)), 1) for _ in range(2))
    draws = as_draws(draw_weights(PATIENTS, 60, seed))

    def literal(scores: np.ndarray, rows: list[int]) -> float:
        chosen = [int(labels[row]) for row in rows]
        return auc(chosen, [scores[row] for row in rows]) if len(set(chosen)) == 2 else math.nan

    fast = [weighted.auc(scores, labels) for scores in (first, second)]
    everyone = list(range(len(PATIENTS)))
    for statistic, twin in (
        (fast[0], lambda rows: literal(first, rows)),
        (difference(*fast), lambda rows: literal(first, rows) - literal(second, rows)),
        (weighted.mean(first), lambda rows: sum(first[row] for row in rows) / len(rows)),
    ):
        found = bootstrap(statistic, PATIENTS, 60, seed)
        drawn = [value for value in bootstrap_statistics(PATIENTS, draws, twin) if not math.isnan(value)]
        assert found.value == pytest.approx(twin(everyone))
        assert found.low == pytest.approx(percentile(drawn, 2.5))
        assert found.high == pytest.approx(percentile(drawn, 97.5))


def literal_average_precision(labels: list[int], scores: list[float]) -> float:
    area, last = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [label for label, score in zip(labels, scores, strict=True) if score >= threshold]
        recall = sum(called) / sum(labels)
        area += (recall - last) * sum(called) / len(called)
        last = recall
    return area


def test_weighted_figures_are_those_of_the_repeated_list() -> None:
    rng = np.random.default_rng(5)
    labels, scores = rng.integers(0, 2, 15), rng.integers(0, 6, 15).astype(float)
    true = rng.normal(size=15)
    weights = draw_weights(PATIENTS, 30, 1)
    figures = {
        "average_precision": weighted.average_precision(scores, labels)(weights),
        "balanced_accuracy": weighted.balanced_accuracy((scores > 2) == labels, labels)(weights),
        "z_mse": weighted.z_mse(scores, true)(weights),
        "spearman": weighted.spearman(scores, true)(weights),
    }
    for place, draw in enumerate(as_draws(weights)):
        rows = [row for drawn in draw for row, patient in enumerate(PATIENTS) if patient == drawn]
        y, s, t = labels[rows], scores[rows], true[rows]
        if 0 < sum(y) < len(y):
            expected = literal_average_precision(list(map(int, y)), list(s))
            assert figures["average_precision"][place] == pytest.approx(expected)
            rates = [np.mean((s[y == kind] > 2) == kind) for kind in (0, 1)]
            assert figures["balanced_accuracy"][place] == pytest.approx(sum(rates) / 2)
        assert figures["z_mse"][place] == pytest.approx(np.mean((s - t) ** 2) / np.var(t))
        ranks = [
            [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values] for values in (s, t)
        ]
        assert figures["spearman"][place] == pytest.approx(pearson(*ranks))
