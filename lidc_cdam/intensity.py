"""From HU to what a backbone sees, from targets to what a head predicts, and back: fitted once per fold.

Training, evaluation and explanation all use these records, which a fold keeps in its `statistics.json`, and all read
their cubes through `read_cube`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int16, Real
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from lidc_cdam.artifacts import SCHEMA, check_schema
from lidc_cdam.crop_files import PADDING_HU, read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, write_json
from lidc_cdam.geometry import CROP_SIDE, USUAL, Grid
from lidc_cdam.vocabulary import MALIGNANCY

STATISTICS = "statistics.json"


def read_cube(data: Path, nodule_id: str, side: int = CROP_SIDE) -> Int16[np.ndarray, "slice row column"]:
    """A nodule's cube as every model sees it: HU, with what was not read filled by `fill_unread`.

    Args:
        data: folder of crops.
        nodule_id: which.
        side: voxels along each axis, as the folder's `dataset.json` says.

    Raises:
        LidcCdamError: the crop is missing or damaged, or has another side.
    """
    cube = read_crop(data, nodule_id).hu
    if cube.shape != (side,) * 3:
        raise LidcCdamError(
            f"Crops must have {side} voxels a side, but that of {nodule_id} in {data} has {cube.shape}; "
            f"run `lidc-cdam extract` into a new --data folder."
        )
    return fill_unread(cube)


def was_read(hu: Int16[np.ndarray, "slice row column"]) -> Bool[np.ndarray, "slice row column"]:
    """Which voxels of a crop come from the scan; the others hold `crop_files.PADDING_HU`."""
    known: np.ndarray = hu != PADDING_HU
    return known


def fill_unread(hu: Int16[np.ndarray, "slice row column"]) -> Int16[np.ndarray, "slice row column"]:
    """Fill voxels that were not read by mirroring those that were.

    A cut-out that hugs its nodule leaves a frame of unread voxels whose shape tells the nodule's size (on the sample
    pack of LIDC-IDRI the frame alone reaches an AUC of 0.90 for malignancy). A model must not see that frame as such;
    mirrored tissue hides its edges, though not every trace. A cube that was read in full is returned as it is.

    Args:
        hu: a crop; its voxels that were read form a box, or nearly so (a scan turned in its plane).
    """
    known = was_read(hu)
    if known.all() or not known.any():
        return hu
    spans = [np.flatnonzero(known.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    inner, holes = hu[box], ~known[box]
    if holes.any():
        nearest = distance_transform_edt(holes, return_distances=False, return_indices=True)
        inner = inner[tuple(nearest)]
    widths = [(part.start, size - part.stop) for part, size in zip(box, hu.shape, strict=True)]
    return np.pad(inner, widths, mode="symmetric")


@dataclass(frozen=True)
class Intensity:
    """The HU window and the normalisation of a fold."""

    mean: float
    """Mean of the training part's clipped HU, scaled so that the window is 0 to 1."""
    deviation: float
    """Standard deviation of the same."""
    low_hu: float = -1000.0
    """Lower end of the window, HU."""
    high_hu: float = 400.0
    """Upper end of the window, HU."""

    def __post_init__(self) -> None:
        if not (self.low_hu < self.high_hu and self.deviation > 0):
            raise LidcCdamError(
                f"An intensity must have low_hu < high_hu and a deviation above 0, but it has low_hu = {self.low_hu}, "
                f"high_hu = {self.high_hu}, deviation = {self.deviation}; train the fold again."
            )

    @classmethod
    def fit(
        cls, images_hu: Real[np.ndarray, "image row column"], low_hu: float = -1000.0, high_hu: float = 400.0
    ) -> "Intensity":
        """Fit mean and deviation on a training part.

        Args:
            images_hu: slices in HU; any number of images, or cubes with their slices as images.
            low_hu: lower end of the window, HU.
            high_hu: upper end of the window, HU.

        Returns:
            The fold's intensity; a part without any contrast gets the deviation 1.
        """
        scaled = (np.clip(images_hu, low_hu, high_hu).astype(np.float64) - low_hu) / (high_hu - low_hu)
        return cls(float(scaled.mean()), float(scaled.std()) or 1.0, low_hu, high_hu)

    def apply(
        self, images_hu: Real[Tensor, "image *plane row column"], size: int | tuple[int, int]
    ) -> Float32[Tensor, "image channel height width"]:
        """Clip, scale, normalise and resize (bilinear) to a backbone's input.

        Args:
            images_hu: a slice per image, or planes as `channels.Channels.image` makes them: one slice or three, HU, and
                perhaps a mask.
            size: side, or height and width, of the backbone's input in pixels.

        Returns:
            Three channels of grey values, equal where there is one slice; a mask is a fourth, -1 outside and 1 inside.
        """
        target = (size, size) if isinstance(size, int) else tuple(size)
        planes = images_hu[:, None] if images_hu.ndim == 3 else images_hu
        slices = 3 if planes.shape[1] >= 3 else 1
        scaled = (planes[:, :slices].float().clamp(self.low_hu, self.high_hu) - self.low_hu) / (
            self.high_hu - self.low_hu
        )
        images = torch.cat([(scaled - self.mean) / self.deviation, planes[:, slices:].float() * 2 - 1], dim=1)
        if images.shape[-2:] != target:
            images = F.interpolate(images, target, mode="bilinear", align_corners=False, antialias=True)
        grey = images[:, :slices].expand(-1, 3, -1, -1)
        return torch.cat([grey, images[:, slices:]], dim=1).contiguous()

    @property
    def black(self) -> float:
        """What a model sees of the window's lower end (air): the darkest grey value that `apply` gives."""
        return -self.mean / self.deviation

    def invert(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image height width"]:
        """HU of a backbone's input, inside the window and on the input's own grid (the resize is not undone)."""
        return (images[:, :3].mean(1) * self.deviation + self.mean) * (self.high_hu - self.low_hu) + self.low_hu


@dataclass(frozen=True)
class Scaling:
    """The step between the readers' scale and the model's own, per target.

    The model's own scale is a logit for malignancy and a z-score for a biomarker.
    """

    keys: tuple[str, ...]
    """The model's targets, in output order."""
    mean: tuple[float, ...]
    """Mean of each target over the training part; 0 for malignancy."""
    deviation: tuple[float, ...]
    """Standard deviation of each target over the training part; 1 for malignancy."""

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.mean) == len(self.deviation) or any(value <= 0 for value in self.deviation):
            raise LidcCdamError(
                f"A scaling must have one mean and one deviation above 0 for each of {', '.join(self.keys)}, "
                f"but it has means {self.mean} and deviations {self.deviation}; train the fold again."
            )

    @classmethod
    def fit(cls, keys: Sequence[str], values: Real[np.ndarray, "nodule target"]) -> "Scaling":
        """Fit means and deviations on a training part.

        Args:
            keys: target of each column.
            values: ratings and mm; NaN where a nodule has no value (an indeterminate label).

        Returns:
            The fold's scaling; a target that is constant in the part gets the deviation 1.
        """
        known = [key == MALIGNANCY.key for key in keys]
        columns = np.where(known, 0.0, values)
        mean = np.nanmean(columns, axis=0)
        deviation = np.nanstd(columns, axis=0)
        deviation[deviation < 1e-9] = 1.0
        return cls(tuple(keys), tuple(map(float, mean)), tuple(map(float, deviation)))

    def to_model(self, values: Real[np.ndarray, "*nodule target"]) -> Float32[np.ndarray, "*nodule target"]:
        """What a model is trained towards: z-scores; malignancy's label (0 or 1) stays as it is."""
        return ((np.asarray(values) - self.mean) / self.deviation).astype(np.float32)

    def to_reader_scale(self, outputs: Real[np.ndarray, "*nodule target"]) -> Float[np.ndarray, "*nodule target"]:
        """What a person reads: a probability for malignancy, a rating or mm for a biomarker."""
        values = np.asarray(outputs, dtype=np.float64)
        probable = np.array([key == MALIGNANCY.key for key in self.keys])
        # The hyperbolic tangent is the logistic function without its overflow.
        return np.where(probable, 0.5 * (1 + np.tanh(values / 2)), values * self.deviation + self.mean)


