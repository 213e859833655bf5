"""The on-disk contract between the stages: names, columns, dtypes, and functions that read and write them with checks.

Tables are CSV, volumes NIfTI, arrays NPZ, the rest JSON; nothing is pickled. Every writer goes through
`lidc_cdam.files.replacing`, so a file is whole or absent.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Shaped

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, replacing, write_json
from lidc_cdam.geometry import USUAL, Grid
from lidc_cdam.provenance import sha256_of
from lidc_cdam.vocabulary import BIOMARKERS, RATINGS

SCHEMA = 1
"""Version of the formats here; a file with another one is refused."""

COHORT = "cohort.csv"
EXCLUDED = "excluded.csv"
READINGS = "readings.csv"
AGREEMENT = "agreement.csv"
DATASET = "dataset.json"
FAILED = "failed.csv"
SPLITS = "splits.json"
SUMMARY = "summary.json"
PREDICTIONS = "predictions.csv"
EXPLAINERS = "explainers.csv"
LATENTS = "latents.npz"
CONFIG = "config.yaml"

IDENTITY = ("nodule_id", "patient_id", "study_uid", "series_uid", "annotation_ids", "readers")
COHORT_COLUMNS: tuple[str, ...] = (
    *IDENTITY,
    "malignancy",
    "label",
    *(biomarker.key for biomarker in BIOMARKERS),
    *(f"{biomarker.key}_sd" for biomarker in BIOMARKERS),
    "reason",
)
"""First columns of `cohort.csv`, in order; more may follow.

`label` is 0, 1, or empty with `reason` = `indeterminate`.
"""
EXCLUDED_COLUMNS: tuple[str, ...] = (*IDENTITY, "reason")
READING_COLUMNS: tuple[str, ...] = ("nodule_id", "patient_id", "annotation_id", *RATINGS, "diameter")
CONSENSUS_LEVEL = 0.5
"""Share of the readers that must have marked a voxel of the consensus, unless `extract` is told another."""
FAILED_COLUMNS: tuple[str, ...] = ("nodule_id", "series_uid", "reason")
PREDICTION_IDENTITY: tuple[str, ...] = ("nodule_id", "patient_id", "fold")
TEXT_COLUMNS = (
    *("nodule_id", "patient_id", "study_uid", "series_uid", "annotation_ids", "reason"),
    *("image", "target", "class", "other_class"),
)
"""Columns of any table that stay text, also where all their values are digits."""
EXPLAINER_COLUMNS: tuple[str, ...] = ("nodule_id", "patient_id", "fold", "method", "target", "metric", "value")


def read_table(path: Path, columns: Sequence[str], step: str) -> pd.DataFrame:
    """A CSV table with at least the given columns; identifiers stay text.

    Args:
        path: the file.
        columns: names that must be there.
        step: the command that writes it, for the error.

    Raises:
        LidcCdamError: the file is missing, unreadable or lacks a column.
    """
    try:
        table: pd.DataFrame = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LidcCdamError(f"{path} is missing; run `lidc-cdam {step}` first.") from error
    except IsADirectoryError as error:
        raise LidcCdamError(
            f"{path} must be a CSV table, but it is a folder; remove it and run `lidc-cdam {step}` again."
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise LidcCdamError(
            f"{path} must be a CSV table, but it cannot be read ({error}); run `lidc-cdam {step}` again."
        ) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise LidcCdamError(
            f"{path} must have the columns {', '.join(columns)}, but {', '.join(missing)} is missing; "
            f"run `lidc-cdam {step}` again."
        )
    return table


def write_table(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Write a CSV table whose first columns are `columns`, in that order; others follow in theirs."""
    others = [name for name in table.columns if name not in columns]
    with replacing(path) as temporary:
        table[[*columns, *others]].to_csv(temporary, index=False, lineterminator="\n")


