"""Maps against known causes: perfect and random maps score as they must, correlations as SciPy has them."""

import numpy as np
import pytest
from scipy import stats

from lidc_cdam.metrics.causes import (
    correlation,
    expected_sign,
    least_and_most,
    map_correlation,
    on_cause,
    partial_correlation,
    same_sign,
    spread,
    sum_on,
)

ONCE = np.ones((1, 40))


def ring() -> np.ndarray:
    """A cause: a ring in the middle of two views."""
    y, x = np.indices((32, 32)) - 15.5
    radius = np.hypot(x, y)
    return np.repeat(((radius > 6) & (radius < 9))[None], 2, axis=0)


def nodule() -> np.ndarray:
    y, x = np.indices((32, 32)) - 15.5
    return np.repeat((np.hypot(x, y) < 9)[None], 2, axis=0)


def test_a_perfect_map_lies_on_its_cause_whatever_its_sign() -> None:
    for sign in (1.0, -1.0):
        found = on_cause(sign * ring(), ring(), nodule())
        assert found["cause_mass"] == found["cause_auprc"] == 1
        assert found["cause_in_nodule"] == pytest.approx(nodule().sum() / ring().sum())
        assert found["cause_share"] == pytest.approx(ring().mean())
    assert on_cause(ring() * 1.0, ring(), nodule())["cause_mass_positive"] == 1
    assert np.isnan(on_cause(-1.0 * ring(), ring(), nodule())["cause_mass_positive"])


def test_a_random_map_scores_as_chance() -> None:
    rng = np.random.default_rng(0)
    found = [on_cause(rng.uniform(-1, 1, ring().shape), ring(), nodule()) for _ in range(200)]
    means = {name: np.mean([each[name] for each in found]) for name in found[0]}
    assert means["cause_mass"] == pytest.approx(means["cause_share"], rel=0.02)
    assert means["cause_mass_positive"] == pytest.approx(means["cause_share"], rel=0.02)
    # Average precision of a finite sample lies a little above the share.
    assert means["cause_auprc"] == pytest.approx(means["cause_share"], rel=0.06)
    assert means["cause_in_nodule"] == pytest.approx(1, rel=0.02)


def test_a_map_of_the_nodule_alone_gains_mass_but_nothing_within_the_nodule() -> None:
    found = on_cause(nodule() * 1.0, ring(), nodule())
    assert found["cause_mass"] > 3 * found["cause_share"]
    assert found["cause_in_nodule"] == pytest.approx(1)


def test_a_view_that_does_not_show_the_cause_is_left_out() -> None:
    mask = ring()
    mask[1] = False
    scores = np.stack([ring()[0] * 1.0, np.ones((32, 32))])
    assert on_cause(scores, mask, nodule())["cause_mass"] == 1
    assert all(np.isnan(value) for value in on_cause(scores, mask & False, nodule()).values())


def test_spread_keeps_a_map_s_total() -> None:
    scores = np.random.default_rng(1).normal(size=(3, 8, 8))
    pixels = spread(scores, (32, 32))
    np.testing.assert_allclose(pixels.sum((-2, -1)), scores.sum((-2, -1)))
    assert (pixels[0, :4, :4] == scores[0, 0, 0] / 16).all()
    assert np.array_equal(spread(pixels, (32, 32)), pixels)
    with pytest.raises(ValueError, match="does not divide a grid"):
        spread(scores, (30, 30))


def test_sum_on_a_region_is_a_mean_over_the_views_that_show_it() -> None:
    region = ring()
    region[1] = False
    assert sum_on(np.ones((2, 32, 32)), region) == region[0].sum()
    assert np.isnan(sum_on(np.ones((2, 32, 32)), region & False))


@pytest.mark.parametrize(
    ("figure", "change", "expected"),
    [(2.0, 0.5, 1.0), (-2.0, 0.5, 0.0), (-2.0, -0.5, 1.0), (2.0, 0.01, np.nan), (np.nan, 1.0, np.nan)],
)
def test_signs_agree_only_where_the_output_reacts(figure: float, change: float, expected: float) -> None:
    assert same_sign(figure, change) == pytest.approx(expected, nan_ok=True)


def test_more_calcification_is_a_lower_code() -> None:
    assert least_and_most("spiculation", np.array([2.0, 1.0, 5.0])) == (1, 2)
    assert least_and_most("calcification", np.array([6.0, 3.0])) == (0, 1)
    assert (expected_sign("spiculation"), expected_sign("calcification")) == (1, -1)


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(2)
    size = rng.normal(size=40)
    one, other = size + rng.normal(size=40), size + 0.3 * rng.normal(size=40)
    assert correlation(one, other)(ONCE)[0] == pytest.approx(stats.pearsonr(one, other).statistic)
    left = [column - np.polyval(np.polyfit(size, column, 1), size) for column in (one, other)]
    assert partial_correlation(one, other, size)(ONCE)[0] == pytest.approx(stats.pearsonr(*left).statistic)
    weights = rng.integers(0, 3, (1, 40)).astype(float)
    again = [np.repeat(column, weights[0].astype(int)) for column in (one, other)]
    assert correlation(one, other)(weights)[0] == pytest.approx(stats.pearsonr(*again).statistic)


def test_correlations_leave_out_what_is_not_known_and_have_no_answer_for_a_constant() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=40), rng.normal(size=40)
    holed = np.where(np.arange(40) < 5, np.nan, one)
    assert correlation(holed, other)(ONCE)[0] == pytest.approx(stats.pearsonr(one[5:], other[5:]).statistic)
    assert np.isnan(correlation(np.full(40, 1e6), other)(ONCE)[0])
    assert np.isnan(correlation(np.full(40, np.nan), other)(ONCE)[0])


def test_a_size_map_has_a_correlation_and_no_partial_one() -> None:
    rng = np.random.default_rng(4)
    size = rng.normal(size=2000)
    rating, total = size + rng.normal(size=2000), size + 0.1 * rng.normal(size=2000)
    once = np.ones((1, 2000))
    assert correlation(total, rating)(once)[0] > 0.6
    assert abs(partial_correlation(total, rating, size)(once)[0]) < 0.08


def test_map_correlation_is_a_mean_over_views() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(2, 3, 8, 8))
    expected = np.mean([np.corrcoef(one[view].ravel(), other[view].ravel())[0, 1] for view in range(3)])
    assert map_correlation(one, other) == pytest.approx(expected)
    assert map_correlation(one, -2 * one + 1) == pytest.approx(-1)
