"""The model card: what a run's models are for, what made them, and what they must not be used for."""

from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports import blocks, kind
from reports.blocks import Block
from reports.cohort_part import leakage
from reports.facts import Facts
from reports.methods import reach_sentence
from reports.results import headline

STUDY = (
    "Research on lung nodules on CT: how a vision transformer predicts what radiologists would rate, and what in the "
    "image moved each prediction."
)
TRIAL = "Trials of this tool and of methods of explanation: the images are phantoms, so figures say nothing of nodules."
CONTROL = "A control for measuring maps: the labels were permuted before training, so its predictions mean nothing."
USERS = (
    "Users: researchers who can read CT and know the limits below. Not for diagnosis, triage or any decision on a "
    "patient."
)
HIDDEN = ("data", "splits", "targets")
"""Settings that other parts of the report tell."""


def intended(facts: Facts) -> str:
    """What the run is for."""
    purpose = TRIAL if kind.synthetic(facts) == kind.ALL else STUDY
    return f"{CONTROL if kind.is_permuted(facts) else purpose} {USERS}"


def limits(facts: Facts) -> list[str]:
    """What the run's models cannot do or say, a sentence each."""
    synthetic, rule = kind.synthetic(facts), kind.label_rule(facts)
    least = facts.made.get("cohort", {}).get("config", {}).get("selection", {}).get("min_readers", 1)
    padded = any(record.padded_share > 0 for record in facts.dataset.nodules.values())
    told = {
        "Tested on phantoms alone, drawn from readers' outlines and ratings: nothing is known of real CT.": synthetic
        == kind.ALL,
        "Some of the nodules are phantoms, and the figures do not part them from real ones.": synthetic == kind.PART,
        "Tested within LIDC-IDRI alone: nothing is known of other scanners, protocols, populations or "
        "readers.": synthetic == kind.NONE,
        "Malignancy is the likelihood that readers assessed, not pathology; a model that agrees with it need not be "
        "right.": kind.predicts_malignancy(facts),
        f"Indeterminate nodules ({rule} 3) have no label and are not tested.": True,
        "Nodules must be found and centred first, as readers did; the model neither detects nor rejects what is no "
        "nodule.": True,
        "Nodules must be outlined too: the model is shown what readers outlined.": kind.needs_outline(facts),
        f"Nodules that fewer than {least} readers marked are not in the cohort, so plain cases are favoured.": least
        > 1,
        "Size explains part of the biomarkers and of malignancy; a prediction may rest on it.": True,
        "A part of some crops was not read and holds mirrored tissue; where crops come from cut-outs, that frame gives "
        "the nodule's size away.": padded,
        "LIDC-IDRI's readings do not tell age, sex or origin; performance in such groups is unknown.": True,
        reach_sentence(facts.run.method): bool(facts.run.limits),
        f"The run has settings that this report does not know ({', '.join(kind.unknown(facts))}): what it says of the "
        f"training is incomplete.": bool(kind.unknown(facts)),
    }
    return [sentence for sentence, holds in told.items() if holds]


def model_words(facts: Facts) -> str:
    """The kind of model in one sentence."""
    config, run = facts.config, facts.run
    size = f"{config['image_size']} pixels" if config.get("image_size") else "the backbone's own size"
    beside = f" Beside it a second head ({side_head(facts)}) reads radiomics." if config.get("radiomics") else ""
    return (
        f"Vision transformer {run.backbone or 'not recorded'} (input: {size}; {channels(facts)}) with a "
        f"{config.get('head', 'linear')} head on the [CLS] token, one output each for {kind.titles(run.targets)}."
        f"{beside}"
    )


def side_head(facts: Facts) -> str:
    """The kind of the second head."""
    return "kernel ridge regression" if facts.config.get("side_head") == "kernel" else "a small network"


def channels(facts: Facts) -> str:
    """What the image's channels are."""
    config = facts.config
    step = config.get("stack_step", 3)
    shown = {
        "slice": "one slice, three times",
        "adjacent": f"a slice and its neighbours {step} slices to either side",
    }.get(str(config.get("stack", "slice")), f"channels: {config.get('stack')}")
    return f"{shown}, and the readers' consensus" if config.get("mask_channel") else shown


def card_blocks(facts: Facts) -> list[Block]:
    """The card as names and values, its limits as sentences."""
    table, run = facts.predictions, facts.run
    weights = ", ".join(f"fold {fold} {digest[:16]}" for fold, digest in run.model_sha256.items()) or "not kept"
    nodules = f"{len(table)} test nodules of {table['patient_id'].nunique()} patients over the folds"
    pairs = [
        ("Model", model_words(facts)),
        ("Intended use", intended(facts)),
        ("Output", output_words(facts)),
        ("Data", f"{data_words(facts)}, {nodules}."),
        ("Reference standard", reference_words(facts)),
        ("Division", leakage(facts) or "not known"),
        ("Performance", " ".join(headline(facts)[1:]) or "not measured"),
        ("Shown to the model", f"{channels(facts)[:1].upper()}{channels(facts)[1:]}."),
        *([("Mind", " ".join(run.shown))] if run.shown else []),
        ("Weights (SHA-256)", weights),
        ("Licence, contact", "author must answer"),
    ]
    return [blocks.record(pairs), blocks.heading("Limits"), blocks.items(limits(facts))]


def data_words(facts: Facts) -> str:
    """Where the images come from, in a few words."""
    return {
        kind.ALL: "Phantoms drawn from LIDC-IDRI's readings",
        kind.PART: f"LIDC-IDRI and {kind.phantoms(facts)} phantoms drawn from its readings",
        kind.NONE: "LIDC-IDRI",
    }[kind.synthetic(facts)]


def reference_words(facts: Facts) -> str:
    """What the targets' true values are."""
    malignancy = f"malignancy: {kind.label_rule(facts)} of their ratings below or above 3"
    rated = [key for key in facts.run.targets if TARGETS[key].kind == "rating"]
    length = any(TARGETS[key].kind == "length" for key in facts.run.targets)
    parts = [
        *([malignancy] if kind.predicts_malignancy(facts) else []),
        *(["biomarkers: mean of their ratings"] if rated else []),
        *(["diameter: mean of their outlines', mm"] if length else []),
    ]
    words = "; ".join(parts)
    return f"Readers' opinion, not pathology. {words[:1].upper()}{words[1:]}."


def output_words(facts: Facts) -> str:
    """What the model's outputs are."""
    words = []
    if MALIGNANCY.key in facts.run.targets:
        words.append(
            f"Probability that the readers' {kind.label_rule(facts)} malignancy is above 3; malignant at 0.5 and "
            f"above, no tuning."
        )
    if kind.predicts_biomarkers(facts):
        length = ", diameter in mm" if any(TARGETS[key].kind == "length" for key in facts.run.targets) else ""
        words.append(f"Biomarkers on the readers' scale{length}; no classes.")
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