def read_cohort(data: Path) -> pd.DataFrame:
    """`DATA/cohort.csv`: one row per nodule, indexed by `nodule_id` (kept as a column too)."""
    table = read_table(data / COHORT, COHORT_COLUMNS, "cohort")
    if table["nodule_id"].duplicated().any():
        raise LidcCdamError(f"{data / COHORT} must name each nodule once; run `lidc-cdam cohort` again.")
    return table.set_index("nodule_id", drop=False)


def read_readings(data: Path) -> pd.DataFrame:
    """`DATA/readings.csv`: one row per reading of a cohort nodule (nine ratings, diameter in mm)."""
    return read_table(data / READINGS, READING_COLUMNS, "cohort")


@dataclass(frozen=True)
class NoduleRecord:
    """What extraction knows about one nodule's crop."""

    nodule_id: str
    source: str
    """`dicom`, `pack` or `volume`."""
    geometry: str
    """`patient`: true LPS positions; `scan`: the scan's own frame, in-plane origin at the first pixel (see `pack`)."""
    padded_share: float
    """Share of the cube's voxels that lie outside what was read, 0 to 1; they hold the padding value."""
    pixel_spacing_mm: float
    slice_spacing_mm: float
    """Median distance of neighbouring slices, mm."""
    flags: tuple[str, ...] = ()
    """Data-quality flags, each a short phrase."""


@dataclass(frozen=True)
class Dataset:
    """`DATA/dataset.json`: what a folder of crops holds."""

    parameters: Mapping[str, Any]
    """Preset and every setting that decided a voxel (side, spacing, interpolation, padding value)."""
    nodules: Mapping[str, NoduleRecord]
    """Record of every extracted nodule by `nodule_id`, in the cohort's order."""

    @property
    def grid(self) -> Grid:
        """The voxels of the folder's cubes."""
        side, spacing = (self.parameters.get(name, usual) for name, usual in asdict(USUAL).items())
        return Grid(int(side), float(spacing))

    @property
    def consensus_level(self) -> float:
        """Share of the readers that a voxel of the consensus needs."""
        return float(self.parameters.get("consensus_level", CONSENSUS_LEVEL))

    def digest(self, nodule_ids: Sequence[str]) -> str:
        """What decides these nodules' crops, as a digest; nodules that a second source adds do not change it."""
        records = {key: asdict(self.nodules[key]) for key in nodule_ids if key in self.nodules}
        return sha256_of({"parameters": dict(self.parameters), "nodules": records})


def write_dataset(data: Path, dataset: Dataset) -> None:
    """Write `DATA/dataset.json`."""
    nodules = {key: asdict(record) for key, record in dataset.nodules.items()}
    write_json(data / DATASET, {"schema": SCHEMA, "parameters": dict(dataset.parameters), "nodules": nodules})


def read_dataset(data: Path) -> Dataset:
    """Read `DATA/dataset.json`.

    Raises:
        LidcCdamError: no extraction has run, or the file has another schema.
    """
    path = data / DATASET
    if not path.exists():
        raise LidcCdamError(f"{path} is missing; run `lidc-cdam extract --data {data}` first.")
    stored = read_json(path)
    check_schema(path, stored)
    with _as_written(path, "extract"):
        records = {key: nodule_record(value) for key, value in stored["nodules"].items()}
        return Dataset(stored["parameters"], records)


def nodule_record(stored: Mapping[str, Any]) -> NoduleRecord:
    """A nodule's record from its JSON form."""
    return NoduleRecord(**{**stored, "flags": tuple(stored["flags"])})


@contextmanager
def _as_written(path: Path, step: str) -> Iterator[None]:
    """Turn keys that a JSON artefact lacks, or has too many, into a sentence."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise LidcCdamError(
            f"{path} must be as `lidc-cdam {step}` wrote it, but it is not ({error}); run that step again."
        ) from error


def check_schema(path: Path, stored: Any) -> None:
    """Refuse a JSON artefact whose `schema` is not this version's."""
    found = stored.get("schema") if isinstance(stored, dict) else None
    if found != SCHEMA:
        raise LidcCdamError(
            f"{path} must have schema {SCHEMA}, but it has {found}; run its step again with this version."
        )


