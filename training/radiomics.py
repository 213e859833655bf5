"""Classical radiomics: what shape, grey values, edge and surroundings of the consensus mask say without a network.

All features are of one 1 mm cube and one mask, by SimpleITK's label filters, in the spirit of the Image Biomarker
Standardisation Initiative (Zwanenburg et al. 2020), without its texture matrices. Distances to the mask's surface are
signed: negative inside. Voxels that were never read take no part, except that gradients next to them are those of
mirrored tissue (`intensity.fill_unread`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from jaxtyping import Bool, Float, Int16
from scipy.ndimage import gaussian_gradient_magnitude
from scipy.spatial import ConvexHull, QhullError

from lidc_cdam import provenance
from lidc_cdam.artifacts import Dataset, read_cohort, read_dataset, read_table, write_table
from lidc_cdam.crop_files import read_crop
from lidc_cdam.intensity import fill_unread, was_read
from lidc_cdam.progress import track

FILE = "radiomics.csv"
STAGE = "radiomics"
IDENTITY = ("nodule_id", "digest")
ALGORITHM = 1
"""Version of the features; stored rows of another one are measured again."""
WINDOW_HU = (-1000.0, 1500.0)
"""Grey values are clipped to it: metal and air outside the body say nothing about a nodule."""
QUANTILES = (5, 10, 25, 50, 75, 90, 95)
SHELLS_MM = ((-3, -1), (-2, 0), (0, 1), (0, 2), (1, 3), (3, 6))
"""Shells around the mask's surface, lower end excluded, upper end included."""
DENSE_HU = -400.0
"""Halfway between lung and soft tissue."""

Features = dict[str, float]
Volume = Float[np.ndarray, "slice row column"]
Mask = Bool[np.ndarray, "slice row column"]


