"""Which nodules make a cohort: the settings of a preset, read from YAML and from a finished cohort's record."""

from collections import Counter
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
            raise LidcCdamError(f"a preset's {name} must be {rule}; got {getattr(self, name)!r}; mend it.")


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
        text = path.read_text(encoding="utf-8")
        _refuse_repeated(path, yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise LidcCdamError(f"--preset names {path}, which is missing; give an existing YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LidcCdamError(
            f"--preset {path} must be YAML, but it cannot be read ({_line(error)}); mend it."
        ) from error
    if not isinstance(values, dict):
        raise LidcCdamError(f"--preset {path} must hold keys with values (`min_readers: 3`); mend it.")
    _refuse_unknown(path, values)
    try:
        return path.stem, Selection(**values)
    except LidcCdamError as error:
        raise LidcCdamError(f"--preset {path}: {error}") from error


@dataclass(frozen=True)
class Claim:
    """What a cohort's record says it was made by."""

    preset: str
    selection: Selection
    """Rules that an earlier version did not have are its defaults."""
    config: Mapping[str, Any]
    """As stored."""


def read_claim(data: Path) -> Claim | None:
    """The claim of `DATA/cohort.csv`; None where the folder has no record of a cohort.

    Raises:
        LidcCdamError: the record is damaged, or of a newer version.
    """
    record = provenance.read_record(data, STAGE)
    if record is None:
        return None
    try:
        config = record["config"]
        values = dict(config["selection"])
        # Once, more readers than there are meant to keep crowded clusters.
        if values.get("max_readers", 0) > MOST_READERS:
            values |= {"max_readers": MOST_READERS, "crowded": "keep"}
        return Claim(config["preset"], Selection(**values), config)
    except (KeyError, TypeError, ValueError, LidcCdamError) as error:
        raise LidcCdamError(
            f"{data / provenance.FILE} must hold the rules of a cohort as this version or an earlier one wrote them, "
            f"but it does not ({error}); make the cohort again with another --out."
        ) from error


def read_selection(data: Path) -> Selection:
    """The rules that `DATA/cohort.csv` was made by.

    Raises:
        LidcCdamError: the folder has no cohort, or its record is damaged or of a newer version.
    """
    claim = read_claim(data)
    if claim is None:
        raise LidcCdamError(f"{data} has no cohort; run `lidc-cdam cohort --out {data}` first.")
    return claim.selection


def grouping_of(data: Path) -> Grouping:
    """How readings became the nodules of `DATA/cohort.csv`; pylidc's way where the folder has no record."""
    claim = read_claim(data)
    return (Selection() if claim is None else claim.selection).grouping


def _refuse_repeated(path: Path, node: yaml.Node | None) -> None:
    """YAML's reader would take the last of several values and say nothing."""
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, times in keys.items():
            if times > 1:
                raise LidcCdamError(
                    f"--preset {path} must give each key once, but it has {key!r} {times} times; mend it."
                )
        for _, value in node.value:
            _refuse_repeated(path, value)


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
