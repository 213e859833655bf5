from collections import Counter

import numpy as np

from lidc_cdam.geometry import VIEWS
from training.augment import Variation, ViewDraw, apply_draw, draw_epoch, order_epoch


def test_draws_cover_their_ranges_and_nothing_else():
    draws = draw_epoch(seed=0, epoch=0, nodules=2000, views=list(VIEWS), variation=Variation(flips=True))
    for name, values in (("view", VIEWS), ("slice_index", range(14, 19)), ("quarter_turns", range(4))):
        counts = Counter(getattr(draw, name) for draw in draws)
        assert set(counts) == set(values)
        assert min(counts.values()) > 0.8 * len(draws) / len(set(values))
    assert 0.45 < np.mean([draw.mirrored for draw in draws]) < 0.55


def test_slices_are_the_five_around_the_middle_of_any_cube():
    assert {draw.slice_index for draw in draw_epoch(0, 0, 100, ["axial"], Variation(), side=48)} == set(range(22, 27))
    assert {draw.slice_index for draw in draw_epoch(0, 0, 100, ["axial"], Variation(), side=9)} == set(range(2, 7))


def test_without_flips_nothing_is_mirrored_and_the_other_draws_stay():
    plain = draw_epoch(0, 3, 50, ["axial"], Variation())
    mirrored = draw_epoch(0, 3, 50, ["axial"], Variation(True, 3, 0.2))
    assert not any(draw.mirrored for draw in plain)
    assert [(d.view, d.slice_index, d.quarter_turns) for d in plain] == [
        (d.view, d.slice_index, d.quarter_turns) for d in mirrored
    ]


def test_draws_depend_on_seed_and_epoch_and_repeat():
    first = draw_epoch(1, 2, 20, list(VIEWS), Variation(True))
    assert first == draw_epoch(1, 2, 20, list(VIEWS), Variation(True))
    assert first != draw_epoch(1, 3, 20, list(VIEWS), Variation(True))
    assert first != draw_epoch(2, 2, 20, list(VIEWS), Variation(True))
    assert first[:5] == draw_epoch(1, 2, 5, list(VIEWS), Variation(True))


def test_order_is_a_permutation_of_its_own_epoch():
    assert sorted(order_epoch(0, 0, 30)) == list(range(30))
    assert list(order_epoch(0, 0, 30)) != list(order_epoch(0, 1, 30))


def test_a_draw_turns_and_mirrors_all_planes_alike():
    image = np.arange(2 * 32 * 32, dtype=np.int16).reshape(2, 32, 32)
    assert np.array_equal(apply_draw(image, ViewDraw("axial", 15, 0, False)), image)
    for plane, original in enumerate(image):
        for draw, expected in (
            (ViewDraw("axial", 15, 1, False), original.T[::-1]),
            (ViewDraw("axial", 15, 2, False), original[::-1, ::-1]),
            (ViewDraw("axial", 15, 0, True), original[:, ::-1]),
        ):
            assert np.array_equal(apply_draw(image, draw)[plane], expected)


def test_a_shift_moves_the_window_over_mirrored_borders():
    image = np.arange(16, dtype=np.int16).reshape(1, 4, 4)
    moved = apply_draw(image, ViewDraw("axial", 2, 0, False, shift=(1, -2)))
    expected = [[5, 4, 4, 5], [9, 8, 8, 9], [13, 12, 12, 13], [13, 12, 12, 13]]
    assert np.array_equal(moved[0], expected)


def test_grey_values_change_and_the_mask_does_not():
    image = np.stack([np.full((2, 2), 0), np.full((2, 2), 1)]).astype(np.int16)
    changed = apply_draw(image, ViewDraw("axial", 2, 0, False, gain=1.1, offset_hu=-20.0), slices=1)
    assert np.array_equal(changed, [[[80, 80], [80, 80]], [[1, 1], [1, 1]]])


def test_variation_stays_in_its_range_and_moves_no_other_draw():
    plain = draw_epoch(0, 0, 500, ["axial"], Variation())
    varied = draw_epoch(0, 0, 500, ["axial"], Variation(True, 2, 0.1))
    assert [(d.slice_index, d.quarter_turns) for d in plain] == [(d.slice_index, d.quarter_turns) for d in varied]
    assert {step for draw in varied for step in draw.shift} == {-2, -1, 0, 1, 2}
    gains, offsets = np.array([(draw.gain, draw.offset_hu) for draw in varied]).T
    assert 0.9 <= gains.min() < 0.92 < 1.08 < gains.max() <= 1.1
    assert -50 <= offsets.min() < -45 < 45 < offsets.max() <= 50
    assert {(draw.shift, draw.gain, draw.offset_hu) for draw in plain} == {((0, 0), 1.0, 0.0)}
