"""Published weights out of local caches, and what is said where neither cache nor network has them."""

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer
from threading import Event, Thread

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VisionTransformer

from lidc_cdam import hub
from lidc_cdam.backbones import BACKBONES, Backbone, build_backbone
from lidc_cdam.errors import LidcCdamError

SWAG = "vit_b_16_lc_swag-4e70ced5.pth"
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> Iterator[Path]:
    """Empty caches, and no network: a test that asks for it fails."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "reachable", lambda url: False)
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "torch")
    yield tmp_path
    torch.hub.set_dir(before)


@pytest.fixture
def rows(monkeypatch) -> None:
    """Rows with the published weights' names, whose backbones are small."""
    for name in ("dino_vits16", "swag_vitb16"):
        row = BACKBONES[name]
        monkeypatch.setitem(
            BACKBONES, name, Backbone(row.architecture, 64, row.tag, row.torchvision, SIZE | dict(row.arguments))
        )


def cache_timms(cache: Path, repository: str) -> dict[str, torch.Tensor]:
    """What `hf download` leaves behind: a blob, a snapshot that points to it, and the name of the commit."""
    folder = cache / "hub" / f"models--timm--{repository}"
    snapshot = folder / "snapshots" / ("0" * 40)
    for path in (snapshot, folder / "refs", folder / "blobs"):
        path.mkdir(parents=True)
    state = build_backbone("dino_vits16").state_dict()
    save_file(state | {"head.weight": torch.zeros(10, 24)}, folder / "blobs" / "digest")
    (snapshot / "model.safetensors").symlink_to(folder / "blobs" / "digest")
    (folder / "refs" / "main").write_text("0" * 40)
    return state


def test_timms_weights_come_out_of_the_cache_without_a_network(caches, rows):
    expected = cache_timms(caches, "vit_small_patch16_224.dino")
    found = build_backbone("dino_vits16", "hub").state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_torchvisions_weights_come_out_of_the_cache_without_a_network(caches, rows):
    foreign = VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=96)
    (caches / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(foreign.state_dict(), caches / "torch" / "checkpoints" / SWAG)
    found = build_backbone("swag_vitb16", "hub")
    assert torch.equal(found.cls_token, foreign.class_token)
    assert torch.equal(found.blocks[1].attn.qkv.weight, foreign.encoder.layers[1].self_attention.in_proj_weight)


def test_without_network_or_cache_the_file_and_its_place_are_named(caches):
    with pytest.raises(LidcCdamError) as caught:
        build_backbone("dino_vits8", "hub")
    text = str(caught.value)
    assert text.startswith(f"--weights hub found nothing at {caches}/hub/models--timm--vit_small_patch8_224.dino, and ")
    assert "/timm/vit_small_patch8_224.dino/resolve/main/model.safetensors on a machine with a network" in text
    assert text.endswith("then copy it to this machine and give its path: --weights FILE.")


def test_torchs_cache_takes_the_file_by_hand(caches):
    with pytest.raises(LidcCdamError) as caught:
        build_backbone("swag_vitb16", "hub")
    assert f"found nothing at {caches}/torch/checkpoints/{SWAG}, and download.pytorch.org does not" in str(caught.value)
    assert str(caught.value).endswith(f"copy it to {caches}/torch/checkpoints or give its path: --weights FILE.")


def test_tiny_has_no_published_weights():
    with pytest.raises(LidcCdamError, match="--weights hub has no weights for tiny, which is trained from scratch"):
        build_backbone("tiny", "hub")


def test_a_download_is_taken_from_where_it_lands(caches, rows, monkeypatch):
    expected = cache_timms(caches, "elsewhere")
    blob = caches / "hub" / "models--timm--elsewhere" / "snapshots" / ("0" * 40) / "model.safetensors"
    asked = []
    monkeypatch.setattr(hub, "reachable", lambda url: True)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *names: asked.append(names) or str(blob))
    found = build_backbone("dino_vits16", "hub").state_dict()
    assert asked == [("timm/vit_small_patch16_224.dino", "model.safetensors")]
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_torchs_download_is_checked_by_its_digest(caches, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "reachable", lambda url: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *names, **options: asked.append(names))
    path = hub.torchvision_file("ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1")
    assert asked == [(f"https://download.pytorch.org/models/{SWAG}", str(path), "4e70ced5")]
    assert path.parent.is_dir()


@pytest.mark.parametrize("error", [OSError("connection lost\nsecond line"), RuntimeError("x"), *hub.FAILURES[3:]])
def test_a_broken_download_is_one_sentence(monkeypatch, error):
    def broken(*names):
        raise error if isinstance(error, Exception) else error("client failed")

    monkeypatch.setattr(hub, "reachable", lambda url: True)
    monkeypatch.setattr(hub, "hf_hub_download", broken)
    with pytest.raises(LidcCdamError, match=r"could not fetch from \S+ to \S+ \(\w+: [\w ]+\); fetch https") as caught:
        build_backbone("dino_vits8", "hub")
    assert "\n" not in str(caught.value)


# --- Whether a server answers -----------------------------------------------------------------------------------------

reachable = hub.reachable


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *parts: object) -> None:
        """Nothing on the terminal."""


@pytest.mark.parametrize("status", [200, 404])
def test_any_answer_counts(monkeypatch, status):
    monkeypatch.setenv("no_proxy", "*")
    server = TCPServer(("127.0.0.1", 0), type("Once", (Answer,), {"status": status}))
    thread = Thread(target=server.handle_request)
    thread.start()
    assert reachable(f"http://127.0.0.1:{server.server_address[1]}/file", 30.0)
    thread.join()
    server.server_close()


def test_a_closed_port_and_a_silent_server_do_not(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        assert not reachable(f"http://127.0.0.1:{port}/file", 30.0)
        silent.listen()
        assert not reachable(f"http://127.0.0.1:{port}/file", 0.2)


def test_a_name_that_takes_too_long_to_look_up_does_not(monkeypatch):
    given_up = Event()

    def look_up(*names, **options):
        given_up.wait()
        raise OSError("no such name")

    monkeypatch.setattr(hub, "urlopen", look_up)
    assert not reachable("http://127.0.0.1/file", 0.01)
    given_up.set()
