"""Natural images: files of a folder, read as a person sees them, and what of each a model is shown."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image, ImageOps

from lidc_cdam.errors import LidcCdamError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of files that count as images, in either case; other files are passed over."""
GREY_16 = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16-bit grey, which its own conversion to RGB would clip at 255."""
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

EXPLAINED = "images.json"
"""What `explain --images` writes beside its maps: the folder of images, and what the model is shown of each."""
IMAGE_MAP_COLUMNS = ("image", "target", "logit", "probability", "lowest", "highest", "sha256")
"""Columns of a method's `index.csv`: one row per map; `lowest` and `highest` are its scores' ends, `sha256` is of the
image's file."""


@dataclass(frozen=True)
class Input:
    """How an image becomes a model's input: a central rectangle, resized, each channel normalised.

    Raises:
        LidcCdamError: a value is out of range.
    """

    size: tuple[int, int]
    """Height and width, pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of red, green and blue, on a scale from 0 to 1."""
    sd: tuple[float, float, float] = IMAGENET_SD
    """Standard deviation, likewise."""
    crop_share: float = 1.0
    """Side of the largest central rectangle of the input's shape that is shown, above 0 to 1."""

    def __post_init__(self) -> None:
        if not (0 < self.crop_share <= 1 and min(self.size) > 0 and min(self.sd) > 0):
            raise LidcCdamError(
                f"A model's input must have a size and deviations above 0 and a crop_share above 0 to 1; got {self}."
            )

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The rectangle of an image that is shown: left, upper, right, lower, pixels from its upper left corner."""
        rows, columns = self.size
        scale = min(width / columns, height / rows) * self.crop_share
        left, upper = (width - columns * scale) / 2, (height - rows * scale) / 2
        return left, upper, left + columns * scale, upper + rows * scale

    def shown(self, image: Image.Image) -> UInt8[np.ndarray, "row column 3"]:
        """What a model is shown of an image, before normalisation (bicubic, averaged where it shrinks)."""
        rows, columns = self.size
        resized = image.resize((columns, rows), Image.Resampling.BICUBIC, self.box(*image.size))
        return np.asarray(resized, dtype=np.uint8)


def find_images(folder: Path, option: str = "--images") -> list[str]:
    """The images below a folder as paths relative to it (`class/name.jpg`), sorted; hidden ones are passed over.

    Raises:
        LidcCdamError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise LidcCdamError(f"{option} must be a folder of images, but {folder} is none.")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise LidcCdamError(f"{option} {folder} must hold images ({', '.join(ENDINGS)}), but it holds none.")
    return names


def read_image(path: Path) -> Image.Image:
    """An image as a person sees it: upright, 8-bit RGB, on white where it is transparent.

    The camera's orientation (EXIF) is applied. 16-bit grey is scaled to 8 bits, CMYK becomes RGB, and of an animation
    the first picture is taken.

    Raises:
        LidcCdamError: the file is missing, damaged, too large or of a kind that cannot be shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as stored:
                stored.load()
                return _as_rgb(ImageOps.exif_transpose(stored))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LidcCdamError(f"{path} must have at most {Image.MAX_IMAGE_PIXELS} pixels; make it smaller.") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, ZeroDivisionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LidcCdamError(
            f"{path} must be an image that can be read, but it cannot ({reason}); mend it or take it away."
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in GREY_16:
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey values from {grey.min()} to {grey.max()} instead of 8 or 16 bits")
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point grey values, which have no fixed white")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def file_digest(path: Path) -> str:
    """SHA-256 of an image's file; empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


