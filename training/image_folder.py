"""ImageNet's folder layout: images by class, for training and for validation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.images import Classes, Input, find_images, read_image

ROLES = ("train", "val")
CROP_AREA, CROP_RATIO = [0.08, 1.0], [3 / 4, 4 / 3]
"""Share of an image's area, and width over height, of a random crop: torchvision's defaults, which are the paper's."""
SPLIT, AUGMENT = 7, 8
"""Streams of random numbers: the split, and crops of one epoch (training on nodules has the others)."""


@dataclass(frozen=True)
class ImageSet:
    """Images with their classes."""

    root: Path
    names: tuple[str, ...]
    """Paths below `root`."""
    labels: tuple[int, ...]
    """Index of each image's class."""


@dataclass(frozen=True)
class ImageFolder:
    """What there is to train on and to validate on."""

    classes: Classes
    train: ImageSet
    val: ImageSet
    split: str
    """Where the two come from, for people."""


def read_folder(root: Path, val_share: float, seed: int) -> ImageFolder:
    """Find a folder's images: `train/<class>/*` and `val/<class>/*`, or `<class>/*`, of which a share validates.

    Args:
        root: the folder.
        val_share: share of each class's images that validates, where there is no `val`; at least one image.
        seed: of that choice.

    Raises:
        LidcCdamError: a folder is missing or empty, there are fewer than two classes, or validation has others.
    """
    present = [role for role in ROLES if (root / role).is_dir()]
    if len(present) == 1:
        other = next(role for role in ROLES if role not in present)
        raise LidcCdamError(f"--data {root} must have both train and val, or neither, but {root / other} is missing.")
    if present:
        train, val = (_by_class(root, role) for role in ROLES)
        classes = _classes(root / ROLES[0], train)
        strange = sorted({label for _, label in val} - set(classes.keys))
        if strange:
            raise LidcCdamError(
                f"{root / 'val'} must hold classes of {root / 'train'}, but {strange[0]} is none; rename or drop it."
            )
        return ImageFolder(classes, _set(root, train, classes), _set(root, val, classes), "folders train and val")
    found = _by_class(root, "")
    classes = _classes(root, found)
    held = _held_back(found, val_share, seed)
    train, val = ([pair for pair in found if (pair[0] in held) is part] for part in (False, True))
    told = f"{val_share:g} of each class's images, drawn with seed {seed}, validate"
    return ImageFolder(classes, _set(root, train, classes), _set(root, val, classes), told)


def _by_class(root: Path, role: str) -> list[tuple[str, str]]:
    """Images with the folder below `role` that they lie in."""
    pairs = []
    for name in find_images(root / role, "--data"):
        label, slash, _ = name.partition("/")
        if not slash:
            raise LidcCdamError(
                f"{root / role} must hold one folder of images per class, but {name} lies in none; move each image "
                f"into a folder named after its class."
            )
        pairs.append((f"{role}/{name}" if role else name, label))
    return pairs


def _classes(place: Path, pairs: Sequence[tuple[str, str]]) -> Classes:
    keys = sorted({label for _, label in pairs})
    if len(keys) < 2:
        raise LidcCdamError(
            f"{place} must hold folders of at least 2 classes to tell apart, but it holds {', '.join(keys)} alone."
        )
    return Classes(tuple(keys))


def _set(root: Path, pairs: Sequence[tuple[str, str]], classes: Classes) -> ImageSet:
    place = {key: index for index, key in enumerate(classes.keys)}
    return ImageSet(root, tuple(name for name, _ in pairs), tuple(place[label] for _, label in pairs))


def _held_back(pairs: Sequence[tuple[str, str]], share: float, seed: int) -> set[str]:
    held: set[str] = set()
    for index, (label, count) in enumerate(sorted(Counter(label for _, label in pairs).items())):
        if count < 2:
            raise LidcCdamError(f"Class {label} must have at least 2 images, one of which validates; it has {count}.")
        names = [name for name, other in pairs if other == label]
        size = min(max(round(share * count), 1), count - 1)
        drawn = np.random.default_rng(np.random.SeedSequence((seed, SPLIT, index))).permutation(count)[:size]
        held |= {names[place] for place in drawn}
    return held


class ImageTensors(Dataset[tuple[Tensor | None, int]]):
    """Images as a model's input before normalisation, each with its place; None for one that cannot be read."""

    def __init__(self, images: ImageSet, shown: Input, places: Sequence[int], draw: tuple[int, int] | None) -> None:
        """Prepare to read.

        Args:
            images: where from.
            shown: what the model is shown.
            places: which images, in this order.
            draw: seed and epoch of a random crop and mirror image; None shows the central rectangle.
        """
        self.images, self.shown, self.places, self.draw = images, shown, places, draw

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int]:
        place = self.places[index]
        try:
            image = read_image(self.images.root / self.images.names[place])
        except LidcCdamError:
            return None, place
        if self.draw is not None:
            seed, epoch = self.draw
            image = varied(image, self.shown, (seed, AUGMENT, epoch, place))
            return torch.from_numpy(np.array(image)), place
        return torch.from_numpy(self.shown.shown(image).copy()), place


def varied(image: Image.Image, shown: Input, key: tuple[int, ...]) -> Image.Image:
    """A random crop of an image, resized to the input, and every second one mirrored (the paper's augmentation).

    Args:
        image: RGB.
        shown: gives the size.
        key: decides the draw.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        top, left, height, width = RandomResizedCrop.get_params(image, CROP_AREA, CROP_RATIO)
        mirrored = bool(torch.rand(1) < 0.5)
    rows, columns = shown.size
    box = (left, top, left + width, top + height)
    crop = image.resize((columns, rows), Image.Resampling.BILINEAR, box)
    return ImageOps.mirror(crop) if mirrored else crop


def collected(items: Sequence[tuple[Tensor | None, int]]) -> tuple[Tensor, list[int], list[int]]:
    """A batch: the images that could be read [image, row, column, 3], their places, and the places of the others."""
    read = [(image, place) for image, place in items if image is not None]
    images = torch.stack([image for image, _ in read]) if read else torch.empty(0, dtype=torch.uint8)
    return images, [place for _, place in read], [place for image, place in items if image is None]
