"""The one place that knows Dask: map a function over items, here or on a local or foreign cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_items(
    function: Callable[[Item], Result], items: Sequence[Item], label: str, workers: int = 1, engine: str = "local"
) -> Iterator[Result]:
    """Results of `function` on each item, **as they finish**, under a progress bar.

    With one worker that is the items' order. A function returns its own failures as values (a row with its reason);
    what it raises stops the whole map, here as on a cluster. Items and results must be small and picklable (paths and
    rows, not volumes); files are written by the function itself.

    Args:
        function: a top-level function of one item.
        items: what to work on.
        label: what the progress bar says.
        workers: processes; 1 works in this one.
        engine: `local`, or the address of a running Dask scheduler (`tcp://host:8786`).

    Raises:
        LidcCdamError: `workers` is below 1 or `engine` is unknown.
    """
    if workers < 1:
        raise LidcCdamError(f"--workers must be at least 1; got {workers}.")
    if engine != "local" and not engine.startswith("tcp://"):
        raise LidcCdamError(
            f"--engine must be `local` or the address of a Dask scheduler (tcp://host:8786); got {engine!r}."
        )
    if engine == "local" and (workers == 1 or len(items) < 2):
        yield from track(map(function, items), label, total=len(items))
        return
    with _client(workers, engine) as client:
        yield from track(_as_completed(client, function, items), label, total=len(items))


def _as_completed(client: Any, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    from distributed import as_completed

    futures = client.map(function, list(items), pure=False)
    for future in as_completed(futures):
        yield future.result()


@contextmanager
def _client(workers: int, engine: str) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    # A worker may itself start processes (a data loader), which a daemonic one must not.
    with dask.config.set({"distributed.worker.daemon": False}):
        if engine != "local":
            with Client(engine) as client:
                yield client
            return
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=50
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
