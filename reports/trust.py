"""How far to trust a nodule's maps: what was measured of them, each figure beside what it must be compared with."""

from typing import Any

from lidc_cdam.artifacts import Maps
from lidc_cdam.geometry import VIEWS
from lidc_cdam.vocabulary import TARGETS, Target
from reports import figures
from reports.charts import signed
from reports.context import Case, Run, targets_of, title_of
from reports.maps import CONTOUR_SHARE
from reports.material import Material
from reports.measures import CHANCE, CONTROL, FIDELITY, MASS, POINTING
from reports.words import number, percent

COLUMNS = ("Inside the consensus", "Strongest pixel", "Fidelity", "Box sensitivity", "Other folds", "Random weights")
"""What a row of the table tells of one target's map."""
BOX, AGREEMENT, RANDOMISED = "box", "repeated_fold", "randomised_embedding"
NOT_MEASURED = "not measured"


def trust_section(material: Material, index: int) -> dict[str, Any]:
    """What was measured of one nodule's maps, target by target, and how to measure what was not.

    Args:
        material: the nodule.
        index: place in `material.runs` of a run that has it.
    """
    run, case = material.runs[index], material.cases[index]
    if case is None:
        raise ValueError(f"run {index} must have the nodule {material.case.nodule_id}, but it does not")
    rows = [_row(run, case, target) for target in targets_of(run)]
    lacking = [name for place, name in enumerate(COLUMNS) if all(row["cells"][place] == NOT_MEASURED for row in rows)]
    return {
        "title": title_of(run),
        "method": run.method,
        "columns": [name for name in COLUMNS if name not in lacking],
        "rows": [
            {**row, "cells": [cell for name, cell in zip(COLUMNS, row["cells"], strict=True) if name not in lacking]}
            for row in rows
        ],
        "notes": _notes(run, lacking),
        "missing": " ".join(filter(None, (_missing(run, lacking), _no_twins(material, index, lacking)))),
        "twins": _twins(material, index),
        "twins_note": TWINS,
    }


def _no_twins(material: Material, index: int, lacking: list[str]) -> str:
    """Why no map of random weights stands beside the map, where its figure is there."""
    if material.maps[index] is None or material.random_maps[index] is not None or COLUMNS[-1] in lacking:
        return ""
    command = f"lidc-cdam evaluate --run RUN --methods {material.runs[index].method} --metrics randomised"
    return f"No map of the same model with random weights is kept that can be read; `{command}` keeps it."


TWINS = (
    "Left: the map. Right: the map of the same model with every weight random, which has learnt nothing; the limit of "
    "each one's scale stands below it. A map that looks like its neighbour, or like its negative, owes little to what "
    "the model learnt."
)


def _twins(material: Material, index: int) -> list[dict[str, Any]]:
    """Each target's map beside that of the model with random weights, small; none where one of the two is missing."""
    run, case = material.runs[index], material.cases[index]
    maps, random = material.maps[index], material.random_maps[index]
    if case is None or maps is None or random is None:
        return []
    limits, random_limits = run.limits.get(case.fold, {}), run.random_limits.get(case.fold, {})
    view = min(set(maps.views) & set(random.views), key=list(VIEWS).index, default=None)
    depth = next((depth for depth in random.slices if depth in maps.slices), None)
    if view is None or depth is None:
        return []
    made = []
    for key in run.targets:
        if all(key in known for known in (maps.targets, random.targets, limits, random_limits)):
            name = f"twin-{index}-{key}"
            made.append(
                {
                    "title": TARGETS[key].title,
                    "own": _thumbnail(material, maps, key, view, depth, limits[key], name),
                    "random": _thumbnail(material, random, key, view, depth, random_limits[key], name, True),
                    "words": _twin_words(case.measures.get(key, {})),
                }
            )
    return made


def _twin_words(own: dict[str, float]) -> str:
    return f"correlation {_correlation(own[RANDOMISED])}" if RANDOMISED in own else ""


def _thumbnail(
    material: Material, maps: Maps, key: str, view: str, depth: int, limit: float, name: str, is_random: bool = False
) -> dict[str, str]:
    place = maps.targets.index(key), maps.views.index(view), maps.slices.index(depth)
    weights, ending = (" with random weights", "-random") if is_random else ("", "")
    cut, level = material.cut(view, depth), limit * CONTOUR_SHARE
    svg = figures.map_thumbnail(cut, maps.scores[place], limit, level, f"{name}{ending}")
    alt = f"Small {view} map of {TARGETS[key].title.lower()} by the model{weights}; full colour at {number(limit)}."
    return {"svg": svg, "alt": alt, "limit": f"±{number(limit)}"}


