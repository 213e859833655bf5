"""Folds side by side: each is a `train` command of its own, on this machine or on a cluster."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lidc_cdam.artifacts import CONFIG, SPLITS, fold_folder
from lidc_cdam.clusters import LOCAL, THREADS
from lidc_cdam.compute import Workers, map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import held
from lidc_cdam.progress import say
from training.devices import cores
from training.fit import told_fold
from training.run import Run

LOG = "train.log"
"""What a fold's own command said, in the fold's folder."""
CORES = ("SLURM_CPUS_PER_TASK", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")
"""Variables in which batch systems say how many cores a job has."""
BATCH_SYSTEM = "SLURM_"
"""Variables that begin so make Lightning take a fold for a part of a larger training."""
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class FoldTask:
    """What a worker must know to train one fold."""

    index: int
    words: tuple[str, ...]
    """The command line after `lidc-cdam`."""
    out: str
    threads: int | None
    """Of the fold's process; none leaves it to the job's share of its machine."""
    devices: int = 1
    """That share its batches."""


@dataclass(frozen=True)
class FoldEnd:
    """How a fold's command ended."""

    index: int
    reason: str = ""
    """Why it failed, in its own sentence; empty if it did not."""


def train_side_by_side(run: Run, pending: Sequence[int], workers: Workers, splits: Path | None) -> None:
    """Train folds, `workers` at a time; those that end well are kept when another one fails.

    Args:
        run: the run; its folder is claimed and holds `config.yaml`.
        pending: the folds, from 0.
        workers: how many at a time, and where.
        splits: file of folds; that of the data folder by default.

    Raises:
        LidcCdamError: a fold failed; the others were trained nevertheless.
    """
    threads = max(1, cores() // (workers.workers * run.devices)) if workers.engine == LOCAL else None
    tasks = [
        FoldTask(index, _words(run, index, splits), str(run.out.resolve()), threads, run.devices) for index in pending
    ]
    failed = []
    for end in map_items(train_in_child, tasks, "Training folds", workers, _lost):
        if end.reason:
            failed.append(end)
        else:
            say(f"{told_fold(run, end.index)}.")
    if failed:
        first = min(failed, key=lambda end: end.index)
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        log = fold_folder(run.out, first.index) / LOG
        raise LidcCdamError(f"Fold {first.index}{others} failed: {first.reason} Its log is {log}.")


def _words(run: Run, index: int, splits: Path | None) -> tuple[str, ...]:
    options = {
        "config": run.out / CONFIG,
        "data": run.data,
        "splits": splits or run.data / SPLITS,
        "out": run.out,
    }
    words = [f"--{name}={path.resolve()}" for name, path in options.items()]
    log = [f"--log={','.join(run.log)}"] if run.log else []
    return ("train", *words, *log, f"--devices={run.devices}", f"--fold={index}")


def _lost(task: FoldTask, error: LidcCdamError) -> FoldEnd:
    return FoldEnd(task.index, str(error))


def train_in_child(task: FoldTask) -> FoldEnd:
    """Run a fold's command to its end; it goes on where an earlier one was interrupted."""
    folder = fold_folder(Path(task.out), task.index)
    folder.mkdir(parents=True, exist_ok=True)
    with own_gpus(Path(task.out), task.devices) as gpus, (folder / LOG).open("a") as log:
        surroundings = child_environment(os.environ, task.threads, gpus)
        command = [sys.executable, "-m", "training.child", *task.words]
        # The pipe is never written to: its end tells the child that this process is gone.
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=surroundings) as child:
            # `wait` and not `communicate`, which would close the pipe.
            status = child.wait()
    if status == 0:
        return FoldEnd(task.index)
    said = (folder / LOG).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    sentence = said[-1].removeprefix("lidc-cdam train: ")
    return FoldEnd(task.index, sentence if status == 1 else f"its process ended with status {status}: {sentence}")


def child_environment(around: Mapping[str, str], threads: int | None, gpus: str | None) -> dict[str, str]:
    """The variables of a fold's process.

    Args:
        around: those of the worker.
        threads: how many the fold may use; by default what the batch system gave to the job, else one.
        gpus: the GPUs that it may see, separated by commas; none changes nothing.
    """
    kept = {name: value for name, value in around.items() if not name.startswith(BATCH_SYSTEM)}
    given = next((around[name] for name in CORES if around.get(name, "").isdecimal()), "1")
    kept |= dict.fromkeys(THREADS, str(threads or given))
    root = str(Path(__file__).resolve().parents[1])
    kept["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [around.get("PYTHONPATH")])])
    return kept if gpus is None else {**kept, GPUS: gpus}


@contextmanager
def own_gpus(out: Path, devices: int = 1) -> Iterator[str | None]:
    """GPUs that no other fold of this run and machine holds; None where there are not more, or too few are free."""
    count = torch.cuda.device_count()
    names = os.environ.get(GPUS, "").split(",") if os.environ.get(GPUS) else list(map(str, range(count)))
    with ExitStack() as stack:
        mine: list[str] = []
        for name in names if count > devices else ():
            if stack.enter_context(held(out, name=f".gpu-{os.uname().nodename}-{name}")):
                mine.append(name)
            if len(mine) == devices:
                break
        if len(mine) < devices:
            stack.close()
        yield ",".join(mine) if len(mine) == devices else None
