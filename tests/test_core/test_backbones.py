import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from lidc_cdam.backbones import BACKBONES, Backbone, build_backbone, freeze_all_but_last
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
    "small",
    "tiny",
]


ROOT = Path(__file__).resolve().parents[2]
TORCHVISION = {
    "vitb16": torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.url,
    "vitl16": torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1.url,
}
"""Official files of the rows whose weights on the hub have none that a path could name."""


@pytest.fixture
def small(monkeypatch) -> str:
    """A backbone of the table that is quick to build and has 16-pixel patches."""
    arguments = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    monkeypatch.setitem(BACKBONES, "quick", Backbone("vit_tiny_patch16_224", 64, arguments=arguments))
    return "quick"


def test_the_table_holds_the_fixed_names():
    assert list(BACKBONES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_timm_knows_every_row(name):
    row = BACKBONES[name]
    assert row.architecture in timm.list_models()
    if row.tag:
        assert f"{row.architecture}.{row.tag}" in timm.list_pretrained()
    if row.torchvision:
        assert torchvision.models.get_weight(row.torchvision).url.endswith(".pth")
    assert bool(row.tag) + bool(row.torchvision) == (name not in ("tiny", "small"))
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


@pytest.mark.parametrize(("tensors", "expected"), [(None, 54), (0, 0), (3, 3), (1000, 54)])
def test_freezing_counts_tensors_from_the_end(tensors, expected):
    backbone = build_backbone("tiny")
    freeze_all_but_last(backbone, tensors)
    flags = [parameter.requires_grad for parameter in backbone.parameters()]
    assert sum(flags) == expected
    assert flags == sorted(flags)


def on_meta(name: str, dropout: float = 0.0) -> VisionTransformer:
    """A row's backbone in its full size, without memory for its tensors."""
    with torch.device("meta"):
        return build_backbone(name, dropout=dropout)


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_is_as_its_publishers_built_it(name):
    """Of what no tensor's shape tells; the features themselves are compared in `test_weights.py`."""
    backbone = on_meta(name)
    block = backbone.blocks[0]
    assert backbone.global_pool == "token"
    assert backbone.norm.eps == block.norm1.eps == block.norm2.eps == 1e-6
    assert isinstance(block.mlp.act, torch.nn.GELU)
    assert block.mlp.act.approximate == "none"
    assert block.attn.qkv.bias is not None
    assert block.attn.head_dim == (32 if name in ("tiny", "small") else 64)
    assert backbone.reg_token is None or backbone.no_embed_class


@pytest.mark.parametrize("name", NAMES)
def test_dropout_applies_to_every_backbone(name):
    backbone = on_meta(name, dropout=0.12)
    rates = [module.p for module in backbone.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    # After the positions and before the head; in each block after attention and twice in the MLP.
    assert rates == [0.12] * (2 + 3 * len(backbone.blocks))


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_counted_from_the_end_of_every_backbone(name):
    """SCIENCE.md 4: fifty tensors are about the last four blocks; the very last are the final norm's."""
    backbone = on_meta(name)
    for tensors in (2, 50):
        freeze_all_but_last(backbone, tensors)
        trained = [key for key, parameter in backbone.named_parameters() if parameter.requires_grad]
        assert len(trained) == tensors
        assert trained[-2:] == ["norm.weight", "norm.bias"]
    last = len(backbone.blocks) - 1
    assert {key.split(".")[1] for key in trained[:-2]} == {str(last - back) for back in range(4)}


def test_negative_layers():
    with pytest.raises(LidcCdamError, match="--trainable-layers must be 0 or more"):
        freeze_all_but_last(build_backbone("tiny"), -1)


def documented() -> dict[str, list[str]]:
    """The cells of each backbone's row in the documentation."""
    lines = (ROOT / "docs" / "backbones.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith("| `") and "`--" not in line
    ]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def test_the_documentation_holds_every_row():
    assert list(documented()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_names_the_weights_as_timm_and_torchvision_do(name):
    row, (size, published, official, _) = BACKBONES[name], documented()[name]
    assert size == str(row.image_size)
    if row.tag:
        settings = timm.get_pretrained_cfg(f"{row.architecture}.{row.tag}")
        assert published == settings.hf_hub_id
        assert settings.license == "apache-2.0"
        url = settings.url if settings.url.endswith(".pth") else TORCHVISION[name]
        assert f"({url})" in official
    if row.torchvision:
        assert published.endswith(row.torchvision)
        assert f"({torchvision.models.get_weight(row.torchvision).url})" in official