@dataclass(frozen=True)
class Fold:
    """One fold's nodules by role."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """`splits.json`: which nodule plays which role in which fold."""

    protocol: str
    seed: int
    cohort_sha256: str
    """Digest of the cohort table that was split."""
    folds: tuple[Fold, ...]
    shared_patients: float
    """Mean share of a fold's test nodules whose patient also has a training or validation nodule, 0 to 1."""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def write_splits(path: Path, splits: Splits) -> None:
    """Write `splits.json`."""
    write_json(path, {"schema": SCHEMA, **asdict(splits)})


def read_splits(path: Path) -> Splits:
    """Read `splits.json`.

    Raises:
        LidcCdamError: the file is missing or has another schema.
    """
    if not path.exists():
        raise LidcCdamError(f"{path} is missing; run `lidc-cdam split` first.")
    stored = read_json(path)
    check_schema(path, stored)
    with _as_written(path, "split"):
        folds = tuple(Fold(*(tuple(fold[role]) for role in ("train", "val", "test"))) for fold in stored.pop("folds"))
        del stored["schema"]
        return Splits(folds=folds, **stored)


def fold_folder(run: Path, fold: int) -> Path:
    """`RUN/fold_k`."""
    return run / f"fold_{fold}"


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write `predictions.csv`: `nodule_id, patient_id, fold`, then `<key>_true, <key>_predicted` per target."""
    write_table(path, table, PREDICTION_IDENTITY)


def read_predictions(path: Path, step: str = "crossval") -> pd.DataFrame:
    """Read a `predictions.csv`.

    Raises:
        LidcCdamError: as `read_table`, or there is no nodule, one of them twice, a fold or a value is no number.
    """
    table = read_table(path, PREDICTION_IDENTITY, step)
    if table.empty:
        raise LidcCdamError(f"{path} must hold a row per nodule, but it holds none; run `lidc-cdam {step}` again.")
    twice = table.loc[table["nodule_id"].duplicated(), "nodule_id"]
    if len(twice):
        raise LidcCdamError(
            f"{path} must name each nodule once, but it names {twice.iloc[0]} twice; run `lidc-cdam {step}` again."
        )
    if not pd.api.types.is_integer_dtype(table["fold"]):
        raise LidcCdamError(
            f"{path} must hold whole numbers in the column fold, but it holds others; run `lidc-cdam {step}` again."
        )
    for name in table.columns:
        if name.endswith(("_true", "_predicted")) and not pd.api.types.is_numeric_dtype(table[name]):
            raise LidcCdamError(
                f"{path} must hold numbers in the column {name}, but it holds words; run `lidc-cdam {step}` again."
            )
    return table


def predicted_keys(table: pd.DataFrame) -> tuple[str, ...]:
    """Keys of the targets that a table of predictions holds, in its order."""
    return tuple(name.removesuffix("_predicted") for name in table.columns if name.endswith("_predicted"))


@dataclass(frozen=True)
class Maps:
    """One nodule's maps by one method: signed, raw, on the token grid."""

    scores: Float32[np.ndarray, "target view slice row column"]
    targets: tuple[str, ...]
    views: tuple[str, ...]
    slices: tuple[int, ...]
    """Slice indices along each view's axis (`geometry.take_view`)."""
    crop_sha256: str = ""
    """Digest of the crop that was explained (`map_files.crop_digest`); empty in files of older versions."""


MAP_ARRAYS = ("scores", "targets", "views", "slices")
"""Arrays of a file of maps."""


def maps_path(run: Path, fold: int, method: str, nodule_id: str) -> Path:
    """`RUN/fold_k/maps/<method>/<nodule_id>.npz`."""
    return fold_folder(run, fold) / "maps" / method / f"{nodule_id}.npz"


