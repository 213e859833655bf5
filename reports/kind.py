"""What kind of run this is, as its artefacts say: its images, its label, what trained it and what it is shown."""

from collections.abc import Sequence

import pandas as pd

from lidc_cdam.quality import SYNTHETIC
from lidc_cdam.vocabulary import MALIGNANCY, TARGETS
from reports.facts import Facts

KNOWN = frozenset(
    (
        *("data", "splits", "targets", "backbone", "weights", "image_size", "head", "dropout", "trainable_layers"),
        *("views", "indeterminate", "stack", "stack_step", "mask_channel", "radiomics", "side_head", "flips", "shift"),
        *("grey_jitter", "average", "epochs", "batch_size", "optimiser", "max_lr", "layer_decay", "schedule"),
        *("warm_up", "cycles", "weight_decay", "clip_gradient", "loss", "patience", "permute_labels", "seed"),
        "precision",
    )
)
"""Settings of `config.yaml` that answers about training rest on; a run with another one has its author answer."""
ALL, PART, NONE = "all", "part", "none"


def unknown(facts: Facts) -> list[str]:
    """Settings of the run that the report does not understand."""
    return sorted(set(map(str, facts.config)) - KNOWN)


def is_known(facts: Facts) -> bool:
    """Whether the report understands every setting of the run's training."""
    return not unknown(facts)


def phantoms(facts: Facts) -> int:
    """How many of the predicted nodules are synthetic phantoms."""
    records = (facts.dataset.nodules.get(key) for key in facts.predictions["nodule_id"])
    return sum(record is not None and SYNTHETIC in record.flags for record in records)


def synthetic(facts: Facts) -> str:
    """Whether `ALL`, `PART` or `NONE` of the predicted nodules are phantoms."""
    count = phantoms(facts)
    return NONE if not count else (ALL if count == len(facts.predictions) else PART)


def label_rule(facts: Facts) -> str:
    """How one malignancy comes from the readers' ratings: `median` or `mean`."""
    return facts.run.label_rule


def predicts_malignancy(facts: Facts) -> bool:
    """Whether malignancy is among the run's targets."""
    return MALIGNANCY.key in facts.run.targets


def predicts_biomarkers(facts: Facts) -> bool:
    """Whether a biomarker is among the run's targets."""
    return any(key != MALIGNANCY.key for key in facts.run.targets)


def is_permuted(facts: Facts) -> bool:
    """Whether the run is a control that learnt from permuted labels."""
    return bool(facts.config.get("permute_labels"))


def needs_outline(facts: Facts) -> bool:
    """Whether the models are shown the readers' outlines, as a channel or as radiomics."""
    return bool(facts.config.get("mask_channel") or facts.config.get("radiomics"))


def undecided(facts: Facts) -> list[int]:
    """By fold: indeterminate nodules that biomarkers were also learnt from; empty where the run did not do that.

    They are the extracted nodules without a label whose patients neither validate nor test.
    """
    if not facts.config.get("indeterminate") or facts.splits is None:
        return []
    cohort = facts.cohort
    rows = cohort[cohort["label"].isna() & cohort.index.isin(list(facts.dataset.nodules))]
    patients: pd.Series = cohort["patient_id"]
    return [
        int((~rows["patient_id"].isin(patients.reindex([*fold.val, *fold.test]))).sum()) for fold in facts.splits.folds
    ]


def span(numbers: Sequence[int]) -> str:
    """`7`, or `5 to 9`."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def titles(keys: Sequence[str]) -> str:
    """Names of targets in a sentence."""
    return ", ".join(TARGETS[key].title.lower() for key in keys)
