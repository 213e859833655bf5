"""What a run report shows, read from the artefacts; what cannot be read is a sentence in its place."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from lidc_cdam import artifacts, provenance
from lidc_cdam.artifacts import Dataset, Splits, check_schema
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.runs import read_config
from reports.context import Run

COMPARISON = "explainers.json"
PATHS = ("data", "splits", "weights")
"""Settings of `config.yaml` that name files of the machine; documents show their last part only."""
Read = TypeVar("Read")


@dataclass(frozen=True)
class Facts:
    """One run's artefacts beyond its nodules."""

    run: Run
    config: dict[str, Any]
    """Settings as in `config.yaml`, without folders."""
    predictions: pd.DataFrame
    cohort: pd.DataFrame
    excluded: pd.DataFrame | None
    dataset: Dataset
    splits: Splits | None
    summary: dict[str, Any]
    """Empty where it is missing."""
    comparison: dict[str, Any]
    """`explainers.json`; empty where nothing is measured."""
    made: dict[str, Any]
    """Records of the data folder's stages (`provenance.json`)."""
    statistics: dict[str, Any]
    """`statistics.json` of the first fold that has one."""
    problems: dict[str, str]
    """Sentence by artefact that is missing or cannot be read."""

    @property
    def nodules(self) -> pd.DataFrame:
        """Rows of the cohort table of the predicted nodules, as far as it has them."""
        return self.cohort.loc[[key for key in self.predictions["nodule_id"] if key in self.cohort.index]]


def gather(run: Run) -> Facts:
    """Read a run's artefacts.

    Raises:
        LidcCdamError: one that no report can do without is missing: predictions, cohort or dataset.
    """
    problems: dict[str, str] = {}

    def optional(name: str, read: Callable[[], Read], otherwise: Read) -> Read:
        try:
            return read()
        except LidcCdamError as error:
            problems[name] = without_paths(str(error), [run])
            return otherwise

    config = read_config(run.folder)
    named = config.get("splits")
    folders = [artifacts.fold_folder(run.folder, fold) for fold in sorted(run.model_sha256)]
    return Facts(
        run=run,
        config={key: _last(value) if key in PATHS else value for key, value in config.items()},
        predictions=artifacts.read_predictions(run.folder / artifacts.PREDICTIONS),
        cohort=artifacts.read_cohort(run.data),
        excluded=optional("excluded", lambda: _excluded(run.data), None),
        dataset=artifacts.read_dataset(run.data),
        splits=optional("splits", lambda: _splits(Path(named) if named else None), None),
        summary=optional("summary", lambda: _checked(run.folder / artifacts.SUMMARY, "crossval"), {}),
        comparison=optional("explainers", lambda: _checked(run.folder / COMPARISON, "evaluate"), {}),
        made=optional("provenance", lambda: provenance.read_records(run.data), {}),
        statistics=optional(
            "statistics", lambda: next((_statistics(folder) for folder in folders if _statistics(folder)), {}), {}
        ),
        problems=problems,
    )


def without_paths(sentence: str, runs: Sequence[Run]) -> str:
    """An error's sentence with the names of the artefact folders in place of this machine's paths."""
    for run in runs:
        for folder, name in ((run.data, "DATA"), (run.folder, "RUN")):
            # A path of one word (or `.`) may be a word or a mark of the sentence, unless something lies below it.
            ends = r"(?![\w-])" if "/" in str(folder) else "(?=/)"
            sentence = re.sub(rf"(?<![\w./-]){re.escape(str(folder))}{ends}", name, sentence)
    return sentence


def _last(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) else value


def _checked(path: Path, step: str) -> dict[str, Any]:
    if not path.exists():
        raise LidcCdamError(f"{path} is missing; run `lidc-cdam {step}` first.")
    stored = read_json(path)
    check_schema(path, stored)
    return dict(stored)


def _excluded(data: Path) -> pd.DataFrame:
    return artifacts.read_table(data / artifacts.EXCLUDED, artifacts.EXCLUDED_COLUMNS, "cohort")


def _splits(path: Path | None) -> Splits:
    if path is None or not path.is_file():
        raise LidcCdamError(
            "The file of splits that config.yaml names is not here; put it back, then run `lidc-cdam report` again."
        )
    return artifacts.read_splits(path)


def _statistics(folder: Path) -> dict[str, Any]:
    path = folder / "statistics.json"
    return dict(read_json(path)) if path.exists() else {}
