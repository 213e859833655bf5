"""The signed maps of one nodule as plain content: panels, their one scale, and where the strongest score lies."""

import math
from typing import Any

import numpy as np

from lidc_cdam.artifacts import Maps
from lidc_cdam.geometry import CENTRAL, VIEWS
from lidc_cdam.vocabulary import TARGETS, Target
from reports import charts, figures
from reports.context import SCALE_PERCENTILE, Case, Run, targets_of, title_of
from reports.material import Material, Pictures
from reports.words import map_command, number, percent, plain, with_word

CONTOUR_SHARE = 0.5
"""Level of the contour lines as a share of the scale's limit."""


def map_section(material: Material, index: int, pictures: Pictures) -> dict[str, Any]:
    """One run's maps with their scale and notes, or the sentence that says how to get them.

    Args:
        material: the nodule.
        index: place of the run in `material.runs`.
        pictures: the document's shared CT pictures.
    """
    run, case, maps = material.runs[index], material.cases[index], material.maps[index]
    title = title_of(run)
    section: dict[str, Any] = {"title": title, "method": run.method, "panels": [], "missing": "", "notes": []}
    if case is None:
        section["missing"] = f"The second run ({title}) has no prediction of this nodule."
    elif maps is None or run.limit is None:
        section["missing"] = (
            f"No {run.method} maps of this nodule yet: run `{map_command(run)}`, then this report again."
        )
    else:
        level = run.limit * CONTOUR_SHARE
        section["panels"] = _panels(material, index, maps, pictures)
        section["scale"] = {
            "limit": charts.signed(run.limit),
            "svg": charts.colour_bar(run.limit, level, f"scale-{index}"),
            "alt": (
                f"Colour scale of the maps: blue at {charts.signed(-run.limit)} lowers, transparent at 0, orange at "
                f"{charts.signed(run.limit)} raises the predicted value."
            ),
        }
        section["notes"] = _map_notes(run, maps, material.side_mm, level)
    return section


def _map_notes(run: Run, maps: Maps, side_mm: float, level: float) -> list[str]:
    rows, columns = maps.scores.shape[-2:]
    units = {
        "probability": "logits",
        "rating": "standard deviations (z-score)",
        "length": "standard deviations (z-score)",
    }
    named = " and ".join(sorted({units[TARGETS[key].kind] for key in maps.targets}))
    return [
        f"Orange raises, blue lowers the predicted value; no colour: a score near zero. Scores are parts of the "
        f"model's own output, in {named}.",
        f"One scale for all panels and all {run.mapped} nodules of this run: ±{number(run.limit or 0)} is the "
        f"{SCALE_PERCENTILE:g}th percentile of |score|; larger scores keep the full colour. Lines: solid at "
        f"{charts.signed(level)}, dashed at {charts.signed(-level)}. Yellow: the readers' consensus.",
        f"The map has {rows} × {columns} tokens of {side_mm / rows:.3g} mm; "
        "colours are interpolated between their centres.",
    ]


def _panels(material: Material, index: int, maps: Maps, pictures: Pictures) -> list[dict[str, Any]]:
    run, case = material.runs[index], material.cases[index]
    if case is None or run.limit is None:
        return []
    views = sorted(maps.views, key=list(VIEWS).index)
    panels = []
    for target in targets_of(run):
        if target.key not in maps.targets:
            continue
        drawn = [_map(material, index, maps, target, view, pictures) for view in views]
        panels.append(
            {
                "key": target.key,
                "title": target.title,
                **drawn[0],
                "others": drawn[1:],
                "prediction": _panel_words(target, case.predicted.get(target.key)),
                "raises": f"Orange: {target.raises.split(' (')[0]}. Scores {drawn[0]['range']}.",
                "mass": _mass_words(case, target),
            }
        )
    return panels


def _panel_words(target: Target, prediction: float | None) -> str:
    words = with_word(target, prediction)
    return words["number"] if target.kind == "probability" else plain(words)


def _map(material: Material, index: int, maps: Maps, target: Target, view: str, pictures: Pictures) -> dict[str, str]:
    limit = material.runs[index].limit or 1.0
    place = maps.slices.index(CENTRAL) if CENTRAL in maps.slices else len(maps.slices) // 2
    scores = maps.scores[maps.targets.index(target.key), maps.views.index(view), place]
    depth = maps.slices[place]
    cut = material.cut(view, depth)
    name = view if depth == CENTRAL else f"{view}-{depth}"
    image = pictures.use(cut, figures.LUNG, name)
    picture = figures.map_picture(cut, image, scores, limit, limit * CONTOUR_SHARE, f"map-{index}-{target.key}-{view}")
    low, high = (_on_scale(float(score), limit) for score in (scores.min(), scores.max()))
    span = f"{charts.signed(low)} to {charts.signed(high)}"
    alt = f"Signed {material.runs[index].method} map of {target.title.lower()} over the {view} CT: scores from {span}."
    return {"svg": picture, "alt": alt, "view": VIEWS[view].title, "range": span}


def _on_scale(score: float, limit: float) -> float:
    """A score rounded to the last printed digit of the scale's limit."""
    return round(score, 1 - math.floor(math.log10(limit)))


def _mass_words(case: Case, target: Target) -> str:
    if target.key not in case.mass:
        return ""
    mass, chance = case.mass[target.key]
    beside = "" if chance is None else f" (chance {percent(chance)})"
    return f"{percent(mass)} of what raises it lies inside the consensus{beside}"


def strongest_score(material: Material) -> tuple[Target, float, bool] | None:
    """Of all maps on their runs' own scales, the strongest score: target, score, whether it lies in the consensus."""
    best: tuple[float, Target, float, bool] | None = None
    for run, maps in zip(material.runs, material.maps, strict=True):
        if maps is None or not run.limit or CENTRAL not in maps.slices:
            continue
        scores = maps.scores[:, :, maps.slices.index(CENTRAL)]
        target, view, row, column = np.unravel_index(np.abs(scores).argmax(), scores.shape)
        score = float(scores[target, view, row, column])
        if best is None or abs(score) / run.limit > best[0]:
            inside = _token_inside(material, maps.views[view], (int(row), int(column)), scores.shape[-2:])
            best = (abs(score) / run.limit, TARGETS[maps.targets[target]], score, inside)
    return best[1:] if best else None


def _token_inside(material: Material, view: str, token: tuple[int, int], grid: tuple[int, ...]) -> bool:
    """Whether a token's square touches the consensus."""
    mask = material.cut(view).consensus
    rows, columns = (
        slice(at * side // count, max((at + 1) * side // count, at * side // count + 1))
        for at, side, count in zip(token, mask.shape, grid, strict=True)
    )
    return bool(mask[rows, columns].any())
