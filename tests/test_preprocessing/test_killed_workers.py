"""Extraction whose processes are killed: nothing lost, nothing twice, the same bytes as in one process."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from small_lidc import contents, write_cohort

from lidc_cdam.artifacts import FAILED, FAILED_COLUMNS, read_table
from lidc_cdam.compute import Pool, Workers, map_items
from preprocessing.annotations import consensus, load_nodules
from preprocessing.extract import extract as run
from preprocessing.jobs import PackJob, lose_job, run_job
from preprocessing.phantom_dicom import write_series

PATIENTS = tuple(f"LIDC-IDRI-{number:04d}" for number in (1, 2, 3, 4, 5, 6, 7, 9, 11, 13))
AROUND_MM = 20
FEW_SLICES = 90


def sloped(z_mm: np.ndarray) -> np.ndarray:
    """HU of whole slices that differ in every direction, quickly made."""
    plane = np.add.outer(np.arange(512.0), 0.5 * np.arange(512.0)) - 1000
    return np.asarray(plane + z_mm[:, None, None], np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom series of several patients: the slices around their nodules."""
    folder = tmp_path_factory.mktemp("dicom")
    for scan, heights in _heights().items():
        write_series(replace(scan, slice_z_mm=tuple(sorted(heights))), sloped, folder)
    return folder


def _heights() -> dict:
    found: dict = {}
    for nodule in load_nodules(patients=PATIENTS):
        if len(nodule.readings) >= 3:
            z_mm = nodule.scan.slice_z_mm
            first, last = consensus(nodule)[1].slice
            near = {z for z in z_mm if z_mm[first] - AROUND_MM <= z <= z_mm[last - 1] + AROUND_MM}
            found[nodule.scan] = found.get(nodule.scan, set()) | near
    return {scan: heights for scan, heights in found.items() if len(heights) < FEW_SLICES}


@pytest.fixture(scope="module")
def expected(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    data = tmp_path_factory.mktemp("expected")
    write_cohort(data, PATIENTS)
    run(data, dicom=root)
    return contents(data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "data", PATIENTS)
    return tmp_path / "data"


def records(data: Path) -> int:
    return len(list((data / "records").glob("[!.]*.json")))


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if any("spawn_main" in word for word in child.cmdline())]


WAITS_S = (0.1, 0.3, 0.5)
"""Before each kill. An item is lost after four deaths, so three must not lose any."""


def kill_at_random() -> None:
    draw = random.Random()
    for wait in WAITS_S:
        time.sleep(wait)
        alive = workers_of(psutil.Process())
        if alive:
            draw.choice(alive).kill()


def test_workers_killed_at_random_lose_and_duplicate_nothing(
    root: Path, data: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = threading.Thread(target=kill_at_random)
    start = Pool.client

    def start_both(pool: Pool) -> object:
        client = start(pool)
        if killer.ident is None:
            killer.start()
        return client

    monkeypatch.setattr(Pool, "client", start_both)
    run(data, dicom=root, workers=Workers(3))
    assert not killer.is_alive()
    assert contents(data) == expected


def _kill(process: subprocess.Popen) -> None:
    process.kill()


def _interrupt(process: subprocess.Popen) -> None:
    """Ctrl-C in a terminal: all its processes are told."""
    os.killpg(process.pid, signal.SIGINT)


SENTENCE = "lidc-cdam extract: interrupted; what is finished is kept, and the same command goes on from there.\n"


@pytest.mark.parametrize(
    ("stop", "status"), [(_kill, -signal.SIGKILL), pytest.param(_interrupt, 1, marks=pytest.mark.slow)]
)
def test_a_stopped_command_goes_on(
    root: Path, data: Path, expected: dict[str, bytes], stop: Callable[[subprocess.Popen], None], status: int
) -> None:
    words = [sys.executable, "-m", "lidc_cdam.cli", "extract", "--data", data, "--dicom", root, "--workers", "2"]
    search = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "TMPDIR": str(data.parent)}
    with subprocess.Popen(words, env=search, stderr=subprocess.PIPE, text=True, start_new_session=True) as command:
        limit = time.monotonic() + 60
        while not records(data) and command.poll() is None and time.monotonic() < limit:
            time.sleep(0.001)
        workers = workers_of(psutil.Process(command.pid))
        stop(command)
        _, errors = command.communicate(timeout=30)
    assert command.returncode == status
    assert errors == SENTENCE or status < 0
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert 0 < records(data) < sum(name.startswith("records") for name in expected)
    run(data, dicom=root)
    assert contents(data) == expected


@dataclass(frozen=True, eq=False)
class DeadlyJob(PackJob):
    """A nodule that no process survives."""

    def run(self) -> list:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


@pytest.mark.slow
def test_a_nodule_that_kills_its_workers_is_a_row(data: Path) -> None:
    job = DeadlyJob(data, True, data, {"nodule_id": "LIDC-IDRI-0003_n02", "series_uid": "1.2.3"})
    (rows,) = map_items(run_job, [job], "Dying", Workers(2), lose_job)
    extract.write_failures(data, set(job.nodule_ids), rows)
    (row,) = read_table(data / FAILED, FAILED_COLUMNS, "extract").to_dict("records")
    assert (row["nodule_id"], row["series_uid"]) == ("LIDC-IDRI-0003_n02", "1.2.3")
    assert "ended again and again" in row["reason"]
