"""What a nodule's readings say together: label, means and spreads, calcification as presence, quality flags."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lidc_cdam.quality import INITIAL_SCALES, MANY_READINGS, WIDE_RANGE
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, TARGETS
from preprocessing.annotations import Nodule, Reading
from preprocessing.clusters import MOST_READERS
from preprocessing.selection import INDETERMINATE, LABEL_RULES, Selection

UNDECIDED = "indeterminate"
"""`reason` of a chosen nodule without a label."""
PRESENT = "calcification_present"
"""Column: share of the readers who saw calcification, 0 to 1. The code is a category, so its mean is not a quantity."""
ABSENT = TARGETS["calcification"].high
"""The code of calcification that means there is none."""
WIDE = 2
"""Range of the readers' codes from which a nodule is flagged."""
DIVIDED = "a part of that cluster"
FLAG_SEPARATOR = "; "


def rated_columns(nodule: Nodule, selection: Selection) -> dict[str, Any]:
    """Label, means and sample deviations over the readers, and what else the readings alone decide.

    Args:
        nodule: its readings are summarised; a deviation of a single reading is NaN.
        selection: has the rule that makes the label.
    """
    codes = [reading.ratings[MALIGNANCY.key] for reading in nodule.readings]
    decisive = LABEL_RULES[selection.label_rule](codes)
    undecided = decisive == INDETERMINATE
    values = {
        biomarker.key: [value_of(reading, biomarker.key) for reading in nodule.readings] for biomarker in BIOMARKERS
    }
    return {
        "malignancy": float(np.median(codes)),
        "label": pd.NA if undecided else int(decisive > INDETERMINATE),
        **{key: float(np.mean(readings)) for key, readings in values.items()},
        **{f"{key}_sd": spread(readings) for key, readings in values.items()},
        "reason": UNDECIDED if undecided else "",
        "malignancy_mean": float(np.mean(codes)),
        "malignancy_sd": spread(codes),
        PRESENT: float(np.mean([value_of(reading, PRESENT) for reading in nodule.readings])),
        "internal_structure": float(np.mean([reading.ratings["internalStructure"] for reading in nodule.readings])),
        "flags": FLAG_SEPARATOR.join(reading_flags(nodule)),
    }


def reading_rows(nodule: Nodule) -> Iterator[dict[str, Any]]:
    """The nodule's rows of `readings.csv`."""
    for reading in nodule.readings:
        yield {
            "nodule_id": nodule.nodule_id,
            "patient_id": nodule.scan.patient_id,
            "annotation_id": reading.annotation_id,
            **reading.ratings,
            "diameter": reading.diameter_mm,
        }


def reading_flags(nodule: Nodule) -> tuple[str, ...]:
    """Data-quality flags that the readings alone decide (`lidc_cdam.quality`), in its order."""
    rated = [target.key for target in (*BIOMARKERS, MALIGNANCY) if target.kind != "length"]
    wide = [key for key in rated if np.ptp([value_of(reading, key) for reading in nodule.readings]) >= WIDE]
    return (
        *((MANY_READINGS,) if len(nodule.readings) > MOST_READERS else ()),
        *((f"{MANY_READINGS}: {DIVIDED}",) if nodule.divided else ()),
        *((INITIAL_SCALES,) if nodule.scan.is_from_initial else ()),
        *((f"{WIDE_RANGE}: {', '.join(wide)}",) if wide else ()),
    )


def details(flag: str) -> list[str]:
    """What a flag names after its phrase."""
    return flag.split(": ")[1].split(", ") if ": " in flag else []


def value_of(reading: Reading, key: str) -> float:
    """One reader's value: a code, the diameter in mm, or whether calcification is present (0 / 1)."""
    if key == PRESENT:
        return float(reading.ratings["calcification"] != ABSENT)
    return reading.diameter_mm if key == "diameter" else float(reading.ratings[key])


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
