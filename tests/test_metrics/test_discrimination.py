import numpy as np
import pytest
import torch
from known_model import Regions, bright_images, true_maps

from lidc_cdam.metrics.boxes import box_sensitivity
from lidc_cdam.metrics.discrimination import Discrimination, box_discrimination, fidelity_discrimination
from lidc_cdam.metrics.faithfulness import fidelity
from lidc_cdam.metrics.perturbation import Perturbed

SIDES = (4, 8, 12)


@pytest.fixture
def model() -> Regions:
    return Regions()


@pytest.fixture
def images() -> torch.Tensor:
    return bright_images(2)


def test_the_matrix_equals_pair_by_pair(model: Regions, images: torch.Tensor) -> None:
    maps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    by_order = fidelity_discrimination(model, images, maps, steps=5, fill="mean").matrix
    by_box = box_discrimination(model, images, maps, sides=SIDES, boxes=20, seed=3).matrix
    for read in range(4):
        for own in range(4):
            alone = fidelity(model, images, maps[:, own], read, steps=5, fill="mean").area
            np.testing.assert_allclose(by_order[:, read, own], alone, rtol=1e-4, atol=1e-4)
            boxed = box_sensitivity(model, images, maps[:, own], read, SIDES, boxes=20, seed=3).area
            np.testing.assert_allclose(by_box[:, read, own], boxed, rtol=1e-4, atol=1e-4)


def test_it_costs_one_map_per_target_and_not_one_per_pair(model: Regions, images: torch.Tensor) -> None:
    fidelity_discrimination(model, images, torch.randn(2, 4, 8, 8), steps=5)
    assert model.calls == 2 * (4 * 2 * (5 - 1) + 2)


def test_true_maps_are_perfect_and_random_ones_have_no_delta(model: Regions, images: torch.Tensor) -> None:
    truth = true_maps(model, images, Perturbed.of(images, "mean").ends()[1])
    for figure, options in ((fidelity_discrimination, {"steps": 8}), (box_discrimination, {"sides": SIDES})):
        found = figure(model, images, truth, fill="mean", **options)
        assert (found.delta > 0.5 * found.own).all()
        # No map of another target does better than a target's own.
        assert (found.pairs >= -1e-6).all()
    many = bright_images(30, seed=1)
    noise = torch.randn(30, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for figure, options in ((fidelity_discrimination, {"steps": 4}), (box_discrimination, {"sides": SIDES})):
        delta = figure(model, many, noise, fill="mean", **options).delta
        assert (np.abs(delta.mean(0)) < 3.5 * delta.std(0) / np.sqrt(30)).all()


def test_one_map_for_all_targets_has_no_delta(model: Regions, images: torch.Tensor) -> None:
    shared = torch.rand(2, 1, 8, 8).expand(-1, 4, -1, -1)
    np.testing.assert_allclose(fidelity_discrimination(model, images, shared, steps=4).delta, 0, atol=1e-4)
    np.testing.assert_allclose(box_discrimination(model, images, shared, sides=SIDES).delta, 0, atol=1e-9)


def test_two_classes_of_each_image(model: Regions, images: torch.Tensor) -> None:
    maps = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    classes = torch.tensor([[0, 3], [2, 1]])
    found = fidelity_discrimination(model, images, maps, classes, steps=4)
    for image, pair in enumerate(classes.tolist()):
        for row, read in enumerate(pair):
            for own in range(2):
                alone = fidelity(model, images[image, None], maps[image, own, None], read, steps=4).area[0]
                assert found.matrix[image, row, own] == pytest.approx(alone, rel=1e-4)
    assert fidelity_discrimination(model, images, maps, [0, 3], steps=4).matrix[0] == pytest.approx(found.matrix[0])
    with pytest.raises(ValueError, match=r"outputs must name one output per map, \[2, 2\], got \[3\]"):
        fidelity_discrimination(model, images, maps, [0, 1, 2])


def test_delta_by_hand_and_of_a_single_target() -> None:
    found = Discrimination(np.array([[[5.0, 1.0, 3.0], [2.0, 4.0, 0.0], [1.0, 1.0, 1.0]]]))
    assert found.own.tolist() == [[5, 4, 1]]
    assert found.delta.tolist() == [[3, 3, 0]]
    assert np.isnan(Discrimination(np.array([[[5.0]]])).delta).all()
