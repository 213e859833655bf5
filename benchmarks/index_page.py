"""How fast the index of a whole cohort opens, filters and sorts in headless Chromium, on made-up rows.

    python benchmarks/index_page.py [--nodules 854] [--out FOLDER]

Times are the page's own (`performance.now`): opening from the navigation's start to the load event, which comes after
the layout of the table that the script's first filter forces; filtering and sorting until the next frame is laid out.
Median of the repeats; bar: 0.5 s each.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `reports` is the room, not the benchmark beside this one

from lidc_cdam.vocabulary import TARGETS
from reports import figures, html
from reports.index import LABELS, index_content

BAR_S = 0.5
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ACTIONS = {
    "filter by a word": """search.value = "-07"; search.dispatchEvent(new Event("input"))""",
    "filter by the label": """label.value = "malignant"; label.dispatchEvent(new Event("change"))""",
    "no filter": """search.value = ""; label.value = ""; search.dispatchEvent(new Event("input"))""",
    "worst errors first": """worst.click()""",
    "sort by a biomarker": """document.querySelectorAll("#nodules thead button")[4].click()""",
}


def rows(count: int) -> list[dict[str, Any]]:
    """Rows as `index_row` makes them."""
    generator = np.random.default_rng(0)
    made = []
    for place in range(count):
        nodule = f"LIDC-IDRI-{place // 2:04d}_n{place % 2 + 1:02d}"
        label = list(LABELS.values())[place % 3]
        hu = generator.normal(-700, 250, (32, 32)).clip(-1000, 400).astype(np.int16)
        cells = {
            key: {"prediction": f"{value:.1f}", "sort": value, "readers": "3.0", "error": 0.4, "worse": value > 4}
            for key, value in zip(TARGETS, generator.uniform(1, 5, len(TARGETS)).tolist(), strict=True)
        }
        made.append(
            {"nodule_id": nodule, "words": f"{nodule} {label}".lower(), "fold": place % 5, "readers": 4, "label": label}
            | {"thumbnail": figures.thumbnail(hu), "cells": cells, "error": float(generator.uniform()), "maps": True}
            | {"synthetic": False, "unread": True, "flags": ["padded"]}
        )
    return made


def page_of(count: int) -> str:
    """The index of `count` nodules."""
    content = index_content([], rows(count)) | {
        "targets": [{"key": key, "title": TARGETS[key].title} for key in TARGETS]
    }
    return html.render_index(content)


def seconds(page: Page, action: str) -> float:
    """How long an action takes until its result is laid out."""
    script = f"""() => {{
      const [search, label, worst] = ["search", "label", "worst"].map((name) => document.getElementById(name));
      const began = performance.now();
      {action};
      document.body.getBoundingClientRect();
      return performance.now() - began;
    }}"""
    return float(page.evaluate(script)) / 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodules", type=int, default=854)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.out or Path(tempfile.mkdtemp())
    path = folder / "index.html"
    path.write_text(page_of(given.nodules), encoding="utf-8")
    print(f"{given.nodules} nodules, {path.stat().st_size / 1e6:.1f} MB; bar {BAR_S:g} s")
    found: dict[str, list[float]] = {}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
        for _ in range(given.repeats):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(path.resolve().as_uri())
            opened = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
            found.setdefault("open", []).append(opened)
            for name, action in ACTIONS.items():
                found.setdefault(name, []).append(seconds(page, action))
            page.close()
        browser.close()
    for name, values in found.items():
        print(f"{name:22} {statistics.median(values):.3f} s (largest {max(values):.3f})")


if __name__ == "__main__":
    main()
