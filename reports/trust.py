"""How far to trust a nodule's maps: what was measured of them, each figure beside what it must be compared with."""

from typing import Any

from lidc_cdam.vocabulary import Target
from reports.charts import signed
from reports.context import Case, Run, targets_of
from reports.measures import CHANCE, CONTROL, FIDELITY, MASS, POINTING
from reports.words import number, percent

COLUMNS = ("Inside the consensus", "Strongest pixel", "Fidelity", "Box sensitivity", "Other folds", "Random weights")
"""What a row of the table tells of one target's map."""
BOX, AGREEMENT, RANDOMISED = "box", "repeated_fold", "randomised_embedding"
NOT_MEASURED = "not measured"


def trust_section(run: Run, case: Case) -> dict[str, Any]:
    """What was measured of one nodule's maps, target by target, and how to measure what was not."""
    rows = [_row(run, case, target) for target in targets_of(run)]
    lacking = [name for place, name in enumerate(COLUMNS) if all(row["cells"][place] == NOT_MEASURED for row in rows)]
    return {
        "method": run.method,
        "columns": [name for name in COLUMNS if name not in lacking],
        "rows": [
            {**row, "cells": [cell for name, cell in zip(COLUMNS, row["cells"], strict=True) if name not in lacking]}
            for row in rows
        ],
        "notes": _notes(run, lacking),
        "missing": _missing(run, lacking),
    }


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
    return _with(f"{own[metric]:.2f}", _run_words(typical.get(metric)))


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
    "Random weights": "Random weights: rank correlation with the map of the same model with every weight fresh; a map "
    "that explains the model has little.",
}


def _notes(run: Run, lacking: list[str]) -> list[str]:
    notes = [NOTES[name] for name in COLUMNS if name not in lacking]
    return [*notes, "run: the middle half over this run's nodules."] if notes else []


def _missing(run: Run, lacking: list[str]) -> str:
    if not lacking:
        return ""
    named = ", ".join(name[:1].lower() + name[1:] for name in lacking)
    command = f"lidc-cdam evaluate --run RUN --methods {run.method},{CONTROL}"
    return f"Not measured for this nodule: {named}. `{command}` measures them (the costly ones on a sample of nodules)."
