"""The case report in a real browser: every control by mouse and by keyboard, from disk, without a network."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from test_reports import world

from lidc_cdam import artifacts, crop_files
from lidc_cdam.artifacts import Maps
from lidc_cdam.geometry import VIEWS, take_view
from lidc_cdam.map_files import Volume, volume_folder, write_volume
from lidc_cdam.quality import SYNTHETIC
from lidc_cdam.vocabulary import RESEARCH
from reports import figures, html
from reports.context import SHOWN, open_run
from reports.stage import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (apt-get install chromium)", allow_module_level=True)

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--force-color-profile=srgb"]
TARGETS = list(SHOWN)


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[world.World, Path]:
    """A nodule with maps in three views by two methods, and its page."""
    root = tmp_path_factory.mktemp("browser")
    cohort = world.make(root, count=2)
    generator = np.random.default_rng(3)
    crop_files.write_crop(cohort.data, cohort.nodules[0], world.crop(generator, radius_mm=5))
    for run, keys in ((cohort.biomarkers, TARGETS[:8]), (cohort.malignancy, TARGETS[8:])):
        for method in ("cdam", "random"):
            scores = np.concatenate([world.scores(generator, len(keys)) for _ in range(3)], axis=1)
            views = ("axial", "coronal", "sagittal")
            path = artifacts.maps_path(run, 0, method, cohort.nodules[0])
            artifacts.write_maps(path, Maps(scores, tuple(keys), views, (16,)))
    report(cohort.biomarkers, root / "out", also_run=cohort.malignancy, nodules=[cohort.nodules[0]])
    return cohort, root / "out" / f"{cohort.nodules[0]}.html"


class Page:
    """A page from disk that fails on any console message, error or request."""

    def __init__(self, browser, path: Path, **options) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri())
        self.uri = path.as_uri()

    def __enter__(self):
        if self.context and self.page.locator("#viewer").count():
            self.page.wait_for_selector("html.live #viewer")
            self.settle()
        return self

    def __exit__(self, kind, *_) -> None:
        self.context.close()
        if kind is None:
            assert self.said == []
            assert [url for url in self.asked if url != self.uri and not url.startswith(("data:", "blob:"))] == []

    def settle(self) -> None:
        """Two frames, after which every change is drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    @contextmanager
    def heard(self, kind: str, role: str = "first") -> Iterator[None]:
        """Wait until the page has got an event that the block makes: the browser sends a mouse's in its own time."""
        listen = (
            "(canvas, kind) => { canvas.got = new Promise("
            "(done) => canvas.addEventListener(kind, () => done(true), { once: true })); }"
        )
        self.canvas(role).evaluate(listen, kind)
        yield
        assert self.canvas(role).evaluate("canvas => canvas.got")
        self.settle()

    def press(self, *names: str) -> None:
        for name in names:
            self.page.keyboard.press(name)
        self.settle()

    def canvas(self, role: str = "first"):
        return self.page.locator(f".pane[data-role={role}] canvas")

    def caption(self, role: str = "first") -> str:
        return self.page.locator(f".pane[data-role={role}] figcaption").inner_text()

    def pixels(self, role: str = "first") -> np.ndarray:
        """The canvas' own pixels [row, column, channel]."""
        encoded = self.canvas(role).evaluate("canvas => canvas.toDataURL('image/png').split(',')[1]")
        return decoded(base64.b64decode(encoded))

    def point(self, row: int, column: int, role: str = "first") -> None:
        """Move the mouse to the middle of a voxel."""
        self.canvas(role).scroll_into_view_if_needed()
        box = self.canvas(role).bounding_box()
        step = box["width"] / world.SIDE
        with self.heard("pointermove", role):
            self.page.mouse.move(box["x"] + (column + 0.5) * step, box["y"] + (row + 0.5) * step)

    def text(self, name: str) -> str:
        return self.page.locator(f"#{name}").inner_text()

    def pressed(self, group: str) -> list[str]:
        return self.page.locator(f"#{group} button[aria-pressed=true]").evaluate_all(
            "found => found.map((button) => button.dataset.value)"
        )


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture
def shown(browser, case) -> Iterator[Page]:
    with Page(browser, case[1]) as page:
        yield page


def hu_words(value: int) -> str:
    return f"{value} HU".replace("-", "−")


