"""Pictures of natural images' maps: stage `report --maps`, a PNG per image and method, and a page that lists them."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from lidc_cdam.artifacts import check_schema, read_maps, read_table
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, replacing, write_text
from lidc_cdam.images import (
    EXPLAINED,
    IMAGE_MAP_COLUMNS,
    Input,
    image_index_path,
    image_map_path,
    input_of,
    overlay_path,
    read_image,
)
from lidc_cdam.progress import say, track
from reports.html import render_images
from reports.overlays import Panel, map_panel, sheet, shown_panel
from reports.scales import SCALE_PERCENTILE

PAGE = "index.html"


@dataclass(frozen=True)
class Explained:
    """A folder that `explain --images` wrote."""

    out: Path
    images: Path
    shown: Input
    titles: dict[str, str]
    """Names of classes for people, by key."""


@dataclass(frozen=True)
class Method:
    """One method's maps."""

    name: str
    table: pd.DataFrame
    limit: float
    """Score of the full colour."""


def report_images(maps: Path) -> None:
    """Draw the maps of natural images: MAPS/overlays/<method>/<image>.png, and MAPS/index.html, which lists them.

    All maps of a method share one scale, whose limits are printed; zero has no colour.

    Args:
        maps: Folder that `explain --images` wrote.

    Raises:
        LidcCdamError: the folder holds no maps, or one is damaged.
    """
    explained = _open(maps)
    names = sorted(path.parent.name for path in (maps / "maps").glob("*/index.csv"))
    if not names:
        raise LidcCdamError(f"--maps {maps} must hold maps, but it holds none; run `lidc-cdam explain --images` again.")
    methods = [_method(maps, name) for name in names]
    drawn: dict[str, list[str]] = {}
    lost = 0
    for method in methods:
        for name, rows in track(list(method.table.groupby("image", sort=True)), f"Drawing {method.name} maps"):
            try:
                _draw(explained, method, str(name), rows)
                drawn.setdefault(str(name), []).append(method.name)
            except LidcCdamError as error:
                lost += 1
                say(f"Not drawn: {error}")
    if not drawn:
        raise LidcCdamError(f"None of {lost} maps could be drawn; put the images back to {explained.images}.")
    write_text(maps / PAGE, render_images(_content(explained, methods, drawn)))
    say(f"Drew the maps of {len(drawn)} images by {', '.join(names)}; open {maps / PAGE}.")


def _open(maps: Path) -> Explained:
    path = maps / EXPLAINED
    if not path.exists():
        raise LidcCdamError(f"--maps must be a folder that `lidc-cdam explain --images` wrote, but {path} is missing.")
    stored = read_json(path)
    check_schema(path, stored)
    try:
        return Explained(maps, Path(stored["images"]), input_of(stored["input"]), dict(stored["titles"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LidcCdamError(f"{path} must be as `lidc-cdam explain --images` wrote it; run it again.") from error


def _method(maps: Path, name: str) -> Method:
    """A method's table, and the scale of all its maps."""
    table = read_table(image_index_path(maps, name), IMAGE_MAP_COLUMNS, "explain --images")
    images = dict.fromkeys(table["image"])
    scores = [np.abs(read_maps(image_map_path(maps, name, image)).scores).ravel() for image in images]
    limit = float(np.percentile(np.concatenate(scores), SCALE_PERCENTILE))
    return Method(name, table, limit or 1.0)


def _draw(explained: Explained, method: Method, name: str, rows: pd.DataFrame) -> None:
    maps = read_maps(image_map_path(explained.out, method.name, name))
    shown = explained.shown.shown(read_image(explained.images / name))
    panels = [Panel(shown_panel(shown), "what the model sees", name)]
    for row in rows.to_dict("records"):
        key = str(row["target"])
        note = f"logit {row['logit']:+.2f}, probability {row['probability']:.2f}".replace("-", "−")
        scores = maps.scores[maps.targets.index(key), 0, 0]
        panels.append(Panel(map_panel(shown, scores, method.limit), explained.titles.get(key, key), note))
    with replacing(overlay_path(explained.out, method.name, name)) as temporary:
        sheet([panels], method.name, method.limit, " the logit").save(temporary, "PNG")


def _content(explained: Explained, methods: list[Method], drawn: dict[str, list[str]]) -> dict[str, object]:
    """What the page shows."""
    return {
        "title": f"Maps of {len(drawn)} images",
        "scales": [
            f"{method.name}: full colour at ±{method.limit:.3g}, the {SCALE_PERCENTILE:g}th percentile of |score| over "
            f"{method.table['image'].nunique()} images"
            for method in methods
        ],
        "images": [
            {
                "name": name,
                "pictures": [
                    {
                        "address": quote(
                            overlay_path(explained.out, method, name).relative_to(explained.out).as_posix()
                        ),
                        "alt": f"{name}: what the model sees, and signed {method} maps of "
                        + ", ".join(_titles(explained, methods, method, name)),
                    }
                    for method in names
                ],
            }
            for name, names in sorted(drawn.items())
        ],
    }


def _titles(explained: Explained, methods: list[Method], method: str, name: str) -> list[str]:
    table = next(each.table for each in methods if each.name == method)
    return [explained.titles.get(key, key) for key in table.loc[table["image"] == name, "target"].astype(str)]
