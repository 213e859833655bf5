"""Which nodules make a cohort: the settings of a preset, read from YAML and from a finished cohort's record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lidc_cdam import provenance
from lidc_cdam.configuration import bundled
from lidc_cdam.errors import LidcCdamError

STAGE = "cohort"
INDETERMINATE = 3
"""The middle of the malignancy scale: what falls on it has no label."""

LABEL_RULES: dict[str, Callable[[Sequence[int]], float]] = {
    "median": lambda codes: float(np.median(codes)),
    "mean": lambda codes: float(np.mean(codes)),
}
"""How one malignancy comes from the readers' codes; below 3 is benign, above 3 malignant."""


@dataclass(frozen=True)
class Selection:
    """The rules of a cohort."""

    min_readers: int = 3
    """Fewest readers of a nodule."""
    max_readers: int = 4
    """Most readers; a cluster of more than four is several nodules that could not be told apart."""
    label_rule: str = "median"
    """Row of `LABEL_RULES`."""
    first_scan_only: bool = False
    """Whether a patient's second scan is left out."""
    require_crop_inside: bool = False
    """Whether a nodule whose 32 mm cube leaves the scan is left out."""
    allow_padding: bool = True
    """Whether extraction may fill voxels outside what was read; else such a nodule fails."""
    excluded_series: Mapping[str, str] = field(default_factory=dict)
    """Patients whose series are left out, each with the reason."""

    def __post_init__(self) -> None:
        """Refuse a value of the wrong kind or range.

        Raises:
            LidcCdamError: with the key, what it must be and what it was.
        """
        for name in ("min_readers", "max_readers"):
            self._require(name, type(getattr(self, name)) is int, "a whole number")
        self._require("min_readers", self.min_readers >= 1, "at least 1")
        self._require("max_readers", self.max_readers >= self.min_readers, f"at least min_readers ({self.min_readers})")
        for name in ("first_scan_only", "require_crop_inside", "allow_padding"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        self._require(
            "label_rule",
            isinstance(self.label_rule, str) and self.label_rule in LABEL_RULES,
            f"one of {', '.join(LABEL_RULES)}",
        )
        series = self.excluded_series
        plain = isinstance(series, Mapping) and all(isinstance(text, str) for pair in series.items() for text in pair)
        self._require("excluded_series", plain, "a mapping from patient id to reason")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise LidcCdamError(
                f"A preset's {name} must be {rule}; got {getattr(self, name)!r}; mend it in the file given as --preset."
            )


def read_preset(preset: str) -> tuple[str, Selection]:
    """A preset's name and rules.

    Args:
        preset: name of a bundled preset, or path of a YAML file.

    Raises:
        LidcCdamError: there is no such preset, it is not YAML, or it holds an unknown key or a wrong value.
    """
    given = Path(preset)
    path = given if given.suffix in (".yaml", ".yml") else bundled(STAGE, preset)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LidcCdamError(f"--preset names {path}, which is missing; give an existing YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LidcCdamError(
            f"--preset {path} must be YAML, but it cannot be read ({_line(error)}); mend it."
        ) from error
    if not isinstance(values, dict):
        raise LidcCdamError(f"--preset {path} must hold keys with values (`min_readers: 3`); mend it.")
    _refuse_unknown(path, values)
    return path.stem, Selection(**values)


def read_selection(data: Path) -> Selection:
    """The rules that `DATA/cohort.csv` was made by.

    Raises:
        LidcCdamError: the folder has no cohort.
    """
    record = provenance.read_record(data, STAGE)
    if record is None:
        raise LidcCdamError(f"{data} has no cohort; run `lidc-cdam cohort --out {data}` first.")
    return Selection(**record["config"]["selection"])


def _refuse_unknown(path: Path, values: Mapping[Any, Any]) -> None:
    known = [part.name for part in fields(Selection)]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0)[0]
            raise LidcCdamError(
                f"--preset {path} has the unknown key {key!r}; the nearest known one is {near!r} "
                f"(of {', '.join(known)})."
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