@dataclass(frozen=True)
class FeatureScaling:
    """Numbers beside the image, such as radiomics, as a fold's model reads them: z-scores of sign(x) log(1 + |x|)."""

    names: tuple[str, ...]
    median: tuple[float, ...]
    """Of the training part; it stands in for what is not defined."""
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def fit(cls, names: Sequence[str], values: Real[np.ndarray, "nodule feature"]) -> "FeatureScaling":
        """Fit on a training part; a feature that is constant in it gets the deviation 1."""
        median = np.nan_to_num(np.nanmedian(values, axis=0))
        compressed = _compress(np.where(np.isnan(values), median, values))
        deviation = compressed.std(axis=0)
        deviation[deviation < 1e-9] = 1.0
        columns = (median, compressed.mean(axis=0), deviation)
        return cls(tuple(names), *(tuple(map(float, column)) for column in columns))

    def apply(self, values: Real[np.ndarray, "nodule feature"]) -> Float32[np.ndarray, "nodule feature"]:
        """What a model reads: at most 4 deviations from the mean."""
        compressed = _compress(np.where(np.isnan(values), self.median, values))
        return np.clip((compressed - self.mean) / self.deviation, -4, 4).astype(np.float32)


def _compress(values: Real[np.ndarray, "nodule feature"]) -> Float[np.ndarray, "nodule feature"]:
    compressed: np.ndarray = np.sign(values) * np.log1p(np.abs(values))
    return compressed


