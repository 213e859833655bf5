import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from lidc_cdam import clusters
from lidc_cdam.clusters import BATCHES, batch_cluster, parse_options
from lidc_cdam.compute import Workers, map_items
from lidc_cdam.errors import LidcCdamError

SBATCH = """#!/bin/sh
cp "$1" {folder}/job.sh
(cd / && exec sh {folder}/job.sh) > {folder}/job.log 2>&1 < /dev/null &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
echo "$1" >> {folder}/cancelled
kill "$1"
"""


def where(value: int) -> tuple[int, str]:
    time.sleep(0.02)
    return os.getpid(), str(Path.cwd())


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `sbatch` runs a job here and now, and whose other submit commands do nothing."""
    folder = tmp_path / "commands"
    folder.mkdir()
    scripts = dict.fromkeys((batch.submit for batch in BATCHES.values()), "#!/bin/sh\nexit 1\n")
    for name, text in {**scripts, "sbatch": SBATCH, "scancel": SCANCEL}.items():
        path = folder / name
        path.write_text(text.format(folder=folder))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    # A job finds the code under test as this process does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry))
    return folder


def script(engine: str, *options: str) -> str:
    with batch_cluster(engine, parse_options(engine, options)) as cluster:
        return str(cluster.job_script())


EXPECTED = {
    "slurm": ("#SBATCH -p long", "#SBATCH -t 02:00:00", "#SBATCH --mem=4G", "#SBATCH --cpus-per-task=1"),
    "pbs": ("#PBS -q long", "#PBS -l walltime=02:00:00", "ncpus=1:mem=4096MB"),
    "lsf": ("#BSUB -q long", "#BSUB -W 02:00:00", "#BSUB -n 1"),
    "sge": ("#$ -q long", "#$ -l h_rt=02:00:00"),
}


@pytest.mark.parametrize("engine", EXPECTED)
def test_job_scripts(engine: str) -> None:
    made = script(engine, "memory=4GiB", "interface=lo", "queue=long", "walltime=02:00:00", "log_directory=/var/tmp")
    for line in (*EXPECTED[engine], "export OMP_NUM_THREADS=1", "--nthreads 1", "--memory-limit 4.00GiB", "/var/tmp"):
        assert line in made


def test_the_script_of_htcondor() -> None:
    made = script("htcondor", "interface=lo", "disk=1GiB")
    assert "MY.DaskWorkerMemory = 2147483648" in made
    assert "MY.DaskWorkerDisk = 1073741824" in made


def test_options_that_may_be_repeated() -> None:
    made = script("slurm", "interface=lo", "job_extra_directives=--exclusive", "job_extra_directives=--gres=gpu:1")
    assert "#SBATCH --exclusive\n#SBATCH --gres=gpu:1" in made


@pytest.mark.parametrize("folder", ["", pytest.param("keys", marks=pytest.mark.slow)])
def test_a_batch_system_works(commands: Path, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = ["interface=lo", f"log_directory={tmp_path / 'logs'}"]
    if folder:
        (tmp_path / folder).mkdir()
        options.append(f"shared_temp_directory={tmp_path / folder}")
    results = list(map_items(where, range(12), "Looking", Workers(1, "slurm", tuple(options))))
    ((worker, cwd),) = set(results)
    assert len(results) == 12
    assert worker != os.getpid()
    assert Path(cwd) == Path.cwd()
    assert (commands / "cancelled").read_text().strip().isdigit()
    assert ("tls://" in (commands / "job.sh").read_text()) == bool(folder)
    assert not (tmp_path / "home").exists()


def test_a_batch_system_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LidcCdamError, match=r"where jobs can be submitted, but there is no command 'bsub' here"):
        Workers(engine="lsf")


def test_without_dask_jobqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dask_jobqueue" else found(name))
    with pytest.raises(LidcCdamError, match=r"--engine slurm needs .*; install it with `pip install lidc-cdam\[clus"):
        Workers(engine="slurm")


@pytest.mark.parametrize("option", ["cores=0", "processes=few", "queu=long", "memory=much", "disk=2GiB"])
def test_wrong_options_of_a_batch_system(option: str) -> None:
    with pytest.raises(LidcCdamError, match=r"--engine-options must .*; got"):
        parse_options("slurm", [option])


def test_an_option_that_the_batch_system_refuses() -> None:
    with pytest.raises(LidcCdamError, match=r"--engine slurm could not be started with these --engine-options: .*nope"):
        batch_cluster("slurm", {"interface": "nope"})


@pytest.fixture
def scheduler() -> Iterator[str]:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, protocol="tcp", dashboard_address="127.0.0.1:0", silence_logs=60
    ) as cluster:
        yield cluster.scheduler_address


def test_a_running_scheduler(scheduler: str) -> None:
    ((worker, _),) = set(map_items(where, range(5), "Looking", Workers(engine=scheduler)))
    assert worker != os.getpid()


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CONNECT_S", 1)
    with pytest.raises(LidcCdamError, match=r"tcp://127.0.0.1:9 did not answer within 1 seconds"):
        list(map_items(where, [1], "Looking", Workers(engine="tcp://127.0.0.1:9")))
