import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics.faithfulness import blur, fidelity

SIDE = 16


class Linear(nn.Module):
    """Two targets, each a weighted sum of pixels; the best order of pixels is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("ichw,tchw->it", images, self.weights)


@pytest.fixture
def model() -> Linear:
    return Linear()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def oracle(model: Linear, images: Tensor, target: int) -> Tensor:
    """The drop of the output when a pixel is replaced: the right ranking."""
    return ((images - blur(images, 1.0)) * model.weights[target]).sum(1).detach()


def test_oracle_beats_random_beats_inverse(model: Linear, images: Tensor) -> None:
    scores = oracle(model, images, 1)
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(2))
    best, chance, worst = (fidelity(model, images, each, 1, blur_sigma=1.0).area for each in (scores, noise, -scores))
    assert (best > np.abs(chance)).all()
    np.testing.assert_allclose(best, -worst, rtol=1e-5)


def test_no_order_is_better_than_the_oracle(model: Linear, images: Tensor) -> None:
    best = fidelity(model, images, oracle(model, images, 0), 0, blur_sigma=1.0).area
    for seed in range(10):
        noise = torch.rand(4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        assert (fidelity(model, images, noise, 0, blur_sigma=1.0).area < best).all()


def test_curves_by_hand(model: Linear, images: Tensor) -> None:
    scores = oracle(model, images, 0)
    found = fidelity(model, images, scores, 0, steps=4, blur_sigma=1.0, batch_size=3)
    blurred = blur(images, 1.0)
    assert found.percent.tolist() == [0, 25, 50, 75, 100]
    for image in range(4):
        for descending, curve in ((True, found.mif), (False, found.lif)):
            order = scores[image].flatten().argsort(descending=descending)
            for step in range(5):
                perturbed = images[image].flatten(1).clone()
                chosen = order[: step * SIDE * SIDE // 4]
                perturbed[:, chosen] = blurred[image].flatten(1)[:, chosen]
                wanted = model(perturbed.reshape(1, 3, SIDE, SIDE))[0, 0].item()
                assert curve[image, step] == pytest.approx(wanted, abs=1e-4)
        area = np.trapezoid(found.lif[image], found.percent) - np.trapezoid(found.mif[image], found.percent)
        assert found.area[image] == pytest.approx(area)


def test_area_is_output_times_percent(model: Linear, images: Tensor) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 1), 2.5)

    found = fidelity(Constant(), images, torch.rand(4, SIDE, SIDE), 0)
    np.testing.assert_allclose(found.area_mif, 250)
    np.testing.assert_allclose(found.area_lif, 250)


def test_a_constant_map_has_no_fidelity(model: Linear, images: Tensor) -> None:
    found = fidelity(model, images, torch.zeros(4, SIDE, SIDE), 0)
    assert (found.area == 0).all()
    np.testing.assert_array_equal(found.mif, found.lif)


def test_token_maps_are_brought_to_pixels_by_nearest_neighbour(model: Linear, images: Tensor) -> None:
    tokens = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(3))
    pixels = tokens.repeat_interleave(4, 1).repeat_interleave(4, 2)
    np.testing.assert_array_equal(
        fidelity(model, images, tokens, 0).mif,
        fidelity(model, images, pixels, 0).mif,
    )


def test_ties_keep_the_order_of_reading(model: Linear, images: Tensor) -> None:
    tokens = torch.zeros(4, 2, 1)
    tokens[:, 1] = 1
    found = fidelity(model, images, tokens, 0, steps=SIDE, blur_sigma=1.0)
    perturbed = images.clone()
    # One sixteenth of the pixels is one row: the first of the lower, more important half.
    perturbed[:, :, SIDE // 2] = blur(images, 1.0)[:, :, SIDE // 2]
    np.testing.assert_allclose(found.mif[:, 1], model(perturbed)[:, 0].detach(), rtol=1e-5)
    perturbed = images.clone()
    perturbed[:, :, 0] = blur(images, 1.0)[:, :, 0]
    np.testing.assert_allclose(found.lif[:, 1], model(perturbed)[:, 0].detach(), rtol=1e-5)


def test_each_image_may_read_its_own_target_and_batches_change_nothing(model: Linear, images: Tensor) -> None:
    scores = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(4))
    mixed = fidelity(model, images, scores, torch.tensor([0, 1, 0, 1]), steps=5, batch_size=7)
    for image, target in enumerate([0, 1, 0, 1]):
        alone = fidelity(model, images[image : image + 1], scores[image : image + 1], target, steps=5)
        np.testing.assert_allclose(mixed.mif[image], alone.mif[0], rtol=1e-5, atol=1e-5)


def test_probability_is_the_logistic_function_of_the_output(model: Linear, images: Tensor) -> None:
    scores = torch.rand(4, SIDE, SIDE)
    plain = fidelity(model, images, scores, 0)
    probable = fidelity(model, images, scores, 0, output="probability")
    np.testing.assert_allclose(probable.mif, 1 / (1 + np.exp(-plain.mif)), rtol=1e-5)


def test_blur_default_is_the_papers_share_of_the_side(model: Linear, images: Tensor) -> None:
    scores = torch.rand(4, SIDE, SIDE)
    np.testing.assert_array_equal(
        fidelity(model, images, scores, 0).mif, fidelity(model, images, scores, 0, blur_sigma=1.0).mif
    )


def test_blur_keeps_constants_and_means() -> None:
    np.testing.assert_allclose(blur(torch.full((1, 3, 8, 8), 3.0), 2.0), 3.0, rtol=1e-6)
    image = torch.rand(1, 1, 32, 32)
    assert blur(image, 2.0).mean().item() == pytest.approx(image.mean().item(), rel=1e-5)
    assert blur(image, 2.0).std() < 0.3 * image.std()


def test_the_model_is_left_as_it_was(model: Linear, images: Tensor) -> None:
    class Fragile(Linear):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            raise RuntimeError("broken")

    model.train()
    fidelity(model, images, torch.rand(4, SIDE, SIDE), 0, steps=2)
    assert model.training
    assert model.weights.grad is None
    broken = Fragile().train()
    with pytest.raises(RuntimeError, match="broken"):
        fidelity(broken, images, torch.rand(4, SIDE, SIDE), 0)
    assert broken.training


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, r"--steps must be at least 1; got 0\."),
        ({"blur_sigma": 0.0}, r"--blur-sigma must be above 0 pixels; got 0\.0\."),
        ({"batch_size": 0}, r"--batch-size must be at least 1 image; got 0\."),
    ],
)
def test_settings_out_of_range(model: Linear, images: Tensor, options: dict[str, float], sentence: str) -> None:
    with pytest.raises(LidcCdamError, match=sentence):
        fidelity(model, images, torch.rand(4, SIDE, SIDE), 0, **options)  # type: ignore[arg-type]


def test_one_map_per_image(model: Linear, images: Tensor) -> None:
    with pytest.raises(ValueError, match="with 4 maps"):
        fidelity(model, images, torch.rand(3, SIDE, SIDE), 0)
