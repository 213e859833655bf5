"""A run's summary as short tables: its figures with intervals, beside the baselines, one reader and the noise floor."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lidc_cdam.vocabulary import MALIGNANCY, TARGETS

GROUP = "biomarkers"
GROUP_TITLE = "Mean of the eight"
METRICS = {"auc": "AUC (95 % interval)", "accuracy": "accuracy", "brier": "Brier", "ece": "ECE"}
RIVALS = {
    "ruler": "mean reader diameter with one threshold",
    "radiomics": "radiomics of the consensus mask",
    "radiomics_kernel": "the same, kernel ridge",
    "readers_logistic": "logistic on the readers' biomarkers",
    "one_reader": "one reader against the others",
}
"""What stands beside a model's malignancy: words by baseline of `summary.json`."""
DIFFERENCES = {
    "ruler": "the ruler",
    "radiomics": "radiomics",
    "radiomics_kernel": "radiomics by kernel ridge",
    "readers_logistic": "logistic on readers",
}

Figure = Mapping[str, float | None]


def told_summary(summary: Mapping[str, Any]) -> list[str]:
    """The lines to print for a `summary.json` (`metrics.prediction.summarise`), of this version or an earlier one."""
    lines = [*_malignancy(summary), *_biomarkers(summary)]
    lines += [f"No {name}: {reason}" for name, reason in summary.get("absent", {}).items()]
    return lines


def _malignancy(summary: Mapping[str, Any]) -> list[str]:
    own, beside = summary["metrics"].get(MALIGNANCY.key), summary["baselines"]
    concepts = summary.get("bottleneck", {})
    rows = {"model": own, "concept bottleneck": concepts.get("metrics")}
    rows |= {words: beside.get(name, {}).get(MALIGNANCY.key) for name, words in RIVALS.items()}
    if not (own or concepts):
        return []
    known = [(words, found) for words, found in rows.items() if found]
    shown = [name for name in METRICS if any(name in found for _, found in known)]
    cells = [(words, *(told_interval(found.get(name)) for name in shown)) for words, found in known]
    lines = _table([(MALIGNANCY.title, *(METRICS[name] for name in shown)), *cells])
    differences = {
        words: beside.get(f"model_minus_{name}", {}).get(MALIGNANCY.key, {}).get("auc")
        for name, words in DIFFERENCES.items()
    }
    lines += [f"  AUC minus that of {words}: {told_interval(found)}" for words, found in differences.items() if found]
    frame = beside.get("unread_frame", {}).get(MALIGNANCY.key)
    if frame:
        lines.append(
            f"  The crops are cut-outs that hug their nodules: the share of a crop that was read alone has the AUC "
            f"{told_interval(frame['auc'])}, so size is in the frame, which models see as mirrored tissue."
        )
    return lines


def _biomarkers(summary: Mapping[str, Any]) -> list[str]:
    metrics, beside, floors = summary["metrics"], summary["baselines"], summary["noise_floor"]
    rated = [key for key in metrics if key != MALIGNANCY.key]
    if not rated:
        return []
    head = ("Biomarker", "z-MSE (95 % interval)", "radiomics", "one reader", "readers' noise floor", "R2", "ICC")
    rows = []
    for key in rated:
        title, prefix = (TARGETS[key].title, "") if key in TARGETS else (GROUP_TITLE, "mean_")
        others = [beside.get(name, {}).get(key, {}).get(f"{prefix}z_mse") for name in ("radiomics", "one_reader")]
        explained = [metrics[key].get(f"{prefix}{name}") for name in ("r2", "icc")]
        rows.append(
            (
                title,
                told_interval(metrics[key][f"{prefix}z_mse"]),
                *map(_value, others),
                _number(floors.get(key)),
                *map(_value, explained),
            )
        )
    apart = {
        words: beside.get(f"model_minus_{name}", {}).get(GROUP, {}).get("mean_z_mse")
        for name, words in DIFFERENCES.items()
    }
    return [
        *_table([head, *rows]),
        *(f"  Mean z-MSE minus that of {words}: {told_interval(found)}" for words, found in apart.items() if found),
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines; those below the first are indented, and a column without any figure is left out."""
    indented = [rows[0], *((f"  {row[0]}", *row[1:]) for row in rows[1:])]
    columns = [column for column in zip(*indented, strict=True) if any(cell != "-" for cell in column[1:])]
    padded: Iterable[list[str]] = ([cell.ljust(max(map(len, column))) for cell in column] for column in columns)
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def told_interval(figure: Figure | None) -> str:
    """A figure with its interval; a dash where there is none or it is not defined."""
    if not figure or figure["value"] is None:
        return "-"
    return f"{_number(figure['value'])} ({_number(figure['low'])} to {_number(figure['high'])})"


def _value(figure: Figure | None) -> str:
    return _number(figure["value"] if figure else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
