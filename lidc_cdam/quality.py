"""The data-quality flags that a nodule can carry: the phrase in `dataset.json`, and what it means, for reports.

A flag says what a reader of the result must know about the data; it never removes a nodule. A phrase may be followed by
a colon and details (`wide reader range: margin, spiculation`).
"""

IRREGULAR_Z = "irregular z"
GAP = "gap"
DUPLICATE_SLICES = "duplicate slices"
INCOMPLETE_SERIES = "incomplete series"
MANY_READINGS = "more than 4 readings"
INITIAL_SCALES = "initial-release rating scales"
WIDE_RANGE = "wide reader range"
PADDED = "padded"

FLAGS: dict[str, str] = {
    IRREGULAR_Z: "the distance of neighbouring slices varies within the scan",
    GAP: "slices are missing: a step between neighbouring slices is more than twice the usual one",
    DUPLICATE_SLICES: "the series holds several slices at one position; the first by InstanceNumber was taken",
    INCOMPLETE_SERIES: "slices that the readers saw are missing from the series",
    MANY_READINGS: "the cluster holds more than four readings, so it may be several nodules",
    INITIAL_SCALES: "one of the first 399 cases, whose sites used the lobulation and spiculation scales differently",
    WIDE_RANGE: "the readers' ratings of the named biomarkers differ by two or more",
    PADDED: "a part of the cube lies outside what was read",
}
"""Each flag's meaning."""


def flag_kind(flag: str) -> str:
    """The phrase of a flag, without its details."""
    return flag.split(":", 1)[0]