@pytest.mark.parametrize(("role", "view"), [("first", "axial"), ("upper", "coronal"), ("lower", "sagittal")])
def test_the_probe_reads_the_artefacts_own_numbers(shown, case, role, view):
    cohort, _ = case
    crop = crop_files.read_crop(cohort.data, cohort.nodules[0])
    maps = artifacts.read_maps(artifacts.maps_path(cohort.biomarkers, 0, "cdam", cohort.nodules[0]))
    scores = maps.scores[maps.targets.index("margin"), maps.views.index(view), 0]
    shown.press("4")
    for row, column in ((16, 16), (13, 20), (8, 3)):
        shown.point(row, column, role)
        told = shown.text("probe").split("·")
        hu = int(take_view(crop.hu, view, 16)[row, column])
        assert told[0].strip() == hu_words(hu)
        name, score = told[1].strip().rsplit(" ", 1)
        assert name == "Margin"
        assert float(score.replace("−", "-")) == pytest.approx(float(scores[row // 2, column // 2]), rel=5e-3)
        numbered = np.arange(world.SIDE**3).reshape((world.SIDE,) * 3)
        z, y, x = np.unravel_index(take_view(numbered, view, 16)[row, column], numbered.shape)
        assert told[2].strip() == f"L {x:.1f} P {y:.1f} H {z:.1f} mm (scan's frame)"


def test_unread_voxels_are_hatched_and_named(shown):
    shown.point(1, 10, "upper")
    assert shown.text("probe").startswith("not read")


def test_pixels_are_the_window_and_the_signed_colours(shown, case):
    cohort, _ = case
    crop = crop_files.read_crop(cohort.data, cohort.nodules[0])
    maps = artifacts.read_maps(artifacts.maps_path(cohort.biomarkers, 0, "cdam", cohort.nodules[0]))
    limit = open_run(cohort.biomarkers, "cdam")[0].limits[0]["subtlety"]
    shown.page.select_option("#outlines", "none")
    shown.press("Space")
    plain = shown.pixels()
    grey = figures.grey(take_view(crop.hu, "axial", 16), figures.LUNG, len(plain)).astype(int)
    quiet = np.zeros(plain.shape[:2], bool)
    quiet[len(plain) // 4 : len(plain) // 2 - 30, len(plain) // 4 : -60] = True
    assert np.abs(plain[..., 0] - grey)[quiet].max() <= 1
    shown.press("Space")
    mapped = shown.pixels()
    scores = maps.scores[0, 0, 0]
    large = Image.fromarray(scores).resize((len(plain),) * 2, Image.Resampling.BILINEAR)
    strength = np.clip(np.abs(np.asarray(large)) / limit, 0, 1)[..., None] * figures.OPACITY
    colour = np.where(np.asarray(large)[..., None] > 0, figures.ORANGE, figures.BLUE)
    dim = grey[..., None] * (1 - figures.DIMMED)
    expected = dim + (colour - dim) * strength
    # contour lines cover a few per cent of the picture
    assert (np.abs(mapped - expected).max(-1) <= 2)[quiet].mean() > 0.8


def test_zero_opacity_and_full_thresholds_leave_the_plain_ct(shown):
    shown.page.select_option("#outlines", "none")
    with_map = shown.pixels()
    for name in ("from", "until"):
        shown.page.locator(f"#{name}").fill("100")
    shown.settle()
    assert shown.text("from-value").startswith("+")
    assert shown.text("until-value").startswith("−")
    cut = shown.pixels()
    shown.page.locator("#opacity").fill("0")
    shown.settle()
    bare = shown.pixels()
    assert np.abs(with_map - bare).max() > 60
    assert np.abs(cut - bare).mean() < np.abs(with_map - bare).mean()
    assert bare[..., 0].tolist() == bare[..., 2].tolist() or np.abs(bare[..., 0] - bare[..., 2]).mean() < 3


def test_each_threshold_cuts_its_own_sign(shown):
    shown.page.select_option("#outlines", "none")

    def coloured() -> tuple[int, int]:
        image = shown.pixels()
        excess = image[..., 0] - image[..., 2]
        return int((excess > 40).sum()), int((excess < -40).sum())

    orange, blue = coloured()
    assert min(orange, blue) > 100
    shown.page.locator("#from").fill("100")
    shown.settle()
    assert coloured()[0] < orange / 2
    assert coloured()[1] == blue
    shown.page.locator("#from").fill("0")
    shown.page.locator("#until").fill("100")
    shown.settle()
    assert coloured()[1] < blue / 2
    assert coloured()[0] == orange


def test_targets_by_number_keys_and_by_mouse(shown, case):
    cohort, _ = case
    limits = {
        key: limit
        for run in (cohort.biomarkers, cohort.malignancy)
        for key, limit in open_run(run, "cdam")[0].limits[0].items()
    }
    for place, key in enumerate(TARGETS, 1):
        shown.press(str(place))
        assert shown.pressed("targets") == [key]
        assert shown.text("highest") == f"+{limits[key]:.3g}"
        assert shown.text("lowest") == f"−{limits[key]:.3g}"
        assert shown.page.locator("#findings > div:visible").get_attribute("data-target") == key
    shown.page.locator("#targets button[data-value=texture]").click()
    shown.settle()
    assert shown.caption() == "Axial 17/32 · Texture, cdam"


def test_slices_by_wheel_arrows_page_keys_and_slider(shown):
    canvas = shown.canvas()
    canvas.hover()
    with shown.heard("wheel"):
        shown.page.mouse.wheel(0, 100)
    assert shown.caption().startswith("Axial 18/32 · no map on this slice")
    canvas.focus()
    shown.press("ArrowUp", "PageUp")
    assert canvas.get_attribute("aria-valuenow") == "24"
    shown.press("ArrowDown", "PageDown", "PageDown")
    assert canvas.get_attribute("aria-valuenow") == "13"
    shown.press("Home")
    assert (
        canvas.get_attribute("aria-valuetext")
        == "Slice 17 of 32, Subtlety, cdam; " + canvas.get_attribute("aria-valuetext").split("; ", 1)[1]
    )
    shown.press(*["PageDown"] * 5)
    assert canvas.get_attribute("aria-valuenow") == "1"
    shown.page.locator("#slice").fill("20")
    shown.settle()
    assert shown.caption().startswith("Axial 20/32")
    shown.canvas("upper").focus()
    shown.press("ArrowUp")
    assert shown.caption("upper").startswith("Coronal 18/32")
    assert shown.caption().startswith("Axial 20/32")


def test_views_by_button_key_and_double_click(shown):
    shown.page.locator("#view button[data-value=coronal]").click()
    shown.settle()
    assert (shown.caption()[:7], shown.caption("upper")[:5]) == ("Coronal", "Axial")
    shown.page.locator("h1").click()
    shown.press("v")
    assert shown.pressed("view") == ["sagittal"]
    shown.canvas("upper").dblclick()
    shown.settle()
    assert shown.pressed("view") == ["axial"]
    shown.canvas("lower").focus()
    shown.press("Enter")
    assert shown.pressed("view") == ["sagittal"]


def test_window_by_preset_keys_numbers_and_drag(shown):
    shown.canvas().scroll_into_view_if_needed()
    box = shown.canvas().bounding_box()
    before = shown.pixels()
    shown.page.mouse.move(box["x"] + 100, box["y"] + 100)
    shown.page.mouse.down()
    with shown.heard("pointerup"):
        shown.page.mouse.move(box["x"] + 150, box["y"] + 70)
        shown.page.mouse.up()
    playwright.expect(shown.page.locator("#width")).to_have_value("1700")
    playwright.expect(shown.page.locator("#level")).to_have_value("-720")
    assert shown.pressed("window") == []
    assert np.abs(shown.pixels() - before).mean() > 1
    for key, name, numbers in (
        ("m", "soft", ("40", "400")),
        ("w", "wide", ("-300", "1400")),
        ("l", "lung", ("-600", "1500")),
    ):
        shown.press(key)
        assert shown.pressed("window") == [name]
        assert (shown.page.input_value("#level"), shown.page.input_value("#width")) == numbers
    shown.page.locator("#window button[data-value=soft]").click()
    shown.settle()
    shown.page.fill("#level", "100")
    # The mouse crosses a picture before the number is taken.
    shown.point(9, 9)
    shown.page.press("#level", "Enter")
    shown.settle()
    assert (shown.page.input_value("#level"), shown.page.input_value("#width")) == ("100", "400")
    assert shown.pressed("window") == []
    shown.page.fill("#width", "")
    shown.page.press("#width", "Tab")
    playwright.expect(shown.page.locator("#width")).to_have_value("400")
    shown.page.fill("#width", "3")
    shown.page.press("#width", "Enter")
    playwright.expect(shown.page.locator("#width")).to_have_value("10")


def test_each_reader_has_an_outline_where_extraction_saw_them(browser, tmp_path):
    cohort = world.make(tmp_path, count=2, padded=0)
    masks = np.zeros((2, *(world.SIDE,) * 3), dtype=bool)
    masks[0, 8:24, 4:8, 4:8] = masks[1, 8:24, 24:28, 24:28] = True
    crop_files.write_reader_masks(cohort.data, cohort.nodules[0], masks, [1, 2])
    report(cohort.malignancy, tmp_path / "out", nodules=[cohort.nodules[0]])
    with Page(browser, tmp_path / "out" / f"{cohort.nodules[0]}.html") as page:
        drawn = {}
        for choice in ("consensus", "reader 1", "reader 2"):
            page.page.select_option("#outlines", choice)
            page.settle()
            drawn[choice] = page.pixels()
        half = len(drawn["consensus"]) // 2
        for choice, here in (("reader 1", (slice(0, half),) * 2), ("reader 2", (slice(half, None),) * 2)):
            changed = np.abs(drawn[choice] - drawn["consensus"]).max(-1) > 40
            assert changed.sum() == changed[here].sum() > 50


def test_map_and_outlines_are_switched(shown):
    mapped = shown.pixels()
    shown.press(" ")
    assert shown.page.get_attribute("#map", "aria-pressed") == "false"
    assert shown.caption() == "Axial 17/32 · plain CT"
    assert np.abs(shown.pixels() - mapped).max() > 50
    shown.page.locator("#map").click()
    shown.settle()
    assert np.array_equal(shown.pixels(), mapped)
    seen = {}
    for _ in range(4):
        seen[shown.page.input_value("#outlines")] = shown.pixels()
        shown.page.locator("h1").click()
        shown.press("o")
    assert list(seen) == ["both", "consensus", "each", "none"]
    yellow = {
        name: int(((image[..., 0] > 220) & (image[..., 2] < 120) & (image[..., 1] > 190)).sum())
        for name, image in seen.items()
    }
    assert min(yellow["both"], yellow["consensus"], yellow["each"]) > 200 > yellow["none"]
    cyan = {name: int(((image[..., 2] > 220) & (image[..., 0] < 150)).sum()) for name, image in seen.items()}
    assert cyan["each"] > cyan["both"] > cyan["consensus"]


def test_two_targets_or_two_methods_side_by_side(shown, case):
    shown.page.select_option("#compare", "target:diameter")
    shown.settle()
    limits = open_run(case[0].biomarkers, "cdam")[0].limits[0]
    assert shown.caption() == f"Axial 17/32 · Subtlety, cdam · ±{limits['subtlety']:.3g}"
    assert shown.caption("second") == f"Axial 17/32 · Diameter, cdam · ±{limits['diameter']:.3g}"
    assert shown.canvas("upper").is_hidden()
    shown.point(16, 16, "second")
    assert re.search(r"Subtlety \S+ {2}· {2}Diameter \S+", shown.text("probe"))
    shown.page.select_option("#compare", "method:random")
    shown.settle()
    assert shown.caption("second").startswith("Axial 17/32 · Subtlety, random · ±")
    assert "cdam" in shown.text("probe")
    shown.page.select_option("#method", "random")
    shown.settle()
    assert shown.caption().startswith("Axial 17/32 · Subtlety, random · ±")
    assert np.array_equal(shown.pixels(), shown.pixels("second"))
    shown.page.locator("#reset").click()
    shown.settle()
    assert shown.canvas("second").is_hidden()
    shown.press("c")
    assert shown.page.input_value("#compare") == "target:calcification"


def test_the_cross_moves_by_keyboard_and_is_spoken(shown):
    shown.canvas().focus()
    shown.press("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowUp")
    assert "L 18.0 P 15.0 H 16.0 mm" in shown.text("probe")
    assert shown.page.locator("#spoken").text_content() == shown.page.locator("#probe").text_content()


def test_the_list_of_keys_opens_closes_and_can_switch_them_off(shown):
    shown.press("?")
    assert shown.page.locator("#keys").is_visible()
    assert shown.page.locator("#keys tr").count() == len(html.KEYS)
    shown.page.locator("#shortcuts").uncheck()
    shown.press("Escape")
    assert shown.page.locator("#keys").is_hidden()
    shown.press("5")
    assert shown.pressed("targets") == ["subtlety"]
    shown.page.locator("#help").click()
    assert shown.page.locator("#keys").is_visible()


def test_a_saved_picture_bears_its_words(shown):
    with shown.page.expect_download() as waiting:
        shown.page.locator("#save").click()
    assert waiting.value.suggested_filename == "LIDC-IDRI-0001_n01_axial_subtlety.png"
    image = decoded(Path(waiting.value.path()).read_bytes())
    assert image.shape == (720 + 130, 720, 3)
    # the warning's own colour, below the picture
    assert ((image[800:] - np.array([255, 217, 143])) ** 2).sum(-1).min() < 300
    playwright.expect(shown.page.locator("#copied")).to_have_text("Picture saved.")


def test_a_picture_is_copied_where_the_browser_lets_the_page(browser, case):
    with Page(browser, case[1], permissions=["clipboard-read", "clipboard-write"]) as shown:
        shown.page.locator("#copy").click()
        shown.page.locator("#copied:not(:empty)").wait_for()
        assert shown.text("copied") == "Picture copied."
        encoded = shown.page.evaluate(
            "async () => { const [item] = await navigator.clipboard.read(); "
            "const blob = await item.getType('image/png'); "
            "return btoa(String.fromCharCode(...new Uint8Array(await blob.arrayBuffer()).subarray(0, 24))); }"
        )
        head = base64.b64decode(encoded)
        assert (head[:4], head[16:]) == (b"\x89PNG", (720).to_bytes(4, "big") + (720 + 130).to_bytes(4, "big"))


def test_where_a_picture_cannot_be_copied_it_is_saved(browser, case):
    with Page(browser, case[1]) as shown:
        shown.page.evaluate("() => { navigator.clipboard.write = () => Promise.reject(new Error('refused')); }")
        with shown.page.expect_download() as waiting:
            shown.page.locator("#copy").click()
        assert waiting.value.suggested_filename == "LIDC-IDRI-0001_n01_axial_subtlety.png"
        playwright.expect(shown.page.locator("#copied")).to_have_text(
            "This browser does not let the page copy; the picture was saved instead."
        )


def test_every_control_is_reached_by_tab_in_the_order_of_the_page(shown):
    reached = []
    for _ in range(45):
        shown.page.keyboard.press("Tab")
        reached.append(
            shown.page.evaluate(
                "() => [document.activeElement].map((at) => "
                "at.id || at.dataset.value || at.getAttribute('aria-label') || at.textContent)[0]"
            )
        )
    wanted = [
        "axial",
        "lung",
        "level",
        "width",
        "map",
        "copy",
        "save",
        "Axial view, slice",
        "Coronal view, slice",
        "reset",
        "help",
        "slice",
        "opacity",
        "until",
        "from",
        "outlines",
        "method",
        "compare",
        "subtlety",
        "malignancy",
    ]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, case, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with Page(browser, case[1], color_scheme=scheme) as shown:
        # axe is put in by the driver, so the page's own policy stays as it is
        found = axe.Axe().run(shown.page).response["violations"]
        assert [(rule["id"], rule["nodes"][0]["html"][:120]) for rule in found] == []


def test_without_a_script_the_still_pictures_are_there(browser, case):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(case[1].as_uri())
    assert page.locator("#viewer").is_hidden()
    assert page.locator("section.still svg").first.is_visible()
    context.close()


def test_it_prints_the_still_pictures_and_not_the_viewer(shown, tmp_path):
    shown.page.emulate_media(media="print")
    assert shown.page.locator("#viewer").is_hidden()
    assert shown.page.locator("section.still svg").first.is_visible()
    opened = pypdfium2.PdfDocument(shown.page.pdf(format="A4"))
    texts = [" ".join(page.get_textpage().get_text_range().split()) for page in opened]
    opened.close()
    assert len(texts) <= 6  # of two runs with three views; one run takes four
    # the style's margin box bears the words of every page, and no page is an orphan
    assert all(f"{RESEARCH} " in f"{text} " for text in texts)
    assert min(map(len, texts)) > 300


def test_every_printed_page_of_phantoms_says_so(browser, tmp_path):
    cohort = world.make(tmp_path, count=2, flags=(SYNTHETIC,))
    report(cohort.biomarkers, tmp_path / "out")
    words = {
        cohort.nodules[0]: "Synthetic phantom",
        "index": "With synthetic phantoms",
        "run": "With synthetic phantoms",
    }
    for name, word in words.items():
        with Page(browser, tmp_path / "out" / f"{name}.html") as shown:
            opened = pypdfium2.PdfDocument(shown.page.pdf(format="A4"))
            texts = [" ".join(page.get_textpage().get_text_range().split()) for page in opened]
            opened.close()
        assert all(f"{RESEARCH} · {word}" in text for text in texts), name


@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_letters_the_bar_and_the_words_stand_beside_the_picture(shown, view):
    shown.page.locator(f"#view button[data-value={view}]").click()
    shown.settle()
    for role in ("first", "upper", "lower"):
        pane = shown.page.locator(f".pane[data-role={role}]")
        image = shown.canvas(role).bounding_box()
        shown_view = shown.caption(role).split(" ")[0].lower()
        letters = [pane.locator(f".edge.{edge}").inner_text() for edge in ("left", "right", "top", "bottom")]
        assert tuple(letters) == VIEWS[shown_view].letters
        assert pane.locator(".plea").inner_text() == RESEARCH
        assert pane.locator(".ruler").bounding_box()["width"] == pytest.approx(
            image["width"] * 10 / world.SIDE, abs=0.6
        )
        for name in (
            ".edge.left",
            ".edge.right",
            ".edge.top",
            ".edge.bottom",
            ".ruler",
            ".plea",
            "figcaption",
            ".note",
        ):
            box = pane.locator(name).bounding_box()
            beside = box["x"] + box["width"] <= image["x"] + 1 or box["x"] >= image["x"] + image["width"] - 1
            over_or_under = box["y"] + box["height"] <= image["y"] + 1 or box["y"] >= image["y"] + image["height"] - 1
            assert beside or over_or_under, name


@pytest.mark.parametrize("width", [390, 1920])
def test_nothing_is_wider_than_the_window(browser, case, width):
    with Page(browser, case[1]) as shown:
        shown.page.set_viewport_size({"width": width, "height": 900})
        shown.settle()
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_volume_has_a_map_on_every_slice(browser, tmp_path):
    cohort = world.make(tmp_path, count=2)
    nodule = cohort.nodules[0]
    scores = np.random.default_rng(1).normal(0, 0.01, (1, *(world.SIDE,) * 3)).astype(np.float32)
    folder = volume_folder(cohort.biomarkers, 0, "cdam", nodule)
    write_volume(folder, "subtlety", Volume(scores, ("axial",), (0.0, 0.0, 0.0), 1.0, ""))
    report(cohort.biomarkers, tmp_path / "out", nodules=[nodule])
    with Page(browser, tmp_path / "out" / f"{nodule}.html") as shown:
        shown.page.select_option("#method", "cdam, every slice")
        shown.page.locator("#slice").fill("20")
        shown.settle()
        assert shown.caption() == "Axial 20/32 · Subtlety, cdam, every slice"
        for role, view, depth in (("first", "axial", 19), ("upper", "coronal", 16), ("lower", "sagittal", 16)):
            shown.point(9, 21, role)
            told = shown.text("probe").split("·")[1].strip().rsplit(" ", 1)[1]
            expected = float(take_view(scores[0], view, depth)[9, 21])
            assert float(told.replace("−", "-")) == pytest.approx(expected, rel=5e-3)


def test_a_page_without_maps_still_shows_the_ct(browser, tmp_path):
    cohort = world.make(tmp_path, count=2, maps=False)
    report(cohort.biomarkers, tmp_path / "out", nodules=[cohort.nodules[0]])
    with Page(browser, tmp_path / "out" / f"{cohort.nodules[0]}.html") as shown:
        assert shown.caption() == "Axial 17/32 · no map of subtlety"
        shown.point(16, 16)
        assert "no score here" in shown.text("probe")


def test_the_viewers_data_hold_no_markup(case):
    page = case[1].read_text()
    data = re.findall(r'<script type="application/json" id="viewer-data">(.*?)</script>', page, flags=re.DOTALL)
    assert len(data) == 1
    assert "<" not in data[0]
    assert json.loads(data[0])["nodule"] == "LIDC-IDRI-0001_n01"
