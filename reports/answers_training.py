"""What a run knows of its model and its training; nothing where a setting is not understood."""

from collections.abc import Callable

from reports import kind
from reports.card import channels, model_words, setting, side_head
from reports.facts import Facts
from reports.kind import predicts_biomarkers, predicts_malignancy
from reports.words import listed

NAMED = (
    *("epochs", "batch_size", "optimiser", "max_lr", "schedule", "warm_up", "cycles", "layer_decay", "weight_decay"),
    *("clip_gradient", "loss", "dropout", "trainable_layers", "average", "flips", "shift", "grey_jitter", "patience"),
    "precision",
)
SCHEDULED = {"warm_up": "cosine", "cycles": "cyclic_triangular2"}
"""Settings that one schedule alone reads."""


def training_answers() -> dict[str, Callable[[Facts], str]]:
    """Answers by key, each empty for a run whose settings are not all understood."""
    made: dict[str, Callable[[Facts], str]] = {
        "technology": lambda facts: f"Deep learning. {model_words(facts)}",
        "model": model_words,
        "initial": _initial,
        "training": _training,
        "selection": selection_words,
        "ensembling": _ensembling,
        "imbalance": _imbalance,
        "predictors": _predictors,
        "calculation": _calculation,
    }
    return {key: _if_known(make) for key, make in made.items()}


def _if_known(make: Callable[[Facts], str]) -> Callable[[Facts], str]:
    return lambda facts: make(facts) if kind.is_known(facts) else ""


def _initial(facts: Facts) -> str:
    config = facts.config
    if "weights" not in config or "seed" not in config:
        return ""
    weights = config["weights"]
    if weights is None:
        return f"Random weights; seed {config['seed']}."
    named = "the published weights of its name" if weights == "hub" else f"the file {weights}"
    learnt = (
        ""
        if weights == "hub"
        else " The author must say what that file was trained on: images of these very nodules would be leakage."
    )
    return f"Backbone from {named}, head from random weights; seed {config['seed']}.{learnt}"


def _training(facts: Facts) -> str:
    config = facts.config
    named = [
        key for key in NAMED if key in config and SCHEDULED.get(key, config.get("schedule")) == config.get("schedule")
    ]
    if not predicts_biomarkers(facts):
        named = [key for key in named if key != "loss"]
    told = ", ".join(f"{key.replace('_', ' ')} {setting(config[key])}" for key in named)
    losses = [
        *(["binary cross-entropy for malignancy"] if predicts_malignancy(facts) else []),
        *([f"{config['loss']} for z-scored biomarkers"] if predicts_biomarkers(facts) and "loss" in config else []),
    ]
    loss = f"Loss: {listed(losses)}. " if losses else ""
    settings = f"{told[:1].upper()}{told[1:]}. " if told else ""
    return (
        f"{model_words(facts)} {loss}{settings}Each epoch draws one image per nodule: a view, one of the five central "
        f"slices and a quarter turn. {selection_words(facts)}"
    )


def selection_words(facts: Facts) -> str:
    """How a fold's model was chosen."""
    config, patience = facts.config, facts.config.get("patience")
    stop = f" Training stops after {patience} epochs without a better one." if patience else ""
    mean = " What is kept is a running mean of the weights." if config.get("average") else ""
    again = " The second head is then fitted once more, on the validation nodules too." if facts.run.is_refitted else ""
    chosen = "The epoch with the lowest loss on the fold's validation nodules; test nodules choose no epoch."
    return f"{chosen}{stop}{mean}{again}"


def _ensembling(facts: Facts) -> str:
    views, config = facts.run.views, facts.config
    parts = [
        *([f"a mean over its outputs for the {listed(list(views))} views"] if len(views) > 1 else []),
        *(["a running mean of the weights over its training"] if config.get("average") else []),
        *(["the sum of an image head and a radiomics head"] if config.get("radiomics") else []),
    ]
    within = f" Within that model: {listed(parts)}." if parts else ""
    return f"No separately trained models are joined: the model whose fold tests a nodule predicts it alone.{within}"


def _imbalance(facts: Facts) -> str:
    if not predicts_malignancy(facts):
        return "Not applicable: the run predicts no class."
    scaled = (
        " The radiomics head's malignancy becomes a logit by logistic regression on patients left out of its fit."
        if facts.run.is_refitted
        else ""
    )
    rest = "no recalibration otherwise" if scaled else "no recalibration"
    return f"No re-sampling, no class weights, {rest}: all training nodules count alike.{scaled}"


def _predictors(facts: Facts) -> str:
    count = feature_count(facts)
    beside = (
        f" and {count or 'the'} radiomics of the readers' consensus, all of them"
        if facts.config.get("radiomics")
        else ""
    )
    return f"None selected: the model sees the crop's voxels ({channels(facts)}){beside}."


def feature_count(facts: Facts) -> int:
    """Radiomics that the model reads, as its statistics name them; 0 where they are not kept."""
    return len((facts.statistics.get("features") or {}).get("names", ()))


def _calculation(facts: Facts) -> str:
    if not facts.run.model_sha256:
        return ""
    views = facts.run.views
    over = f"mean over the {listed(list(views))} views" if len(views) > 1 else f"the {views[0]} view"
    beside = f", with the second head ({side_head(facts)}) added" if facts.config.get("radiomics") else ""
    return (
        f"By the fold's stored model (model.safetensors, statistics.json) at the central slice, {over}{beside}; "
        f"`lidc-cdam predict` does the same for new nodules, as a mean over the folds."
    )
