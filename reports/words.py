"""Numbers and findings as sentences; each sentence stands on numbers that the report shows."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lidc_cdam.quality import PADDED, WIDE_RANGE, flag_kind, flag_words
from lidc_cdam.vocabulary import TARGETS, Target
from reports.context import Case, Run, targets_of
from reports.methods import inherits_attention, reach_sentence

SIZE_R2: dict[str, float] = {
    "spiculation": 0.38,
    "lobulation": 0.38,
    "subtlety": 0.34,
    "margin": 0.12,
    "calcification": 0.11,
    "sphericity": 0.04,
    "texture": 0.004,
}
"""Share of a biomarker's variance that log diameter explains on the 869 nodules of the `all` cohort."""


@dataclass(frozen=True)
class Strongest:
    """The strongest score of a nodule's maps."""

    target: Target
    score: float
    view: str
    """Title of the view it lies in."""
    place: str
    """Where it lies; a key of `PLACES`."""


PLACES: dict[str, str] = {
    "inside": "lies on what {readers} marked",
    "outside": "lies outside what {readers} marked",
    "unread": "lies where nothing was read and the model saw mirrored tissue",
}
"""Where a score can lie; `{readers}` is `consensus_words`."""


MUCH_UNREAD = 0.1
"""Share of the cube that was not read from which the first sentences of a report tell it."""


def consensus_words(level: float) -> str:
    """Whose voxels make the consensus, by the share of the readers that one needs."""
    return "at least half of the readers" if level == 0.5 else f"at least {percent(level)} of the readers"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share as a percentage; only none is printed as 0 %, only all as 100 %."""
    if 0 < share < 0.005:
        return "below 1\u00a0%"
    return "above 99\u00a0%" if 0.995 <= share < 1 else f"{share * 100:.0f}\u00a0%"


def shared_words(share: float) -> str:
    """How many test nodules the folds do not keep apart by patient."""
    return f"{percent(share)} of the test nodules share their patient with training or validation"


def nodules(number: int) -> str:
    """A number of nodules: `1 nodule`, `2 nodules`."""
    return f"{number} nodule{'' if number == 1 else 's'}"


def with_word(target: Target, value: float | None, median: bool = False) -> dict[str, str]:
    """A value on the readers' scale, and the published word of the nearest code.

    Args:
        target: what was rated.
        value: probability for malignancy (a rating where `median`), rating or mm for the others; None: unknown.
        median: whether `value` is a rating though the target is predicted as a probability.
    """
    if value is None:
        return {"number": "–", "word": ""}
    if target.kind == "probability" and not median:
        return {"number": percent(value), "word": "that the readers' median is above 3"}
    if target.kind == "length":
        return {"number": f"{value:.1f} {target.unit}", "word": ""}
    return {"number": f"{value:g}" if median else f"{value:.1f}", "word": target.word(value)}


def plain(value: Mapping[str, str]) -> str:
    """`with_word` as one text."""
    return f"{value['number']} {value['word']}".strip()


def difference_in_deviations(target: Target, prediction: float | None, mean: float | None, spread: float | None) -> str:
    """Prediction minus the readers' mean, and the same in standard deviations of the cohort."""
    if prediction is None or mean is None:
        return "–"
    if target.kind == "probability":
        if mean == 3:
            return "median is 3"
        return "same side of 3" if (prediction > 0.5) == (mean > 3) else "other side of 3"
    rounded = round(prediction - mean, 1)
    difference = f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"
    beside = f" ({abs(prediction - mean) / spread:.1f} SD)" if spread else ""
    return f"{difference}{beside}"


def map_command(run: Run) -> str:
    """The command that writes a run's maps; `RUN` stands for its folder, since documents name no path."""
    return f"lidc-cdam explain --run RUN --method {run.method}"


def lead_sentences(pairs: Sequence[tuple[Run, Case]], strongest: Strongest | None) -> list[str]:
    """Two to five sentences: malignancy, what was not read, the biomarker that is furthest off, where scores lie.

    What every result must say of a run (`Run.shown`) follows them.
    """
    sentences = [
        *(_malignancy(case) for _, case in pairs if "malignancy" in case.predicted),
        _unread(pairs[0][1]) if pairs else "",
        _furthest(pairs),
        _relevance(pairs),
    ]
    if strongest is not None:
        effect = "raises" if strongest.score > 0 else "lowers"
        score = f"{strongest.score:+.3g}".replace("-", "−")
        place = PLACES[strongest.place].format(readers=consensus_words(pairs[0][0].consensus_level))
        sentences.append(
            f"The strongest score of all maps, each on its own scale, {effect} the predicted "
            f"{strongest.target.title.lower()} ({score}, {strongest.view.lower()} view) and {place}."
        )
    sentences += dict.fromkeys(sentence for run, _ in pairs for sentence in run.shown)
    return [sentence for sentence in sentences if sentence]


def _malignancy(case: Case) -> str:
    likelihood = percent(case.predicted["malignancy"])
    sentence = f"The model gives a reader-assessed likelihood of malignancy of {likelihood}"
    if case.malignancy is None:
        return f"{sentence}."
    ratings = [reading["malignancy"] for reading in case.readings if "malignancy" in reading]
    spread = (
        f", their ratings run from {min(ratings):g} to {max(ratings):g}"
        if ratings and min(ratings) < max(ratings)
        else ""
    )
    word = TARGETS["malignancy"].word(case.malignancy)
    return f"{sentence}; the readers' median is {case.malignancy:g} ({word}){spread}."