@dataclass(frozen=True)
class Classes:
    """The classes of a classifier: keys in output order, and a name for people of each."""

    keys: tuple[str, ...]
    titles: tuple[str, ...] = ()
    """Such as `tench, Tinca tinca`; the keys themselves by default."""

    def __post_init__(self) -> None:
        if len(self.keys) < 2 or len(set(self.keys)) < len(self.keys):
            raise LidcCdamError(f"A classifier must tell at least 2 different classes apart; got {len(self.keys)}.")
        object.__setattr__(self, "titles", self.titles or self.keys)

    def title(self, key: str) -> str:
        """A class's name for people: of several, the first."""
        return self.titles[self.keys.index(key)].partition(",")[0]

    def find(self, word: str, option: str = "--targets") -> str:
        """The key of the class that a user names by its key or by one of its names.

        Raises:
            LidcCdamError: there is no such class, or several have the name.
        """
        if word in self.keys:
            return word
        named = [key for key, title in zip(self.keys, self.titles, strict=True) if word.lower() in _names(title)]
        if len(named) == 1:
            return named[0]
        if named:
            raise LidcCdamError(f"{option}: {word!r} names several classes; choose one of {', '.join(named)}.")
        known = [*self.keys, *(name for title in self.titles for name in _names(title))]
        near = get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"they begin with {', '.join(self.keys[:5])}."
        raise LidcCdamError(f"{option} must name one of the model's {len(self.keys)} classes; got {word!r}; {hint}")


def _names(title: str) -> list[str]:
    return [title.lower(), *(name.strip().lower() for name in title.split(","))]


@dataclass(frozen=True)
class ClassList:
    """Which class each image shows, and which other one."""

    classes: dict[str, str]
    """Key of an image's class, by image."""
    others: dict[str, str]
    """Key of the other class that the image shows too; only images that have one."""

    def targets(self, image: str) -> tuple[str, ...]:
        """An image's one or two classes."""
        return (self.classes[image], *((self.others[image],) if image in self.others else ()))


def read_class_list(path: Path, images: Sequence[str], classes: Classes) -> ClassList:
    """Read a CSV table with the columns `image`, `class` and, for two-class images, `other_class`.

    Args:
        path: the table.
        images: the images that there are, as `find_images` names them.
        classes: the model's.

    Raises:
        LidcCdamError: the file is missing or no such table, or a row names an unknown image or class, the same class
            twice, or an image that another row names.
    """
    rows, known = _class_rows(path), set(images)
    found = ClassList({}, {})
    for line, row in enumerate(rows.itertuples(index=False), 2):
        image, own, other = row
        place = f"--classes {path}, line {line}"
        if image not in known:
            near = get_close_matches(image, images, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"paths are relative to it, such as {images[0]!r}."
            raise LidcCdamError(f"{place}: {image!r} must be a file of the folder of images, but it is none; {hint}")
        if image in found.classes:
            raise LidcCdamError(f"{place}: {image!r} must have one row, but it has another; join or drop one.")
        found.classes[image] = classes.find(own, place)
        if other:
            found.others[image] = classes.find(other, place)
            if found.others[image] == found.classes[image]:
                raise LidcCdamError(f"{place}: class and other_class must differ; both are {own!r}.")
    return found


def _class_rows(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError as error:
        raise LidcCdamError(f"--classes must be a CSV table, but {path} is missing.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, IsADirectoryError) as error:
        raise LidcCdamError(f"--classes {path} must be a CSV table, but it cannot be read ({error}).") from error
    lacking = [name for name in ("image", "class") if name not in table.columns]
    if lacking or not len(table):
        raise LidcCdamError(
            f"--classes {path} must have rows under the columns image, class and, for images of two classes, "
            f"other_class; {'it lacks ' + ' and '.join(lacking) if lacking else 'it has no row'}."
        )
    if "other_class" not in table.columns:
        table["other_class"] = ""
    return table[["image", "class", "other_class"]]


def input_of(stored: Any) -> Input:
    """An `Input` from its JSON form (`dataclasses.asdict`).

    Raises:
        KeyError: a value is missing.
        TypeError: a value is of another kind.
        ValueError: likewise.
    """
    height, width = stored["size"]
    red, green, blue = stored["mean"]
    first, second, third = stored["sd"]
    mean, sd = (float(red), float(green), float(blue)), (float(first), float(second), float(third))
    return Input((int(height), int(width)), mean, sd, float(stored["crop_share"]))


def image_map_path(out: Path, method: str, name: str) -> Path:
    """`OUT/maps/<method>/<image>.npz`, in the form of a nodule's maps, with one view and one slice."""
    return out / "maps" / method / f"{name}.npz"


def image_index_path(out: Path, method: str) -> Path:
    """`OUT/maps/<method>/index.csv`."""
    return out / "maps" / method / "index.csv"


def overlay_path(out: Path, method: str, name: str) -> Path:
    """`OUT/overlays/<method>/<image>.png`."""
    return out / "overlays" / method / f"{name}.png"
