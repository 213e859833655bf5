"""The `evaluate --images` step: which maps of natural images tell what a classifier uses, and tell classes apart."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lidc_cdam import provenance
from lidc_cdam.artifacts import FAILED, SCHEMA, read_table, write_table
from lidc_cdam.classifier import ImageClassifier, open_classifier
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.image_stage import maps_of
from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.registry import EXPLAINERS, find_explainer
from lidc_cdam.files import write_json
from lidc_cdam.images import ClassList, file_digest, find_images, read_class_list, read_image
from lidc_cdam.metrics.boxes import BOXES, BoxDrops, box_drops, box_sides
from lidc_cdam.metrics.discrimination import of_boxes, of_curves
from lidc_cdam.metrics.faithfulness import LIF, MIF, curves
from lidc_cdam.metrics.image_summary import lines_of, summarised
from lidc_cdam.metrics.intervals import REPLICATES
from lidc_cdam.metrics.measures import compactness
from lidc_cdam.metrics.perturbation import Fill, check_fill
from lidc_cdam.model import best_device
from lidc_cdam.progress import say, track

TABLE, SUMMARY = "images_explainers.csv", "images_explainers.json"
COLUMNS = ("image", "method", "target", "metric", "value")
KEPT = 20
"""Images after which what is measured is written down."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Perturbation:
    """How images are perturbed.

    Raises:
        LidcCdamError: a value is out of range.
    """

    steps: int = 20
    """Steps of the fidelity curve from 0 to 100 % of the pixels."""
    fill: Fill = "blur"
    """What replaces pixels: blur (the paper's), mean or linear (in-painting)."""
    blur_sigma: float | None = None
    """Blur, in pixels of the model's input; none takes 1/16 of its side, the paper's 14 of 224."""
    box_sides: list[int] | None = None
    """Sides of the boxes in pixels; none takes 16, 32, 48, 64 and 96 at 224, scaled to the input."""
    boxes: int = BOXES
    """Boxes of each side in an image."""
    seed: int = 0
    """Seed of the boxes and of the bootstrap."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.boxes < 3:
            raise LidcCdamError(
                f"--steps must be at least 1 and --boxes at least 3; got {self.steps} and {self.boxes}."
            )
        check_fill(self.fill, self.blur_sigma)


def evaluate_images(
    images: Path,
    model: str,
    out: Path,
    perturbation: Perturbation,
    methods: list[str] | None = None,
    classes: Path | None = None,
    weights: str | None = None,
    options: dict[str, dict[str, Any]] | None = None,
    replicates: int = REPLICATES,
    batch_size: int = 64,
) -> None:
    """Measure on natural images which maps to trust.

    Fidelity, box sensitivity and compactness of each method's maps, each on the method's own grid; for images of two
    classes also class discrimination: the output of one class under the map of the other. Writes
    OUT/images_explainers.csv, one row per image, method, class and metric, and OUT/images_explainers.json, means and
    differences between methods with 95 % intervals over images.

    Args:
        images: Folder of images, in any arrangement.
        model: Folder of a model (`train --task images`), or a backbone that has a classifier of its own.
        out: Where to write.
        perturbation: How images are perturbed.
        methods: Estimators to measure, such as cdam,attention,smoothgrad; cdam and random by default.
        classes: CSV table image,class,other_class: which images to measure, the class that each shows, and another one
            that it shows too. Without it each image's likeliest class is measured, and no discrimination.
        weights: For a backbone, hub (the published weights, the default) or a file.
        options: Settings of estimators by their names, such as {"smoothgrad": {"n": 20}}.
        replicates: Bootstrap replicates of each interval.
        batch_size: Images at a time; changes the memory, not the figures.
    """
    chosen = _methods(methods, options or {})
    check_size(batch_size)
    if replicates < 1:
        raise LidcCdamError(f"--replicates must be at least 1; got {replicates}.")
    classifier = open_classifier(model, weights).to(best_device())
    box_sides(perturbation.box_sides, min(classifier.image_size))
    names = find_images(images)
    listed = None if classes is None else read_class_list(classes, names, classifier.classes)
    measuring = _Measuring(classifier, images, out, perturbation, chosen, listed, batch_size)
    measuring.claim()
    fresh = measuring.measure([name for name in names if listed is None or name in listed.classes])
    _pool(measuring, replicates)
    told = f"Measured the maps of {fresh} images" if fresh else "All maps were measured before"
    say(f"{told} ({', '.join(chosen)}); see {out / TABLE} and {out / SUMMARY}.")


def _methods(asked: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The methods in their order, with their options."""
    names = list(dict.fromkeys(asked if asked is not None else ("cdam", "random")))
    unknown = [name for name in names if name not in EXPLAINERS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise LidcCdamError(f"--methods must name at least one of {', '.join(EXPLAINERS)}; got {got}.")
    strange = [name for name in options if name not in names]
    if strange:
        raise LidcCdamError(f"--options must be of methods among {', '.join(names)}; got {strange[0]!r}.")
    for name in names:
        find_explainer(name, options.get(name, {}))
    return {name: dict(options.get(name, {})) for name in names}


@dataclass
class _Measuring:
    """One model, its images and what is measured of them."""

    model: ImageClassifier
    images: Path
    out: Path
    perturbation: Perturbation
    methods: dict[str, dict[str, Any]]
    listed: ClassList | None
    batch_size: int
    rows: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    """What is measured, by method and image."""
    failures: dict[str, str] = field(default_factory=dict)
    """Images that could not be measured, with the reason."""

    def part(self, method: str) -> Path:
        """A method's table."""
        return self.out / "evaluation" / f"{method}.csv"

    def claim(self) -> None:
        """Claim the folder for one model, one set of classes and one way to perturb."""
        remedy = f"choose another --out, or delete {self.out / 'evaluation'} and {self.out / provenance.FILE}"
        shown = None if self.listed is None else provenance.sha256_of([self.listed.classes, self.listed.others])
        inputs = {"model": self.model.digest(), "classes": shown or "likeliest"}
        provenance.begin(self.out, "evaluate images", asdict(self.perturbation), inputs, remedy)
        for name, options in self.methods.items():
            provenance.begin(self.out, f"evaluate images/{name}", options, remedy=remedy)
            self.rows[name] = {}
            if self.part(name).exists():
                table = read_table(self.part(name), (*COLUMNS, "sha256"), "evaluate --images")
                for row in table.to_dict("records"):
                    self.rows[name].setdefault(str(row["image"]), []).append({str(key): v for key, v in row.items()})

    def measure(self, names: Sequence[str]) -> int:
        """Measure what is missing; return of how many images that was."""
        fresh = 0
        try:
            for name in track(names, "Measuring maps of images"):
                digest = file_digest(self.images / name)
                pending = [key for key, rows in self.rows.items() if not _is_done(rows.get(name), digest)]
                if not pending:
                    continue
                try:
                    self._measure(name, digest, pending)
                except LidcCdamError as error:
                    self.failures[name] = str(error)
                    continue
                fresh += 1
                if fresh % KEPT == 0:
                    self._write()
        finally:
            # An interrupt keeps what is measured; the next call goes on after it.
            self._write()
        wanted = set(names) - set(self.failures)
        for method in self.rows:
            self.rows[method] = {name: rows for name, rows in self.rows[method].items() if name in wanted}
        if self.failures:
            say(f"{len(self.failures)} images could not be measured; {self.out / FAILED} names each with its reason.")
        return fresh

    def _measure(self, name: str, digest: str, methods: Sequence[str]) -> None:
        """Every figure of one image's maps; its boxes are taken out once for all methods."""
        how = self.perturbation
        shown = self.model.prepare([read_image(self.images / name)]).to(next(self.model.parameters()).device)
        keys = self._classes(name, shown)
        drops = box_drops(
            self.model, shown, how.box_sides, how.boxes, how.seed, how.blur_sigma, how.fill, self.batch_size
        )
        measured = {}
        for method in methods:
            options = self.methods[method]
            scores = maps_of(self.model, shown, [keys], method, options, self.batch_size, "native")[0]
            found = _figures(self.model, shown, scores, keys, drops, how, self.batch_size)
            identity = {"image": name, "method": method, "sha256": digest}
            measured[method] = [{**identity, **figure} for figure in found]
        for method, rows in measured.items():
            self.rows[method][name] = rows

    def _classes(self, name: str, shown: Float[Tensor, "1 channel height width"]) -> tuple[str, ...]:
        if self.listed is not None:
            return self.listed.targets(name)
        with torch.no_grad():
            return (self.model.targets[int(self.model(shown).argmax())],)

    def _write(self) -> None:
        for method, images in self.rows.items():
            rows = [row for name in sorted(images) if name not in self.failures for row in images[name]]
            if rows:
                write_table(self.part(method), pd.DataFrame(rows), COLUMNS)
        if self.failures:
            write_table(
                self.out / FAILED, pd.DataFrame(self.failures.items(), columns=["image", "reason"]), ("image", "reason")
            )
        else:
            (self.out / FAILED).unlink(missing_ok=True)


def _is_done(rows: Sequence[Row] | None, digest: str) -> bool:
    return rows is not None and bool(digest) and rows[0]["sha256"] == digest


def _figures(
    model: ImageClassifier,
    shown: Float[Tensor, "1 channel height width"],
    scores: Float[Tensor, "target row column"],
    keys: Sequence[str],
    drops: BoxDrops,
    how: Perturbation,
    batch_size: int,
) -> list[Row]:
    """One image's figures: each class's output under its own map and, of two classes, under the other's."""
    maps = scores[None].to(shown)
    read = np.array([[model.targets.index(key) for key in keys]])
    curve = curves(model, shown, maps, how.steps, how.fill, how.blur_sigma, batch_size)
    fidelity, box = of_curves(curve, read), of_boxes(drops, maps, read)
    places = np.arange(len(keys))
    figures = {
        "fidelity_mif": curve.areas[MIF, 0, places, read[0]],
        "fidelity_lif": curve.areas[LIF, 0, places, read[0]],
        "fidelity": fidelity.own[0],
        "box": box.own[0],
        "compactness": compactness(scores).numpy(),
    }
    if len(keys) == 2:
        figures |= {
            "fidelity_by_other": fidelity.matrix[0, places, 1 - places],
            "box_by_other": box.matrix[0, places, 1 - places],
            "fidelity_delta": fidelity.delta[0],
            "box_delta": box.delta[0],
        }
    return [
        {"target": key, "metric": metric, "value": float(values[place])}
        for place, key in enumerate(keys)
        for metric, values in figures.items()
    ]


def _pool(measuring: _Measuring, replicates: int) -> None:
    """Write the table and the summary of the methods asked for."""
    rows = [row for images in measuring.rows.values() for rows in images.values() for row in rows]
    if not rows:
        first = next(iter(measuring.failures.values()), "there is none")
        raise LidcCdamError(f"No image of {measuring.images} could be measured; the first: {first}")
    table = pd.DataFrame(rows)[list(COLUMNS)]
    how = measuring.perturbation
    summary = summarised(table, list(measuring.methods), replicates, how.seed)
    write_table(measuring.out / TABLE, table, COLUMNS)
    write_json(measuring.out / SUMMARY, {"schema": SCHEMA, "settings": asdict(how), **summary})
    for line in lines_of(summary):
        say(line)
