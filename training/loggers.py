"""Where else a training's curves go; `history.csv` holds them always."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lidc_cdam.errors import LidcCdamError

PROJECT = "lidc-cdam"


def _tensorboard(folder: Path, name: str, settings: dict[str, Any]) -> Logger:
    return TensorBoardLogger(folder, name="", version="tensorboard", log_graph=False)


def _mlflow(folder: Path, name: str, settings: dict[str, Any]) -> Logger:
    place = folder.resolve()
    logger = MLFlowLogger(
        PROJECT,
        run_name=name,
        tracking_uri=f"sqlite:///{place / 'mlflow.db'}",
        artifact_location=(place / "mlflow").as_uri(),
    )
    logger.log_hyperparams(settings)
    return logger


def _wandb(folder: Path, name: str, settings: dict[str, Any]) -> Logger:
    import wandb

    # Lightning's own call also sets what W&B warns of.
    run = wandb.init(project=PROJECT, name=name, dir=folder, config=settings, mode="offline")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run)


LOGGERS: dict[str, Callable[[Path, str, dict[str, Any]], Logger]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
"""How to build each in a fold's folder; all write files there and send nothing."""


def surroundings(folder: Path) -> dict[str, str]:
    """Variables that keep MLflow and W&B quiet and in a fold's folder; by default both report their own use."""
    inside = str((folder / "wandb").resolve())
    kept = dict.fromkeys(("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"), inside)
    quiet = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    unseen = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true"}
    return kept | quiet | unseen | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@contextmanager
def open_loggers(names: Sequence[str], folder: Path, title: str, settings: dict[str, Any]) -> Iterator[list[Logger]]:
    """The loggers of one fold, closed at the end.

    Args:
        names: keys of `LOGGERS`.
        folder: where their files go.
        title: what they call the training.
        settings: what they note beside it.
    """
    with _variables(surroundings(folder) if names else {}):
        loggers = [LOGGERS[name](folder, title, settings) for name in names]
        try:
            yield loggers
        finally:
            if "wandb" in names:
                import wandb

                wandb.finish()
                wandb.teardown()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables, and at the end have all as they were: both packages also set some of their own."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def check_loggers(names: Sequence[str]) -> None:
    """Refuse, before any training, what could not be logged to.

    Raises:
        LidcCdamError: a logger is unknown, or its package (of the same name) is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise LidcCdamError(f"--log must name any of {', '.join(LOGGERS)}; got {name!r}.")
        if find_spec(name) is None:
            raise LidcCdamError(
                f"--log {name} needs the package {name}, which is not installed; run `pip install lidc-cdam[log]`."
            )
