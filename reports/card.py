"""The model card: what a run's models are for, what made them, and what they must not be used for."""

from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports import blocks
from reports.blocks import Block
from reports.cohort_part import leakage
from reports.facts import Facts
from reports.results import headline

INTENDED = (
    "Research on lung nodules on CT: how a vision transformer predicts what radiologists would rate, and what in the "
    "image moved each prediction. Users: researchers who can read CT and know the limits below. Not for diagnosis, "
    "triage or any decision on a patient."
)
LIMITS = (
    "Malignancy is the likelihood that readers assessed, not pathology; a model that agrees with it need not be right.",
    "Tested within LIDC-IDRI alone: nothing is known of other scanners, protocols, populations or readers.",
    "Nodules must be found and centred first, as readers did; the model neither detects nor rejects what is no nodule.",
    "Nodules that fewer readers marked than the cohort asks for are not in it, so plain cases are favoured.",
    "Indeterminate nodules (median 3) have no label and are not in the figures of malignancy.",
    "Size is part of every biomarker, and of the frame where crops come from cut-outs.",
    "LIDC-IDRI's readings do not tell age, sex or origin; performance in such groups is unknown.",
    "A map shows what moved the head and the last block, not how the earlier blocks read the image.",
)
HIDDEN = ("data", "splits", "targets")
"""Settings that other parts of the report tell."""


def model_words(facts: Facts) -> str:
    """The kind of model in one sentence."""
    config, run = facts.config, facts.run
    size = config.get("image_size") or "the backbone's own size"
    targets = ", ".join(TARGETS[key].title.lower() for key in run.targets)
    return (
        f"Vision transformer {run.backbone or 'not recorded'} (input: {size}; channels: {config.get('stack', 'slice')})"
        f" with a {config.get('head', 'linear')} head on the [CLS] token, one output each for {targets}."
    )


def card_blocks(facts: Facts) -> list[Block]:
    """The card as names and values, its limits as sentences."""
    table, run = facts.predictions, facts.run
    weights = ", ".join(f"fold {fold} {digest[:16]}" for fold, digest in run.model_sha256.items()) or "not kept"
    pairs = [
        ("Model", model_words(facts)),
        ("Intended use", INTENDED),
        ("Output", output_words(facts)),
        ("Data", f"LIDC-IDRI, {len(table)} test nodules of {table['patient_id'].nunique()} patients over the folds."),
        ("Reference standard", "Ratings of up to four radiologists: median (malignancy), mean (biomarkers)."),
        ("Division", leakage(facts) or "not known"),
        ("Performance", " ".join(headline(facts)[1:]) or "not measured"),
        ("Shown to the model", " ".join(run.shown) or "the crop's slices alone"),
        ("Weights (SHA-256)", weights),
        ("Licence, contact", "author must answer"),
    ]
    return [blocks.record(pairs), blocks.heading("Limits"), blocks.items(LIMITS)]


def output_words(facts: Facts) -> str:
    """What the model's outputs are."""
    words = []
    if MALIGNANCY.key in facts.run.targets:
        words.append(
            "Probability that the readers' median malignancy is above 3; malignant at 0.5 and above, no tuning."
        )
    if set(facts.run.targets) - {MALIGNANCY.key}:
        words.append("Biomarkers on the readers' scale, diameter in mm; no classes.")
    return " ".join(words)


def settings_blocks(facts: Facts) -> list[Block]:
    """Every setting of the training, from `config.yaml`."""
    told = {key: value for key, value in facts.config.items() if key not in HIDDEN}
    return [blocks.record([(key.replace("_", " "), setting(value)) for key, value in told.items()])]


def setting(value: object) -> str:
    """A setting as a reader writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
