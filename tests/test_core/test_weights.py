"""Official files, each against its publisher's own mathematics, and what is said of files that do not fit."""

import argparse
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from reference_backbones import (
    antialiased_weights,
    dino_features,
    dinov2_features,
    dinov2_shapes,
    official_shapes,
    random_state,
    resampled_positions,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from lidc_cdam.backbones import BACKBONES, Backbone, build_backbone
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.weights import read_checkpoint

slow = pytest.mark.slow
SMALL, BASE, LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)
"""Width, blocks and heads, as published."""


def images_of(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def features(name: str, path, images: Tensor) -> Tensor:
    """The [CLS] latents of the backbone that a file fills."""
    backbone = build_backbone(name, path, image_size=tuple(images.shape[2:])).double().eval()
    with torch.no_grad():
        return backbone(images)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.fixture
def small(monkeypatch) -> str:
    """A backbone of the table that is quick to build: width 24, two blocks, 16-pixel patches, 64-pixel images."""
    arguments = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    monkeypatch.setitem(BACKBONES, "small", Backbone("vit_tiny_patch16_224", 64, arguments=arguments))
    return "small"


@pytest.fixture
def small_state() -> dict[str, Tensor]:
    """What fits `small`, in the layout that DINO, DeiT and timm share."""
    return random_state(official_shapes(24, 2, 16, 16))


# --- The publishers' features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plan", "patch"),
    [
        ("dino_vits8", SMALL, 8),
        ("dino_vits16", SMALL, 16),
        pytest.param("dino_vitb8", BASE, 8, marks=slow),
        pytest.param("dino_vitb16", BASE, 16, marks=slow),
    ],
)
def test_dino(tmp_path, name, plan, patch):
    """`dino_deitsmall8_pretrain.pth` and its like: the bare tensors of the backbone."""
    width, depth, heads = plan
    state, images = random_state(official_shapes(width, depth, patch, 16)), images_of(4 * patch)
    torch.save(state, tmp_path / "dino_pretrain.pth")
    assert_same(features(name, tmp_path / "dino_pretrain.pth", images), dino_features(images, state, heads))


@pytest.mark.parametrize(("name", "plan"), [("deit_small16", SMALL), pytest.param("deit_base16", BASE, marks=slow)])
def test_deit(tmp_path, name, plan):
    """`deit_small_patch16_224-cd65a155.pth` and its like: under `model`, with a classifier."""
    width, depth, heads = plan
    state, images = random_state(official_shapes(width, depth, 16, 16)), images_of(64)
    head = {"head.weight": torch.ones(1000, width), "head.bias": torch.ones(1000)}
    torch.save({"model": state | head}, tmp_path / "deit.pth")
    assert_same(features(name, tmp_path / "deit.pth", images), dino_features(images, state, heads))


@pytest.mark.parametrize(
    ("name", "plan"), [("dinov2_vits14_reg", SMALL), pytest.param("dinov2_vitb14_reg", BASE, marks=slow)]
)
def test_dinov2(tmp_path, name, plan):
    """`dinov2_vits14_reg4_pretrain.pth` and its like: positions of 518-pixel images, 37 x 37 patches."""
    width, depth, heads = plan
    state, images = random_state(dinov2_shapes(width, depth, 14, 37 * 37, 4)), images_of(70)[:, :, :56]
    torch.save(state, tmp_path / "dinov2.pth")
    assert_same(features(name, tmp_path / "dinov2.pth", images), dinov2_features(images, state, heads))


