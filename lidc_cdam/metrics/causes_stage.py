"""`evaluate --phantom`: a run's maps of phantoms against their known causes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int16, Shaped
from torch import Tensor

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    EXPLAINER_COLUMNS,
    PREDICTIONS,
    SCHEMA,
    fold_folder,
    read_cohort,
    read_predictions,
    read_table,
    write_table,
)
from lidc_cdam.cause_files import Mask, has_causes, read_causes, read_counterfactuals
from lidc_cdam.channels import Channels
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import in_chunks
from lidc_cdam.explain.registry import EXPLAINERS, explain
from lidc_cdam.files import write_json
from lidc_cdam.geometry import central_index
from lidc_cdam.intensity import STATISTICS, Statistics, fill_unread
from lidc_cdam.metrics.cause_pictures import draw_causes
from lidc_cdam.metrics.causes import (
    CHANGED_HU,
    least_and_most,
    map_correlation,
    on_cause,
    same_sign,
    spread,
    sum_on,
)
from lidc_cdam.metrics.causes_table import MODEL, lines_of_causes, summarise
from lidc_cdam.metrics.measures import central_views, on_input_grid
from lidc_cdam.metrics.settings import sample_of
from lidc_cdam.model import WEIGHTS, NoduleModel, best_device
from lidc_cdam.progress import say, track
from lidc_cdam.runs import fold_numbers, read_config
from lidc_cdam.vocabulary import BIOMARKERS

CAUSES, COMPARISON = "causes.csv", "causes.json"
SIZE = "diameter"
Cube = Int16[np.ndarray, "slice row column"]
Row = dict[str, str | int | float]


@dataclass(frozen=True, eq=False)
class Known:
    """One phantom: its crop, where the causes lie, and for each biomarker two crops that differ in nothing else."""

    hu: Cube
    masks: dict[str, Mask]
    pairs: dict[str, tuple[Cube, Cube]]
    """With the least and with the most of the cause."""


@dataclass(frozen=True, eq=False)
class Judge:
    """A fold's model and what it takes to ask it."""

    model: NoduleModel
    statistics: Statistics
    views: tuple[str, ...]
    channels: Channels
    batch_size: int

    @property
    def keys(self) -> list[str]:
        """The biomarkers that the model predicts."""
        return [biomarker.key for biomarker in BIOMARKERS if biomarker.key in self.model.targets]

    def images(self, cubes: Sequence[Cube]) -> Float[Tensor, "image channel height width"]:
        """The central slices of the run's views of each cube, cube by cube."""
        central = central_index(len(cubes[0]))
        planes = [self.channels.image(fill_unread(cube)[None], view, central) for cube in cubes for view in self.views]
        device = next(self.model.parameters()).device
        hu = torch.from_numpy(np.stack(planes)).to(device)
        return self.statistics.intensity.apply(hu, self.model.image_size)

    def outputs(self, images: Float[Tensor, "image channel h w"]) -> Float[np.ndarray, "cube target"]:
        """Outputs on the model's own scale, means over the views."""
        with torch.no_grad():
            found = torch.cat([self.model(part) for part in in_chunks(images, self.batch_size)])
        return found.reshape(-1, len(self.views), found.shape[1]).mean(1).double().cpu().numpy()

    def maps(
        self, images: Float[Tensor, "image channel h w"], targets: Sequence[str], method: str
    ) -> Float[np.ndarray, "cube target view row column"]:
        """Maps on the method's own grid."""
        parts = [
            explain(self.model, part, list(targets), method, resolution="native").double().cpu()
            for part in in_chunks(images, self.batch_size)
        ]
        found = torch.cat(parts)
        shape = (-1, len(self.views), *found.shape[1:])
        return found.reshape(shape).movedim(2, 1).numpy()

    def on_input(self, cube: Shaped[np.ndarray, "slice row column"]) -> Shaped[np.ndarray, "view h w"]:
        """A mask's central views on the grid of the model's input."""
        found: np.ndarray = on_input_grid(central_views(cube, self.views), self.model.image_size).numpy()
        return found


def check_causes(run: Path, nodules: int | None, seed: int) -> None:
    """Refuse a run without known causes; cheap, so that nothing is measured in vain.

    Raises:
        LidcCdamError: the run is shown masks, or its data have no causes.
    """
    config = read_config(run)
    if Channels.of(config).mask:
        raise LidcCdamError(
            f"--phantom changes what a nodule looks like and not what readers outline, so it needs a run on images "
            f"alone, but {run} has a mask channel; train one without --mask-channel."
        )
    for fold in fold_numbers(run, PREDICTIONS):
        _chosen(run, Path(config["data"]), fold, nodules, seed)


