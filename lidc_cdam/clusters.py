"""Dask clusters: processes of this machine, jobs of a batch system, or a scheduler that runs already.

Workers hold no data between items, so Dask's spilling, pausing and profiling are off; what is left of its memory
management is the honest part: a worker that outgrows its limit is ended, and `compute` counts that as its death.
"""

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidc_cdam.errors import LidcCdamError

LOCAL = "local"
REMOTE = "tcp://"
SILENT = logging.CRITICAL + 1
LOGGING = ("distributed", "dask_jobqueue", "tornado", "asyncio")
CONNECT_S = 10
"""How long to wait for a running scheduler."""
ALLOWED_DEATHS = 1
"""Deaths of its worker after which an item is still given to another one right away."""
DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""What a worker runs first: Ctrl-C reaches all processes of a terminal, but it is this one that ends the others."""
SCHEDULER = {"dashboard": False, "allowed_failures": ALLOWED_DEATHS}
ANY_PORT = ":0"
"""Dask's web port even without a dashboard; its usual one may be another user's."""
MEMORY = "2GiB"
"""Of a worker, unless `memory=` says otherwise; extraction has been seen to need an eighth of it."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
"""Variables that hold a library to one thread: a worker is one of many and uses one core."""


@dataclass(frozen=True)
class Batch:
    """One batch system that dask-jobqueue can talk to."""

    cluster: str
    """dask-jobqueue's class."""
    submit: str
    """The command that submits a job."""
    options: tuple[str, ...]
    """Its own options, beside those of every batch system."""


BATCHES: dict[str, Batch] = {
    "slurm": Batch("SLURMCluster", "sbatch", ("queue", "account", "walltime", "job_cpu", "job_mem")),
    "pbs": Batch("PBSCluster", "qsub", ("queue", "account", "walltime", "resource_spec")),
    "lsf": Batch("LSFCluster", "bsub", ("queue", "project", "walltime", "ncpus", "mem", "lsf_units")),
    "sge": Batch("SGECluster", "qsub", ("queue", "project", "walltime", "resource_spec")),
    "htcondor": Batch("HTCondorCluster", "condor_submit", ("disk",)),
}
SHARED = "shared_temp_directory"
"""With this option the connections of a batch system's jobs are encrypted and need a key; the keys lie there."""
WHOLE_NUMBERS = ("cores", "processes", "death_timeout", "ncpus", "mem", "job_cpu")
LISTS = ("job_extra_directives", "job_script_prologue", "worker_extra_args", "job_directives_skip")
"""Options that may be given several times."""
EVERY_BATCH = (
    *("memory", "cores", "processes", "death_timeout"),
    *("interface", "host", "python", "local_directory", "log_directory", SHARED, "job_name"),
    *LISTS,
)
DEFAULTS: dict[str, Any] = {"memory": MEMORY, "cores": 1, "processes": 1, "log_directory": "/tmp"}
"""One worker a job. A job's output goes to its node's /tmp, not into the current folder."""


def check_engine(engine: str) -> None:
    """Refuse an engine that does not exist or cannot be used from here, before a stage begins its work.

    Raises:
        LidcCdamError: it is neither local, a batch system nor an address; or a batch system's command, or
            dask-jobqueue, is missing.
    """
    if engine in BATCHES:
        submit = BATCHES[engine].submit
        if importlib.util.find_spec("dask_jobqueue") is None:
            raise LidcCdamError(
                f"--engine {engine} needs the package dask-jobqueue; install it with `pip install lidc-cdam[cluster]`."
            )
        if shutil.which(submit) is None:
            raise LidcCdamError(
                f"--engine {engine} must be started where jobs can be submitted, but there is no command {submit!r} "
                f"here; log in to the cluster's submit host, or choose --engine local."
            )
    elif engine != LOCAL and not engine.startswith(REMOTE):
        raise LidcCdamError(
            f"--engine must be {LOCAL}, {', '.join(BATCHES)} or the address of a Dask scheduler "
            f"({REMOTE}host:8786); got {engine!r}."
        )


def parse_options(engine: str, options: Sequence[str]) -> dict[str, Any]:
    """Values of `--engine-options` by name.

    Args:
        engine: `local`, a batch system or an address.
        options: NAME=VALUE each.

    Raises:
        LidcCdamError: an option has no value, a wrong one, or a name that the engine does not have.
    """
    known = EVERY_BATCH + BATCHES[engine].options if engine in BATCHES else ("memory",) if engine == LOCAL else ()
    values: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if name not in known or not equals or not text:
            names = f"be NAME=VALUE with a NAME of {', '.join(known)}" if known else "be left out"
            raise LidcCdamError(f"--engine-options must {names} for --engine {engine}; got {option!r}.")
        value = _value(name, text)
        values[name] = [*values.get(name, ()), value] if name in LISTS else value
    return values


def _value(name: str, text: str) -> str | int:
    if name in WHOLE_NUMBERS:
        if not text.isdecimal() or int(text) < 1:
            raise LidcCdamError(f"{name} of --engine-options must be a whole number of at least 1; got {text!r}.")
        return int(text)
    if name in ("memory", "disk"):
        from dask.utils import parse_bytes

        try:
            enough = parse_bytes(text) >= 1 << 20
        except ValueError:
            enough = False
        if not enough:
            raise LidcCdamError(f"{name} of --engine-options must be a size with its unit, such as 4GiB; got {text!r}.")
    return text


