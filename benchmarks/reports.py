"""How long one nodule's documents take from artefacts, on one core, and how large they are.

    OMP_NUM_THREADS=1 python benchmarks/reports.py [--nodules 20] [--run RUN]

Without --run a made-up cohort is reported: nine targets, three views, two methods, 32 mm cubes. Times are of the
processor and by the clock, median and largest over the nodules; bars: HTML 1.5 s, PDF 1 s.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_reports import world

from lidc_cdam import artifacts
from lidc_cdam.artifacts import Maps
from lidc_cdam.geometry import VIEWS
from lidc_cdam.vocabulary import BIOMARKERS
from reports import html, pdf
from reports.context import Case, Run, open_run
from reports.material import load
from reports.sections import document
from reports.viewer import viewer_data

BARS_S = {"HTML": 1.5, "PDF": 1.0}


def made_up(folder: Path, nodules: int) -> list[Path]:
    """Two runs with maps of every target in three views by two methods."""
    cohort = world.make(folder, count=nodules)
    generator = np.random.default_rng(0)
    eight = tuple(biomarker.key for biomarker in BIOMARKERS)
    for run, keys in ((cohort.biomarkers, eight), (cohort.malignancy, ("malignancy",))):
        for place, nodule in enumerate(cohort.nodules):
            fold = 0 if place < nodules // 2 else 1
            for method in ("cdam", "random"):
                scores = np.concatenate([world.scores(generator, len(keys)) for _ in VIEWS], axis=1)
                path = artifacts.maps_path(run, fold, method, nodule)
                artifacts.write_maps(path, Maps(scores, keys, tuple(VIEWS), (16,)))
    return [cohort.biomarkers, cohort.malignancy]


def page(runs: Sequence[Run], cases: Sequence[Case]) -> str:
    """A nodule's page, from its artefacts."""
    material = load(runs, cases)
    content = document(material)
    return html.render_case(content, "key", viewer_data(material, content))


def paper(runs: Sequence[Run], cases: Sequence[Case]) -> bytes:
    """A nodule's PDF, from its artefacts."""
    return pdf.render_case(document(load(runs, cases)))


def measure(make: Callable[..., Any], runs: Sequence[Run], tables: Sequence[Sequence[Case]]) -> list[list[float]]:
    """Processor seconds, clock seconds and bytes of every nodule's document; the first one, which warms up, twice."""
    found = []
    for cases in [next(iter(zip(*tables, strict=True))), *zip(*tables, strict=True)]:
        used, began = time.process_time(), time.perf_counter()
        made = make(runs, cases)
        found.append([time.process_time() - used, time.perf_counter() - began, float(len(made))])
    return found[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodules", type=int, default=20)
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [given.run] if given.run else made_up(Path(folder), given.nodules)
        opened = [open_run(path, "cdam") for path in paths]
        runs, tables = [run for run, _ in opened], [cases[: given.nodules] for _, cases in opened]
        print(
            f"{'':6}{'CPU s: median':>16}{'largest':>9}{'clock s: median':>18}{'largest':>9}{'bar':>6}"
            f"{'largest kB':>12}"
        )
        for name, make in (("HTML", page), ("PDF", paper)):
            used, clock, size = zip(*measure(make, runs, tables), strict=True)
            print(
                f"{name:6}{statistics.median(used):16.2f}{max(used):9.2f}{statistics.median(clock):18.2f}"
                f"{max(clock):9.2f}{BARS_S[name]:6.1f}{max(size) / 1000:12.0f}"
            )


if __name__ == "__main__":
    main()
