"""DICOM Structured Reports (TID 1500): readers' ratings and predictions, in the published LIDC codes."""

from collections.abc import Sequence

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementProperties,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from jaxtyping import Bool
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from lidc_cdam.vocabulary import TARGETS
from reports.export.codes import CONCEPTS, value_code
from reports.export.objects import MAKER, MODEL, Identity, algorithm_name, describe, tracking, version
from reports.export.segmentation import CONSENSUS, CONSENSUS_SEGMENT
from reports.export.subject import Subject

Group = VolumetricROIMeasurementsAndQualitativeEvaluations
LIKELIHOOD = Code("1", "99LIDCCDAM", "Reader-assessed likelihood, 0 to 1")
"""How a predicted malignancy is to be read, where a reader's own rating is a step from 1 to 5."""
INTERVAL = Code("2", "99LIDCCDAM", "Uncertainty: readers' mean in nine of ten cases")
"""What the range of uncertainty beside a prediction means: the split conformal interval of the report."""


def readers_report(subject: Subject, segmentation: Dataset, source: Sequence[Dataset]) -> Comprehensive3DSR:
    """Each reader's ratings, diameter and volume as one group, whose region is what the reader marked.

    Where the extraction knows only how many readers marked a voxel, every group refers to the consensus and no volume
    is told; nor is it where the cube may cut the nodule.
    """
    identity = Identity(subject, f"sr readers of {segmentation.SOPInstanceUID}", 9103)
    observer = ObserverContext(codes.DCM.Person, PersonObserverIdentifyingAttributes(name="Anonymous^Reader"))
    groups = [
        _reader_group(subject, segmentation, number, dict(reading))
        for number, reading in enumerate(subject.case.readings, 1)
    ]
    return describe(_report(identity, observer, groups, segmentation, source), identity, "readers' ratings")


def predictions_report(subject: Subject, segmentation: Dataset, source: Sequence[Dataset]) -> Comprehensive3DSR:
    """What the model of the nodule's fold predicts, as numbers, and the nearest step of each rating's scale."""
    identity = Identity(subject, f"sr predictions of {segmentation.SOPInstanceUID}", 9104)
    observer = ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=identity.uid("device"), name=MODEL, manufacturer_name=MAKER, model_name=f"{MODEL} {version()}"
        ),
    )
    group = Group(
        tracking_identifier=TrackingIdentifier(*tracking(subject, CONSENSUS)),
        referenced_segment=_referenced(segmentation, CONSENSUS_SEGMENT),
        finding_type=codes.SCT.Nodule,
        finding_sites=[FindingSite(codes.SCT.Lung)],
        algorithm_id=AlgorithmIdentification(algorithm_name(subject), version()),
        measurements=[
            _predicted(key, value, subject.case.calibrated.intervals.get(key))
            for key, value in subject.case.predicted.items()
        ],
        qualitative_evaluations=_evaluations(subject.case.predicted),
    )
    return describe(_report(identity, observer, [group], segmentation, source), identity, "predictions")


def _reader_group(subject: Subject, segmentation: Dataset, number: int, reading: dict[str, float]) -> Group:
    own = subject.readers is not None and number <= len(subject.readers)
    measurements = [_millimetres(reading["diameter"])] if "diameter" in reading else []
    if subject.readers is not None and own and not _is_cut(subject.readers[number - 1]):
        voxels = int(np.count_nonzero(subject.readers[number - 1]))
        measurements.append(
            Measurement(codes.SCT.Volume, round(voxels * subject.crop.spacing_mm**3, 3), codes.UCUM.CubicMillimeter)
        )
    segment = CONSENSUS_SEGMENT + number if own else CONSENSUS_SEGMENT
    return Group(
        tracking_identifier=TrackingIdentifier(*tracking(subject, f"Reader {number}")),
        referenced_segment=_referenced(segmentation, segment),
        finding_type=codes.SCT.Nodule,
        finding_sites=[FindingSite(codes.SCT.Lung)],
        measurements=measurements,
        qualitative_evaluations=_evaluations(reading, probabilities=False),
    )


def _referenced(segmentation: Dataset, number: int) -> ReferencedSegment:
    """A segment, with the series that it was drawn on; highdicom's own way fails where there is one segment."""
    (series,) = segmentation.ReferencedSeriesSequence
    return ReferencedSegment(
        segmentation.SOPClassUID,
        segmentation.SOPInstanceUID,
        number,
        source_series=SourceSeriesForSegmentation(series.SeriesInstanceUID),
    )


def _is_cut(mask: Bool[np.ndarray, "slice row column"]) -> bool:
    """Whether a mask reaches the cube's faces, so that there may be more of it outside."""
    inside = mask[1:-1, 1:-1, 1:-1]
    return bool(mask.sum() > inside.sum())


def _millimetres(value: float) -> Measurement:
    return Measurement(CONCEPTS["diameter"], round(value, 3), codes.UCUM.Millimeter)


def _predicted(key: str, value: float, interval: tuple[float, float] | None) -> Measurement:
    """A continuous prediction under the concept that readers rated: rating, mm, or a probability of malignancy.

    Its interval, where it has one, is told as how far it reaches above and below the value.
    """
    length = TARGETS[key].kind == "length"
    unit, digits = (codes.UCUM.Millimeter, 3) if length else (codes.UCUM.NoUnits, 4)
    properties = None
    if interval is not None:
        properties = MeasurementProperties(
            upper_measurement_uncertainty=round(interval[1] - value, digits),
            lower_measurement_uncertainty=round(value - interval[0], digits),
        )
        for item in properties:  # highdicom gives no unit to lengths
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [CodedConcept.from_code(unit)]
    probability = TARGETS[key].kind == "probability"
    method = LIKELIHOOD if probability else None if interval is None else INTERVAL
    return Measurement(CONCEPTS[key], round(value, digits), unit, method=method, properties=properties)


def _evaluations(values: dict[str, float], probabilities: bool = True) -> list[QualitativeEvaluation]:
    """Ratings as coded steps of their scales; a probability has no step."""
    left_out = ("length", "probability") if probabilities else ("length",)
    return [
        QualitativeEvaluation(CONCEPTS[key], value_code(key, _step(key, value)))
        for key, value in values.items()
        if TARGETS[key].kind not in left_out
    ]


def _step(key: str, value: float) -> int:
    target = TARGETS[key]
    return int(np.floor(min(max(value, target.low), target.high) + 0.5))


def _report(
    identity: Identity,
    observer: ObserverContext,
    groups: Sequence[Group],
    segmentation: Dataset,
    source: Sequence[Dataset],
) -> Comprehensive3DSR:
    person = observer.observer_type == codes.DCM.Person
    content = MeasurementReport(
        observation_context=ObservationContext(
            observer_person_context=observer if person else None, observer_device_context=None if person else observer
        ),
        procedure_reported=CT_CHEST,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(Code("en", "RFC5646", "English")),
    )
    arguments = identity.arguments()
    arguments = {name: arguments[name] for name in REPORT_ARGUMENTS}
    return Comprehensive3DSR(
        # The first is taken for what the scanner made.
        evidence=[*source, segmentation],
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        **arguments,
    )


CT_CHEST = Code("24627-2", "LN", "CT Chest")
REPORT_ARGUMENTS = ("series_instance_uid", "series_number", "sop_instance_uid", "instance_number", "manufacturer")
