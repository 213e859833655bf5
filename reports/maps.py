"""The signed maps of one nodule as plain content: panels, their scales, and where the strongest score lies."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float32

from lidc_cdam.artifacts import Maps
from lidc_cdam.geometry import VIEWS
from lidc_cdam.map_files import volume_folder, volume_targets
from lidc_cdam.vocabulary import TARGETS, Target
from reports import charts, figures, findings
from reports.context import Case, Run, targets_of, title_of
from reports.material import Material, Pictures
from reports.methods import score_words
from reports.scales import SCALE_PERCENTILE
from reports.words import Strongest, map_command, number, plain, with_word

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
    section["zones"] = ""
    if case is None:
        section["missing"] = f"The second run ({title}) has no prediction of this nodule."
    elif maps is None or case.fold not in run.limits:
        section["missing"] = (
            f"No {run.method} maps of this nodule yet: run `{map_command(run)}`, then this report again."
        )
    else:
        section["panels"] = _panels(material, index, maps, pictures)
        section["zones"] = next((panel["zones"] for panel in section["panels"] if panel["zones"]), "")
        section["scale"] = _scale(index, [panel["limit_value"] for panel in section["panels"]])
        section["notes"] = _map_notes(run, case, maps, material)
    return section


def _scale(index: int, limits: list[float]) -> dict[str, str]:
    """The colour bar; with its numbers where all panels share one limit."""
    limit = limits[0] if len(set(limits)) == 1 else None
    end = "its printed limit" if limit is None else number(limit)
    return {
        "svg": charts.colour_bar(CONTOUR_SHARE, f"scale-{index}", limit),
        "alt": (
            f"Colour scale of the maps: blue at minus {end} lowers, transparent at 0, orange at plus {end} raises the "
            f"predicted value."
        ),
    }


UNITS = {"probability": "logit", "rating": "z-score", "length": "z-score"}
"""Unit of the model's output by kind of target."""


def _map_notes(run: Run, case: Case, maps: Maps, material: Material) -> list[str]:
    rows, columns = maps.scores.shape[-2:]
    fold = case.fold
    notes = [
        score_words(run.method, sorted({UNITS[TARGETS[key].kind] for key in maps.targets})),
        f"One scale per target for all {run.mapped[fold]} nodules of this model (fold {fold}): the limit printed at a "
        f"map is the {SCALE_PERCENTILE:g}th percentile of |score|; larger scores keep the full colour. Lines: solid at "
        f"plus, dashed at minus half the limit. Yellow: the readers' consensus.",
        f"A token is a square of {material.side_mm / rows:.3g} mm, of which a map has {rows} × {columns}; "
        "colours are interpolated between their centres.",
        *run.shown,
    ]
    if material.padded.any():
        notes.append(
            "Hatched: outside what was read. The model saw mirrored tissue there, so colours on it explain a mirror "
            "image; the shares inside the consensus, and their chance, count only what was read."
        )
    volumes = volume_folder(run.folder, fold, run.method, case.nodule_id)
    count = len(volume_targets(volumes))
    if count:
        notes.append(
            f"Every slice: {volumes.relative_to(run.folder).as_posix()} in the run's folder holds the scores of "
            f"{count} target{'s' if count > 1 else ''} as volumes, to open over the crop in 3D Slicer."
        )
    return notes


