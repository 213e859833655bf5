"""The paper's classifier of natural images: stage `train --task images`, a linear head on a frozen backbone."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lidc_cdam import provenance
from lidc_cdam.artifacts import CONFIG, FAILED, PREDICTIONS, read_arrays, write_table
from lidc_cdam.backbones import BACKBONES, HUB, build_backbone, weights_file
from lidc_cdam.classifier import ImageClassifier, normalised, published_input
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import held, replacing, write_json, write_text
from lidc_cdam.images import read_image
from lidc_cdam.metrics.intervals import proportion
from lidc_cdam.model import best_device
from lidc_cdam.progress import say, track
from training.image_folder import ImageFolder, ImageSet, ImageTensors, collected, read_folder

STAGE = "train images"
METRICS, HISTORY, CHECKPOINT, FEATURES = "metrics.json", "history.csv", "last.ckpt", "features"
PART = 4096
"""Images whose latents are kept in one file, so that an interrupted call goes on after it."""
INITIAL, ORDER = 9, 10
"""Streams of random numbers: initial weights, order of one epoch."""
TOP = 5


@dataclass(frozen=True)
class ImageSettings:
    """Which classifier, learnt how; the paper's values.

    Raises:
        LidcCdamError: a value lies outside its range.
    """

    backbone: str = "dino_vits8"
    """Name of a vision transformer in the table of backbones; it stays as it is."""
    weights: str = HUB
    """Its weights: `hub` (the published ones) or a file."""
    image_size: int | None = None
    """Side of the input in pixels; none takes the backbone's own."""
    augment: bool = True
    """Whether each epoch shows random crops and mirror images. False computes each image's latent once and keeps it
    for all epochs, which is many times faster."""
    epochs: int = 10
    """Passes over the images."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 3e-4
    """Adam's learning rate."""
    val_share: float = 0.2
    """Share of each class's images that validates, where the folder has no `val`."""
    seed: int = 0
    """Seed of the initial weights, the order, the crops and that share."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise LidcCdamError(f"--backbone must be one of {', '.join(BACKBONES)}; got {self.backbone!r}.")
        if not self.lr > 0 or not 0 < self.val_share < 1:
            raise LidcCdamError(
                f"--lr must be above 0 and --val-share above 0 and below 1; got {self.lr} and {self.val_share}."
            )
        for name, lowest in {"epochs": 1, "batch_size": 1, "image_size": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise LidcCdamError(f"--{name.replace('_', '-')} must be at least {lowest}; got {value}.")


def train_images(task: Literal["images"], data: Path, out: Path, settings: ImageSettings, readers: int = 0) -> None:
    """Train a linear classifier of natural images on a frozen backbone.

    The defaults are the paper's: DINO ViT-S/8, Adam at 3e-4, batches of 128, ten epochs, random crops, mirror images.
    The last epoch's weights are kept; validation images choose nothing. Writes a model folder for
    `explain --images` and `evaluate --images`: model.safetensors, model.json (classes, input), metrics.json,
    predictions.csv (validation), history.csv, config.yaml and provenance.json.

    Args:
        task: images; without this option `train` trains on nodules.
        data: Folder of images: train/<class>/ and val/<class>/ as ImageNet's, or <class>/ alone.
        out: Folder of the model.
        settings: Which classifier, learnt how.
        readers: Processes that read images beside this one; change the speed, not the result.

    Raises:
        LidcCdamError: the folder is no such layout, weights are missing, or `out` holds another model.
    """
    if readers < 0:
        raise LidcCdamError(f"--readers must be at least 0; got {readers}.")
    folder = read_folder(data, settings.val_share, settings.seed)
    weights = weights_file(settings.backbone, settings.weights)
    backbone = build_backbone(settings.backbone, weights, settings.image_size)
    listed = provenance.sha256_of([[*part.names] for part in (folder.train, folder.val)])
    with held(out, wait=True):
        record = provenance.begin(out, STAGE, asdict(settings), {"weights": weights, "images": listed})
        if record.finished:
            say(f"The classifier is finished already: {out}.")
            return
        write_text(out / CONFIG, yaml.safe_dump({"task": task, "data": str(data.resolve()), **asdict(settings)}))
        metrics = _Training(folder, settings, out, _untrained(settings, folder, backbone), readers).run()
        record.finish(images=len(folder.train.names), classes=len(folder.classes.keys))
    interval = metrics["accuracy"]
    say(
        f"{len(folder.classes.keys)} classes, {len(folder.train.names)} images; {folder.split}. Accuracy on "
        f"{metrics['images']} held-back images: {interval['value']:.3f} [{interval['low']:.3f}, "
        f"{interval['high']:.3f}]; written to {out}."
    )


def _untrained(settings: ImageSettings, folder: ImageFolder, backbone: nn.Module) -> ImageClassifier:
    """The frozen backbone with a fresh head, on the best device."""
    torch.manual_seed(int(np.random.SeedSequence((settings.seed, INITIAL)).generate_state(1)[0]))
    shown = published_input(settings.backbone, settings.image_size)
    model = ImageClassifier(backbone, folder.classes, shown, settings.backbone).to(best_device()).eval()
    backbone.requires_grad_(False)
    return model


@dataclass
class _Training:
    """One classifier in the making."""

    folder: ImageFolder
    settings: ImageSettings
    out: Path
    model: ImageClassifier
    readers: int
    unread: dict[str, str] = field(default_factory=dict)
    """Images that could not be read, with the reason."""

    def run(self) -> dict[str, Any]:
        """Train, write the folder's files, and return its metrics."""
        val, val_places = self._latents(self.folder.val, "val")
        labels = torch.tensor(self.folder.val.labels, device=self.device)[val_places]
        history = self._fit(val, labels)
        self.model.save(self.out)
        write_table(self.out / HISTORY, pd.DataFrame(history), ("epoch", "train_loss", "val_loss", "val_accuracy"))
        with torch.no_grad():
            probabilities = self.model.head(val).softmax(1).cpu()
        metrics = measured(probabilities, labels.cpu(), self.folder.classes.keys)
        self._write_predictions(probabilities, val_places)
        self._write_unread()
        write_json(self.out / METRICS, {**metrics, "split": self.folder.split, "unreadable": len(self.unread)})
        self._tidy()
        return metrics

    def _fit(self, val: Float[Tensor, "image latent"], labels: Int[Tensor, " image"]) -> list[dict[str, float]]:
        """Train the head for the epochs that are left."""
        head, settings = self.model.head, self.settings
        optimiser = torch.optim.Adam(head.parameters(), lr=settings.lr)
        history = self._resume(head, optimiser)
        source = None if settings.augment else self._latents(self.folder.train, "train")
        for epoch in track(range(len(history), settings.epochs), "Training the classifier (epochs)"):
            total = count = 0.0
            for latents, classes in self._batches(epoch, source):
                loss = F.cross_entropy(head(latents), classes)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                total, count = total + loss.item() * len(classes), count + len(classes)
            if not count or not np.isfinite(total):
                what = "diverged; choose a lower --lr" if count else "had no image that can be read"
                raise LidcCdamError(f"The training on {self.folder.train.root} {what}.")
            with torch.no_grad():
                outputs = head(val)
            accuracy = float((outputs.argmax(1) == labels).double().mean())
            val_loss = float(F.cross_entropy(outputs, labels))
            history.append(
                {"epoch": epoch, "train_loss": total / count, "val_loss": val_loss, "val_accuracy": accuracy}
            )
            state = {"head": head.state_dict(), "optimiser": optimiser.state_dict(), "history": history}
            with replacing(self.out / CHECKPOINT) as temporary:
                torch.save(state, temporary)
        return history

    def _resume(self, head: nn.Module, optimiser: torch.optim.Optimizer) -> list[dict[str, float]]:
        path = self.out / CHECKPOINT
        if not path.exists():
            return []
        state = torch.load(path, map_location=self.device, weights_only=True)
        head.load_state_dict(state["head"])
        optimiser.load_state_dict(state["optimiser"])
        history: list[dict[str, float]] = state["history"]
        return history

    def _batches(
        self, epoch: int, source: tuple[Tensor, list[int]] | None
    ) -> Iterator[tuple[Float[Tensor, "image latent"], Int[Tensor, " image"]]]:
        """Latents and classes of an epoch's batches, in its order."""
        labels = torch.tensor(self.folder.train.labels, device=self.device)
        seed = np.random.SeedSequence((self.settings.seed, ORDER, epoch))
        if source is not None:
            latents, places = source
            order = torch.from_numpy(np.random.default_rng(seed).permutation(len(places))).to(self.device)
            for part in torch.split(order, self.settings.batch_size):
                yield latents[part], labels[torch.tensor(places, device=self.device)[part]]
            return
        order = np.random.default_rng(seed).permutation(len(self.folder.train.names)).tolist()
        for latents, places in self._embedded(self.folder.train, order, (self.settings.seed, epoch)):
            if places:
                yield latents, labels[places]

    def _latents(self, images: ImageSet, role: str) -> tuple[Float[Tensor, "image latent"], list[int]]:
        """Latent of each image that can be read, and its place; kept in parts until the training is finished."""
        latents: list[Tensor] = []
        places: list[int] = []
        for start in range(0, len(images.names), PART):
            path = self.out / FEATURES / f"{role}_{start}.npz"
            wanted = list(range(start, min(start + PART, len(images.names))))
            if not path.exists():
                parts = list(self._embedded(images, wanted, None))
                found = torch.cat([part for part, _ in parts])
                kept = [place for _, part in parts for place in part]
                with replacing(path) as temporary, temporary.open("wb") as stream:
                    np.savez(stream, latents=found.cpu().numpy(), places=np.array(kept, dtype=np.int64))
            stored = read_arrays(path, ("latents", "places"), "train --task images")
            kept = [int(place) for place in stored["places"]]
            latents.append(torch.from_numpy(stored["latents"]))
            places += kept
            self._note(images, set(wanted) - set(kept))
        if not places:
            raise LidcCdamError(f"None of {len(images.names)} {role} images of {images.root} can be read.")
        return torch.cat(latents).to(self.device), places

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return next(self.model.parameters()).device

    def _embedded(
        self, images: ImageSet, places: Sequence[int], draw: tuple[int, int] | None
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Latents of images in batches, with the places of those that could be read."""
        tensors = ImageTensors(images, self.model.shown, places, draw)
        loader = DataLoader(
            tensors, self.settings.batch_size, num_workers=self.readers, collate_fn=collected, persistent_workers=False
        )
        for batch, read, unread in track(loader, f"Reading {len(places)} images"):
            self._note(images, unread)
            if not read:
                yield torch.empty(0, self.model.backbone.num_features, device=self.device), read
                continue
            with torch.no_grad():
                latents = self.model.embed(normalised(batch.to(self.device), self.model.shown))
            yield latents, read

    def _note(self, images: ImageSet, places: Sequence[int] | set[int]) -> None:
        for place in places:
            name = images.names[place]
            if name not in self.unread:
                try:
                    read_image(images.root / name)
                except LidcCdamError as error:
                    self.unread[name] = str(error)

    def _write_predictions(self, probabilities: Float[Tensor, "image class"], places: Sequence[int]) -> None:
        keys, likeliest = self.folder.classes.keys, probabilities.max(1)
        table = pd.DataFrame(
            {
                "image": [self.folder.val.names[place] for place in places],
                "class": [keys[self.folder.val.labels[place]] for place in places],
                "predicted": [keys[index] for index in likeliest.indices.tolist()],
                "probability": likeliest.values.tolist(),
            }
        )
        write_table(self.out / PREDICTIONS, table, tuple(table.columns))

    def _write_unread(self) -> None:
        if self.unread:
            table = pd.DataFrame(sorted(self.unread.items()), columns=["image", "reason"])
            write_table(self.out / FAILED, table, ("image", "reason"))
            say(f"{len(self.unread)} images could not be read and were left out; {self.out / FAILED} names them.")

    def _tidy(self) -> None:
        """Remove what only an interrupted call needs."""
        (self.out / CHECKPOINT).unlink(missing_ok=True)
        for path in (self.out / FEATURES).glob("*.npz"):
            path.unlink()
        (self.out / FEATURES).rmdir()


def measured(
    probabilities: Float[Tensor, "image class"], labels: Int[Tensor, " image"], keys: Sequence[str]
) -> dict[str, Any]:
    """Accuracy on held-back images, with intervals (Wilson's, images being independent), and of each class.

    Args:
        probabilities: of the classes.
        labels: the classes that are right.
        keys: names of the classes.
    """
    right = probabilities.argmax(1) == labels
    found: dict[str, Any] = {
        "images": len(labels),
        "accuracy": proportion(int(right.sum()), len(labels)).as_dict(),
        "chance": float(labels.bincount().max()) / len(labels),
    }
    if len(keys) > TOP:
        among = (probabilities.topk(TOP, 1).indices == labels[:, None]).any(1)
        found[f"top_{TOP}_accuracy"] = proportion(int(among.sum()), len(labels)).as_dict()
    found["classes"] = {
        key: {"images": int(own.sum()), "accuracy": float(right[own].double().mean())}
        for key, own in ((key, labels == index) for index, key in enumerate(keys))
        if own.any()
    }
    return found
