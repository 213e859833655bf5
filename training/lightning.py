"""Lightning as a quiet library: no banners, no files of its own, no settings left behind, Ctrl-C as Ctrl-C."""

import io
import logging
import math
import os
import pickle
import signal
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from lidc_cdam.progress import track

CLAIM = "lidc_cdam_claim"
"""Key of a checkpoint under which it says what training it belongs to."""
LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
NOISE = (
    r"The '(train|val)_dataloader' does not have many workers",
    r"The number of training batches .* is smaller than the logging interval",
    r".*GPU available but not used.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*MPS available but not used.*",
    r"Grad strides do not match bucket view strides",
    r"It is recommended to use `self.log\('val_.*sync_dist=True",
)
"""Advice that does not apply (the images are in memory, nothing is logged, each process has all validation answers, a
class token's gradient is small) and Lightning's own outdated calls."""


@runtime_checkable
class Fitted(Protocol):
    """What a trainer must know of a stage's settings."""

    @property
    def epochs(self) -> int:
        """Passes over the data."""

    @property
    def precision(self) -> str:
        """`auto`, `32-true` or `bf16-mixed`."""

    @property
    def clip_gradient(self) -> float | None:
        """Largest norm of a step's gradient."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's log lines and the advice in `NOISE`."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for pattern in NOISE:
            warnings.filterwarnings("ignore", message=pattern)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def contained() -> Iterator[None]:
    """Leave the process as it was: random state, determinism switches, the handler of Ctrl-C.

    Lightning turns Ctrl-C into `SystemExit` and then ignores the signal; here it stays a `KeyboardInterrupt`.
    """
    deterministic, only_warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    handler = signal.getsignal(signal.SIGINT)
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    except SystemExit as leave:
        if isinstance(leave.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from leave
        raise
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warn)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and handler is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)


OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How PyTorch's own errors say it; on a CPU they are a plain `RuntimeError`."""


@contextmanager
def enough_memory(label: str, batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error of the training inside into a sentence that says which batch to try.

    Raises:
        LidcCdamError: the memory was not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(part in str(error) for part in OUT_OF_MEMORY):
            raise
        smaller = f"--batch-size {batch_size // 2}" if batch_size > 1 else "a smaller --backbone or --image-size"
        place = "GPU" if "CUDA" in str(error) or isinstance(error, torch.OutOfMemoryError) else "machine"
        raise LidcCdamError(
            f"{label} must fit into the {place}'s memory, but batches of {batch_size} do not; try {smaller} with "
            f"another --out, or free memory and run the same command again: it goes on from its last finished epoch."
        ) from error


class Keeper(pl.Callback):
    """Keeps the best validation epoch's weights and the history, and writes all into one file after each epoch.

    The file holds everything that going on needs (weights, optimiser, schedule, epoch, history, best weights), so a run
    killed at any moment goes on from its last finished epoch, with the same result.
    """

    def __init__(self, path: Path, label: str) -> None:
        super().__init__()
        self._path = path
        self._label = label
        self.history: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.best_epoch = -1

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {"history": self.history, "best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what the checkpoint held."""
        self.history, self.best, self.best_epoch = (state_dict[key] for key in ("history", "best", "best_epoch"))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch, keep its weights if they are the best so far, write the checkpoint."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch
        if not (math.isfinite(found["val_loss"]) and math.isfinite(found["train_loss"])):
            raise LidcCdamError(
                f"{self._label} must have a finite loss, but in epoch {epoch} it has none; lower --max-lr."
            )
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        if found["val_loss"] < min((row["val_loss"] for row in self.history), default=math.inf):
            weights = pl_module.chosen.state_dict()  # type: ignore[union-attr]
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            self.best_epoch = epoch
        self.history.append({"epoch": epoch, **found, "learning_rate": rate})
        trainer.save_checkpoint(self._path)

    def read(self, path: Path, claim: str) -> None:
        """Take up what other processes left in a checkpoint of the training that `claim` names."""
        self.load_state_dict(WholeCheckpoint(claim).load_checkpoint(path)["callbacks"][self.state_key])


class Patience(EarlyStopping):
    """Ends a training whose validation loss stays behind its best; one that was ended stays so when it goes on."""

    def __init__(self, epochs: int) -> None:
        # Looks right after validation: after the epoch would be after its checkpoint, whose count would lag behind.
        super().__init__("val_loss", patience=epochs, check_finite=False, check_on_train_epoch_end=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End at once what an earlier process had ended."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class WholeCheckpoint(CheckpointIO):
    """Checkpoints that are whole or absent, lie only where they are told to, and are read without unpickling code."""

    def __init__(self, claim: str = "") -> None:
        """Take what checkpoints belong to: a digest of the configuration, the inputs and the fold."""
        super().__init__()
        self._claim = claim

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; a full disk is an `OSError`, as with any other file."""
        stored = io.BytesIO()
        torch.save({**checkpoint, CLAIM: self._claim}, stored)
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(stored.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            LidcCdamError: it is damaged, or belongs to another training.
        """
        try:
            found = torch.load(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
            raise LidcCdamError(
                f"{path} must be the checkpoint of an interrupted training, but it is damaged; "
                f"delete it and run the same command again."
            ) from error
        if found.get(CLAIM) != self._claim:
            raise LidcCdamError(
                f"{path} must be the checkpoint of this training, but it belongs to other settings, data or another "
                f"fold; put the right one back, or delete it and run the same command again."
            )
        return dict(found)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class EpochBar(pl.Callback):
    """A progress bar over the epochs, on a terminal."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label
        self._ticks: Generator[int, None, None] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, that of the first process alone."""
        if not trainer.is_global_zero:
            return
        self._ticks = track(range(trainer.current_epoch, trainer.max_epochs or 0), self._label)  # type: ignore[assignment]
        next(self._ticks, None)  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One epoch on."""
        if self._ticks is not None:
            next(self._ticks, None)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._ticks is not None:
            self._ticks.close()


def precision(settings: Fitted) -> str:
    """The arithmetic that `auto` stands for on this machine."""
    if settings.precision != "auto":
        return settings.precision
    # Older GPUs only imitate bf16, which is slower than float32.
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if able else "32-true"


def build_trainer(
    settings: Fitted,
    callbacks: list[pl.Callback],
    folder: Path,
    loggers: Sequence[Logger] = (),
    claim: str = "",
    devices: int = 1,
) -> pl.Trainer:
    """A Lightning trainer that writes nothing of its own but what the loggers write.

    Args:
        settings: epochs, precision, clipping.
        callbacks: what listens.
        folder: its root.
        loggers: where else curves go.
        claim: marks its checkpoints.
        devices: how many share each batch; for more than one, this is one of as many processes.
    """
    return pl.Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp",
        precision=precision(settings),  # type: ignore[arg-type]
        max_epochs=settings.epochs,
        callbacks=callbacks,
        # Inside a batch job of several tasks, Lightning would take this process for the part of one.
        plugins=[WholeCheckpoint(claim), LightningEnvironment()],
        default_root_dir=folder,
        logger=list(loggers) or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        gradient_clip_val=settings.clip_gradient,
        deterministic="warn",
        benchmark=False,
    )
