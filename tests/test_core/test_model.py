import pytest
import timm
import torch

from lidc_cdam.backbones import build_backbone
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, write_json
from lidc_cdam.model import NoduleModel
from lidc_cdam.vocabulary import BIOMARKERS

KEYS = tuple(biomarker.key for biomarker in BIOMARKERS)


def build(targets=KEYS, head="linear", **options) -> NoduleModel:
    torch.manual_seed(1)
    return NoduleModel(build_backbone("tiny", **options), targets, head)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_outputs_are_the_head_on_the_class_latent(images, head):
    model = build(head=head).eval()
    with torch.no_grad():
        latent = model.embed(images)
        tokens = model.backbone.forward_features(images)
        assert torch.equal(latent, tokens[:, 0])
        assert torch.equal(model(images), model.head(latent))
        assert model(images).shape == (2, 8)
    assert model.image_size == (32, 32)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_reloaded_model_is_the_same_to_the_last_bit(tmp_path, images, head):
    model = build(("malignancy", "margin"), head, image_size=(32, 32), dropout=0.1)
    model.save(tmp_path / "fold_0")
    loaded = NoduleModel.load(str(tmp_path / "fold_0"))
    assert loaded.targets == ("malignancy", "margin")
    assert loaded.head_kind == head
    assert loaded.backbone.head_drop.p == 0.1
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))


def test_dropout_acts_in_training_alone(images):
    model = build(dropout=0.5)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("targets", [("malignancy", "beauty"), (), ("margin", "margin")])
def test_bad_targets(targets):
    with pytest.raises(LidcCdamError, match="A model's targets must be different keys out of malignancy, subtlety"):
        build(targets)


def test_bad_head():
    with pytest.raises(LidcCdamError, match="--head must be one of linear, mlp; got 'deep'"):
        build(head="deep")


def test_a_backbone_without_a_name_cannot_be_saved(tmp_path):
    vit = timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1, num_classes=0)
    with pytest.raises(LidcCdamError, match="must name its backbone"):
        NoduleModel(vit, ["margin"]).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_of_another_model(tmp_path):
    build().save(tmp_path / "a")
    build(("malignancy",)).save(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    with pytest.raises(LidcCdamError, match=r"must hold the model that .*model.json describes \(tiny, 1 targets\)"):
        NoduleModel.load(tmp_path / "b")


def test_truncated_weights(tmp_path):
    build().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LidcCdamError, match="is damaged or holds no weights"):
        NoduleModel.load(tmp_path)


@pytest.mark.parametrize("damage", [{"image_size": 32}, {"dropout": None}, {"targets": 3}])
def test_damaged_description(tmp_path, damage):
    build().save(tmp_path)
    path = tmp_path / "model.json"
    write_json(path, read_json(path) | damage)
    with pytest.raises(LidcCdamError, match=r"model.json must describe a model as training wrote it"):
        NoduleModel.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"), [({"backbone": "resnet"}, "--backbone must be one of"), ({"schema": 99}, "must have schema 1")]
)
def test_unknown_description(tmp_path, damage, words):
    build().save(tmp_path)
    path = tmp_path / "model.json"
    write_json(path, read_json(path) | damage)
    with pytest.raises(LidcCdamError, match=words):
        NoduleModel.load(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(LidcCdamError, match=r"model.json is missing"):
        NoduleModel.load(tmp_path)
