"""What a sweep draws from: a range per setting, read from YAML."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml

from lidc_cdam.backbones import build_backbone
from lidc_cdam.configuration import bundled
from lidc_cdam.errors import LidcCdamError
from training.settings import TrainingSettings

FOLDER = "sweep"
ALL = "all"
"""As `high` of `trainable_layers`: the number of the backbone's parameter tensors."""
TEXTS = ("targets", "backbone", "weights", "seed")
"""Settings that say what is compared, and so cannot be drawn."""


@dataclass(frozen=True)
class Range:
    """The values of one setting: `choices`, or what lies from `low` to `high`."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    """Whether the logarithm is drawn evenly."""
    choices: tuple[Any, ...] = ()

    def draw(self, trial: optuna.Trial, name: str) -> Any:
        """One value, by the trial's sampler."""
        if self.choices:
            return trial.suggest_categorical(name, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, float(self.low or 0), float(self.high or 0), log=self.log)

    def as_dict(self) -> dict[str, Any]:
        """For the record of a sweep."""
        return asdict(self)


def read_space(space: str, settings: TrainingSettings) -> dict[str, Range]:
    """The ranges of a bundled space, or of a YAML file.

    Args:
        space: name of a file under `configs/sweep`, or a path.
        settings: what the trials have in common; its backbone tells what `high: all` means.

    Raises:
        LidcCdamError: the file is missing, is not YAML, or holds an unknown setting or a wrong range.
    """
    given = Path(space)
    path = given if given.suffix in (".yaml", ".yml") else bundled(FOLDER, space)
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LidcCdamError(
            f"--space names {path}, which cannot be read ({error.strerror}); give a YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LidcCdamError(
            f"--space {path} must be YAML, but it cannot be read ({' '.join(str(error).split())})."
        ) from error
    if not isinstance(stored, dict) or not stored:
        raise LidcCdamError(
            f"--space {path} must hold settings with ranges (`dropout: {{low: 0, high: 0.1}}`); mend it."
        )
    return {str(name): _range(path, str(name), values, settings) for name, values in stored.items()}


def _range(path: Path, name: str, values: Any, settings: TrainingSettings) -> Range:
    known = [field.name for field in fields(TrainingSettings) if field.name not in TEXTS]
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0)[0]
        raise LidcCdamError(f"--space {path} has the unknown setting {name!r}; the nearest known one is {near!r}.")
    keys = set(values) if isinstance(values, Mapping) else set()
    if keys == {"choices"} and isinstance(values["choices"], list) and values["choices"]:
        return Range(choices=tuple(values["choices"]))
    if not {"low", "high"} <= keys <= {"low", "high", "log"}:
        raise LidcCdamError(
            f"--space {path} must give {name} as {{low: 0, high: 1}}, {{low: 1, high: 10, log: true}} or "
            f"{{choices: [1, 2]}}; got {values!r}."
        )
    high = _tensors(settings) if values["high"] == ALL and name == "trainable_layers" else values["high"]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (values["low"], high))
    if not numbers or values["low"] > high or (values.get("log") and values["low"] <= 0):
        raise LidcCdamError(
            f"--space {path} must give {name} numbers with low <= high (above 0 where log is true); got {values!r}."
        )
    return Range(values["low"], high, bool(values.get("log", False)))


def _tensors(settings: TrainingSettings) -> int:
    """Parameter tensors of the backbone; built without memory."""
    with torch.device("meta"):
        return len(list(build_backbone(settings.backbone, None, settings.image_size).parameters()))
