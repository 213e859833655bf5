"""The `explain --images` step: maps of natural images, by a backbone's own classifier or a trained one, as files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lidc_cdam import provenance
from lidc_cdam.artifacts import FAILED, SCHEMA, Maps, read_table, write_maps, write_table
from lidc_cdam.classifier import ImageClassifier, open_classifier
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import check_size
from lidc_cdam.explain.registry import EXPLAINERS, explain, find_explainer
from lidc_cdam.files import write_json
from lidc_cdam.images import (
    EXPLAINED,
    IMAGE_MAP_COLUMNS,
    ClassList,
    file_digest,
    find_images,
    image_index_path,
    image_map_path,
    read_class_list,
    read_image,
)
from lidc_cdam.model import best_device
from lidc_cdam.progress import say, track

VIEW = "image"
"""Name of the one view of a natural image, whose one slice is 0, in files of maps."""
Row = dict[str, Any]


def explain_images(
    images: Path,
    model: str,
    out: Path,
    method: str = "cdam",
    weights: str | None = None,
    targets: list[str | int] | None = None,
    classes: Path | None = None,
    top: int = 1,
    options: dict[str, Any] | None = None,
    batch_size: int = 64,
    pictures: bool = True,
) -> None:
    """Write signed maps of natural images, and pictures of them.

    The scores are raw, of the classes' logits, on the model's token grid: OUT/maps/<method>/<image>.npz, listed in
    OUT/maps/<method>/index.csv. Pictures, on one scale for all images of a method, come from `report --maps OUT`, which
    this step calls at its end: OUT/overlays/<method>/<image>.png and OUT/index.html.

    Args:
        images: Folder of images, in any arrangement.
        model: Folder of a model (`train --task images`), or a backbone that has a classifier of its own, such as
            deit_small16, swag_vitb16 or vitb16.
        out: Where to write.
        method: Estimator, such as cdam, smooth_cdam, integrated_cdam, random or centre.
        weights: For a backbone, hub (the published weights, the default) or a file.
        targets: Classes to explain in every image, by key or name, such as n01440764,zebra; by default each image's
            likeliest.
        classes: CSV table image,class,other_class that names each image's classes instead; other images are left out.
        top: How many of an image's likeliest classes to explain, where neither --targets nor --classes is given.
        options: The estimator's own settings, such as {"n": 20}.
        batch_size: Images at a time; changes the memory, not the maps.
        pictures: Whether to draw the maps.
    """
    settings = dict(options or {})
    find_explainer(method, settings)
    check_size(batch_size)
    if targets is not None and classes is not None:
        raise LidcCdamError("--targets and --classes both say what to explain; drop one.")
    classifier = open_classifier(model, weights).to(best_device())
    names = find_images(images)
    chosen = _Choice.of(classifier, names, targets, classes, top)
    record = _claim(out, method, classifier, chosen, settings)
    _describe(out, images, classifier)
    work = _Work(images, out, method, settings, batch_size)
    written, failures = work.explain(classifier, chosen)
    _tell(work, written, failures, len(chosen.names))
    if not failures:
        record.finish(images=len(chosen.names))
    if pictures:
        from lidc_cdam.cli import run_command

        run_command("report", ("--maps", str(out)))


@dataclass(frozen=True)
class _Choice:
    """What is explained of each image."""

    names: tuple[str, ...]
    targets: tuple[str, ...] | None
    """Keys of classes, the same for all images."""
    listed: ClassList | None
    top: int

    @classmethod
    def of(
        cls,
        model: ImageClassifier,
        names: Sequence[str],
        targets: list[str | int] | None,
        classes: Path | None,
        top: int,
    ) -> "_Choice":
        if not 1 <= top <= len(model.targets):
            raise LidcCdamError(f"--top must be from 1 to the model's {len(model.targets)} classes; got {top}.")
        if targets == []:
            raise LidcCdamError("--targets must name at least one class; got none.")
        keys = None if targets is None else tuple(dict.fromkeys(model.classes.find(str(word)) for word in targets))
        listed = None if classes is None else read_class_list(classes, names, model.classes)
        kept = names if listed is None else [name for name in names if name in listed.classes]
        return cls(tuple(kept), keys, listed, top)

    def targets_of(self, name: str, outputs: Float[Tensor, " class"], keys: Sequence[str]) -> tuple[str, ...]:
        """An image's classes."""
        if self.listed is not None:
            return self.listed.targets(name)
        if self.targets is not None:
            return self.targets
        return tuple(keys[index] for index in outputs.topk(self.top).indices.tolist())

    def as_dict(self) -> dict[str, Any]:
        """What decides the maps, for the folder's record."""
        if self.listed is not None:
            return {"classes": provenance.sha256_of([self.listed.classes, self.listed.others])}
        return {"top": self.top} if self.targets is None else {"targets": self.targets}