def torchvision_file(path, model: nn.Module) -> nn.Module:
    """Save torchvision's transformer with random weights and its classifier; give it back without the latter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    torch.save(model.state_dict(), path)
    model.heads = nn.Identity()
    return model.double().eval()


@pytest.mark.parametrize(
    ("name", "build"),
    [
        pytest.param("swag_vitb16", torchvision.models.vit_b_16, marks=slow),
        pytest.param("vitb16", torchvision.models.vit_b_16, marks=slow),
        pytest.param("vitl16", torchvision.models.vit_l_16, marks=slow),
    ],
)
def test_torchvision(tmp_path, name, build):
    """`vit_b_16_lc_swag-4e70ced5.pth`, `vit_b_16-c867db91.pth`, `vit_l_16-852ce7e3.pth`."""
    foreign, images = torchvision_file(tmp_path / "vit.pth", build(image_size=64)), images_of(64)
    with torch.no_grad():
        assert_same(features(name, tmp_path / "vit.pth", images), foreign(images))


def test_a_small_transformer_of_torchvision(tmp_path, small):
    foreign = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=96, num_classes=5
    )
    foreign, images = torchvision_file(tmp_path / "vit.pth", foreign), images_of(64)
    with torch.no_grad():
        assert_same(features(small, tmp_path / "vit.pth", images), foreign(images))


@pytest.mark.parametrize("name", ["dino_vits16", "dinov2_vits14_reg"])
@pytest.mark.parametrize("side", [56, 112])
def test_timms_own_files_load_as_timm_loads_them(tmp_path, name, side):
    side = side if "14" in name else side // 14 * 16
    row = BACKBONES[name]
    source = timm.create_model(row.architecture, num_classes=0, img_size=2 * side)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors"), "input_size": (3, 2 * side, 2 * side)}
    expected = timm.create_model(
        row.architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=side
    )
    found = build_backbone(name, tmp_path / "model.safetensors", side).state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items())


# --- Positions of another input size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (16, 24)])
def test_positions_are_resampled_as_dinov2_publishes_it(tmp_path, monkeypatch, grid):
    """518 pixels to 224, 448 and a size that is not square, against bicubic weights worked out by hand."""
    arguments = {"embed_dim": 8, "depth": 1, "num_heads": 2}
    monkeypatch.setitem(BACKBONES, "small", Backbone("vit_small_patch14_reg4_dinov2", 518, arguments=arguments))
    state = random_state(dinov2_shapes(8, 1, 14, 37 * 37, 4))
    torch.save(state, tmp_path / "dinov2.pth")
    found = build_backbone("small", tmp_path / "dinov2.pth", image_size=tuple(14 * side for side in grid))
    expected = resampled_positions(state["pos_embed"][0, 1:].double().numpy().reshape(37, 37, 8), grid)
    np.testing.assert_allclose(found.pos_embed[0].detach().numpy().reshape(*grid, 8), expected, atol=1e-5)
    # [CLS] keeps the position that it has in the file, and registers have none.
    assert torch.equal(found.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(found.reg_token, state["register_tokens"])


def test_weights_of_resampling_worked_out_by_hand():
    """Half a grid of four: the kernel over half-sample distances 1/4, 3/4, 5/4 and 7/4, normed to one."""
    kernel = {0.25: 0.8671875, 0.75: 0.2265625, 1.25: -0.0703125, 1.75: -0.0234375}
    row = np.array([kernel[0.25], kernel[0.25], kernel[0.75], kernel[1.25]])
    np.testing.assert_allclose(antialiased_weights(4, 2)[0], row / row.sum())


def test_positions_on_the_inputs_own_grid_stay(tmp_path, small):
    source = build_backbone(small, image_size=(64, 96))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    found = build_backbone(small, tmp_path / "model.safetensors", image_size=(64, 96))
    assert torch.equal(found.pos_embed, source.pos_embed)
    with pytest.raises(LidcCdamError, match="has another shape for pos_embed"):
        build_backbone(small, tmp_path / "model.safetensors")


# --- Wrappers of the same tensors -------------------------------------------------------------------------------------


def full_dino_checkpoint(state: dict[str, Tensor]) -> dict[str, object]:
    """As DINO's training writes it; the student, which is not what is published as the backbone, differs."""
    head = {"head.mlp.0.weight": torch.zeros(3, 24), "head.last_layer.weight_g": torch.zeros(5, 1)}
    student = {f"module.backbone.{key}": tensor + 1 for key, tensor in state.items()}
    return {
        "student": student | {f"module.{key}": tensor for key, tensor in head.items()},
        "teacher": {f"backbone.{key}": tensor for key, tensor in state.items()} | head,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.1)}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=8),
    }


