"""One fold on several devices: a process each, as Lightning's DDP takes them, and what they tell one another."""

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch import Tensor
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from lidc_cdam.errors import LidcCdamError

DONE = ""
"""What the first process says at its end; anything else is why there is none."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_devices(devices: int) -> None:
    """Refuse, before any training, more devices than this machine has.

    Raises:
        LidcCdamError: the number is below 1, or above that of the GPUs or, without a GPU, of the CPU cores.
    """
    gpus = torch.cuda.device_count()
    most, kind = (gpus, "GPUs") if gpus else (cores(), "CPU cores (there is no GPU)")
    if not 1 <= devices <= most:
        raise LidcCdamError(f"--devices must be 1 to {most}, the {kind} that this process may use; got {devices}.")


def processes() -> int:
    """How many processes train this fold together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def place() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def mean_over_processes(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean of each process's value; without others, the value itself."""
    if processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / processes()


def sum_over_processes(number: int, device: torch.device) -> int:
    """The sum of each process's number; without others, the number itself."""
    if processes() == 1:
        return number
    total = torch.tensor(number, device=device)
    dist.all_reduce(total)
    return int(total)


def rows_of_all(rows: Shaped[Tensor, "row *shape"]) -> Shaped[Tensor, "all_rows *shape"]:
    """The rows of all processes, the first's first; their numbers may differ."""
    if processes() == 1:
        return rows
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, rows.cpu())
    return torch.cat(found).to(rows.device)


def run_on_devices(work: Callable[..., None], devices: int, label: str, *arguments: Any) -> None:
    """Call a function in one process for each device and wait for all; none of them outlives the call.

    Args:
        work: a top-level function; with `LOCAL_RANK` set, Lightning takes the process it runs in for one of several.
        devices: how many.
        label: what the work is, for an error.
        arguments: of the function; they must be picklable.

    Raises:
        LidcCdamError: what the work raised in one of them, or a process was ended from outside.
    """
    told = get_context("spawn").SimpleQueue()
    shared = (find_free_network_port(), told, work, arguments)
    group = start_processes(  # type: ignore[no-untyped-call]
        _part, shared, nprocs=devices, join=False, start_method="spawn"
    )
    try:
        while not group.join():
            pass
    except ProcessExitedException as error:
        if told.empty():
            raise LidcCdamError(
                f"{label} needs all of its {devices} processes, but one was ended ({_ending(error)}); see that the "
                f"machine has memory for all, and run the same command again: it goes on from its last finished epoch."
            ) from error
    finally:
        for process in group.processes:
            process.kill()
            process.join()
    # A process that Ctrl-C reached ends without a word.
    reason = None if told.empty() else told.get()
    if reason is None:
        raise KeyboardInterrupt
    if reason != DONE:
        raise LidcCdamError(reason)


def _ending(error: ProcessExitedException) -> str:
    return error.signal_name or f"status {error.exit_code}"


def _part(rank: int, port: int, told: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work(*arguments)
    except LidcCdamError as error:
        told.put(str(error))
        raise SystemExit(1) from error
    if rank == 0:
        told.put(DONE)
