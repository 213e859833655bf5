import base64
import hashlib
import html
import re

import numpy as np
import pytest
from image_world import write_classifier, write_layout
from PIL import Image

from lidc_cdam.artifacts import read_maps
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.images import image_map_path, overlay_path
from reports.images import report_images
from reports.overlays import GAP, HEAD, PANEL, fitted, font, map_panel, shown_panel


@pytest.fixture
def explained(tmp_path):
    write_layout(tmp_path / "images", 2, roles=("",))
    write_classifier(tmp_path / "model")
    words = ["--images", str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    for method in ("cdam", "random"):
        assert main(["explain", *words, "--method", method, "--top", "2"]) == 0
    return tmp_path


def test_each_image_has_a_picture_per_method_and_a_place_on_the_page(explained, capsys):
    page = (explained / "out" / "index.html").read_text()
    for method in ("cdam", "random"):
        for name in ("red/0.png", "blue/1.png"):
            path = overlay_path(explained / "out", method, name)
            with Image.open(path) as picture:
                assert picture.width >= 3 * PANEL
            assert f'src="overlays/{method}/{name}.png"' in page
    assert page.count("99th percentile of |score| over 6 images") == 2
    assert "<script" not in page
    (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'; img-src 'self' file:;" in html.unescape(page)
    assert "http://" not in page.replace("http-equiv", "")


def test_the_scale_is_that_of_all_images(explained):
    scores = [np.abs(read_maps(path).scores).ravel() for path in (explained / "out/maps/random").rglob("*.npz")]
    limit = np.percentile(np.concatenate(scores), 99)
    assert f"random: full colour at ±{limit:.3g}" in (explained / "out" / "index.html").read_text()


def test_zero_is_neutral_and_signs_have_their_colours():
    shown = np.full((16, 16, 3), 100, np.uint8)
    scores = np.zeros((4, 4), np.float32)
    plain = np.asarray(map_panel(shown, scores, 1.0)).astype(int)
    assert (plain == plain[0, 0]).all()
    assert len(set(plain[0, 0])) == 1
    scores[:2], scores[2:] = 1.0, -1.0
    seen = np.asarray(map_panel(shown, scores, 1.0)).astype(int)
    assert seen[10, 100, 0] > seen[10, 100, 2]
    assert seen[-10, 100, 2] > seen[-10, 100, 0]


def test_a_small_image_keeps_its_pixels_and_a_wide_one_its_shape():
    small = shown_panel(np.random.default_rng(0).integers(0, 255, (8, 16, 3)).astype(np.uint8))
    assert small.size == (PANEL, PANEL // 2)
    assert len(np.unique(np.asarray(small).reshape(-1, 3), axis=0)) <= 128
    assert (HEAD, GAP) > (0, 0)


def test_a_long_title_is_cut():
    assert fitted("tench", 12, 200) == "tench"
    cut = fitted("a very long name of a class of images", 12, 80)
    assert cut.endswith("…")
    assert font(12).getlength(cut) <= 80


def test_an_image_that_is_gone_is_told_and_the_others_are_drawn(explained, capsys):
    (explained / "images/red/0.png").unlink()
    report_images(explained / "out")
    shown = capsys.readouterr().out
    assert "Not drawn" in shown
    assert "Drew the maps of 5 images" in shown


def test_a_folder_without_maps_is_one_sentence(explained, tmp_path):
    with pytest.raises(LidcCdamError, match="--maps must be a folder that `lidc-cdam explain --images` wrote"):
        report_images(tmp_path)
    image_map_path(explained / "out", "cdam", "red/0.png").write_bytes(b"damaged")
    with pytest.raises(LidcCdamError, match="must be an NPZ file"):
        report_images(explained / "out")


def test_names_are_escaped(explained):
    (explained / "images" / "a <b>.png").write_bytes((explained / "images/red/0.png").read_bytes())
    words = ["--images", str(explained / "images"), "--model", str(explained / "model")]
    assert main(["explain", *words, "--out", str(explained / "out"), "--top", "2"]) == 0
    page = (explained / "out" / "index.html").read_text()
    assert "a &lt;b&gt;.png" in page
    assert "overlays/cdam/a%20%3Cb%3E.png.png" in page