def _unread(case: Case) -> str:
    """What a reader must know before any map where much of the cube was not read; empty where little was not."""
    share = 0.0 if case.record is None else case.record.padded_share
    if share < MUCH_UNREAD:
        return ""
    return (
        f"{percent(share)} of the cube was not read (hatched): the model saw mirrored tissue there, and what a map "
        f"shows on it is no finding."
    )


def _furthest(pairs: Sequence[tuple[Run, Case]]) -> str:
    distances = [
        (abs(case.predicted[target.key] - case.true[target.key]) / run.spread[target.key], target, case)
        for run, case in pairs
        for target in targets_of(run)
        if target.kind != "probability"
        and target.key in case.predicted
        and target.key in case.true
        and run.spread.get(target.key)
    ]
    if not distances:
        return ""
    far, target, case = max(distances, key=lambda entry: entry[0])
    prediction, mean = case.predicted[target.key], case.true[target.key]
    near = sum(distance <= 0.5 for distance, _, _ in distances)
    side = "above" if prediction > mean else "below"
    values = f"predicted {_value(target, prediction)} against the readers' mean {_value(target, mean)}"
    return (
        f"{target.title} is furthest off: {values}, {far:.1f} SD of the cohort {side}"
        f"{_range_words(target, case, prediction)}; {near} of {len(distances)} biomarkers lie within half an SD of the "
        f"readers' mean."
    )


def _value(target: Target, value: float) -> str:
    text = with_word(target, value)
    return f"{text['number']} ({text['word']})" if text["word"] else text["number"]


def _range_words(target: Target, case: Case, prediction: float) -> str:
    values = [reading[target.key] for reading in case.readings if target.key in reading]
    if not values:
        return ""
    place = "within" if min(values) <= prediction <= max(values) else "outside"
    return f" and {place} the readers' own range"


def _relevance(pairs: Sequence[tuple[Run, Case]]) -> str:
    masses = [(mass, chance, TARGETS[key]) for _, case in pairs for key, (mass, chance) in case.mass.items()]
    if not masses:
        return ""
    (least, _, lowest), (most, chance, highest) = (pick(masses, key=lambda entry: entry[0]) for pick in (min, max))
    beside = "" if chance is None else f"; {percent(chance)} would be chance"
    if len(masses) == 1:
        named = f"the predicted {highest.title.lower()}"
        shown = f"{percent(most)} of what raises {named} lies on the nodule (inside the readers' consensus){beside}."
        return shown[:1].upper() + shown[1:]
    middle = percent(statistics.median(entry[0] for entry in masses))
    if percent(least) == percent(most):
        return (
            f"Of what raises a prediction, {middle} lies on the nodule (inside the readers' consensus) in each of "
            f"{len(masses)} maps{beside}."
        )
    return (
        f"Of what raises a prediction, {middle} lies on the nodule (inside the readers' consensus) in the median of "
        f"{len(masses)} maps, from {percent(least)} ({lowest.title.lower()}) to {percent(most)} "
        f"({highest.title.lower()}){beside}."
    )


def caution_sentences(methods: Sequence[str]) -> list[str]:
    """What a map does not explain."""
    size = ", ".join(f"{TARGETS[key].title.lower()} {value:g}" for key, value in SIZE_R2.items())
    tokens = [
        "It inherits attention's artefacts: single strong tokens in plain background can be outliers, not findings."
    ]
    return [
        *map(reach_sentence, methods),
        *(tokens if any(map(inherits_attention, methods)) else []),
        f"Size explains part of every biomarker, so a map may show size instead (R² from log diameter: {size}).",
        "Calcification is a category written as a number (1 popcorn to 6 absent); its mean, and so its map, is a "
        "modelling choice.",
        "Malignancy is what radiologists judged from CT, not pathology; readers differ, and so does what any model can "
        "learn from them.",
    ]


def flag_sentences(case: Case) -> list[str]:
    """Data-quality flags in words; one line that says so when there are none."""
    sentences = []
    if case.record is not None:
        share = case.record.padded_share
        if share > 0:
            sentences.append(
                f"{percent(share)} of the cube lies outside what was read: hatched in the pictures. The model saw "
                f"mirrored tissue there, which can tell where the cut-out ends, and so the nodule's size."
            )
        if case.record.geometry == "scan":
            sentences.append(
                "The source has no patient geometry (frame: scan): orientation letters assume the usual axial "
                "acquisition and positions are the scan's own."
            )
        sentences += [flag_words(flag) for flag in case.record.flags if not _told_by_numbers(case, flag)]
    sentences += _spread_sentences(case)
    return sentences or ["None."]


def _told_by_numbers(case: Case, flag: str) -> bool:
    """Whether another sentence says the same with its figures."""
    return flag_kind(flag) == PADDED or (flag_kind(flag) == WIDE_RANGE and bool(_spread_sentences(case)))


def _spread_sentences(case: Case) -> list[str]:
    wide = []
    for target in TARGETS.values():
        values = [reading[target.key] for reading in case.readings if target.key in reading]
        if target.kind != "length" and values and max(values) - min(values) >= 2:
            wide.append(f"{target.title.lower()} ({min(values):g} to {max(values):g})")
    return [f"The readers differ by two or more: {', '.join(wide)}."] if wide else []