@dataclass(frozen=True)
class Statistics:
    """`RUN/fold_k/statistics.json`: what was fitted on a fold's training part."""

    intensity: Intensity
    scaling: Scaling
    grid: Grid = USUAL
    """The cubes that the fold was trained on."""
    features: FeatureScaling | None = None
    """Numbers beside the image, where the model has them."""

    def write(self, path: Path) -> None:
        """Write to `path`."""
        write_json(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "Statistics":
        """Read from `path`.

        Raises:
            LidcCdamError: the file is missing, damaged or of another schema.
        """
        stored = read_json(path)
        check_schema(path, stored)
        try:
            scaling = {name: tuple(values) for name, values in stored["scaling"].items()}
            found = stored.get("features")
            features = found and FeatureScaling(**{name: tuple(values) for name, values in found.items()})
            return cls(Intensity(**stored["intensity"]), Scaling(**scaling), Grid(**stored.get("grid", {})), features)
        except (KeyError, TypeError, AttributeError) as error:
            raise LidcCdamError(
                f"{path} must hold `intensity` and `scaling` as training wrote them, but it does not ({error}); "
                f"train the fold again."
            ) from error

    def require_grid(self, data: Path, grid: Grid) -> None:
        """Refuse cubes that differ in size from those that the fold was trained on.

        Raises:
            LidcCdamError: with both sizes.
        """
        if grid != self.grid:
            raise LidcCdamError(
                f"The crops of {data} must have {self.grid}, as those that the model was trained on, but they have "
                f"{grid}; extract them into another --data with --side {self.grid.side} "
                f"--spacing-mm {self.grid.spacing_mm:g}."
            )


def stack_images(
    images_hu: Sequence[Real[np.ndarray, "row column"]],
) -> Real[Tensor, "image row column"]:
    """Slices of one size as one tensor (a flipped view's negative strides are resolved)."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images_hu)))