def write_maps(path: Path, maps: Maps) -> None:
    """Write a nodule's maps.

    Raises:
        ValueError: the shape of `scores` does not fit the names.
    """
    expected = (len(maps.targets), len(maps.views), len(maps.slices))
    if maps.scores.shape[:3] != expected:
        raise ValueError(f"scores must begin with {expected} (target, view, slice), got {maps.scores.shape}")
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            scores=maps.scores.astype(np.float32),
            targets=np.array(maps.targets),
            views=np.array(maps.views),
            slices=np.array(maps.slices),
            crop_sha256=np.array(maps.crop_sha256),
        )


def read_maps(path: Path) -> Maps:
    """Read a nodule's maps.

    Raises:
        LidcCdamError: the file is missing or damaged.
    """
    return maps_of(read_arrays(path, MAP_ARRAYS, "explain", ("crop_sha256",)))


def maps_of(stored: Mapping[str, Shaped[np.ndarray, "..."]]) -> Maps:
    """Maps from the arrays of their file (`MAP_ARRAYS`)."""
    return Maps(
        stored["scores"],
        tuple(str(name) for name in stored["targets"]),
        tuple(str(name) for name in stored["views"]),
        tuple(int(index) for index in stored["slices"]),
        str(stored.get("crop_sha256", "")),
    )


@dataclass(frozen=True)
class Latents:
    """`RUN/fold_k/latents.npz`: where a fold's model puts the fold's nodules in its own latent space."""

    nodule_ids: tuple[str, ...]
    roles: tuple[str, ...]
    """Each nodule's role in the fold: `train`, `val` or `test`."""
    vectors: Float32[np.ndarray, "nodule latent"]
    """The final [CLS] latent that the head reads; mean over the run's views at the central slice."""


def write_latents(path: Path, latents: Latents) -> None:
    """Write a fold's latents.

    Raises:
        ValueError: there is not one vector and one role per nodule.
    """
    if not len(latents.nodule_ids) == len(latents.roles) == len(latents.vectors):
        raise ValueError(f"{len(latents.nodule_ids)} nodules need as many roles and vectors")
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            nodule_ids=np.array(latents.nodule_ids),
            roles=np.array(latents.roles),
            vectors=latents.vectors.astype(np.float32),
        )


def read_latents(path: Path) -> Latents:
    """Read a fold's latents.

    Raises:
        LidcCdamError: the file is missing or damaged.
    """
    stored = read_arrays(path, ("nodule_ids", "roles", "vectors"), "crossval")
    names, roles, vectors = (stored[name] for name in ("nodule_ids", "roles", "vectors"))
    if vectors.ndim != 2 or not len(names) == len(roles) == len(vectors) or not np.isfinite(vectors).all():
        raise LidcCdamError(
            f"{path} must hold one finite vector and one role per nodule, but it does not; "
            f"delete it and run `lidc-cdam crossval` again, which writes it without training."
        )
    return Latents(tuple(map(str, names)), tuple(map(str, roles)), vectors.astype(np.float32))


def read_arrays(
    path: Path, names: Sequence[str], step: str, optional: Sequence[str] = ()
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The named arrays of an NPZ file, without pickles; those of `optional` only where it has them.

    Raises:
        LidcCdamError: the file is missing or damaged, or lacks an array.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in (*names, *(name for name in optional if name in stored))}
    except FileNotFoundError as error:
        raise LidcCdamError(f"{path} is missing; run `lidc-cdam {step}` first.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        wanted = f"an NPZ file with {', '.join(names)}" if names else "an NPZ file"
        # NumPy takes any other file for a pickle and tells how to open it all the same, which nobody should.
        reason = "it is none" if "pickle" in str(error) else f"it cannot be read ({error})"
        raise LidcCdamError(
            f"{path} must be {wanted}, but {reason}; delete it and run `lidc-cdam {step}` again."
        ) from error
