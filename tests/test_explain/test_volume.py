import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lidc_cdam.explain.volume import merge_slices, token_shares
from lidc_cdam.geometry import VIEWS, take_view

SIDES = [(32, 16), (32, 28), (32, 14), (32, 37), (48, 28), (5, 3)]


@pytest.mark.parametrize(("side", "tokens"), SIDES)
def test_nearest_is_what_torch_calls_nearest_exact(side, tokens):
    line = torch.arange(tokens, dtype=torch.float64)[None, None]
    expected = F.interpolate(line, side, mode="nearest-exact")[0, 0].numpy()
    np.testing.assert_array_equal(token_shares(side, tokens, "nearest") @ np.arange(tokens), expected)


@pytest.mark.parametrize(("side", "tokens"), SIDES)
def test_area_is_the_mean_of_nearest_on_a_grid_that_holds_both(side, tokens):
    # On a line of lcm(side, tokens) points, voxels and tokens are whole numbers of points.
    points = math.lcm(side, tokens)
    fine = np.repeat(np.eye(tokens), points // tokens, axis=0)
    expected = fine.reshape(side, points // side, tokens).mean(1)
    np.testing.assert_allclose(token_shares(side, tokens, "area"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("upsampling", ["nearest", "area"])
def test_the_slices_of_a_cube_make_that_cube_in_every_view(upsampling):
    cube = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    slices = np.stack([[take_view(cube, view, index) for index in range(6)] for view in VIEWS])
    merged = merge_slices(slices[None], tuple(VIEWS), upsampling)
    assert merged.shape == (1, 3, 6, 6, 6)
    for volume in merged[0]:
        np.testing.assert_allclose(volume, cube, rtol=1e-6)


def test_a_token_fills_its_own_voxels_and_no_other():
    scores = np.zeros((2, 1, 8, 4, 2), np.float32)
    scores[1, 0, 3, 0, 1] = -2.5  # slice 3 from the front, top row of tokens, right column
    merged = merge_slices(scores, ("coronal",), "nearest")
    expected = np.zeros((8, 8, 8), np.float32)
    expected[6:8, 3, 4:8] = -2.5  # the head's two slices, row 3, the left side
    np.testing.assert_array_equal(merged[1, 0], expected)
    assert not merged[0].any()


def test_area_keeps_a_constant_and_the_mean():
    scores = np.random.default_rng(1).normal(size=(1, 1, 8, 7, 5)).astype(np.float32)
    merged = merge_slices(scores, ("axial",), "area")
    np.testing.assert_allclose(merged[0, 0].mean((1, 2)), scores[0, 0].mean((1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(merge_slices(np.full_like(scores, 3), ("axial",), "area"), 3, rtol=1e-6)