def radiomics_features(
    hu: Int16[np.ndarray, "slice row column"], mask: Mask, spacing_mm: float = 1.0, known: Mask | None = None
) -> Features:
    """The features of one nodule.

    Args:
        hu: the cube.
        mask: the nodule.
        spacing_mm: side of a voxel.
        known: voxels that were read; by default those that do not hold the padding value.

    Returns:
        Value by name, always the same names in the same order; the unit stands in the name, and a name without one is a
        ratio. NaN where a feature is not defined (an empty mask, a shell outside what was read).
    """
    read = was_read(hu) if known is None else known
    if not (mask & read).any():
        return dict.fromkeys(feature_names(), float("nan"))
    image = _image(np.clip(fill_unread(hu), *WINDOW_HU).astype(np.float32), spacing_mm)
    label = _image(mask.astype(np.uint8), spacing_mm)
    values = sitk.GetArrayFromImage(image).astype(np.float64)
    distance = sitk.GetArrayFromImage(
        sitk.SignedMaurerDistanceMap(label, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    )
    gradient = gaussian_gradient_magnitude(values, 1.0) / spacing_mm
    found = {
        **_shape(label, mask, spacing_mm),
        **_section(mask, spacing_mm),
        **_grey_values(image, label, values[mask & read], spacing_mm),
        **_shells(values, gradient, np.where(read, distance, np.nan)),
    }
    return {name: float(value) if np.isfinite(value) else float("nan") for name, value in found.items()}


@cache
def feature_names() -> tuple[str, ...]:
    """Names of all features, in order: those of a ball."""
    ball = np.linalg.norm(np.indices((16, 16, 16)) - 8.0, axis=0) <= 4
    return tuple(radiomics_features(np.where(ball, 0, -850).astype(np.int16), ball))


def read_features(data: Path, nodule_ids: Sequence[str], cache_folder: Path) -> pd.DataFrame:
    """The features of nodules, measured where `cache_folder` does not hold them yet.

    `radiomics.csv` keeps with each row the digest of what decided it (the crop's record, the number of readers, the
    version of the features); a row whose crop has changed is measured again.

    Args:
        data: folder of crops.
        nodule_ids: which nodules, all of the cohort.
        cache_folder: folder that keeps `radiomics.csv`: a run's, or the folder of crops itself.

    Returns:
        One row per nodule in the order asked for, indexed by `nodule_id`, one column per feature.

    Raises:
        LidcCdamError: a crop or a mask is missing or damaged.
    """
    dataset, readers, names = read_dataset(data), read_cohort(data)["readers"], feature_names()
    digests = {key: _digest(dataset, key, int(readers[key])) for key in dict.fromkeys(nodule_ids)}
    stored = _stored(cache_folder)
    valid = [key for key, digest in stored["digest"].items() if digests.get(str(key), digest) == digest]
    pending = [key for key in digests if key not in set(valid)]
    if pending:
        rows = [
            {"nodule_id": key, "digest": digests[key], **_measure(data, key, int(readers[key]))}
            for key in track(pending, "Measuring radiomics")
        ]
        _keep(cache_folder, pd.concat([stored.loc[valid].reset_index(), pd.DataFrame(rows)]))
        stored = _stored(cache_folder)
    return stored.loc[list(nodule_ids), list(names)].astype(np.float64)


def _stored(folder: Path) -> pd.DataFrame:
    """The rows that a folder holds, by nodule; none if they are of another version of the features."""
    if not _kept(folder):
        return pd.DataFrame({name: [] for name in IDENTITY}).set_index("nodule_id")
    return read_table(folder / FILE, (*IDENTITY, *feature_names()), "crossval").set_index("nodule_id")


def _kept(folder: Path) -> bool:
    """Whether the folder holds features of this version."""
    record = provenance.read_record(folder, STAGE)
    return record is not None and record["config"] == {"algorithm": ALGORITHM} and (folder / FILE).exists()


def _keep(folder: Path, table: pd.DataFrame) -> None:
    if not _kept(folder):
        provenance.forget(folder, STAGE)
    record = provenance.begin(folder, STAGE, {"algorithm": ALGORITHM})
    write_table(folder / FILE, table, IDENTITY)
    record.finish(nodules=len(table))


def _digest(dataset: Dataset, nodule_id: str, readers: int) -> str:
    return provenance.sha256_of({"algorithm": ALGORITHM, "readers": readers, "crop": dataset.digest([nodule_id])})


def _measure(data: Path, nodule_id: str, readers: int) -> Features:
    crop = read_crop(data, nodule_id)
    return radiomics_features(crop.hu, crop.consensus(readers), crop.spacing_mm)


def _image(array: np.ndarray, spacing_mm: float) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((spacing_mm,) * array.ndim)
    return image


def _measured(label: sitk.Image) -> sitk.LabelShapeStatisticsImageFilter:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputeFeretDiameterOn()
    shape.ComputeOrientedBoundingBoxOn()
    shape.Execute(label)
    return shape


def _shape(label: sitk.Image, mask: Mask, spacing_mm: float) -> Features:
    shape = _measured(label)
    box = dict(zip(("short", "middle", "long"), sorted(shape.GetOrientedBoundingBoxSize(1)), strict=True))
    axes = dict(zip(("short", "middle", "long"), sorted(shape.GetEquivalentEllipsoidDiameter(1)), strict=True))
    volume, points = shape.GetPhysicalSize(1), np.argwhere(mask)
    radii = np.linalg.norm(points - points.mean(0), axis=1) * spacing_mm
    return {
        "volume_mm3": volume,
        "surface_mm2": shape.GetPerimeter(1),
        "roundness": shape.GetRoundness(1),
        "elongation": shape.GetElongation(1),
        "flatness": shape.GetFlatness(1),
        "feret_diameter_mm": shape.GetFeretDiameter(1),
        **{f"ellipsoid_{name}_mm": length for name, length in axes.items()},
        **{f"box_{name}_mm": length for name, length in box.items()},
        "box_fill": _quotient(volume, float(np.prod(list(box.values())))),
        "solidity": _quotient(len(points), _hull_voxels(points)),
        "reach_to_radius": _quotient(float(radii.max()) + spacing_mm / 2, shape.GetEquivalentSphericalRadius(1)),
        "height_mm": len(np.unique(points[:, 0])) * spacing_mm,
    }


def _hull_voxels(points: np.ndarray) -> float:
    """How many voxels (or pixels) have their centre in the convex hull of the mask's centres; NaN if that is flat."""
    try:
        planes = ConvexHull(points).equations
    except QhullError:
        return float("nan")
    low, high = points.min(0), points.max(0)
    around = np.indices(high - low + 1).reshape(len(low), -1) + low[:, None]
    return float((planes[:, :-1] @ around + planes[:, -1:] <= 1e-6).all(0).sum())


def _section(mask: Mask, spacing_mm: float) -> Features:
    """The largest axial section."""
    areas = mask.sum((1, 2))
    section = mask[int(areas.argmax())]
    shape = _measured(_image(section.astype(np.uint8), spacing_mm))
    return {
        "section_area_mm2": shape.GetPhysicalSize(1),
        "section_perimeter_mm": shape.GetPerimeter(1),
        "section_roundness": shape.GetRoundness(1),
        "section_elongation": shape.GetElongation(1),
        "section_feret_diameter_mm": shape.GetFeretDiameter(1),
        "section_solidity": _quotient(float(areas.max()), _hull_voxels(np.argwhere(section))),
    }


def _grey_values(image: sitk.Image, label: sitk.Image, values: np.ndarray, spacing_mm: float) -> Features:
    grey = sitk.LabelIntensityStatisticsImageFilter()
    grey.Execute(label, image)
    quantiles = np.percentile(values, QUANTILES)
    return {
        "mean_hu": float(values.mean()),
        "deviation_hu": float(values.std()),
        "skewness": grey.GetSkewness(1),
        "kurtosis": grey.GetKurtosis(1),
        "lowest_hu": float(values.min()),
        "highest_hu": float(values.max()),
        **{f"quantile_{share:02d}_hu": value for share, value in zip(QUANTILES, quantiles, strict=True)},
        "share_above_200_hu": float((values > 200).mean()),
        "volume_above_350_hu_mm3": float((values > 350).sum()) * spacing_mm**3,
        "share_solid": float((values > -300).mean()),
        "share_ground_glass": float(((values > -750) & (values <= -300)).mean()),
    }


def _shells(values: Volume, gradient: np.ndarray, distance: np.ndarray) -> Features:
    """Grey values and edges by distance to the surface in mm; where `distance` is NaN nothing was read."""
    found: Features = {}
    for low, high in SHELLS_MM:
        inside, name = (distance > low) & (distance <= high), f"from_{low}_to_{high}_mm"
        found[f"mean_hu_{name}"] = _of(values[inside], np.mean)
        found[f"deviation_hu_{name}"] = _of(values[inside], np.std)
        found[f"gradient_hu_per_mm_{name}"] = _of(gradient[inside], np.mean)
    edge = gradient[np.abs(distance) <= 1]
    found["edge_gradient_deviation_hu_per_mm"] = _of(edge, np.std)
    found["edge_gradient_quantile_90_hu_per_mm"] = _of(edge, lambda part: np.quantile(part, 0.9))
    for reach in (2, 5):
        around = values[(distance > 0.5) & (distance <= reach)]
        found[f"dense_share_within_{reach}_mm"] = _of(around > DENSE_HU, np.mean)
    return found


def _of(part: np.ndarray, figure: Callable[[np.ndarray], np.floating]) -> float:
    return float(figure(part)) if len(part) else float("nan")


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