def _claim(
    out: Path, method: str, model: ImageClassifier, chosen: _Choice, options: Mapping[str, Any]
) -> provenance.Record:
    """Claim the folder for one model, and the method's maps for one choice of classes."""
    provenance.begin(out, "explain images", {"backbone": model.backbone_name}, {"model": model.digest()})
    stage = f"explain images/{method}"
    record = provenance.begin(out, stage, {**chosen.as_dict(), "options": options})
    if record.finished:
        provenance.reopen(out, stage)
    return record


def _describe(out: Path, images: Path, model: ImageClassifier) -> None:
    """Write what pictures of the maps need to know."""
    titles = {key: model.classes.title(key) for key in model.targets}
    told = {"schema": SCHEMA, "images": str(images.resolve()), "input": asdict(model.shown), "titles": titles}
    write_json(out / EXPLAINED, told)


@dataclass(frozen=True)
class _Work:
    """Where images come from and maps go."""

    images: Path
    out: Path
    method: str
    options: Mapping[str, Any]
    batch_size: int

    @property
    def index(self) -> Path:
        """The method's table of maps."""
        return image_index_path(self.out, self.method)

    def explain(self, model: ImageClassifier, chosen: _Choice) -> tuple[int, list[Row]]:
        """Explain what is missing or has changed; return how many images that were, and those that failed."""
        rows = self._earlier()
        digests = {name: file_digest(self.images / name) for name in chosen.names}
        pending = [name for name in chosen.names if not digests[name] or not self._is_done(name, digests[name], rows)]
        failures: list[Row] = []
        written = 0
        try:
            starts = range(0, len(pending), self.batch_size)
            for start in track(starts, f"Explaining images ({self.method})"):
                batch = self._read(pending[start : start + self.batch_size], failures)
                for name, maps, outputs in self._explained(model, chosen, batch):
                    stored = Maps(maps[:, None, None].numpy(), tuple(outputs), (VIEW,), (0,), digests[name])
                    write_maps(image_map_path(self.out, self.method, name), stored)
                    rows[name] = _rows(name, digests[name], stored, outputs)
                    written += 1
        finally:
            # An interrupt keeps what is explained; the next call goes on after it.
            self._write(rows, failures)
        return written, failures

    def _earlier(self) -> dict[str, list[Row]]:
        if not self.index.exists():
            return {}
        table = read_table(self.index, IMAGE_MAP_COLUMNS, "explain --images")
        rows: dict[str, list[Row]] = {}
        for row in table.to_dict("records"):
            rows.setdefault(str(row["image"]), []).append({str(key): value for key, value in row.items()})
        return rows

    def _is_done(self, name: str, digest: str, rows: Mapping[str, list[Row]]) -> bool:
        known = rows.get(name, [])
        return known != [] and known[0]["sha256"] == digest and image_map_path(self.out, self.method, name).exists()

    def _read(self, names: Sequence[str], failures: list[Row]) -> dict[str, Image.Image]:
        found = {}
        for name in names:
            try:
                found[name] = read_image(self.images / name)
            except LidcCdamError as error:
                failures.append({"image": name, "reason": str(error)})
                image_map_path(self.out, self.method, name).unlink(missing_ok=True)
        return found

    def _explained(
        self, model: ImageClassifier, chosen: _Choice, batch: Mapping[str, Image.Image]
    ) -> Iterator[tuple[str, Float[Tensor, "target row column"], dict[str, tuple[float, float]]]]:
        """Each image's maps, and logit and probability of their classes."""
        if not batch:
            return
        shown = model.prepare(list(batch.values())).to(best_device())
        with torch.no_grad():
            outputs = model(shown).cpu()
        if not torch.isfinite(outputs).all():
            raise LidcCdamError("The model gives logits that are not finite numbers; choose another --model.")
        asked = [chosen.targets_of(name, row, model.targets) for name, row in zip(batch, outputs, strict=True)]
        maps = maps_of(model, shown, asked, self.method, self.options, self.batch_size)
        for name, keys, scores, row in zip(batch, asked, maps, outputs, strict=True):
            places = [model.targets.index(key) for key in keys]
            shares = row.softmax(0)
            yield name, scores, {key: (float(row[k]), float(shares[k])) for key, k in zip(keys, places, strict=True)}

    def _write(self, rows: Mapping[str, list[Row]], failures: Sequence[Row]) -> None:
        lost = {failure["image"] for failure in failures}
        kept = [row for name in sorted(rows) if name not in lost for row in rows[name]]
        table = pd.DataFrame(kept, columns=list(IMAGE_MAP_COLUMNS))
        if len(table):
            write_table(self.index, table, IMAGE_MAP_COLUMNS)
        path = self.index.with_name(FAILED)
        if failures:
            write_table(path, pd.DataFrame(failures), ("image", "reason"))
        else:
            path.unlink(missing_ok=True)


