"""How far a run's maps can be trusted, over all nodules: the estimators' table, their differences and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from lidc_cdam.vocabulary import TARGETS
from reports import blocks
from reports.blocks import Block
from reports.facts import COMPARISON, Facts
from reports.kind import span
from reports.plates import plate
from reports.results import told

ALL = "all"
FOLDER = "explainers"
COLUMNS: dict[str, tuple[str, str, int]] = {
    "relevance_mass": ("Relevance mass", "relevance_mass_chance", 2),
    "pointing_game": ("Pointing game", "relevance_mass_chance", 2),
    "auprc": ("AUPRC", "auprc_chance", 2),
    "relevance_mass_soft": ("Soft mass", "relevance_mass_soft_chance", 2),
    "compactness": ("Compactness", "", 2),
    "fidelity": ("Fidelity", "", 1),
    "fidelity_delta": ("Fidelity Δ", "", 1),
    "box": ("Box sensitivity", "", 1),
    "box_delta": ("Box Δ", "", 1),
    "randomised_head": ("Random head", "", 2),
    "randomised_embedding": ("All weights random", "", 2),
    "repeated_fold": ("Other folds", "", 2),
}
"""Columns of the tables: title, the metric that is its chance, digits."""
FAMILIES: dict[str, tuple[str, ...]] = {
    "On the readers' consensus": ("relevance_mass", "pointing_game", "auprc", "relevance_mass_soft", "compactness"),
    "On what the model uses": ("fidelity", "fidelity_delta", "box", "box_delta"),
    "On the model's weights": ("randomised_head", "randomised_embedding", "repeated_fold"),
}
"""The tables: what they are measured on, and their columns."""
PAIRED = ("relevance_mass", "pointing_game", "fidelity", "box")
"""Metrics whose difference to the random map is shown."""
MEANINGS = {
    "relevance_mass": "Relevance mass: share of what raises a prediction that lies inside the readers' consensus.",
    "pointing_game": "Pointing game: how often the highest score lies inside it.",
    "auprc": "AUPRC: how well scores rank pixels inside before those outside.",
    "relevance_mass_soft": "Soft mass: relevance mass where each pixel counts by the share of readers that marked it.",
    "fidelity": "Fidelity, A(LIF−MIF): how much more the output falls when what a map calls important is replaced "
    "first, in output × percent; 0 for a map that says nothing.",
    "fidelity_delta": "Δ: own target's map minus the maps of other targets; 0 for a map that is the same for all.",
    "box": "Box sensitivity: how well the score in a box goes with the drop of the output when the box is replaced: "
    "area under their correlation over the boxes' sides, in percent of the image's; 0 for a map that says nothing.",
    "compactness": "Compactness: share of the cells with |score| at most a twentieth of the largest; it says nothing "
    "of being right.",
    "randomised_head": "Random head: rank correlation with the map of the same model whose head and last norm are "
    "random.",
    "randomised_embedding": "All weights random: rank correlation with the map of the same model with every weight "
    "random; near 0 where a map owes what it shows to training, far from 0 on either side where it does not.",
    "repeated_fold": "Other folds: rank correlation with the maps of other folds' models.",
}
FIGURES: dict[str, str] = {
    "methods": "Every metric, mean over targets with 95 % intervals",
    "perturbation_curves": "The output as pixels are replaced, most and least important first",
    "box_sensitivity": "Box sensitivity by the box's side",
    "discrimination_fidelity": "Fidelity of each output under each target's map",
    "discrimination_box": "Box sensitivity of each output under each target's map",
    "sanity": "Rank correlation with the original map as weights are made random",
}

BESIDE = {
    "causes": "Maps against known causes (phantoms)",
    "claims": "Where biomarker maps lie, by distance from the readers' surface",
}
"""Figures of other commands on the run's maps."""