def evaluate_causes(
    run: Path, methods: Sequence[str], nodules: int | None, replicates: int, seed: int, batch_size: int
) -> None:
    """Measure a run's maps of phantoms against their causes.

    Writes RUN/causes.csv, one row per phantom, method, biomarker and figure, RUN/causes.json, means with 95 % intervals
    over patients, and RUN/figures/causes.png and .svg; prints the table. Phantoms that are measured are kept.

    Args:
        run: folder of a run on phantoms.
        methods: estimators.
        nodules: phantoms of each fold that are measured; none takes all.
        replicates: bootstrap replicates of each interval.
        seed: of the choice of phantoms and of the bootstrap.
        batch_size: images at a time.

    Raises:
        LidcCdamError: the run predicts no biomarker, is shown masks, or its data have no causes.
    """
    config = read_config(run)
    data = Path(config["data"])
    folds = fold_numbers(run, PREDICTIONS)
    check_causes(run, nodules, seed)
    fresh = 0
    for fold in folds:
        chosen = _chosen(run, data, fold, nodules, seed)
        judge = _judge(run, fold, config, batch_size)
        for method in (MODEL, *methods):
            fresh += _measure_fold(run, data, fold, method, chosen, judge)
    _pool(run, data, [MODEL, *methods], replicates, seed)
    say(f"Measured {fresh} sets of maps against known causes; see {run / CAUSES} and {run / COMPARISON}.")


def _chosen(run: Path, data: Path, fold: int, nodules: int | None, seed: int) -> dict[str, str]:
    """Patient of each phantom of a fold that is measured; the same for every method."""
    table = read_predictions(fold_folder(run, fold) / PREDICTIONS)
    patients = dict(zip(table["nodule_id"], table["patient_id"], strict=True))
    known = [key for key in patients if has_causes(data, key)]
    if not known:
        raise LidcCdamError(
            f"--phantom needs phantoms with known causes, but no nodule of fold {fold} has them in {data}; run "
            f"`lidc-cdam causes --data {data}` first (real nodules have none)."
        )
    return {key: patients[key] for key in sample_of(known, nodules, seed)}


def _judge(run: Path, fold: int, config: dict[str, object], batch_size: int) -> Judge:
    folder = fold_folder(run, fold)
    views = tuple(str(view) for view in config["views"])  # type: ignore[attr-defined]
    model = NoduleModel.load(folder).to(best_device())
    judge = Judge(model, Statistics.read(folder / STATISTICS), views, Channels.of(config), batch_size)
    if not judge.keys:
        raise LidcCdamError(
            f"--phantom needs a run that predicts biomarkers, but {run} has {', '.join(model.targets)}."
        )
    return judge


def _measure_fold(run: Path, data: Path, fold: int, method: str, chosen: dict[str, str], judge: Judge) -> int:
    """Measure the phantoms of a fold that are not measured yet; return how many those were."""
    folder = fold_folder(run, fold)
    place = folder / "causes"
    part = place / f"{method}.csv"
    remedy = f"delete {run / 'fold_*' / 'causes'} to begin anew"
    title = "" if method == MODEL else EXPLAINERS[method].title
    provenance.begin(place, f"causes/{method}", {"title": title}, {"weights": folder / WEIGHTS}, remedy)
    earlier = read_table(part, EXPLAINER_COLUMNS, "evaluate --phantom") if part.exists() else None
    done = set() if earlier is None else set(earlier["nodule_id"])
    pending = [key for key in chosen if key not in done]
    changes = {} if method == MODEL else _own_effects(place / f"{MODEL}.csv")
    rows: list[Row] = []
    try:
        for nodule_id in track(pending, f"Asking {method} for causes, fold {fold}"):
            identity: Row = {"nodule_id": nodule_id, "patient_id": chosen[nodule_id], "fold": fold, "method": method}
            known = read_known(data, nodule_id, judge.keys)
            found = effects(judge, known) if method == MODEL else figures(judge, known, method, changes[nodule_id])
            rows += [{**identity, **row} for row in found]
    finally:
        if rows:
            tables = [*([] if earlier is None else [earlier]), pd.DataFrame(rows)]
            write_table(part, pd.concat(tables, ignore_index=True), EXPLAINER_COLUMNS)
    return len(pending)


