"""Which nodules make a cohort: the settings of a preset, read from YAML and from a finished cohort's record."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import yaml

from lidc_cdam import provenance
from lidc_cdam.configuration import bundled
from lidc_cdam.errors import LidcCdamError
from preprocessing.annotations import CLUSTERINGS
from preprocessing.clusters import MOST_READERS

STAGE = "cohort"
INDETERMINATE = 3
"""The middle of the malignancy scale: what falls on it has no label."""

LABEL_RULES: dict[str, Callable[[Sequence[int]], float]] = {
    "median": lambda codes: float(np.median(codes)),
    "mean": lambda codes: float(np.mean(codes)),
}
"""How one malignancy comes from the readers' codes; below 3 is benign, above 3 malignant."""

CROWDED = ("exclude", "keep", "split")
"""Leave such a cluster out; keep it as one nodule of so many readings; divide it (`clusters.split`)."""
CHOICES: dict[str, Collection[str]] = {"label_rule": LABEL_RULES, "clustering": CLUSTERINGS, "crowded": CROWDED}


class Grouping(TypedDict):
    """How readings become nodules."""

    clustering: str
    split_crowded: bool


GROUPINGS: tuple[Grouping, ...] = tuple(
    Grouping(clustering=clustering, split_crowded=split) for clustering in CLUSTERINGS for split in (False, True)
)
"""Every way there is, pylidc's own first."""


@dataclass(frozen=True)
class Selection:
    """The rules of a cohort."""

    min_readers: int = 3
    """Fewest readers of a nodule."""
    max_readers: int = MOST_READERS
    """Most readers, 1 to 4; clusters of more than four readings are `crowded`'s."""
    label_rule: str = "median"
    """Row of `LABEL_RULES`."""
    clustering: str = "pylidc"
    """Which readings are of one nodule: `pylidc` (its own rule, exact) or `mm` (the same, with distances in mm)."""
    crowded: str = "exclude"
    """What becomes of a cluster of more than four readings; one of `CROWDED`."""
    first_scan_only: bool = False
    """Whether a patient's second scan is left out."""
    exclude_initial: bool = False
    """Whether scans of the initial release are left out (their sites used some rating scales differently)."""
    max_slice_thickness_mm: float | None = None
    """Thickest slices of a scan; None: any."""
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
            value = getattr(self, name)
            self._require(name, type(value) is int, "a whole number")
            self._require(name, 1 <= value <= MOST_READERS, f"from 1 to {MOST_READERS}, the readers of a scan")
        self._require("max_readers", self.max_readers >= self.min_readers, f"at least min_readers ({self.min_readers})")
        for name in ("first_scan_only", "exclude_initial", "require_crop_inside", "allow_padding"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            self._require(name, isinstance(value, str) and value in known, f"one of {', '.join(known)}")
        thickest = self.max_slice_thickness_mm
        sized = thickest is None or (type(thickest) in (int, float) and 0 < thickest < np.inf)
        self._require("max_slice_thickness_mm", sized, "a number of mm above 0, or null")
        series = self.excluded_series
        plain = isinstance(series, Mapping) and all(isinstance(text, str) for pair in series.items() for text in pair)
        self._require("excluded_series", plain, "a mapping from patient id to reason")

    @property
    def digest(self) -> str:
        """SHA-256 of the rules, whatever file they came from."""
        thickest = self.max_slice_thickness_mm
        return provenance.sha256_of(asdict(self) | {"max_slice_thickness_mm": thickest and float(thickest)})

    @property
    def grouping(self) -> Grouping:
        """How readings become nodules, as arguments of `annotations.load_nodules`."""
        return {"clustering": self.clustering, "split_crowded": self.crowded == "split"}

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
    """The rules that `DATA/cohort.csv` was made by; rules that an earlier version did not have are its defaults.

    Raises:
        LidcCdamError: the folder has no cohort, or one of a newer version.
    """
    record = provenance.read_record(data, STAGE)
    if record is None:
        raise LidcCdamError(f"{data} has no cohort; run `lidc-cdam cohort --out {data}` first.")
    return stored_selection(data, record["config"])


def grouping_of(data: Path) -> Grouping:
    """How readings became the nodules of `DATA/cohort.csv`; pylidc's way where the folder has no record."""
    record = provenance.read_record(data, STAGE)
    return (Selection() if record is None else stored_selection(data, record["config"])).grouping


def stored_selection(data: Path, config: Mapping[str, Any]) -> Selection:
    """`read_selection` from the configuration in a cohort's record."""
    values = dict(config["selection"])
    if values.get("max_readers", 0) > MOST_READERS:
        values |= {"max_readers": MOST_READERS, "crowded": "keep"}
    if unknown := sorted(set(values) - {part.name for part in fields(Selection)}):
        raise LidcCdamError(
            f"The cohort in {data} must be of this version or an earlier one, but its rules have {', '.join(unknown)}; "
            f"update lidc-cdam, or make the cohort again with another --out."
        )
    return Selection(**values)


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
