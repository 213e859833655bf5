import pytest
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import explain
from lidc_cdam.explain.linear import leaf, linearised


@pytest.mark.parametrize("module", [nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.SiLU()])
def test_activations_hand_on_their_gate(module):
    numbers = leaf(torch.tensor([-2.0, -1e-3, 0.0, 0.5, 3.0], dtype=torch.float64))
    with linearised([module]):
        output = module(numbers)
    torch.testing.assert_close(output, module(numbers))
    gate = torch.autograd.grad(output.sum(), numbers)[0]
    torch.testing.assert_close(gate * numbers, output, rtol=1e-9, atol=1e-12)
    beside = torch.tensor([1e-9, -1e-9], dtype=torch.float64)
    assert float(gate[2]) in (pytest.approx(float(ratio)) for ratio in module(beside) / beside)


def test_a_norm_is_linear_at_its_deviation():
    norm = nn.LayerNorm(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    numbers = leaf(torch.randn(4, 5, dtype=torch.float64))
    with linearised([norm]) as biased:
        output = norm(numbers)
    torch.testing.assert_close(output, norm(numbers))
    assert len(biased) == 1
    slope = torch.autograd.grad(output[:, 2].sum(), numbers)[0]
    torch.testing.assert_close((slope * numbers).sum(1) + norm.bias[2], output[:, 2])


def test_the_model_gives_the_same_outputs_and_is_itself_again(any_model, make_images):
    images = make_images(any_model)
    expected = any_model(images).detach()
    with linearised([any_model]):
        torch.testing.assert_close(any_model(images).detach(), expected)
    assert not any(module._forward_hooks for module in any_model.modules())


@pytest.mark.parametrize("method", ["libragrad", "partial_lrp"])
def test_layers_without_a_rule_are_refused(make_model, make_images, method):
    model = make_model(mlp_layer=SwiGLUPacked)
    with pytest.raises(LidcCdamError, match="MLPs with one activation, but VisionTransformer has other layers"):
        explain(model, make_images(model), method=method)


@pytest.mark.parametrize("method", ["libragrad", "partial_lrp"])
def test_single_precision_is_complete_enough(model, make_images, method):
    expected = explain(model, make_images(model), method=method)
    found = explain(model.float(), make_images(model).float(), method=method)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)
