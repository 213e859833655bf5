"""Regions by signed distance, curvature of known surfaces, and verdicts that planted maps must get."""

import numpy as np
import pandas as pd
import pytest

from lidc_cdam.metrics.claims import (
    CLAIMS,
    PROFILE_MM,
    Claim,
    curved_and_flat,
    levels,
    mean_curvature,
    profile,
    regions,
    signed_distance,
)


def ball(radius: float, side: int = 32) -> np.ndarray:
    z, y, x = np.indices((side,) * 3) - side / 2 + 0.5
    return np.sqrt(z**2 + y**2 + x**2) <= radius


def test_signed_distance_of_a_ball() -> None:
    z, y, x = np.indices((32, 32, 32)) - 15.5
    for spacing in (1.0, 0.5):
        distance = signed_distance(ball(9), spacing)
        exact = (np.sqrt(z**2 + y**2 + x**2) - 9) * spacing
        assert np.abs(distance - exact).max() < 0.9 * spacing
        assert ((distance < 0) == ball(9)).all()


@pytest.mark.parametrize("radius", [6.0, 9.0, 12.0])
def test_curvature_of_a_ball_is_one_over_its_radius(radius: float) -> None:
    distance = signed_distance(ball(radius), 1.0)
    shell = np.abs(distance) <= 1
    assert np.median(mean_curvature(distance, 1.0)[shell]) == pytest.approx(1 / radius, rel=0.12)


def test_a_groove_is_curved_inwards_and_the_poles_of_an_egg_are_curved_most() -> None:
    z, y, x = np.indices((32, 32, 32)) - 15.5
    two = (np.hypot(y, x - 5) < 6) | (np.hypot(y, x + 5) < 6)
    curvature = mean_curvature(signed_distance(two, 1.0), 1.0)
    assert curvature[16, 11, 16] < 0 < curvature[16, 16, 27]
    egg = (x / 12) ** 2 + (y / 6) ** 2 + (z / 6) ** 2 <= 1
    distance = signed_distance(egg, 1.0)
    parts = curved_and_flat(distance[16], mean_curvature(distance, 1.0)[16])
    assert np.abs(x[16][parts["curved"]]).mean() > 2 * np.abs(x[16][parts["flat"]]).mean()


def test_regions_part_the_plane() -> None:
    places = regions(signed_distance(ball(9), 1.0)[16])
    assert (sum(place.astype(int) for place in places.values()) == 1).all()
    assert all(place.any() for place in places.values())


def test_levels_and_shares_of_a_planted_map() -> None:
    distance = signed_distance(ball(9), 1.0)[16].astype(float)
    places = regions(distance)
    margin = places["shell"] * 2.0 - places["core"] * 1.0
    read = np.ones_like(places["core"])
    found = levels(np.stack([margin, 0 * margin]), places, read)
    strength = np.abs(margin).mean()
    assert found["level_shell"][0] == pytest.approx(2 / strength)
    assert found["level_core"][0] == pytest.approx(-1 / strength)
    assert found["level_far"][0] == 0
    assert sum(abs(found[f"share_{name}"][0]) for name in places) == pytest.approx(1)
    assert np.isnan([values[1] for values in found.values()]).all()


def test_what_was_not_read_counts_nowhere() -> None:
    distance = signed_distance(ball(9), 1.0)[16].astype(float)
    places = regions(distance)
    scores = np.random.default_rng(0).normal(size=(1, 32, 32))
    read = np.zeros((32, 32), bool)
    read[:, 8:24] = True
    changed = np.where(read, scores, 99.0)
    one, other = levels(scores, places, read), levels(changed, places, read)
    assert all(one[name] == pytest.approx(other[name], nan_ok=True) for name in one)
    assert np.isnan(levels(scores, {"none": ~read}, read)["level_none"][0])


def test_profile_follows_the_distance() -> None:
    distance = signed_distance(ball(11), 1.0)[16].astype(float)
    curve = profile(-distance[None], distance, np.ones((32, 32), bool))[0]
    assert len(curve) == len(PROFILE_MM) - 1
    known = curve[np.isfinite(curve)]
    assert (np.diff(known) < 0).all()
    assert np.sign(known[0]) == 1


@pytest.mark.parametrize(
    ("wanted", "low", "high", "verdict"),
    [
        ("positive", 0.1, 0.3, "holds"),
        ("positive", -0.1, 0.3, "undecided"),
        ("positive", -0.3, -0.1, "fails"),
        ("negative", -0.3, -0.1, "holds"),
        ("negative", 0.1, 0.3, "fails"),
        ("zero", -0.1, 0.15, "holds"),
        ("zero", 0.1, 0.3, "undecided"),
        ("zero", 0.3, 0.5, "fails"),
        ("zero", -0.5, -0.3, "fails"),
        ("positive", None, None, "no answer"),
    ],
)
def test_a_verdict_is_the_interval_s(wanted: str, low: float | None, high: float | None, verdict: str) -> None:
    assert Claim("margin", "", "level_shell", wanted).verdict(low, high) == verdict


def test_a_claim_s_figure_may_be_a_difference_or_unknown() -> None:
    wide = pd.DataFrame({"level_core": [1.0, 2.0], "level_shell": [3.0, np.nan]})
    assert Claim("margin", "", "level_core - level_shell", "negative").column(wide).tolist()[0] == -2
    assert np.isnan(Claim("margin", "", "level_core - level_shell", "negative").column(wide)[1])
    assert np.isnan(Claim("margin", "", "level_spicules", "positive").column(wide)).all()


def test_claims_are_about_biomarkers_and_known_regions() -> None:
    names = {f"level_{name}" for name in ("core", "shell", "near", "far", "curved", "flat", "spicules")}
    for claim in CLAIMS:
        assert set(claim.figure.split(" - ")) <= names
        assert claim.wanted in ("positive", "negative", "zero")