def _row(run: Run, case: Case, target: Target) -> dict[str, Any]:
    own, typical = case.measures.get(target.key, {}), run.typical.get(target.key, {})
    control = case.control.get(target.key, {})
    return {
        "title": target.title,
        "cells": [
            _mass(own, typical.get(MASS)),
            _pointing(own),
            _against_control(own, control, typical, FIDELITY),
            _against_control(own, control, typical, BOX),
            _plain(own, typical, AGREEMENT),
            _plain(own, typical, RANDOMISED),
        ],
    }


def _mass(own: dict[str, float], typical: tuple[float, float] | None) -> str:
    if MASS not in own:
        return NOT_MEASURED
    chance = f"chance {percent(own[CHANCE])}" if CHANCE in own else ""
    middle = f"run {percent(typical[0])} to {percent(typical[1])}" if typical else ""
    return _with(percent(own[MASS]), chance, middle)


def _pointing(own: dict[str, float]) -> str:
    if POINTING not in own:
        return NOT_MEASURED
    share = own[POINTING]
    return {0.0: "outside the consensus", 1.0: "inside the consensus"}.get(
        share, f"{percent(share)} inside the consensus"
    )


def _against_control(
    own: dict[str, float], control: dict[str, float], typical: dict[str, tuple[float, float]], metric: str
) -> str:
    if metric not in own:
        return NOT_MEASURED
    beside = f"{CONTROL} map {signed(float(number(control[metric])))}" if metric in control else ""
    return _with(signed(own[metric]), beside, _run_words(typical.get(metric)))


def _plain(own: dict[str, float], typical: dict[str, tuple[float, float]], metric: str) -> str:
    if metric not in own:
        return NOT_MEASURED
    middle = typical.get(metric)
    return _with(
        _correlation(own[metric]), f"run {_correlation(middle[0])} to {_correlation(middle[1])}" if middle else ""
    )


def _correlation(value: float) -> str:
    """A correlation with its sign and two digits."""
    return f"{value:+.2f}".replace("-", "\u2212")


def _run_words(typical: tuple[float, float] | None) -> str:
    return f"run {signed(typical[0])} to {signed(typical[1])}" if typical else ""


def _with(value: str, *beside: str) -> str:
    told = "; ".join(words for words in beside if words)
    return f"{value} ({told})" if told else value


NOTES = {
    "Inside the consensus": "Inside the consensus: share of what raises the prediction that lies inside the readers' "
    "consensus; chance is the consensus' share of what was read.",
    "Strongest pixel": "Strongest pixel: whether the highest score lies inside the consensus (pointing game); a share "
    "where several pixels or views have it.",
    "Fidelity": "Fidelity, A(LIF−MIF): how much more the output falls when what the map calls important is blurred "
    "first than when it is blurred last, in output × percent; about 0 for a map that says nothing.",
    "Box sensitivity": "Box sensitivity: how well the score in a box goes with the drop of the output when the box is "
    "blurred: area under their correlation over the boxes' sides; 0 for a map that says nothing.",
    "Other folds": "Other folds: rank correlation with the maps of the other folds' models.",
    "Random weights": "Random weights: rank correlation with the map of the same model with every weight random; near "
    "0 where the map owes what it shows to training. Far from 0 on either side, for the sign of an untrained model is "
    "chance, where such a model shows the same places.",
}


def _notes(run: Run, lacking: list[str]) -> list[str]:
    notes = [NOTES[name] for name in COLUMNS if name not in lacking]
    return [*notes, "run: the middle half over this run's nodules."] if notes else []


def _missing(run: Run, lacking: list[str]) -> str:
    if not lacking:
        return ""
    named = ", ".join(name[:1].lower() + name[1:] for name in lacking)
    command = f"lidc-cdam evaluate --run RUN --methods {run.method},{CONTROL} --metrics all"
    return (
        f"Not measured for this nodule: {named}. `{command}` measures them (the costly ones on a sample of nodules, "
        f"which --fidelity-nodules sets)."
    )
