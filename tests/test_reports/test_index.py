"""The index in a real browser: sorting, filtering and searching by mouse and by keyboard."""

from pathlib import Path

import numpy as np
import pytest

from reports import figures, html
from reports.index import LABELS, index_content

pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
from test_reports.test_browser import Page, browser  # noqa: F401

COUNT = 400


def row(place: int) -> dict:
    """A nodule whose error is its place backwards, with one unknown error; every fifth has a flag."""
    label = list(LABELS.values())[place % 3]
    nodule, flags = f"LIDC-IDRI-{place:04d}_n01", ["gap"] if place % 5 == 0 else []
    cell = {"prediction": f"{place % 7}.0", "sort": place % 7, "readers": "3.0", "error": 0.1, "worse": False}
    thumbnail = figures.thumbnail(np.full((32, 32), -500, np.int16))
    return {
        "nodule_id": nodule,
        "words": " ".join([nodule, label, *flags]).lower(),
        "fold": place % 5,
        "readers": 3 + place % 2,
        "label": label,
        "thumbnail": thumbnail,
        "cells": {"margin": cell},
        "error": None if place == 7 else (COUNT - place) / 100,
        "maps": True,
        "synthetic": False,
        "unread": False,
        "flags": flags,
    }


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("index") / "index.html"
    content = index_content([], [row(place) for place in range(COUNT)])
    path.write_text(html.render_index(content | {"targets": [{"key": "margin", "title": "Margin"}]}))
    return path


def visible(page) -> list[str]:
    """Nodules in sight, in order."""
    return page.eval_on_selector_all(
        "#nodules tbody tr:not([hidden]) th", "cells => cells.map(cell => cell.dataset.sort)"
    )


def names(*places: int) -> list[str]:
    return [f"LIDC-IDRI-{place:04d}_n01" for place in places]


def test_worst_errors_first_on_demand_and_back(browser, index):  # noqa: F811
    with Page(browser, index) as opened:
        page = opened.page
        assert visible(page)[:3] == names(0, 1, 2)
        page.click("text=Error >> nth=-1")
        assert visible(page)[:2] == names(399, 398)
        assert page.get_attribute("#nodules th:has-text('Error')", "aria-sort") == "ascending"
        page.click("#worst")
        assert visible(page)[:2] == names(0, 1)
        assert page.get_attribute("#worst", "aria-pressed") == "true"
        assert page.locator("#nodules th[aria-sort]").count() == 1
        page.fill("#search", "-0007")
        assert visible(page) == names(7)
        page.fill("#search", "")
        page.click("#worst")
        assert page.get_attribute("#worst", "aria-pressed") == "false"
        assert visible(page)[:2] == names(0, 1)


def test_a_heading_sorts_by_keyboard_numbers_as_numbers_and_unknown_last(browser, index):  # noqa: F811
    with Page(browser, index) as opened:
        page = opened.page
        page.focus("#nodules th:has-text('Margin') button")
        page.keyboard.press("Enter")
        assert visible(page)[:3] == names(0, 7, 14)
        page.keyboard.press("Space")
        assert page.get_attribute("#nodules th:has-text('Margin')", "aria-sort") == "descending"
        assert visible(page)[:2] == names(6, 13)
        for _ in range(2):
            page.click("#nodules th:has-text('Error') button")
            page.evaluate("document.getElementById('more').click()")
            page.evaluate("document.getElementById('more').click()")
            assert visible(page)[-1] == names(7)[0]


def test_filters_and_search_work_together_and_say_how_many(browser, index):  # noqa: F811
    with Page(browser, index) as opened:
        page = opened.page
        page.keyboard.press("/")
        page.keyboard.type("GAP -001")
        assert visible(page) == names(10, 15)
        assert page.inner_text("#count") == "2 of 400 nodules"
        page.select_option("#label", "malignant")
        assert visible(page) == names(10)
        page.select_option("#fold", "3")
        assert visible(page) == []
        assert page.is_visible("text=No nodule fits these words.")
        page.select_option("#fold", "")
        page.select_option("#label", "")
        page.fill("#search", "")
        assert page.inner_text("#count") == "400 nodules"


def test_more_rows_come_when_the_table_is_scrolled_and_all_are_printed(browser, index):  # noqa: F811
    with Page(browser, index) as opened:
        page = opened.page
        first = len(visible(page))
        assert 100 < first < COUNT
        page.evaluate("document.querySelector('.frame').scrollTo(0, 1e6)")
        # The page's policy forbids the evaluation of text by which `wait_for_function` polls.
        page.locator("#nodules tbody tr:not([hidden])").nth(first).wait_for(state="attached")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert len(visible(page)) == COUNT


def test_links_lead_to_both_documents_and_without_a_script_every_row_is_there(browser, index):  # noqa: F811
    with Page(browser, index) as opened:
        links = opened.page.eval_on_selector_all(
            "#nodules tbody a", "all => all.map(each => each.getAttribute('href'))"
        )
        assert links[:2] == [f"{names(0)[0]}.html", f"{names(0)[0]}.pdf"]
    with Page(browser, index, java_script_enabled=False) as opened:
        assert opened.page.locator("#nodules tbody tr").nth(COUNT - 1).is_visible()


@pytest.mark.parametrize("name", ["index", "run"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, made, name, scheme):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    _, out = made
    with Page(browser, out / f"{name}.html", color_scheme=scheme, bypass_csp=True) as opened:
        found = axe.Axe().run(opened.page).response["violations"]
        assert [each["id"] for each in found] == []


@pytest.mark.parametrize("name", ["index", "run"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_never_wider_than_the_window(browser, made, name, width):  # noqa: F811
    _, out = made
    with Page(browser, out / f"{name}.html") as opened:
        opened.page.set_viewport_size({"width": width, "height": 800})
        assert opened.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_hostile_rows_are_text(browser, tmp_path):  # noqa: F811
    hostile = '"><script>document.title = "owned"</script>\u202e' + "x" * 2000
    rows = [{**row(0), "nodule_id": "safe", "words": hostile, "label": hostile}]
    path = tmp_path / "index.html"
    path.write_text(html.render_index(index_content([], rows)))
    with Page(browser, path) as opened:
        assert "owned" not in opened.page.title()
        assert opened.page.locator("#nodules tbody script").count() == 0
        assert opened.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