def _panels(material: Material, index: int, maps: Maps, pictures: Pictures) -> list[dict[str, Any]]:
    run, case = material.runs[index], material.cases[index]
    if case is None:
        return []
    views = sorted(maps.views, key=list(VIEWS).index)
    panels = []
    for target in targets_of(run):
        if target.key not in maps.targets:
            continue
        limit = run.limits[case.fold][target.key]
        scores = maps.scores[maps.targets.index(target.key), :, _place(maps, material)]
        found = findings.find([material.cut(view, maps.slices[_place(maps, material)]) for view in maps.views], scores)
        drawn = [_map(material, index, maps, target, view, limit, pictures) for view in views]
        span = _span(scores, limit)
        panels.append(
            {
                "key": target.key,
                "title": target.title,
                **drawn[0],
                "others": drawn[1:],
                "limit": f"±{number(limit)}",
                "limit_value": limit,
                "findings": findings.sentences(target, found, len(views)),
                "zones": findings.zone_words(found.area, len(views)) if found else "",
                "prediction": _panel_words(target, case.predicted.get(target.key)),
                "answer": with_word(target, case.predicted.get(target.key))["number"],
                "word": _answer_word(target, case.predicted.get(target.key)),
                "orange": f"Orange: {target.raises.split(' (')[0]}.",
                "raises": f"Orange: {target.raises.split(' (')[0]}. Scores {span}"
                + (f" over {len(views)} views." if len(views) > 1 else "."),
            }
        )
    return panels


def _panel_words(target: Target, prediction: float | None) -> str:
    words = with_word(target, prediction)
    return words["number"] if target.kind == "probability" else plain(words)


def _answer_word(target: Target, prediction: float | None) -> str:
    """A prediction's word as a sentence; empty where its scale has none."""
    word = "reader-assessed likelihood" if target.kind == "probability" else with_word(target, prediction)["word"]
    return f"{word[:1].upper()}{word[1:]}. " if word else ""


def _map(
    material: Material, index: int, maps: Maps, target: Target, view: str, limit: float, pictures: Pictures
) -> dict[str, str]:
    place = _place(maps, material)
    scores = maps.scores[maps.targets.index(target.key), maps.views.index(view), place]
    depth = maps.slices[place]
    cut = material.cut(view, depth)
    name = view if depth == material.central else f"{view}-{depth}"
    image = pictures.use(cut, figures.LUNG, name)
    picture = figures.map_picture(cut, image, scores, limit, limit * CONTOUR_SHARE, f"map-{index}-{target.key}-{view}")
    method, span = material.runs[index].method, _span(scores, limit)
    alt = f"Signed {method} map of {target.title.lower()} over the {view} CT: scores from {span}."
    return {"svg": picture, "alt": alt, "view": VIEWS[view].title}


def _place(maps: Maps, material: Material) -> int:
    """Which of the maps' slices is shown: the central one where there is one."""
    return maps.slices.index(material.central) if material.central in maps.slices else len(maps.slices) // 2


def _span(scores: Float32[np.ndarray, "..."], limit: float) -> str:
    """Lowest and highest score, rounded to the last printed digit of the scale's limit."""
    digits = 1 - math.floor(math.log10(limit))
    low, high = (charts.signed(round(float(score), digits)) for score in (scores.min(), scores.max()))
    return f"{low} to {high}"


def strongest_score(material: Material) -> Strongest | None:
    """Of all maps at the central slice, each on its own scale, the strongest score."""
    best: tuple[float, Strongest] | None = None
    for run, case, maps in zip(material.runs, material.cases, material.maps, strict=True):
        limits = {} if case is None else run.limits.get(case.fold, {})
        if maps is None or not limits or material.central not in maps.slices:
            continue
        scores = maps.scores[:, :, maps.slices.index(material.central)]
        steps = np.array([limits[key] for key in maps.targets])[:, None, None, None]
        target, view, row, column = np.unravel_index((np.abs(scores) / steps).argmax(), scores.shape)
        score, limit = float(scores[target, view, row, column]), limits[maps.targets[target]]
        if best is None or abs(score) / limit > best[0]:
            name = maps.views[view]
            place = _token_place(material, name, (int(row), int(column)), scores.shape[-2:])
            best = (abs(score) / limit, Strongest(TARGETS[maps.targets[target]], score, VIEWS[name].title, place))
    return best[1] if best else None


def _token_place(material: Material, view: str, token: tuple[int, int], grid: tuple[int, ...]) -> str:
    """`inside` if a token's square touches the consensus, `unread` if nothing of it was read, else `outside`."""
    cut = material.cut(view)
    square = findings.token_square(token, grid, cut.consensus.shape)
    if cut.consensus[square].any():
        return "inside"
    return "unread" if cut.padded[square].all() else "outside"
