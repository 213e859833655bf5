import pytest
import torch
from torch import nn

from lidc_cdam.explain.cdam import cdam, class_scores, integrated_cdam, integrated_scores, smooth_cdam, smooth_scores
from lidc_cdam.explain.last_block import LastBlock

ALL = (0, 1, 2)


@pytest.fixture
def entered(any_model, make_images):
    cut = LastBlock(any_model)
    return cut, cut.enter(make_images(any_model))


def test_eq_2_is_the_slope_along_each_token(entered):
    """S_ic = d/de f_c(T with row i times 1 + e) at e = 0, by central differences, for every token and target."""
    cut, entry = entered
    scores = class_scores(cut, entry, ALL)
    step = 1e-6
    for token in range(entry.tokens.shape[1]):
        scale = torch.ones(1, entry.tokens.shape[1], 1, dtype=torch.float64)
        scale[0, token] += step
        with torch.no_grad():
            above = cut.tail(entry.tokens * scale, entry)
            scale[0, token] -= 2 * step
            below = cut.tail(entry.tokens * scale, entry)
        torch.testing.assert_close(scores[:, :, token], (above - below) / (2 * step), rtol=1e-5, atol=1e-8)


def test_a_token_with_a_positive_score_raises_the_output_when_it_grows(model, make_images):
    cut = LastBlock(model)
    entry = cut.enter(make_images(model))
    scores = class_scores(cut, entry, (1,))[:, 0]
    for image in range(len(scores)):
        token = int(scores[image].argmax())
        assert scores[image, token] > 0
        grown = entry.tokens.clone()
        grown[image, token] *= 1.001
        assert cut.tail(grown, entry)[image, 1] > entry.outputs[image, 1]


def test_maps_are_the_patch_tokens_in_row_order(any_model, make_images, entered):
    cut, entry = entered
    rows, columns = any_model.backbone.patch_embed.grid_size
    maps = cdam(any_model, make_images(any_model))
    for row, column in ((0, 0), (1, 2), (rows - 1, columns - 1)):
        token = cut.prefix + row * columns + column
        assert torch.equal(maps[:, :, row, column], class_scores(cut, entry, ALL)[:, :, token])


def test_a_patch_moves_its_own_place_in_the_map():
    """The first block alone sees the position, so a map computed on one block must light up where the image does."""
    from timm.models.vision_transformer import VisionTransformer

    from lidc_cdam.model import NoduleModel

    torch.manual_seed(3)
    vit = VisionTransformer(img_size=(16, 24), patch_size=4, embed_dim=12, depth=1, num_heads=3, num_classes=0)
    model = NoduleModel(vit, ["margin"]).double().eval()
    images = torch.zeros(1, 3, 16, 24, dtype=torch.float64)
    plain = cdam(model, images)
    images[:, :, 4:8, 16:20] = torch.linspace(-3, 3, 4, dtype=torch.float64)
    change = (cdam(model, images) - plain).abs()[0, 0]
    assert divmod(int(change.argmax()), 6) == (1, 4)


def test_a_head_of_zeros_gives_zero_maps(any_model, make_images):
    for parameter in any_model.head.parameters():
        nn.init.zeros_(parameter)
    assert not cdam(any_model, make_images(any_model)).any()


def test_maps_are_linear_in_a_linear_heads_weights(model, make_images):
    """The map of the contrast a f_0 - b f_1 is the contrast of the maps, and a bias explains nothing."""
    images = make_images(model)
    maps = cdam(model, images)
    with torch.no_grad():
        model.head.weight[2] = 2 * model.head.weight[0] - 0.5 * model.head.weight[1]
        model.head.bias.add_(5)
    torch.testing.assert_close(cdam(model, images)[:, 2], 2 * maps[:, 0] - 0.5 * maps[:, 1])
    torch.testing.assert_close(cdam(model, images)[:, :2], maps[:, :2])


def test_the_size_of_the_parts_changes_nothing(any_model, make_images):
    images = make_images(any_model, 5)
    torch.testing.assert_close(cdam(any_model, images, batch_size=2), cdam(any_model, images), rtol=1e-9, atol=1e-12)


def test_single_precision_agrees_with_double(any_model, make_images):
    images = make_images(any_model)
    exact = cdam(any_model, images)
    single = cdam(any_model.float(), images.float())
    assert single.dtype is torch.float32
    assert float((single.double() - exact).norm() / exact.norm()) < 1e-4


def test_smooth_without_noise_is_the_plain_map(model, make_images):
    images = make_images(model)
    torch.testing.assert_close(smooth_cdam(model, images, n=3, sigma=0.0), cdam(model, images))


def test_smooth_is_the_mean_over_its_noise(entered):
    cut, entry = entered
    width = 0.05 * (entry.tokens.flatten(1).max(1).values - entry.tokens.flatten(1).min(1).values)[:, None, None]
    generator = torch.Generator().manual_seed(11)
    expected = 0.0
    for _ in range(4):
        noise = torch.randn(entry.tokens.shape[1:], generator=generator, dtype=torch.float64)
        noisy = entry.tokens + width * noise
        expected = expected + (noisy * cut.gradients(noisy, entry, ALL)).sum(-1).transpose(0, 1) / 4
    torch.testing.assert_close(smooth_scores(cut, entry, ALL, 4, None, 11), expected)


def test_another_seed_is_another_noise(model, make_images):
    images = make_images(model)
    assert not torch.equal(smooth_cdam(model, images, n=2, seed=1), smooth_cdam(model, images, n=2, seed=2))


def test_integrated_is_complete(entered):
    """The sum over all tokens tends to f(T) - f(0); a right Riemann sum's error falls as 1 / n."""
    cut, entry = entered
    with torch.no_grad():
        rise = entry.outputs - cut.tail(torch.zeros_like(entry.tokens), entry)
    errors = [(integrated_scores(cut, entry, ALL, n).sum(2) - rise).abs().max() for n in (50, 400)]
    assert errors[1] < errors[0] / 6
    assert errors[1] < 0.02 * rise.abs().max()


def test_one_step_of_integration_is_the_plain_map(model, make_images):
    images = make_images(model)
    torch.testing.assert_close(integrated_cdam(model, images, n=1), cdam(model, images))
