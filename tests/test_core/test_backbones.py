import re

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from lidc_cdam.backbones import BACKBONES, Backbone, build_backbone, freeze_all_but_last, load_weights
from lidc_cdam.errors import LidcCdamError

NAMES = [
    "dino_vits8",
    "dino_vitb8",
    "dino_vits16",
    "dino_vitb16",
    "deit_small16",
    "deit_base16",
    "dinov2_vits14_reg",
    "dinov2_vitb14_reg",
    "swag_vitb16",
    "vitb16",
    "vitl16",
    "tiny",
]


@pytest.fixture
def small(monkeypatch) -> str:
    """A backbone of the table that is quick to build and has 16-pixel patches."""
    arguments = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    monkeypatch.setitem(BACKBONES, "small", Backbone("vit_tiny_patch16_224", 64, arguments=arguments))
    return "small"


def test_the_table_holds_the_fixed_names():
    assert list(BACKBONES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_timm_knows_every_row(name):
    row = BACKBONES[name]
    assert row.architecture in timm.list_models()
    if row.tag:
        assert f"{row.architecture}.{row.tag}" in timm.list_pretrained()
    else:
        assert row.official
    patch = int(re.search(r"patch(\d+)", row.architecture).group(1))
    assert row.image_size % (row.arguments.get("patch_size") or patch) == 0


@pytest.mark.parametrize(("name", "grid", "prefix"), [("tiny", (16, 16), 1), ("dinov2_vits14_reg", (16, 16), 5)])
def test_build(name, grid, prefix):
    backbone = build_backbone(name)
    assert tuple(backbone.patch_embed.grid_size) == grid
    assert backbone.num_prefix_tokens == prefix
    assert backbone.num_classes == 0
    assert backbone.backbone_name == name
    side = BACKBONES[name].image_size
    with torch.no_grad():
        assert backbone.eval()(torch.zeros(1, 3, side, side)).shape == (1, backbone.num_features)


def test_tiny_has_a_grid_fine_enough_to_read():
    rows, columns = build_backbone("tiny").patch_embed.grid_size
    assert rows >= 16
    assert columns >= 16


def test_size_and_dropout_are_settings():
    backbone = build_backbone("tiny", image_size=(32, 48), dropout=0.1)
    assert tuple(backbone.patch_embed.grid_size) == (16, 24)
    assert backbone.head_drop.p == backbone.pos_drop.p == backbone.blocks[0].mlp.drop1.p == 0.1


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_come_back_whole(tmp_path, small, ending):
    source = build_backbone(small)
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"model": source.state_dict() | {"head.weight": torch.zeros(10, 24)}}, path)
    else:
        save_file(source.state_dict(), path)
    loaded = build_backbone(small, path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_position_embeddings_are_resampled_to_another_size(tmp_path, small):
    path = tmp_path / "weights.safetensors"
    save_file(build_backbone(small).state_dict(), path)
    assert build_backbone(small, path, image_size=96).pos_embed.shape[1] == 1 + 36


def test_torchvision_weights_give_torchvision_features(tmp_path, small):
    """SWAG's weights come in torchvision's layout."""
    torch.manual_seed(0)
    foreign = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=96, num_classes=5
    ).eval()
    torch.save(foreign.state_dict(), tmp_path / "swag.pth")
    backbone = build_backbone(small, tmp_path / "swag.pth").eval()
    images = torch.randn(2, 3, 64, 64)
    foreign.heads = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), foreign(images), rtol=1e-4, atol=1e-5)


def test_foreign_weights_are_refused_with_their_names(tmp_path, small):
    state = build_backbone(small).state_dict()
    state["spam.weight"] = state.pop("norm.weight")
    state["norm.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "other.safetensors")
    pattern = (
        r"lacks norm\.weight and also has spam\.weight and has another shape for norm\.bias; choose the --backbone"
    )
    with pytest.raises(LidcCdamError, match=pattern):
        load_weights(build_backbone(small), tmp_path / "other.safetensors")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_damaged_and_missing_weights_are_one_sentence(tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    with pytest.raises(LidcCdamError, match="there is none"):
        build_backbone("tiny", path)
    path.write_bytes(b"no weights")
    with pytest.raises(LidcCdamError, match="is damaged or holds no weights"):
        build_backbone("tiny", path)


def test_weights_are_read_without_running_code(tmp_path):
    torch.save({"model": pytest.approx}, tmp_path / "pickled.pth")
    with pytest.raises(LidcCdamError, match="is damaged or holds no weights"):
        build_backbone("tiny", tmp_path / "pickled.pth")


def test_an_unknown_name_gets_its_neighbour():
    with pytest.raises(LidcCdamError, match=r"--backbone must be one of dino_vits8, .*did you mean 'dino_vits8'\?"):
        build_backbone("dino_vit_s8")


def test_a_size_that_the_patch_does_not_divide():
    with pytest.raises(
        LidcCdamError, match="--image-size must be a multiple of 14, the patch of dinov2_vits14_reg; got"
    ):
        build_backbone("dinov2_vits14_reg", image_size=225)


def test_bad_dropout():
    with pytest.raises(LidcCdamError, match="--dropout must be at least 0 and below 1; got 1"):
        build_backbone("tiny", dropout=1)


def test_offline_hub_names_the_file_to_fetch(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(LidcCdamError, match=r"fetch the file .* --weights FILE \(timm's vit_small_patch8_224.dino"):
        build_backbone("dino_vits8", "hub")


@pytest.mark.parametrize(("name", "words"), [("swag_vitb16", "torchvision's ViT_B_16"), ("tiny", "from scratch")])
def test_no_hub_weights(name, words):
    with pytest.raises(LidcCdamError, match=f"--weights hub has no weights for {name}.*{words}"):
        build_backbone(name, "hub")


@pytest.mark.parametrize(("tensors", "expected"), [(None, 54), (0, 0), (3, 3), (1000, 54)])
def test_freezing_counts_tensors_from_the_end(tensors, expected):
    backbone = build_backbone("tiny")
    freeze_all_but_last(backbone, tensors)
    flags = [parameter.requires_grad for parameter in backbone.parameters()]
    assert sum(flags) == expected
    assert flags == sorted(flags)


def test_fifty_tensors_are_about_the_last_four_blocks():
    """SCIENCE.md 4."""
    backbone = build_backbone("dino_vits16")
    freeze_all_but_last(backbone, 50)
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[1] for name in trained if name.startswith("blocks")} == {"8", "9", "10", "11"}


def test_negative_layers():
    with pytest.raises(LidcCdamError, match="--trainable-layers must be 0 or more"):
        freeze_all_but_last(build_backbone("tiny"), -1)
