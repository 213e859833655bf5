"""What a run knows of its evaluation: measures, figures, failures, explanations, and what stands beside them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lidc_cdam.vocabulary import MALIGNANCY
from reports.answers_training import feature_count
from reports.cohort_part import leakage
from reports.explained import ALL, COLUMNS, FAMILIES
from reports.facts import Facts
from reports.kind import predicts_biomarkers, predicts_malignancy
from reports.methods import map_words
from reports.results import BIOMARKER_COLUMNS, GROUP, MALIGNANCY_COLUMNS, headline, replicates, told
from reports.words import listed

WORST = 5


def result_answers() -> dict[str, Callable[[Facts], str]]:
    """Answers by key."""
    return {
        "measures": _measures,
        "uncertainty": _uncertainty,
        "robustness": _robustness,
        "explainability": _explainability,
        "internal": _internal,
        "performance": lambda facts: " ".join(headline(facts)[1:]) if _figures(facts) else "",
        "diagnostic": _diagnostic,
        "failures": _failures,
        "features": lambda facts: _radiomics(
            facts, "{count} features of this tool's own, of the readers' consensus; see docs."
        ),
        "feature_parameters": lambda facts: _radiomics(facts, "RUN/radiomics.csv keeps every feature with its unit."),
        "feature_processing": lambda facts: _radiomics(facts, "No feature is removed."),
        "dimensionality": _dimensionality,
        "confounders": _confounders,
        "calibration": _calibration,
        "beside": _beside,
    }


def _figures(facts: Facts) -> Mapping[str, Any]:
    return dict(facts.summary.get("metrics", {}))


def _baselines(facts: Facts) -> Mapping[str, Any]:
    return dict(facts.summary.get("baselines", {}))


def _measures(facts: Facts) -> str:
    found, words = _figures(facts), []
    own = [title for key, title in MALIGNANCY_COLUMNS.items() if told(found.get(MALIGNANCY.key, {}).get(key))]
    if own:
        words.append(f"Malignancy: {listed(own)}.")
    rated = [figures for key, figures in found.items() if key not in (MALIGNANCY.key, GROUP)]
    own = [title for key, title in BIOMARKER_COLUMNS.items() if any(told(figures.get(key)) for figures in rated)]
    if own:
        words.append(f"Biomarkers: {listed(own)}.")
    plots = {
        **({"roc": "ROC", "reliability": "reliability"} if predicts_malignancy(facts) else {}),
        **({"biomarkers": "scatter against the readers"} if predicts_biomarkers(facts) else {}),
    }
    drawn = [title for name, title in plots.items() if (facts.run.folder / "figures" / f"{name}.svg").exists()]
    return " ".join([*words, *([f"Plots: {listed(drawn)}."] if drawn else [])])


def _uncertainty(facts: Facts) -> str:
    if not facts.summary.get("bootstrap"):
        return ""
    single = " Single predictions: 90 % split-conformal intervals." if facts.run.held else ""
    return (
        f"95 % intervals by {replicates(facts.summary)} bootstrap replicates over patients; paired differences on the "
        f"same replicates; models are not trained anew; no test of significance and no correction for many "
        f"figures.{single}"
    )


def _robustness(facts: Facts) -> str:
    rows = {method: targets.get(ALL, {}) for method, targets in facts.comparison.get("methods", {}).items()}
    known = [
        f"{method} {told(row['randomised_embedding'], digits=2)}"
        for method, row in rows.items()
        if told(row.get("randomised_embedding"))
    ]
    return f"Of the maps, rank correlation after all weights were made random: {', '.join(known)}." if known else ""


def _explainability(facts: Facts) -> str:
    run = facts.run
    mapped, tested = sum(run.mapped.values()), len(facts.predictions)
    words = []
    if run.limits:
        share = "every test nodule" if mapped == tested else f"{mapped} of {tested} test nodules"
        words.append(f"{map_words(run.method)} ({run.method}) of {share}.")
    methods = facts.comparison.get("methods", {})
    families = [
        name[:1].lower() + name[1:]
        for name, metrics in FAMILIES.items()
        if any(
            told(targets.get(ALL, {}).get(metric))
            for targets in methods.values()
            for metric in metrics
            if metric in COLUMNS
        )
    ]
    if families:
        words.append(f"Measured {listed(families)}, with intervals: {', '.join(methods)}.")
    return " ".join(words)


def _internal(facts: Facts) -> str:
    if not _figures(facts) or facts.splits is None:
        return ""
    count, done = len(facts.splits.folds), facts.predictions["fold"].nunique()
    how = "One split" if count == 1 else f"Cross-validation of {count} folds"
    part = "" if done == count else f", {done} of them so far"
    return f"{how}{part}. {' '.join(headline(facts))}"


def _diagnostic(facts: Facts) -> str:
    own = _figures(facts).get(MALIGNANCY.key, {})
    words = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    known = [f"{word} {told(own.get(key))}" for key, word in words.items() if told(own.get(key))]
    shared = facts.splits is not None and facts.splits.shared_patients
    beside = f" {leakage(facts)}" if shared else ""
    return f"At a probability of 0.5, against the readers' label: {', '.join(known)}.{beside}" if known else ""


def _failures(facts: Facts) -> str:
    table, keys = facts.predictions, facts.run.targets
    rated = [key for key in keys if key != MALIGNANCY.key and facts.run.spread.get(key)]
    errors = np.stack(
        [
            np.abs(table[f"{key}_predicted"] - table[f"{key}_true"]) / (facts.run.spread[key] if rated else 1)
            for key in rated or keys
        ]
    ).mean(axis=0)
    names = table["nodule_id"].tolist()
    worst = [names[place] for place in np.argsort(-np.nan_to_num(errors), kind="stable")[:WORST]]
    error = (
        "mean absolute error over the biomarkers, in standard deviations of the readers' means"
        if rated
        else "distance of the probability from the label"
    )
    return f"The index sorts nodules by error. Farthest from the readers ({error}): {', '.join(worst)}."


def _radiomics(facts: Facts, words: str) -> str:
    in_model, beside = bool(facts.config.get("radiomics")), "radiomics" in _baselines(facts)
    if not in_model and not beside:
        return "Not applicable: the model learns from images; no hand-made features are used."
    users = [*(["the model's second head"] if in_model else []), *(["a baseline"] if beside else [])]
    return f"Read by {listed(users)}: {words.format(count=feature_count(facts) or _columns(facts))}"


def _columns(facts: Facts) -> str:
    """Number of features in the table that the baseline reads."""
    path = facts.run.folder / "radiomics.csv"
    if not path.exists():
        return "the"
    with path.open(encoding="utf-8") as stream:
        return str(len(stream.readline().split(",")) - 2)


def _dimensionality(facts: Facts) -> str:
    if facts.config.get("radiomics") or "radiomics" in _baselines(facts):
        return ""
    return "Not applicable: no table of features."


def _confounders(facts: Facts) -> str:
    names = {
        "ruler": "the readers' diameter alone",
        "unread_frame": "the share of the crop that was read, alone",
    }
    known = [
        f"{words} (AUC {told(_baselines(facts)[name].get(MALIGNANCY.key, {}).get('auc'))})"
        for name, words in names.items()
        if told(_baselines(facts).get(name, {}).get(MALIGNANCY.key, {}).get("auc"))
    ]
    return f"Size: beside the model stand {listed(known)}." if known else ""


def _calibration(facts: Facts) -> str:
    ece = told(_figures(facts).get(MALIGNANCY.key, {}).get("ece"))
    if not ece:
        return ""
    curve = (facts.run.folder / "figures" / "reliability.svg").exists()
    return f"{'Reliability curve; ' if curve else ''}ECE {ece}; even a calibrated model has one above 0."


def _beside(facts: Facts) -> str:
    beside = _baselines(facts)
    names = {
        "model_minus_ruler": "the readers' diameter",
        "model_minus_radiomics": "radiomics by extra trees",
        "model_minus_radiomics_kernel": "radiomics by kernel ridge regression",
        "model_minus_readers_logistic": "the readers' own biomarkers (logistic regression)",
    }
    known = [f"AUC minus that of {words} {figure}" for words, figure in _apart(beside, names, MALIGNANCY.key, "auc")]
    known += [
        f"mean z-MSE minus that of {words} {figure}" for words, figure in _apart(beside, names, GROUP, "mean_z_mse")
    ]
    return f"{'; '.join(known)}." if known else ""


def _apart(beside: Mapping[str, Any], names: Mapping[str, str], key: str, metric: str) -> Sequence[tuple[str, str]]:
    found = [(words, told(beside.get(name, {}).get(key, {}).get(metric), sign=True)) for name, words in names.items()]
    return [(words, figure) for words, figure in found if figure]
