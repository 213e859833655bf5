"""Ten nodules by all methods, a picture a target: CT with the readers' consensus, then each method's map beside it.

Maps are raw. A method has one scale over all nodules of a picture, printed above it, with zero neutral; what lies
beyond the limit, one score in a hundred, has the limit's colour.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Shaped
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lidc_cdam.artifacts import read_arrays, read_dataset
from lidc_cdam.channels import consensus_of
from lidc_cdam.drawing import DIVERGING, STYLE, save
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json
from lidc_cdam.geometry import VIEWS, take_view
from lidc_cdam.intensity import read_cube
from lidc_cdam.metrics.parts import GALLERY, evaluation_folder, part_path
from lidc_cdam.metrics.pictures import PICTURES, in_order, title_of
from lidc_cdam.model import DESCRIPTION
from lidc_cdam.runs import read_config
from lidc_cdam.vocabulary import TARGETS

SHARE = 0.99
"""Of the scores of a method that lie within its limits."""
WINDOW_HU = (-1000, 400)
LEFT, TOP, BOTTOM, SIDE, GAP = 0.35, 0.85, 0.25, 1.0, 0.06
"""Of the picture's parts, inches."""
Maps = Float32[np.ndarray, "target row column"]
Map = Float32[np.ndarray, "..."]
Picture = tuple[Shaped[np.ndarray, "row column"], Bool[np.ndarray, "row column"]]
"""HU and consensus of a nodule's slice."""


def draw_galleries(
    run: Path, data: Path, tested: Mapping[int, Mapping[str, str]], nodules: Sequence[str]
) -> list[Path]:
    """Draw `gallery_<target>` for each target of the run.

    Args:
        run: the run's folder.
        data: its folder of crops.
        tested: nodules of each fold.
        nodules: those to show, in order; what could not be explained stays blank.

    Returns:
        The files written, PNG and SVG.
    """
    fold_of = {key: fold for fold, patients in tested.items() for key in patients}
    folders = [folder for fold in tested for folder in (evaluation_folder(run, fold) / GALLERY).glob("*")]
    methods = in_order({folder.name for folder in folders})
    maps = {
        (key, method): _maps(part_path(run, fold_of[key], GALLERY, method, key))
        for key in nodules
        for method in methods
    }
    view = read_config(run)["views"][0]
    slices = {key: _slice(data, key, view) for key in nodules}
    targets = read_json(run / f"fold_{next(iter(tested))}" / DESCRIPTION)["targets"]
    written: list[Path] = []
    for index, target in enumerate(targets):
        chosen = {pair: found[index] for pair, found in maps.items() if found is not None}
        if chosen:
            with style.context(["default", STYLE]):
                figure = _gallery(slices, methods, chosen, target, view)
                written += save(figure, run / PICTURES / f"gallery_{target}")
    return written


def _maps(path: Path) -> Maps | None:
    if not path.exists():
        return None
    scores: Maps = read_arrays(path, ("scores",), "evaluate")["scores"]
    return scores


def _slice(data: Path, nodule_id: str, view: str) -> Picture | None:
    grid = read_dataset(data).grid
    try:
        cubes = read_cube(data, nodule_id, grid.side), consensus_of(data, nodule_id)
    except LidcCdamError:
        # Its rows say why it could not be read.
        return None
    hu, inside = (np.ascontiguousarray(take_view(cube, view, grid.central)) for cube in cubes)
    return hu, inside.astype(bool)


def _gallery(
    slices: Mapping[str, Picture | None],
    methods: Sequence[str],
    maps: Mapping[tuple[str, str], Map],
    target: str,
    view: str,
) -> Figure:
    columns = 1 + len(methods)
    figure, grid = _grid(len(slices), columns)
    limits = {method: _limit([each for (_, name), each in maps.items() if name == method]) for method in methods}
    for row, (key, picture) in enumerate(slices.items()):
        for axes in grid[row]:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        grid[row, 0].set_ylabel(key.removeprefix("LIDC-IDRI-"), fontsize=7)
        if picture is None:
            continue
        grid[row, 0].imshow(picture[0], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], interpolation="nearest")
        _outline(grid[row, 0], picture[1], "#ffd400")
        for axes, method in zip(grid[row, 1:], methods, strict=True):
            if (key, method) in maps:
                _signed(axes, maps[key, method], limits[method], picture)
    grid[0, 0].set_title("CT, consensus", fontsize=7)
    for axes, method in zip(grid[0, 1:], methods, strict=True):
        axes.set_title(f"{title_of(method)}\n± {limits[method]:.2g}", fontsize=7)
    words = f"{TARGETS[target].title}: orange raises, blue lowers\n{VIEWS[view].title} slices, small to large"
    figure.text(LEFT / figure.get_figwidth(), 1 - 0.12 / figure.get_figheight(), words, va="top", fontsize=8)
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, Shaped[np.ndarray, "nodule panel"]]:
    """Square panels side by side at fixed places, which is quicker than to let a layout find them."""
    width, height = LEFT + columns * (SIDE + GAP), TOP + rows * (SIDE + GAP) + BOTTOM
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    grid = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        left, top = LEFT + column * (SIDE + GAP), TOP + row * (SIDE + GAP)
        grid[row, column] = figure.add_axes((left / width, 1 - (top + SIDE) / height, SIDE / width, SIDE / height))
    return figure, grid


def _signed(axes: Axes, scores: Map, limit: float, picture: Picture) -> None:
    side = picture[0].shape
    extent = (-0.5, side[1] - 0.5, side[0] - 0.5, -0.5)
    axes.imshow(scores, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest", extent=extent)
    _outline(axes, picture[1], "#000000")


def _outline(axes: Axes, inside: Bool[np.ndarray, "row column"], colour: str) -> None:
    if inside.any() and not inside.all():
        axes.contour(inside.astype(float), levels=[0.5], colors=[colour], linewidths=0.7)


def _limit(shown: Sequence[Map]) -> float:
    """What one score in a hundred exceeds, over all nodules; above 0."""
    if not shown:
        return 1.0
    return float(np.quantile(np.abs(np.concatenate([each.ravel() for each in shown])), SHARE)) or 1.0
