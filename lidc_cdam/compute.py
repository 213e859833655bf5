"""Map a function over items: in this process, in others of this machine, on a batch system, on a Dask scheduler.

Items are given out a few at a time and results are passed on as they come, so memory does not grow with their number.
Nothing here decides what a stage writes: its bytes are the same for any number of workers.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from lidc_cdam.clusters import LOCAL, REMOTE, check_engine, client_of, parse_options
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import say, track

Item = TypeVar("Item")
Result = TypeVar("Result")
Lost = Callable[[Item, LidcCdamError], Result]

AHEAD = 3
"""Batches under way per worker: one that is worked on, and two so that it need not wait for the next."""
BATCH, SHARES = 8, 16
"""Most items in a batch, and least batches for each worker: giving one out costs this process 5 ms, a scan a worker
15; and all should finish at about the same time."""
COUNTING_S = 5.0
"""How long a count of a cluster's workers holds."""


@dataclass(frozen=True)
class Workers:
    """Where a stage's items are worked on. The result does not depend on it."""

    workers: int = 1
    """Processes, each on one core, that work side by side; 1 works in this one. On a batch system, jobs."""
    engine: str = LOCAL
    """Where they run: `local`, a batch system (`slurm`, `pbs`, `lsf`, `sge`, `htcondor`; needs `lidc-cdam[cluster]`),
    or the address of a running Dask scheduler (`tcp://host:8786`), which has its own workers."""
    engine_options: tuple[str, ...] = ()
    """NAME=VALUE, several by comma. `memory` of a worker (2GiB); it is ended when it needs more. For a batch system
    also `queue`, `walltime`, `account`, `interface`, `log_directory` and what else dask-jobqueue takes."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            LidcCdamError: a setting is out of range or unknown.
        """
        if self.workers < 1:
            raise LidcCdamError(f"--workers must be at least 1; got {self.workers}.")
        check_engine(self.engine)
        parse_options(self.engine, self.engine_options)


HERE = Workers()
"""In this process."""


class Pool:
    """Workers that start at their first use and serve several maps, so that a stage waits for them once."""

    def __init__(self, workers: Workers) -> None:
        """Nothing is started yet."""
        self.workers = workers
        self._stack = ExitStack()
        self._client: Any = None

    def __enter__(self) -> "Pool":
        """The pool itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers."""
        self._client = None
        self._stack.close()

    @property
    def in_process(self) -> bool:
        """Whether no other process works."""
        return self.workers.engine == LOCAL and self.workers.workers == 1

    def client(self) -> Any:
        """The Dask client, whose cluster is started by the first call."""
        if self._client is None:
            engine, options = self.workers.engine, self.workers.engine_options
            connection = client_of(engine, self.workers.workers, parse_options(engine, options))
            self._client = self._stack.enter_context(connection)
            if engine != LOCAL and not self._client.nthreads():
                say(f"Waiting for workers of {engine}.")
        return self._client


def map_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    label: str,
    workers: Workers | Pool | int = HERE,
    lost: Lost[Item, Result] | None = None,
) -> Iterator[Result]:
    """Results of `function` on each item, **as they finish**, under a progress bar.

    In one process that is the items' order. A function returns its own failures as values (a row with its reason); what
    it raises stops the whole map, here as on a cluster. Items and results must be small and picklable (paths and rows,
    not volumes); files are written by the function itself, each whole or not at all.

    An item whose worker dies is given to another one. When that dies too, the item waits until all others are done and
    is then tried alone, so that no item is blamed for its neighbour; when that fails, it is lost.

    Args:
        function: a top-level function of one item; it may run again on an item that a dead worker had begun.
        items: what to work on.
        label: what the progress bar says.
        workers: where to work; a number means processes of this machine.
        lost: the result of an item whose workers died, from the item and the reason; without it that is an error.

    Raises:
        LidcCdamError: a setting is wrong, the workers cannot be started or reached, or an item is lost.
    """
    with ExitStack() as stack:
        if isinstance(workers, Pool):
            pool = workers
        else:
            pool = stack.enter_context(Pool(workers if isinstance(workers, Workers) else Workers(workers)))
        results = map(function, items) if pool.in_process or not items else _Run(pool, function, lost).results(items)
        yield from track(results, label, total=len(items))


