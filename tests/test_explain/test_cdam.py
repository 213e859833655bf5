import pytest
import torch
from torch import nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.by_autograd import ByAutograd
from lidc_cdam.explain.cdam import cdam, integrated_cdam, smooth_cdam
from lidc_cdam.explain.last_block import LastBlock
from lidc_cdam.explain.noise import Noise


@pytest.fixture
def entered(any_model, make_images):
    cut = LastBlock(any_model)
    return cut, cut.enter(make_images(any_model))


def test_eq_2_is_the_slope_along_each_token(entered):
    """S_ic = d/de f_c(T with row i times 1 + e) at e = 0, by central differences, for every token and target."""
    cut, entry = entered
    scores = ByAutograd(cut, entry, cut.model.head).scores()
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
    scores = ByAutograd(cut, entry, model.head).scores()[:, 1]
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
    scores = ByAutograd(cut, entry, any_model.head).scores()
    for row, column in ((0, 0), (1, 2), (rows - 1, columns - 1)):
        token = cut.prefix + row * columns + column
        torch.testing.assert_close(maps[:, :, row, column], scores[:, :, token], rtol=1e-9, atol=1e-12)


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


def test_smooth_is_the_mean_over_its_noise(any_model, make_images, entered):
    cut, entry = entered
    width = 0.05 * (entry.tokens.flatten(1).max(1).values - entry.tokens.flatten(1).min(1).values)[:, None, None]
    generator = torch.Generator().manual_seed(11)
    expected = 0.0
    for _ in range(4):
        noisy = entry.tokens + width * torch.randn(entry.tokens.shape[1:], generator=generator).double()
        gradients = cut.gradients(noisy, entry, any_model.head)
        expected = expected + (noisy * gradients).sum(-1).transpose(0, 1)[..., cut.prefix :] / 4
    maps = smooth_cdam(any_model, make_images(any_model), n=4, seed=11)
    torch.testing.assert_close(maps.flatten(2), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_noise_depends_on_neither_the_batch_nor_its_parts_nor_the_precision(make_model, make_images, options):
    model = make_model(**options)
    images = make_images(model, 5)
    maps = smooth_cdam(model, images, n=4)
    for size in (1, 2):
        torch.testing.assert_close(smooth_cdam(model, images, n=4, batch_size=size), maps, rtol=1e-9, atol=1e-12)
    single = smooth_cdam(model.float(), images.float(), n=4).double()
    assert float((single - maps).abs().max() / maps.abs().max()) < 1e-5


def test_another_seed_is_another_noise(model, make_images):
    images = make_images(model)
    assert not torch.equal(smooth_cdam(model, images, n=2, seed=1), smooth_cdam(model, images, n=2, seed=2))


def test_antithetic_copies_come_in_pairs():
    tokens = torch.zeros(1, 3, 4)
    draws = torch.stack(list(Noise(6, antithetic=True).draws(tokens)))
    assert torch.equal(draws[1::2], -draws[::2])
    assert torch.equal(draws[::2], torch.stack(list(Noise(3).draws(tokens))))


def test_antithetic_noise_needs_fewer_copies(model, make_images):
    """At the same number of copies the error towards the limit is smaller, over a few seeds."""
    images = make_images(model, 1)
    limit = smooth_cdam(model, images, n=4000, seed=99, antithetic=True)
    errors = {
        antithetic: sum(
            float((smooth_cdam(model, images, n=8, seed=seed, antithetic=antithetic) - limit).norm())
            for seed in range(8)
        )
        for antithetic in (False, True)
    }
    assert errors[True] < 0.7 * errors[False]


def test_one_step_of_integration_is_the_plain_map(model, make_images):
    images = make_images(model)
    torch.testing.assert_close(integrated_cdam(model, images, n=1), cdam(model, images))


@pytest.mark.parametrize("method", [smooth_cdam, integrated_cdam])
def test_moving_the_block_input_starts_from_the_same_map(any_model, make_images, method):
    """Nothing moved, nothing changed; otherwise it is another method."""
    images = make_images(any_model)
    still = {smooth_cdam: {"n": 2, "sigma": 0.0}, integrated_cdam: {"n": 1}}[method]
    torch.testing.assert_close(method(any_model, images, perturb="block_input", **still), cdam(any_model, images))
    moved = {smooth_cdam: {"n": 2, "sigma": 0.3}, integrated_cdam: {"n": 5}}[method]
    other = method(any_model, images, perturb="block_input", **moved)
    assert not torch.allclose(other, method(any_model, images, **moved), rtol=1e-2)


def test_the_path_of_the_block_input_leaves_the_tokens_where_they_are(model, make_images):
    """Why its completeness fails: norm1 takes the path's scale away, so T stays and only the residual stream moves."""
    cut = LastBlock(model)
    entry = cut.enter(make_images(model))
    torch.testing.assert_close(cut.normalise(0.3 * entry.residual), entry.tokens, rtol=1e-4, atol=1e-4)
    scores = ByAutograd(cut, entry, model.head, block_input=True).integrated(400).sum(2)
    rise = entry.outputs - cut.tail(torch.zeros_like(entry.tokens), entry)
    assert (scores - rise).abs().max() > 0.1 * rise.abs().max()


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        (
            smooth_cdam,
            {"n": 3, "antithetic": True},
            "--options.n must be even where --options.antithetic is true; got 3",
        ),
        (smooth_cdam, {"perturb": "pixels"}, "--options.perturb must be one of tokens, block_input; got 'pixels'"),
        (integrated_cdam, {"perturb": "x"}, "--options.perturb must be one of tokens, block_input; got 'x'"),
        (smooth_cdam, {"sigma": float("nan")}, "--options.sigma must be 0 or more; got nan"),
    ],
)
def test_options_that_mean_nothing(model, make_images, method, options, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        method(model, make_images(model), **options)


def test_gradient_checkpointing_in_training_is_no_hindrance(model, make_images):
    images = make_images(model)
    expected = cdam(model, images)
    model.backbone.set_grad_checkpointing(True)
    torch.testing.assert_close(cdam(model, images), expected)
