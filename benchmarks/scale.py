"""The cost of indexing and extracting a growing part of LIDC-IDRI, up to all 1018 scans, without its 125 GB.

    python benchmarks/scale.py [--scratch FOLDER] [--nodules 10,30,100,300,1000] [--workers 2] [--out docs]

Writes a DICOM root of phantom series with the identifiers, positions and number of slices of the real ones: every file
has a real header and the real size, but its pixels are a hole (a sparse file), so the root takes 1 GB of disk instead
of 125. Reading a hole costs the processor what reading a file from the system's cache does; a disk's own time comes on
top and is computed from the bytes that are read. Cubes of a hole compress faster than CT (1 ms a nodule).

The root grows patient by patient. At each size, `extract --dicom` runs in a fresh process into a fresh folder; then all
of it once more with several workers. The root is deleted at the end. Writes `scale.json` and `scale.svg`.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

from lidc_cdam.compute import Workers
from preprocessing import extract as stage
from preprocessing import jobs
from preprocessing.annotations import Scan, load_nodules, load_scans
from preprocessing.cohort import cohort
from preprocessing.phantom_dicom import _dataset, slice_path

SIDE = 512
Z_MM, NUMBER = 12345.678901, 987654
"""Placeholders in a series' template, of the width of what replaces them."""


def template(scan: Scan) -> bytes:
    """A slice's file up to its pixels."""
    stream = io.BytesIO()
    dataset = _dataset(replace(scan), NUMBER, Z_MM, np.zeros((SIDE, SIDE), np.uint16), 0)
    for name in ("SliceLocation", "ImagePositionPatient"):
        element = dataset[name]
        element.value = f"{Z_MM:.6f}" if name == "SliceLocation" else [*element.value[:2], f"{Z_MM:.6f}"]
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()[: -2 * SIDE * SIDE]


def write_sparse(scan: Scan, root: Path) -> int:
    """Write a scan's slices with holes for pixels; returns how many."""
    folder = root / scan.patient_id / scan.study_uid / scan.series_uid
    folder.mkdir(parents=True)
    start = template(scan)
    for number, z in enumerate(scan.slice_z_mm, start=1):
        header = start.replace(b"12345.678901", b"%012.6f" % z).replace(b"987654", b"%06d" % number)
        with slice_path(folder, number).open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + 2 * SIDE * SIDE)
    return len(scan.slice_z_mm)


def measure(root: Path, data: Path, workers: int) -> dict[str, float]:
    """One extraction, measured by its own process."""
    index_s: list[float] = []
    index = jobs.index_series

    def timed_index(*given: Any, **named: Any) -> Any:
        start = time.perf_counter(), time.process_time()
        try:
            return index(*given, **named)
        finally:
            index_s.extend((time.perf_counter() - start[0], time.process_time() - start[1]))

    peaks: dict[int, int] = {}
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(peaks, over))
    watch.start()
    before = psutil.Process().io_counters().read_chars
    clock, used = time.perf_counter(), time.process_time()
    with patch.object(jobs, "index_series", timed_index):
        stage.extract(data, dicom=root, workers=Workers(workers))
    clock, used = time.perf_counter() - clock, time.process_time() - used
    over.set()
    watch.join()
    return {
        "workers": workers,
        "nodules": len(list((data / "records").glob("*.json"))),
        "seconds": clock,
        "cpu_seconds": used,
        "index_seconds": index_s[0],
        "index_cpu_seconds": index_s[1],
        "read_bytes": psutil.Process().io_counters().read_chars - before,
        "peak_bytes": peaks.pop(os.getpid()),
        "worker_peak_bytes": max(peaks.values(), default=0),
    }


def _watch(peaks: dict[int, int], over: threading.Event) -> None:
    """Keep the greatest memory of this process and of each of its children."""
    me = psutil.Process()
    while not over.wait(0.1):
        for process in (me, *me.children()):
            try:
                peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue


def run(root: Path, folder: Path, workers: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    with tempfile.TemporaryDirectory(dir=folder) as data:
        cohort(Path(data))
        words = [sys.executable, __file__, "--measure", str(root), data, str(workers)]
        answer = subprocess.run(words, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


def growing(root: Path, steps: list[int]) -> Iterator[tuple[int, int]]:
    """Write series after series; pause at each number of nodules with at least three readers, and at the end."""
    counts: dict[str, int] = {}
    for nodule in load_nodules():
        if 3 <= len(nodule.readings) <= 4:
            counts[nodule.scan.series_uid] = counts.get(nodule.scan.series_uid, 0) + 1
    series, files, nodules, left = 0, 0, 0, sorted(steps)
    for scan in load_scans():
        files += write_sparse(scan, root)
        series += 1
        nodules += counts.get(scan.series_uid, 0)
        while left and nodules >= left[0]:
            left.pop(0)
            yield series, files
    yield series, files


def draw(results: list[dict[str, float]], path: Path) -> None:
    """Time and memory over nodules."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    alone = [one for one in results if one["workers"] == 1]
    nodules = [one["nodules"] for one in alone]
    for key, label in (("cpu_seconds", "whole command"), ("index_cpu_seconds", "of it: reading headers")):
        left.plot(nodules, [one[key] for one in alone], "o-", label=label)
    left.set(xlabel="nodules", ylabel="processor time, s", ylim=(0, None), xlim=(0, None))
    left.legend()
    right.plot(nodules, [one["peak_bytes"] / 2**20 for one in alone], "o-")
    right.set(xlabel="nodules", ylabel="greatest memory, MiB", ylim=(0, None), xlim=(0, None))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--nodules", default="10,30,100,300,1000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        root, data, workers = options.measure
        print(json.dumps(measure(Path(root), Path(data), int(workers))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        root = folder / "dicom"
        again = partial(run, root, folder)
        results = []
        for series, files in growing(root, [int(word) for word in options.nodules.split(",")]):
            results.append({"series": series, "files": files, **again(1)})
            print(json.dumps(results[-1]), flush=True)
        results.append({"series": series, "files": files, **again(options.workers)})
        print(json.dumps(results[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, options.out / "scale.svg")


if __name__ == "__main__":
    main()