class _Run(Generic[Item, Result]):
    """One map on a cluster."""

    def __init__(self, pool: Pool, function: Callable[[Item], Result], lost: Lost[Item, Result] | None) -> None:
        self._engine = pool.workers.engine
        self._client = pool.client()
        self._asked = pool.workers.workers
        self._call = _Call(function, "" if self._engine == LOCAL else str(Path.cwd()))
        self._lost = lost
        self._counted = (-COUNTING_S, 0)

    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        """Results as they finish; then those of the items that had to be tried alone."""
        suspects: list[Item] = []
        size = min(max(len(items) // (SHARES * self._asked), 1), BATCH)
        yield from self._stream(iter(items), size, suspects)
        for item in suspects:
            again: list[Item] = []
            yield from self._stream(iter([item]), 1, again)
            if again:
                yield self._give_up(item)

    def _stream(self, waiting: Iterator[Item], size: int, suspects: list[Item]) -> Iterator[Result]:
        """Results of items, given out by `size`, as they finish; items whose workers died go to `suspects`."""
        from distributed import KilledWorker, as_completed

        under_way: dict[str, list[Item]] = {}
        finished = as_completed(with_results=True, raise_errors=False)

        def give_out() -> None:
            for _ in range(self._room() - len(under_way)):
                batch = list(islice(waiting, size))
                if not batch:
                    return
                future = self._client.submit(self._call, pickle.dumps(batch), pure=False)
                under_way[future.key] = batch
                finished.add(future)

        try:
            give_out()
            for future, results in finished:
                batch = under_way.pop(future.key)
                give_out()
                if future.status == "finished":
                    yield from results
                elif future.status == "error" and isinstance(results[1], KilledWorker):
                    suspects.extend(batch)
                else:
                    self._raise(future)
        finally:
            finished.clear()

    def _room(self) -> int:
        """How many batches may be under way."""
        since, workers = self._counted
        if time.monotonic() - since >= COUNTING_S:
            workers = sum(self._client.nthreads().values())
            self._counted = (time.monotonic(), workers)
        return AHEAD * max(workers, self._asked)

    def _raise(self, future: Any) -> NoReturn:
        """What stopped a call: its own error, or what Dask says of the workers as a sentence."""
        from concurrent.futures import CancelledError

        try:
            future.result()
        except CancelledError as error:
            raise LidcCdamError(
                f"The scheduler of --engine {self._engine} is gone; start it again and run the same command: it goes "
                f"on from there."
            ) from error
        except (ModuleNotFoundError, RuntimeError) as error:
            foreign = isinstance(error, ModuleNotFoundError) or "deserialization" in str(error)
            if self._engine == LOCAL or not foreign:
                raise
            raise LidcCdamError(
                f"The scheduler and the workers of --engine {self._engine} must have the lidc-cdam of this machine "
                f"installed, but they cannot load it; start them from this Python environment or a copy of it."
            ) from error
        raise RuntimeError(f"a call ended as {future.status!r} without an error")

    def _give_up(self, item: Item) -> Result:
        more = " or give each more memory (--engine-options memory=4GiB)" if not self._engine.startswith(REMOTE) else ""
        error = LidcCdamError(
            f"The process that worked on this was ended again and again, at last when it was the only one at work; "
            f"look at the file or folder for damage{more}, then run the same command again."
        )
        if self._lost is None:
            raise error
        return self._lost(item, error)


@dataclass(frozen=True)
class _Call(Generic[Item, Result]):
    """Calls on a packed batch of items: Dask's scheduler would open and close what it can see, many times."""

    function: Callable[[Item], Result]
    folder: str
    """The folder of the command that asks, so that relative paths mean the same on every machine; empty: it is so."""

    def __call__(self, packed: bytes) -> list[Result]:
        try:
            if self.folder and str(Path.cwd()) != self.folder:
                os.chdir(self.folder)
        except OSError as error:
            raise LidcCdamError(
                f"The workers must see the same folders as this machine, but one has no {self.folder}; start them on "
                f"a shared file system."
            ) from error
        return [self.function(item) for item in pickle.loads(packed)]
