"""The words of the field, once: malignancy, the eight biomarkers, their scales and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lidc_cdam.errors import LidcCdamError

Kind = Literal["probability", "rating", "length"]
RESEARCH = "Research use only - not for diagnosis"
"""What every page and every picture says of itself."""


@dataclass(frozen=True)
class Target:
    """One thing a model predicts and a map explains."""

    key: str
    """Name in files, options and columns; for a rating also pylidc's attribute name."""
    title: str
    """Name for people."""
    kind: Kind
    """`probability` (a logit in the model), `rating` (mean of the readers' codes) or `length` (mm)."""
    low: float
    """Lower end of the scale that the readers used."""
    high: float
    """Upper end of the scale that the readers used."""
    unit: str = ""
    """`mm` for a length, else empty."""
    words: tuple[str, ...] = ()
    """The published word of each code, from `low` to `high`; empty for a length."""
    raises: str = ""
    """What a larger value means, as the end of the sentence "a larger value means ..."."""

    def word(self, value: float) -> str:
        """The published word of the code nearest to `value` (on the readers' scale); empty for a length.

        Halfway, where a median of four readers can lie, both words are named: a malignancy of 2.5 counts as benign
        and one of 3.5 as malignant, so neither may be called indeterminate.
        """
        if not self.words:
            return ""
        place = min(max(value, self.low), self.high) - self.low
        if place % 1 == 0.5:
            return f"between {self.words[int(place)]} and {self.words[int(place) + 1]}"
        return self.words[round(place)]


class Biomarker(Target):
    """One of the eight characteristics that the readers rated or drew."""


MALIGNANCY = Target(
    "malignancy",
    "Malignancy",
    "probability",
    1,
    5,
    words=("highly unlikely", "moderately unlikely", "indeterminate", "moderately suspicious", "highly suspicious"),
    raises="a higher reader-assessed likelihood of malignancy",
)

BIOMARKERS: tuple[Biomarker, ...] = (
    Biomarker(
        "subtlety",
        "Subtlety",
        "rating",
        1,
        5,
        words=("extremely subtle", "moderately subtle", "fairly subtle", "moderately obvious", "obvious"),
        raises="easier to see against its surroundings",
    ),
    Biomarker(
        "calcification",
        "Calcification",
        "rating",
        1,
        6,
        words=("popcorn", "laminated", "solid", "non-central", "central", "absent"),
        raises="nearer to the code 6, absent (the code is a category; its mean is a modelling choice)",
    ),
    Biomarker(
        "sphericity",
        "Sphericity",
        "rating",
        1,
        5,
        words=("linear", "ovoid/linear", "ovoid", "ovoid/round", "round"),
        raises="rounder",
    ),
    Biomarker(
        "margin",
        "Margin",
        "rating",
        1,
        5,
        words=("poorly defined", "near poorly defined", "medium margin", "near sharp", "sharp"),
        raises="a sharper margin",
    ),
    Biomarker(
        "lobulation",
        "Lobulation",
        "rating",
        1,
        5,
        words=(
            "no lobulation",
            "nearly no lobulation",
            "medium lobulation",
            "near marked lobulation",
            "marked lobulation",
        ),
        raises="more lobulated",
    ),
    Biomarker(
        "spiculation",
        "Spiculation",
        "rating",
        1,
        5,
        words=(
            "no spiculation",
            "nearly no spiculation",
            "medium spiculation",
            "near marked spiculation",
            "marked spiculation",
        ),
        raises="more spiculated",
    ),
    Biomarker(
        "texture",
        "Texture",
        "rating",
        1,
        5,
        words=("non-solid (ground glass)", "non-solid/mixed", "part solid/mixed", "solid/mixed", "solid"),
        raises="more solid",
    ),
    Biomarker("diameter", "Diameter", "length", 3, 30, unit="mm", raises="larger"),
)

TARGETS: dict[str, Target] = {target.key: target for target in (MALIGNANCY, *BIOMARKERS)}
"""Every target by key: malignancy, then the biomarkers in their order."""

RATINGS: tuple[str, ...] = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)
"""pylidc's nine ratings of a reading, in its order."""

TARGET_GROUPS: dict[str, tuple[str, ...]] = {
    "biomarkers": tuple(biomarker.key for biomarker in BIOMARKERS),
    "joint": tuple(TARGETS),
}
"""Names that stand for several targets in a configuration."""


def resolve_targets(names: str | Sequence[str]) -> tuple[Target, ...]:
    """The targets that `names` stand for, without repeats, in the vocabulary's order.

    Args:
        names: keys (`malignancy`, `spiculation`, ...) or groups (`biomarkers`, `joint`); one or several.

    Raises:
        LidcCdamError: a name is neither a key nor a group, or there is none.
    """
    asked = [names] if isinstance(names, str) else list(names)
    known = [*TARGETS, *TARGET_GROUPS]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        got = ", ".join(repr(name) for name in unknown) or "none"
        raise LidcCdamError(f"--targets must name at least one of {', '.join(known)}; got {got}.")
    keys = {key for name in asked for key in TARGET_GROUPS.get(name, (name,))}
    return tuple(target for key, target in TARGETS.items() if key in keys)