WRAPPERS = {
    "bare": lambda state: state,
    "full": full_dino_checkpoint,
    "teacher_of_several_gpus": lambda state: {"teacher": {f"module.backbone.{k}": t for k, t in state.items()}},
    "model": lambda state: {"model": state | {"head.weight": torch.zeros(10, 24)}, "args": argparse.Namespace(lr=1)},
    "state_dict": lambda state: {"state_dict": state},
    "model_of_this_project": lambda state: (
        {f"backbone.{k}": t for k, t in state.items()} | {"head.bias": torch.ones(2)}
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_recognised(tmp_path, small, small_state, wrapper):
    torch.save(WRAPPERS[wrapper](small_state), tmp_path / "weights.pth")
    found = build_backbone(small, tmp_path / "weights.pth").state_dict()
    assert found.keys() == small_state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in small_state.items())


def test_checkpoints_of_older_versions_are_read(tmp_path, small, small_state):
    """torch before 1.6 wrote no zip archives, and NumPy before 2 gave its numbers another name."""
    path = tmp_path / "weights.pth"
    torch.save(full_dino_checkpoint(small_state), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(build_backbone(small, path).cls_token, small_state["cls_token"])


# --- Files that do not fit --------------------------------------------------------------------------------------------


def test_distilled_deit_is_refused(tmp_path, small, small_state):
    torch.save({"model": small_state | {"dist_token": torch.zeros(1, 1, 24)}}, tmp_path / "distilled.pth")
    with pytest.raises(LidcCdamError, match=r"distilled\.pth holds a distilled DeiT, .* use the file of the same DeiT"):
        build_backbone(small, tmp_path / "distilled.pth")


@pytest.mark.parametrize(
    ("shapes", "told", "advice"),
    [
        (official_shapes(384, 12, 16, 4), "width 384, 12 blocks, 16-", "--backbone dino_vits16 or deit_small16."),
        (official_shapes(192, 12, 16, 4), "width 192, 12 blocks", "it fits no --backbone; choose another file."),
    ],
)
def test_a_file_of_another_backbone_says_which_it_fits(tmp_path, shapes, told, advice):
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "other.pth")
    pattern = r"other\.pth must fit tiny \(width 96, 4 blocks, 2-pixel patches, 0 registers\), but it has .*"
    with pytest.raises(LidcCdamError, match=f"{pattern}{re.escape(told)}.*{re.escape(advice)}"):
        build_backbone("tiny", tmp_path / "other.pth")


def test_dinov2_without_registers_is_not_dinov2_with_them(tmp_path):
    state = {name: torch.zeros(shape) for name, shape in dinov2_shapes(384, 12, 14, 4, 4).items()}
    del state["register_tokens"]
    torch.save(state, tmp_path / "plain.pth")
    with pytest.raises(LidcCdamError, match=r"4 registers.*0 registers; it fits no --backbone"):
        build_backbone("dinov2_vits14_reg", tmp_path / "plain.pth")


def test_missing_and_left_over_tensors_are_listed(tmp_path, small, small_state):
    small_state["spam.weight"] = small_state.pop("norm.weight")
    small_state["norm.bias"] = torch.zeros(7)
    save_file(small_state, tmp_path / "other.safetensors")
    pattern = (
        r"lacks norm\.weight and also has spam\.weight and has another shape for norm\.bias; choose the --backbone"
    )
    with pytest.raises(LidcCdamError, match=pattern):
        build_backbone(small, tmp_path / "other.safetensors")


def test_a_long_list_is_cut(tmp_path, small, small_state):
    kept = {key: tensor for key, tensor in small_state.items() if "norm" not in key}
    torch.save(kept, tmp_path / "other.pth")
    with pytest.raises(LidcCdamError, match=r"lacks (\S+, ){5}\S+ and 4 more; choose"):
        build_backbone(small, tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"embeddings.cls_token": torch.zeros(1), "layernorm.bias": torch.zeros(1)}, "embeddings.cls_token, layernorm"),
        ({"model": {"epoch": 3, "patch_embed.proj.weight": torch.zeros(8, 3, 2, 2)}}, "epoch, patch_embed"),
        ({"patch_embed.proj.weight": torch.zeros(8, 12)}, "patch_embed.proj.weight"),
    ],
)
def test_another_layout_is_refused_with_what_it_holds(tmp_path, content, told):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(LidcCdamError, match=rf"layout of timm, DINO, .*{re.escape(told)}.*choose an official file"):
        read_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_damaged_and_missing_weights_are_one_sentence(tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    with pytest.raises(LidcCdamError, match="there is none"):
        build_backbone("tiny", path)
    path.write_bytes(b"no weights")
    with pytest.raises(LidcCdamError, match="is damaged or holds no weights"):
        build_backbone("tiny", path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {3: torch.zeros(1)}, {}])
def test_tensors_without_names_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(LidcCdamError, match=r"must hold named tensors, but it holds a (list|dict) without names"):
        build_backbone("tiny", tmp_path / "other.pth")


def test_weights_are_read_without_running_code(tmp_path):
    torch.save({"model": pytest.approx}, tmp_path / "pickled.pth")
    with pytest.raises(LidcCdamError, match="is damaged or holds no weights"):
        build_backbone("tiny", tmp_path / "pickled.pth")