@contextmanager
def client_of(engine: str, workers: int, options: Mapping[str, Any]) -> Iterator[Any]:
    """A Dask client whose cluster lasts as long as the block.

    Args:
        engine: `local`, a batch system or an address.
        workers: how many to start; a running scheduler has its own.
        options: as `parse_options` gives them.

    Raises:
        LidcCdamError: the cluster cannot be started or reached.
    """
    import dask
    from distributed import Client

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lidc-cdam-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set(_settings(scratch)))
        if engine.startswith(REMOTE):
            yield stack.enter_context(_reached(engine))
            return
        start = _local if engine == LOCAL else _batch
        cluster = stack.enter_context(start(engine, workers, options))
        yield stack.enter_context(Client(cluster))


def _settings(scratch: str) -> dict[str, Any]:
    """Dask's settings for workers that compute rather than store."""
    never = {f"distributed.worker.memory.{step}": False for step in ("target", "spill", "pause")}
    threads = {f"distributed.nanny.pre-spawn-environ.{name}": 1 for name in THREADS}
    return {
        **never,
        **threads,
        "temporary-directory": scratch,
        # A worker may itself start processes (a data loader), which a daemonic one must not.
        "distributed.worker.daemon": False,
        "distributed.worker.profile.enabled": False,
        "distributed.worker.preload": [DEAF],
        "distributed.worker.http.routes": [],
        "distributed.scheduler.http.routes": [],
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask reports each worker's death on screen; here the worker is replaced, and an item it cost is a row."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in LOGGING]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(SILENT)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _local(engine: str, workers: int, options: Mapping[str, Any]) -> Any:
    from distributed import LocalCluster

    try:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=options.get("memory", MEMORY),
            # Other users of this machine must not be able to give it work.
            security=True,
            silence_logs=SILENT,
            dashboard_address=ANY_PORT,
            scheduler_kwargs=SCHEDULER,
        )
    except (RuntimeError, TimeoutError, OSError) as error:
        raise LidcCdamError(
            f"The {workers} processes of --workers could not be started ({error}); choose fewer of them, or give each "
            f"more memory (--engine-options memory=4GiB)."
        ) from error
    _keep(cluster, workers)
    return cluster


def _keep(cluster: Any, workers: int) -> None:
    """Replace workers that are gone for good: jobs at their wall time, processes that died while they started."""
    cluster.adapt(minimum=workers, maximum=workers)


@contextmanager
def _batch(engine: str, workers: int, options: Mapping[str, Any]) -> Iterator[Any]:
    with ExitStack() as stack:
        if SHARED in options:
            keys = stack.enter_context(tempfile.TemporaryDirectory(prefix=".lidc-cdam-", dir=options[SHARED]))
            options = {**options, SHARED: keys}
        cluster = stack.enter_context(batch_cluster(engine, options))
        _keep(cluster, workers)
        yield cluster


def batch_cluster(engine: str, options: Mapping[str, Any]) -> Any:
    """The cluster of a batch system, without any job yet.

    Raises:
        LidcCdamError: dask-jobqueue refuses an option.
    """
    batch = BATCHES[engine]
    chosen = {**DEFAULTS, **({"disk": MEMORY} if "disk" in batch.options else {}), **options}
    scheduler = {**SCHEDULER, "dashboard_address": ANY_PORT}
    if "host" in chosen:
        scheduler["host"] = chosen.pop("host")
    if SHARED in chosen:
        chosen["security"] = _encryption(Path(chosen[SHARED]))
    pinned = [f"export {name}=1" for name in THREADS]
    chosen["job_script_prologue"] = [*pinned, *chosen.get("job_script_prologue", ())]
    start = getattr(_dask_jobqueue(), batch.cluster)
    try:
        return start(**chosen, scheduler_options=scheduler, silence_logs=SILENT)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or ["no message"])[0]
        raise LidcCdamError(f"--engine {engine} could not be started with these --engine-options: {reason}") from error


def _encryption(folder: Path) -> Any:
    """Keys of this run, in a folder that all nodes see and nobody else reads."""
    from distributed.security import Security

    made = Security.temporary()
    roles = ("client", "scheduler", "worker")
    texts = {"ca_file": made.tls_ca_file, "key": made.tls_worker_key, "cert": made.tls_worker_cert}
    for name, text in texts.items():
        (folder / name).write_text(text)
    pairs = {f"tls_{role}_{part}": str(folder / part) for role in roles for part in ("key", "cert")}
    return Security(require_encryption=True, tls_ca_file=str(folder / "ca_file"), **pairs)


def _dask_jobqueue() -> Any:
    """The package, without the file that its import writes into the home folder."""
    import dask

    home = dask.config.PATH
    with tempfile.TemporaryDirectory() as elsewhere:
        dask.config.PATH = elsewhere
        try:
            return importlib.import_module("dask_jobqueue")
        finally:
            dask.config.PATH = home


def _reached(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise LidcCdamError(
            f"--engine must be the address of a running Dask scheduler, but {address} did not answer within "
            f"{CONNECT_S} seconds; start one with `dask scheduler`, or choose --engine local."
        ) from error
