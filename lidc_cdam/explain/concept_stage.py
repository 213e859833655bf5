"""The `explain --concept` step: maps of a likeness to example nodules, beside likenesses to random ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam import provenance
from lidc_cdam.artifacts import (
    CONFIG,
    FAILED,
    PREDICTIONS,
    SCHEMA,
    SPLITS,
    Maps,
    fold_folder,
    read_cohort,
    read_dataset,
    read_predictions,
    read_splits,
    read_table,
    write_maps,
    write_table,
)
from lidc_cdam.channels import Channels, consensus_of
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.concept_rules import RANDOM, Definition, Examples, define_all, draw_examples
from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.registry import EXPLAINERS, explain, find_explainer
from lidc_cdam.explain.targets import SIMILARITIES, Concept
from lidc_cdam.files import write_json
from lidc_cdam.geometry import Grid, take_view
from lidc_cdam.intensity import STATISTICS, Statistics, was_read
from lidc_cdam.map_files import crop_digest
from lidc_cdam.metrics.concepts import CONCEPT_COLUMNS, lines_of, measure_concept, summarised
from lidc_cdam.model import WEIGHTS, NoduleModel, best_device
from lidc_cdam.progress import say, track
from lidc_cdam.runs import fold_numbers, read_config

TABLE, SUMMARY, EXAMPLES, MEASURES = "concepts.csv", "concepts.json", "examples.csv", "measures.csv"
Row = dict[str, Any]


def explain_concepts(
    run: Path,
    concept: list[str],
    concept_examples: int = 30,
    concept_controls: int = 5,
    method: str = "cdam",
    similarity: str = "dot",
    folds: list[int] | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> None:
    """Write maps of what makes a nodule like the examples of a concept.

    Each fold's model explains that fold's test nodules; examples are drawn out of its training nodules alone. A map is
    of the likeness s(z, z_concept), z_concept being the examples' mean latent (the paper's Eq. 3 and 4). Beside it are
    maps of likenesses to random sets of as many training nodules: a concept's map says something of the concept only as
    far as it differs from theirs. Writes RUN/fold_k/concepts/<name>/<method>/<nodule_id>.npz (targets <name>,
    <name>_random_1, ...), examples.csv beside them, and RUN/concepts.csv and concepts.json: how the two differ.

    Args:
        run: Folder of a finished run (`crossval`).
        concept: NAME=RULE such as "spiky=spiculation >= 4" (columns of cohort.csv, joined by `and`), or NAME=FILE.csv
            with a column nodule_id; several by comma.
        concept_examples: Examples of each concept; all that there are where there are fewer.
        concept_controls: Random sets of examples, at least 2.
        method: Estimator that explains likenesses, such as cdam, smooth_cdam or integrated_cdam.
        similarity: s: dot (the paper's), cosine or distance.
        folds: Folds to explain; all by default.
        options: The estimator's own settings, such as {"n": 20}.
        seed: Seed of the draw of examples.
        batch_size: Images at a time; changes the memory, not the maps.
    """
    settings = dict(options or {})
    _check(method, settings, similarity, concept_examples, concept_controls, batch_size)
    definitions = define_all(concept)
    world = _World.of(run, method, settings, batch_size)
    fits = {each.name: each.fits(world.cohort) for each in definitions}
    failures = 0
    for fold in _folds(run, folds):
        for each in definitions:
            drawn = draw_examples(
                each, fits[each.name], world.training(fold), concept_examples, concept_controls, (seed, fold)
            )
            if drawn.available < concept_examples:
                say(f"Fold {fold}: {each.name} has {drawn.available} examples, not {concept_examples}; all are taken.")
            failures += _Likeness(world, fold, each, fits[each.name], drawn, similarity).explain()
    _pool(run, [each.name for each in definitions], method, seed)
    if failures:
        say(f"{failures} nodules could not be explained; {FAILED} beside their maps names each with its reason.")


def _check(
    method: str, options: Mapping[str, Any], similarity: str, examples: int, controls: int, batch_size: int
) -> None:
    if not find_explainer(method, options).concepts:
        able = ", ".join(name for name, other in EXPLAINERS.items() if other.concepts)
        raise LidcCdamError(f"--method must be one of {able} to explain a concept; got {method!r}.")
    if similarity not in SIMILARITIES:
        raise LidcCdamError(f"--similarity must be one of {', '.join(SIMILARITIES)}; got {similarity!r}.")
    if examples < 1 or controls < 2:
        raise LidcCdamError(
            f"--concept-examples must be at least 1 and --concept-controls at least 2; got {examples} and {controls}."
        )
    check_size(batch_size)


def _folds(run: Path, asked: Sequence[int] | None) -> list[int]:
    present = fold_numbers(run, WEIGHTS)
    absent = [fold for fold in asked or () if fold not in present]
    if absent or asked == [] or not present:
        raise LidcCdamError(f"--folds must be among the folds trained in {run}, {present}; got {absent or 'none'}.")
    return present if asked is None else list(dict.fromkeys(asked))


@dataclass(frozen=True)
class _World:
    """A run and how its nodules are shown."""

    run: Path
    data: Path
    splits: Path
    cohort: pd.DataFrame
    views: tuple[str, ...]
    grid: Grid
    channels: Channels
    method: str
    options: Mapping[str, Any]
    batch_size: int

    @classmethod
    def of(cls, run: Path, method: str, options: Mapping[str, Any], batch_size: int) -> "_World":
        config = read_config(run)
        data = Path(config["data"])
        splits = Path(config.get("splits") or data / SPLITS)
        return cls(
            run,
            data,
            splits,
            read_cohort(data),
            tuple(config["views"]),
            read_dataset(data).grid,
            Channels.of(config),
            method,
            options,
            batch_size,
        )

    def training(self, fold: int) -> tuple[str, ...]:
        """The fold's training nodules, which must be none of its test nodules."""
        folds = read_splits(self.splits).folds
        if fold >= len(folds):
            raise LidcCdamError(f"{self.splits} must have fold {fold} of {self.run / CONFIG}, but it has {len(folds)}.")
        return folds[fold].train

    def images(
        self, nodule_id: str, statistics: Statistics, size: tuple[int, int]
    ) -> Float[Tensor, "view channel h w"]:
        """A nodule's central slice of each view as the model's input."""
        source = self.channels.read(self.data, nodule_id, self.grid.side)
        shown = [self.channels.image(source, view, self.grid.central) for view in self.views]
        return statistics.intensity.apply(torch.from_numpy(np.stack(shown)).to(best_device()), size)

    def masks(self, nodule_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The readers' consensus, and what was read, at the central slice of each view."""
        outlined, read = consensus_of(self.data, nodule_id), was_read(read_crop(self.data, nodule_id).hu)
        cuts = ([take_view(cube, view, self.grid.central) for view in self.views] for cube in (outlined, read))
        first, second = (np.stack(cut) for cut in cuts)
        return first, second


@dataclass(frozen=True)
class _Likeness:
    """One concept in one fold."""

    world: _World
    fold: int
    definition: Definition
    fits: pd.Series
    examples: Examples
    similarity: str

    @property
    def folder(self) -> Path:
        """`RUN/fold_k/concepts/<name>/<method>`."""
        return concept_folder(self.world.run, self.fold, self.definition.name, self.world.method)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the maps: the concept, then its controls."""
        own = self.definition.name
        return (own, *(f"{own}_{RANDOM}_{place}" for place in range(1, len(self.examples.controls) + 1)))

    def explain(self) -> int:
        """Write what is missing; return how many nodules could not be explained."""
        world, source = self.world, fold_folder(self.world.run, self.fold)
        tested = read_predictions(source / PREDICTIONS)
        patients = dict(zip(tested["nodule_id"], tested["patient_id"], strict=True))
        config = {
            "concept": self.definition.text,
            "examples": self.examples.concept,
            "controls": self.examples.controls,
            "similarity": self.similarity,
            "options": dict(world.options),
        }
        remedy = f"choose another name for the concept, or delete {self.folder}"
        inputs: dict[str, Path | str] = {name: source / name for name in (WEIGHTS, STATISTICS)}
        record = provenance.begin(self.folder, "explain concept", config, inputs, remedy)
        self._write_examples()
        rows = self._earlier()
        done = set(rows["nodule_id"])
        pending = [key for key in patients if key not in done or not self._path(key).exists()]
        if not pending:
            return 0
        model = NoduleModel.load(source).to(best_device())
        statistics = Statistics.read(source / STATISTICS)
        concepts = self._concepts(model, statistics)
        fresh: list[Row] = []
        failures: list[Row] = []
        try:
            for key in track(pending, f"Explaining {self.definition.name}, fold {self.fold}"):
                identity = {"nodule_id": key, "patient_id": patients[key], "fold": self.fold}
                try:
                    fresh += [{**identity, **row} for row in self._explain(model, statistics, concepts, key)]
                except LidcCdamError as error:
                    failures.append({"nodule_id": key, "reason": str(error)})
        finally:
            # An interrupt keeps what is explained; the next call goes on after it.
            self._write(rows[~rows["nodule_id"].isin(pending)], fresh, failures)
        if not failures:
            record.finish(nodules=len(patients))
        return len(failures)

    def _path(self, nodule_id: str) -> Path:
        return self.folder / f"{nodule_id}.npz"

    def _earlier(self) -> pd.DataFrame:
        path = self.folder / MEASURES
        return read_table(path, CONCEPT_COLUMNS, "explain") if path.exists() else pd.DataFrame(columns=CONCEPT_COLUMNS)

    def _concepts(self, model: NoduleModel, statistics: Statistics) -> list[Concept]:
        """z_concept of the examples, then of each control set."""
        sets = (self.examples.concept, *self.examples.controls)
        latents: dict[str, Tensor] = {}
        for key in track(dict.fromkeys(key for part in sets for key in part), "Reading examples"):
            shown = self.world.images(key, statistics, model.image_size)
            latents[key] = Concept.from_images(model, shown, key, self.similarity, self.world.batch_size).latent
        return [
            Concept(name, torch.stack([latents[key] for key in part]).mean(0), self.similarity)
            for name, part in zip(self.names, sets, strict=True)
        ]

    def _explain(
        self, model: NoduleModel, statistics: Statistics, concepts: Sequence[Concept], nodule_id: str
    ) -> list[Row]:
        """Write one nodule's maps, and return what is measured of them."""
        world = self.world
        images = world.images(nodule_id, statistics, model.image_size)
        options = dict(world.options)
        if "batch_size" in EXPLAINERS[world.method].options:
            options.setdefault("batch_size", world.batch_size)
        found = explain(model, images, list(concepts), world.method, **options).float().cpu()
        with torch.no_grad():
            latents = model.embed(images)
        likeness = torch.stack([concept.read(latents) for concept in concepts], 1).mean(0).cpu().numpy()
        scores = found.movedim(0, 1)
        digest = crop_digest(world.data, nodule_id) or ""
        maps = Maps(scores[:, :, None].numpy(), self.names, world.views, (world.grid.central,), digest)
        write_maps(self._path(nodule_id), maps)
        figures = measure_concept(scores, likeness, *map(torch.from_numpy, world.masks(nodule_id)))
        figures["fits"] = float(self.fits[nodule_id]) if self.definition.rule else float("nan")
        own = {"concept": self.definition.name, "method": world.method}
        return [{**own, "metric": metric, "value": value} for metric, value in figures.items()]

    def _write_examples(self) -> None:
        sets = zip(self.names, (self.examples.concept, *self.examples.controls), strict=True)
        rows = [{"set": name, "nodule_id": key} for name, keys in sets for key in keys]
        write_table(self.folder / EXAMPLES, pd.DataFrame(rows), ("set", "nodule_id"))

    def _write(self, earlier: pd.DataFrame, fresh: Sequence[Row], failures: Sequence[Row]) -> None:
        tables = [table for table in (earlier, pd.DataFrame(fresh)) if len(table)]
        if tables:
            write_table(self.folder / MEASURES, pd.concat(tables, ignore_index=True), CONCEPT_COLUMNS)
        if failures:
            write_table(self.folder / FAILED, pd.DataFrame(failures), ("nodule_id", "reason"))
        else:
            (self.folder / FAILED).unlink(missing_ok=True)


def concept_folder(run: Path, fold: int, name: str, method: str) -> Path:
    """`RUN/fold_k/concepts/<name>/<method>`."""
    return fold_folder(run, fold) / "concepts" / name / method


def _pool(run: Path, names: Sequence[str], method: str, seed: int) -> None:
    """Write the tables of all concepts of a run, and print those of this call."""
    parts = sorted(run.glob(f"fold_*/concepts/*/*/{MEASURES}"))
    if not parts:
        raise LidcCdamError(f"No nodule of {run} could be explained; {FAILED} beside the maps names each.")
    table = pd.concat([read_table(path, CONCEPT_COLUMNS, "explain") for path in parts], ignore_index=True)
    summary = summarised(table, seed)
    write_table(run / TABLE, table, CONCEPT_COLUMNS)
    write_json(run / SUMMARY, {"schema": SCHEMA, **summary})
    for line in lines_of(summary, names, method):
        say(line)
    say(f"See {run / TABLE} and {run / SUMMARY}; maps lie in {run / 'fold_*' / 'concepts'}.")
