import re

import pytest

from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports import charts


def circles(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]


def diamond(svg: str) -> float:
    return float(re.findall(r'd="M([\d.]+) [\d.]+L[^"]+Z"', svg)[0])


def test_equal_answers_are_stacked_and_all_readers_show():
    dots = circles(charts.dot_line(TARGETS["margin"], [4, 4, 4, 2], 3.5, 3.0))
    assert len(dots) == 4
    assert len({y for x, y in dots if x == max(dots)[0]}) == 3


@pytest.mark.parametrize(("probability", "rating"), [(0.0, 1), (0.5, 3), (1.0, 5)])
def test_a_probability_of_one_half_stands_on_the_middle_rating(probability, rating):
    svg = charts.dot_line(MALIGNANCY, [rating], None, probability)
    assert diamond(svg) == pytest.approx(circles(svg)[0][0])


def test_a_prediction_beyond_a_rating_scale_stays_on_the_line():
    assert 0 < diamond(charts.dot_line(TARGETS["texture"], [5], 5, 7.5)) < 250


def test_a_diameter_beyond_the_usual_scale_widens_it():
    svg = charts.dot_line(TARGETS["diameter"], [41.0], 41.0, 39.0)
    assert ">40<" in svg
    assert circles(svg)[0][0] < 250


def test_the_colour_bar_prints_its_limits_and_zero():
    svg = charts.colour_bar(0.5, "scale", 0.017)
    for text in ("+0.017", "−0.017", ">0<", "+0.0085", "−0.0085"):
        assert text in svg
    assert ">+1 × limit<" in charts.colour_bar(0.5, "scale")


def test_an_interval_reaches_from_end_to_end_and_other_predictions_are_hollow():
    svg = charts.dot_line(TARGETS["margin"], [1, 5], 3, 3.0, interval=(2.0, 4.0), others=[4.0])
    (left, _), (right, _) = sorted(circles(svg))
    x, width = map(float, re.findall(r'<rect x="([\d.]+)"[^>]* width="([\d.]+)"', svg)[0])
    quarter = (right - left) / 4
    assert (x, width) == pytest.approx((left + quarter, 2 * quarter), abs=0.11)
    assert svg.count('fill="var(--accent)" stroke="var(--paper)"') == 1
    assert svg.count('fill="var(--paper)" stroke="var(--accent)"') == 1


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (-0.00012345, "−0.000123"), (2.5, "+2.5"), (-1e-9, "−1e−09")])
def test_scores_carry_their_sign(value, text):
    assert charts.signed(value) == text