def _own_effects(path: Path) -> dict[str, dict[str, float]]:
    """How each phantom's outputs change with their own cause, by nodule and biomarker, as measured before."""
    table = read_table(path, EXPLAINER_COLUMNS, "evaluate --phantom")
    own = table[table["metric"] == "effect_of_" + table["target"]]
    return {
        str(nodule_id): dict(zip(rows["target"], rows["value"], strict=True))
        for nodule_id, rows in table[["nodule_id"]].drop_duplicates().merge(own, how="left").groupby("nodule_id")
    }


def read_known(data: Path, nodule_id: str, keys: Sequence[str]) -> Known:
    """A phantom's crop with its causes and counterfactuals.

    Raises:
        LidcCdamError: a file is missing, damaged or of another crop.
    """
    hu, masks = read_crop(data, nodule_id).hu, read_causes(data, nodule_id)
    pairs = {}
    for key in keys:
        found = read_counterfactuals(data, nodule_id, key)
        cubes = [hu, *(found.cube(hu, change) for change in range(len(found.values)))]
        if len(cubes) > 1:
            least, most = least_and_most(key, np.array([found.own, *found.values]))
            pairs[key] = (cubes[least], cubes[most])
    return Known(hu, masks, pairs)


def effects(judge: Judge, known: Known) -> list[Row]:
    """How each output changes when one biomarker goes from the least to the most of its cause, own scale."""
    rows: list[Row] = []
    for changed, pair in known.pairs.items():
        least, most = judge.outputs(judge.images(pair))
        rows += [
            {"target": target, "metric": f"effect_of_{changed}", "value": float(value)}
            for target, value in zip(judge.model.targets, most - least, strict=True)
        ]
    return rows


def figures(judge: Judge, known: Known, method: str, changes: Mapping[str, float]) -> list[Row]:
    """Every figure of one phantom's maps by one method.

    Args:
        judge: the fold's model.
        known: the phantom.
        method: the estimator.
        changes: by biomarker, how its output changes from the least to the most of its cause (`effects`).
    """
    keys, size = judge.keys, judge.model.image_size
    own = judge.maps(judge.images([known.hu]), keys, method)[0]
    nodule = judge.on_input(np.logical_or.reduce(list(known.masks.values())))
    rows: list[Row] = []
    for index, key in enumerate(keys):
        found = on_cause(spread(own[index], size), judge.on_input(known.masks[key]), nodule)
        found["map_total"] = float(own[index].sum((-2, -1)).mean())
        if SIZE in keys and key != SIZE:
            found["size_correlation"] = map_correlation(own[index], own[keys.index(SIZE)])
        if key in known.pairs:
            found |= _pair_figures(judge, key, known.pairs[key], method, changes[key])
        rows += [{"target": key, "metric": metric, "value": value} for metric, value in found.items()]
    return rows


def _pair_figures(judge: Judge, key: str, pair: tuple[Cube, Cube], method: str, change: float) -> dict[str, float]:
    """Whether the map's sign on what differs between two crops is that of the output's change."""
    pixels = spread(judge.maps(judge.images(pair), [key], method)[:, 0], judge.model.image_size)
    region = judge.on_input(np.abs(pair[1].astype(int) - pair[0]) > CHANGED_HU)
    without, with_it = (sum_on(each, region) for each in pixels)
    return {
        "output_change": change,
        "region_least": without,
        "region_most": with_it,
        "sign_with_cause": same_sign(with_it, change),
        "sign_of_change": same_sign(with_it - without, change),
    }


def _pool(run: Path, data: Path, methods: Sequence[str], replicates: int, seed: int) -> None:
    """Write the table of all folds and methods measured so far, and what it comes to."""
    parts = [
        path for fold in fold_numbers(run, PREDICTIONS) for path in (fold_folder(run, fold) / "causes").glob("*.csv")
    ]
    table = pd.concat([read_table(path, EXPLAINER_COLUMNS, "evaluate --phantom") for path in sorted(parts)])
    order = {name: rank for rank, name in enumerate([MODEL, *EXPLAINERS])}
    table = table.sort_values(
        ["method", "fold"], key=lambda c: c.map(order) if c.name == "method" else c, kind="stable"
    )
    write_table(run / CAUSES, table.reset_index(drop=True), EXPLAINER_COLUMNS)
    found = summarise(table, read_cohort(data), replicates, seed)
    write_json(run / COMPARISON, {"schema": SCHEMA, **found})
    draw_causes(found, run / "figures" / "causes")
    for line in lines_of_causes(found):
        say(line)
