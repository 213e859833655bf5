"""What is kept of an evaluation: one small file per family of metrics, method and nodule, whole or absent."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from lidc_cdam.artifacts import FAILED, FAILED_COLUMNS, read_arrays, read_table, write_table
from lidc_cdam.files import replacing
from lidc_cdam.map_files import EVALUATION
from lidc_cdam.metrics.boxes import BoxDrops
from lidc_cdam.metrics.measures import Found

GALLERY = "gallery"
"""Beside the families: maps of the nodules that the gallery shows."""
DROPS = "drops"
"""Likewise: outputs without boxes, which all methods share."""
FAILURE_COLUMNS = (*FAILED_COLUMNS, "method", "metrics")
Row = dict[str, str | int | float]


def evaluation_folder(run: Path, fold: int | str) -> Path:
    """`RUN/fold_k/evaluation`; with `*` for all folds, in words."""
    return run / f"fold_{fold}" / EVALUATION


def part_path(run: Path, fold: int, family: str, method: str, nodule_id: str) -> Path:
    """`RUN/fold_k/evaluation/<family>/<method>/<nodule_id>.npz`."""
    return evaluation_folder(run, fold) / family / method / f"{nodule_id}.npz"


def write_part(path: Path, targets: Sequence[str], views: Sequence[str], central: int, found: Found) -> None:
    """Write what a family found of a nodule's maps.

    Args:
        path: where to.
        targets: the model's, in the order of its outputs.
        views: keys of the views that were measured.
        central: index of the slice of each view.
        found: figures, and what is kept beside them.
    """
    values = np.array(list(found.figures.values()), dtype=np.float64).reshape(len(found.figures), len(targets))
    more = {f"curve_{name}": curve for name, curve in found.curves.items()}
    if found.scores is not None:
        scores = found.scores[:, :, None].float().cpu().numpy()
        more |= {"scores": scores, "views": np.array(views), "slices": np.array([central])}
    write_arrays(
        path,
        targets=np.array(targets),
        metrics=np.array(list(found.figures), dtype=str),
        values=values,
        reason=np.array(found.reason),
        **more,
    )


def write_arrays(path: Path, **arrays: Shaped[np.ndarray, "..."]) -> None:
    """Write an NPZ file, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def rows_of(path: Path, identity: Mapping[str, str | int]) -> Iterator[Row]:
    """A part as rows of `explainers.csv`.

    Raises:
        LidcCdamError: the file is damaged.
    """
    stored = read_arrays(path, ("targets", "metrics", "values", "reason"), "evaluate")
    for metric, values in zip(stored["metrics"], stored["values"], strict=True):
        for target, value in zip(stored["targets"], values, strict=True):
            row: Row = {**identity, "target": str(target), "metric": str(metric), "value": float(value)}
            yield {**row, "reason": str(stored["reason"])}


def curves_of(path: Path, names: Sequence[str]) -> dict[str, Float64[np.ndarray, "..."]]:
    """Curves [target, point] of a part by name, with their axis `percent`."""
    stored = read_arrays(path, [f"curve_{name}" for name in ("percent", *names)], "evaluate")
    return {name.removeprefix("curve_"): values for name, values in stored.items()}


def read_drops(path: Path) -> BoxDrops:
    """What `write_drops` wrote."""
    stored = read_arrays(path, ("sides", "percent", "corners", "outputs", "drops", "shape"), "evaluate")
    rows, columns = (int(side) for side in stored.pop("shape"))
    return BoxDrops(**stored, shape=(rows, columns))


def write_drops(path: Path, drops: BoxDrops) -> None:
    """Keep outputs without boxes for the next method."""
    write_arrays(path, **{**vars(drops), "shape": np.array(drops.shape)})


def record_failures(run: Path, fold: int, failed: pd.DataFrame, tried: Sequence[tuple[str, str]]) -> None:
    """`failed.csv` of a fold's evaluation: one row per nodule, method and family without figures; absent if none.

    Args:
        run: folder of the run.
        fold: its number.
        failed: rows of this call.
        tried: method and family of each part that this call tried; what an earlier call says of others stays.
    """
    path = evaluation_folder(run, fold) / FAILED
    earlier = read_table(path, FAILURE_COLUMNS, "evaluate") if path.exists() else pd.DataFrame(columns=FAILURE_COLUMNS)
    again = [pair in set(tried) for pair in zip(earlier["method"], earlier["metrics"], strict=True)]
    tables = [table for table in (earlier[~np.array(again, dtype=bool)], failed) if len(table)]
    if tables:
        write_table(path, pd.concat(tables, ignore_index=True), FAILURE_COLUMNS)
    else:
        path.unlink(missing_ok=True)