def maps_of(
    model: ImageClassifier,
    images: Float[Tensor, "image channel height width"],
    asked: Sequence[Sequence[str]],
    method: str,
    options: Mapping[str, Any],
    batch_size: int = 64,
    resolution: str = "token",
) -> list[Float[Tensor, "target row column"]]:
    """Each image's maps of its own classes, on the CPU.

    Images with a class in common are explained together, so that it costs nothing in the others.

    Args:
        model: the classifier.
        images: its input.
        asked: each image's classes.
        method: a key of `EXPLAINERS`.
        options: the method's own settings.
        batch_size: images at a time.
        resolution: one of `registry.RESOLUTIONS`.
    """
    settings = dict(options)
    if "batch_size" in EXPLAINERS[method].options:
        settings.setdefault("batch_size", batch_size)
    found: dict[tuple[int, str], Tensor] = {}
    for key in dict.fromkeys(key for keys in asked for key in keys):
        places = [place for place, keys in enumerate(asked) if key in keys]
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            maps = explain(model, images[part], [key], method, resolution, **settings)[:, 0].float().cpu()
            found.update(zip(((place, key) for place in part), maps, strict=True))
    return [torch.stack([found[place, key] for key in keys]) for place, keys in enumerate(asked)]


def _rows(name: str, digest: str, maps: Maps, outputs: Mapping[str, tuple[float, float]]) -> list[Row]:
    return [
        {
            "image": name,
            "target": key,
            "logit": logit,
            "probability": probability,
            "lowest": float(maps.scores[place].min()),
            "highest": float(maps.scores[place].max()),
            "sha256": digest,
        }
        for place, (key, (logit, probability)) in enumerate(outputs.items())
    ]


def _tell(work: _Work, written: int, failures: Sequence[Row], asked: int) -> None:
    place = work.index.parent
    if failures and len(failures) == asked:
        raise LidcCdamError(f"None of {asked} images could be explained; the first: {failures[0]['reason']}")
    if failures:
        say(f"Could not explain {len(failures)} of {asked} images; {place / FAILED} names each with its reason.")
    if written:
        say(f"Wrote {work.method} maps of {written} images ({asked - written - len(failures)} were there) to {place}.")
    else:
        say(f"All {asked - len(failures)} images have their maps in {place}; nothing to do.")
