from collections import Counter

import numpy as np

from lidc_cdam.geometry import VIEWS, take_view
from training.augment import ViewDraw, apply_view, draw_epoch, order_epoch


def test_draws_cover_their_ranges_and_nothing_else():
    draws = draw_epoch(seed=0, epoch=0, nodules=2000, views=list(VIEWS), flips=True)
    for name, values in (("view", VIEWS), ("slice_index", range(14, 19)), ("quarter_turns", range(4))):
        counts = Counter(getattr(draw, name) for draw in draws)
        assert set(counts) == set(values)
        assert min(counts.values()) > 0.8 * len(draws) / len(set(values))
    assert 0.45 < np.mean([draw.mirrored for draw in draws]) < 0.55


def test_slices_are_the_five_around_the_middle_of_any_cube():
    assert {draw.slice_index for draw in draw_epoch(0, 0, 100, ["axial"], False, side=48)} == set(range(22, 27))
    assert {draw.slice_index for draw in draw_epoch(0, 0, 100, ["axial"], False, side=9)} == set(range(2, 7))


def test_without_flips_nothing_is_mirrored_and_the_other_draws_stay():
    plain = draw_epoch(0, 3, 50, ["axial"], flips=False)
    mirrored = draw_epoch(0, 3, 50, ["axial"], flips=True)
    assert not any(draw.mirrored for draw in plain)
    assert [(d.view, d.slice_index, d.quarter_turns) for d in plain] == [
        (d.view, d.slice_index, d.quarter_turns) for d in mirrored
    ]


def test_draws_depend_on_seed_and_epoch_and_repeat():
    first = draw_epoch(1, 2, 20, list(VIEWS), True)
    assert first == draw_epoch(1, 2, 20, list(VIEWS), True)
    assert first != draw_epoch(1, 3, 20, list(VIEWS), True)
    assert first != draw_epoch(2, 2, 20, list(VIEWS), True)
    assert first[:5] == draw_epoch(1, 2, 5, list(VIEWS), True)


def test_order_is_a_permutation_of_its_own_epoch():
    assert sorted(order_epoch(0, 0, 30)) == list(range(30))
    assert list(order_epoch(0, 0, 30)) != list(order_epoch(0, 1, 30))


def test_apply_turns_the_view_by_quarter_turns():
    cube = np.arange(32**3).reshape(32, 32, 32)
    for view in VIEWS:
        image = take_view(cube, view, 15)
        assert np.array_equal(apply_view(cube, ViewDraw(view, 15, 0, False)), image)
        assert np.array_equal(apply_view(cube, ViewDraw(view, 15, 1, False)), image.T[::-1])
        assert np.array_equal(apply_view(cube, ViewDraw(view, 15, 2, False)), image[::-1, ::-1])
        assert np.array_equal(apply_view(cube, ViewDraw(view, 15, 0, True)), image[:, ::-1])
