"""The data-quality flags that a nodule can carry: the phrase in `dataset.json`, and what it means, for reports.

A flag says what a reader of the result must know about the data; it never removes a nodule. A phrase may be followed by
a colon and details (`wide reader range: margin, spiculation`).
"""

from collections.abc import Iterable

SYNTHETIC = "synthetic phantom"
IRREGULAR_Z = "irregular z"
GAP = "gap"
DUPLICATE_SLICES = "duplicate slices"
DUPLICATES_DIFFER = "duplicate slices differ"
RESCALE_DIFFERS = "rescale differs between slices"
LOSSY = "lossy compression"
SIDEWAYS_DRIFT = "sideways drift"
OUTSIDE_FIELD = "outside the field of view"
TURNED = "volume orientation inferred"
INCOMPLETE_SERIES = "incomplete series"
MANY_READINGS = "more than 4 readings"
INITIAL_SCALES = "initial-release rating scales"
WIDE_RANGE = "wide reader range"
PADDED = "padded"

FLAGS: dict[str, str] = {
    SYNTHETIC: "the images are drawn from readers' outlines and ratings, not a CT of a patient",
    IRREGULAR_Z: "the distance of neighbouring slices varies within the scan",
    GAP: "slices are missing: a step between neighbouring slices is more than twice the usual one",
    DUPLICATE_SLICES: "the series holds several slices at one position; the first by InstanceNumber was taken",
    DUPLICATES_DIFFER: "slices at one position differ within the cube; the first by InstanceNumber was taken",
    RESCALE_DIFFERS: "the slices of the series convert stored values to HU in different ways; each was followed",
    LOSSY: "the pixels went through lossy compression, so HU are not those that were measured",
    SIDEWAYS_DRIFT: "the slices of the series do not lie exactly above each other",
    OUTSIDE_FIELD: "a part of the cube lies outside the circle that the scanner reconstructed; it counts as air",
    TURNED: "the volume's axes are not those of DICOM; how they lie was inferred from the readings",
    INCOMPLETE_SERIES: "slices that the readers saw are missing from the series",
    MANY_READINGS: "the cluster holds more than four readings, so it may be several nodules",
    INITIAL_SCALES: "one of the first 399 cases, whose sites used the lobulation and spiculation scales differently",
    WIDE_RANGE: "the readers' ratings of the named biomarkers differ by two or more",
    PADDED: "a part of the cube lies outside what was read",
}
"""Each flag's meaning."""
BETWEEN = "; "
"""What separates flags in a column of a table."""


def flag_kind(flag: str) -> str:
    """The phrase of a flag, without its details."""
    return flag.split(":", 1)[0]


def flag_words(flag: str) -> str:
    """A flag with its details and its meaning, as a sentence; one that is not in `FLAGS` stands for itself."""
    kind, _, details = flag.partition(":")
    named = f"{kind} ({details.strip()})" if details.strip() else kind
    meaning = FLAGS.get(kind)
    return f"{named[:1].upper()}{named[1:]}{f': {meaning}' if meaning else ''}."


def merge_flags(*groups: Iterable[str]) -> tuple[str, ...]:
    """The flags of several sources, each once, in the order in which they first come."""
    return tuple(dict.fromkeys(flag for group in groups for flag in group))


def read_flags(cell: object) -> tuple[str, ...]:
    """The flags in a cell of a table's column `flags`; an empty cell has none."""
    return (
        tuple(flag for part in cell.split(BETWEEN.strip()) if (flag := part.strip())) if isinstance(cell, str) else ()
    )
