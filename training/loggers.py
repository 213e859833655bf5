"""Where else a training's curves go; `history.csv` holds them always."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lidc_cdam.errors import LidcCdamError


def _tensorboard(folder: Path, name: str, settings: dict[str, Any]) -> Logger:
    return TensorBoardLogger(folder, name="", version="tensorboard", log_graph=False)


def _mlflow(folder: Path, name: str, settings: dict[str, Any]) -> Logger:
    logger = MLFlowLogger("lidc-cdam", run_name=name, tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    logger.log_hyperparams(settings)
    return logger


def _wandb(folder: Path, name: str, settings: dict[str, Any]) -> Logger:
    return WandbLogger(name=name, save_dir=folder, project="lidc-cdam", offline=True, config=settings)


LOGGERS: dict[str, Callable[[Path, str, dict[str, Any]], Logger]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
"""How to build each in a fold's folder; all write files there and send nothing."""


def build_loggers(names: Sequence[str], folder: Path, title: str, settings: dict[str, Any]) -> list[Logger]:
    """The loggers of one fold.

    Args:
        names: keys of `LOGGERS`.
        folder: where their files go.
        title: what they call the training.
        settings: what they note beside it.

    """
    return [LOGGERS[name](folder, title, settings) for name in names]


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