def explainers_blocks(facts: Facts) -> list[Block]:
    """Table, differences, meanings and figures; or the command that measures."""
    command = f"lidc-cdam evaluate --run RUN --methods {facts.run.method},random"
    if not facts.comparison:
        reason = facts.problems.get("explainers", "")
        beside = "" if "is missing" in reason else f" {reason}"
        return [blocks.missing(f"Not measured: run `{command}`, then this report again.{beside}")]
    methods = facts.comparison.get("methods", {})
    rows = {method: targets.get(ALL, {}) for method, targets in methods.items()}
    shown = [metric for metric in COLUMNS if any(told(row.get(metric)) for row in rows.values())]
    if not shown:
        return [blocks.missing(f"Not measured: RUN/{COMPARISON} holds no figure; run `{command}` again.")]
    notes = [MEANINGS[metric] for metric in shown if metric in MEANINGS]
    return [
        *_tables(rows, shown),
        *_differences(facts.comparison),
        blocks.quiet(" ".join([*notes, _settings(facts.comparison)])),
        *_figures(facts),
    ]


def _tables(rows: Mapping[str, Any], shown: list[str]) -> list[Block]:
    """A table a family, as far as something of it is measured."""
    made = []
    for family, metrics in FAMILIES.items():
        known = [metric for metric in metrics if metric in shown]
        if known:
            head = ["Estimator", *(COLUMNS[metric][0] for metric in known)]
            cells = [[method, *(_cell(row, metric) for metric in known)] for method, row in rows.items()]
            title = f"{family}: mean over targets with 95 % intervals{_counted(rows, known)}"
            made.append(blocks.table(title, head, cells))
    return made


def _cell(row: Mapping[str, Any], metric: str) -> str:
    _, chance, digits = COLUMNS[metric]
    figure = told(row.get(metric), digits=digits)
    level = told(row.get(chance), ends=False, digits=digits)
    return f"{figure}; chance {level}" if figure and level else figure or "–"


def _differences(comparison: Mapping[str, Any]) -> list[Block]:
    """Each method minus the random map on the same nodules."""
    rows = {method: targets.get(ALL, {}) for method, targets in comparison.get("minus_random", {}).items()}
    known = [metric for metric in PAIRED if any(told(row.get(metric)) for row in rows.values())]
    if not known:
        return []
    cells = [
        [method, *(told(row.get(metric), sign=True, digits=COLUMNS[metric][2]) or "–" for metric in known)]
        for method, row in rows.items()
    ]
    head = ["Estimator", *(COLUMNS[metric][0] for metric in known)]
    return [blocks.table("Minus the random map, nodule by nodule, with 95 % intervals", head, cells)]


def _settings(comparison: Mapping[str, Any]) -> str:
    settings = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in comparison.get("settings", {}).items() if value is not None
    )
    return (
        f"{comparison.get('nodules', '')} nodules of {comparison.get('patients', '')} patients have maps that were "
        f"measured; the nodules behind each figure are in each table's title. Settings: {settings}. explainers.csv in "
        f"the run's folder has every value."
    )


def _counted(rows: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """How many nodules the figures of some metrics rest on: costly metrics are measured on a sample."""
    found = {row[metric].get("nodules") for row in rows.values() for metric in metrics if told(row.get(metric))}
    counts = [count for count in found if count]
    return f" ({span(counts)} nodules)" if counts else ""


def _figures(facts: Facts) -> list[Block]:
    folder = facts.run.folder / "figures" / FOLDER
    drawn = {name: title for name, title in FIGURES.items() if (folder / f"{name}.svg").exists()}
    made = [
        plate(folder / f"{name}.svg", title, f"{title}. The table above holds the means.")
        for name, title in drawn.items()
    ]
    for name, title in BESIDE.items():
        path = facts.run.folder / "figures" / f"{name}.svg"
        if path.exists():
            made.append(plate(path, title, f"{title}; docs/metrics.md and the run's tables hold the numbers."))
    for key, target in TARGETS.items():
        path = folder / f"gallery_{key}.svg"
        if path.exists():
            title = f"{target.title}: ten nodules by all estimators"
            made.append(plate(path, title, f"{title}, from the smallest to the largest nodule.", folded=True))
    if made:
        return made
    return [
        blocks.missing("No curves: RUN/figures/explainers is missing; `lidc-cdam evaluate`, called again, draws them.")
    ]
