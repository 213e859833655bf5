"""DICOM Segmentations: the consensus and each reader as segments, and the readers' agreement as a fraction."""

from collections.abc import Sequence

import highdicom
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from jaxtyping import Shaped
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from lidc_cdam.vocabulary import RESEARCH
from reports.export.grids import Extent, frames_of
from reports.export.objects import MAKER, Identity, describe, tracking, version
from reports.export.subject import Layer, Subject

CONSENSUS = "Consensus of the readers"
CONSENSUS_SEGMENT = 1
"""Number of the consensus among the segments; readers follow."""
STEPS = 255
"""A fraction of 1 in the agreement's pixels."""


def readers_segmentation(subject: Subject, source: Sequence[Dataset], extent: Extent) -> Segmentation:
    """The consensus, and each reader where the extraction knows them, as binary segments of one object."""
    masks = subject.readers if subject.readers is not None else ()
    layers = [subject.consensus, *(subject.layer(mask.astype(np.uint8)) for mask in masks)]
    names = [CONSENSUS, *(f"Reader {number}" for number in range(1, len(layers)))]
    identity = Identity(subject, f"seg {extent}", 9101)
    made = _segmentation(identity, source, extent, layers, names, SegmentationTypeValues.BINARY)
    return describe(made, identity, "readers' outlines")


def agreement_segmentation(subject: Subject, source: Sequence[Dataset], extent: Extent) -> Segmentation:
    """Share of the readers that marked each voxel, as a fractional segment (probability)."""
    identity = Identity(subject, f"seg agreement {extent}", 9102)
    names = ["Share of the readers"]
    made = _segmentation(identity, source, extent, [subject.agreement], names, SegmentationTypeValues.FRACTIONAL)
    return describe(made, identity, "readers' agreement")


def _segmentation(
    identity: Identity,
    source: Sequence[Dataset],
    extent: Extent,
    layers: Sequence[Layer],
    names: Sequence[str],
    kind: SegmentationTypeValues,
) -> Segmentation:
    frames = [frames_of(layer, source, extent, 0) for layer in layers]
    binary = kind is SegmentationTypeValues.BINARY
    pixels: Shaped[np.ndarray, "frame row column segment"] = np.stack([one.values for one in frames], -1)
    return Segmentation(
        source_images=source,
        pixel_array=pixels.astype(np.uint8 if binary else np.float32),
        segmentation_type=kind,
        segment_descriptions=[_segment(identity, number, name) for number, name in enumerate(names, 1)],
        max_fractional_value=STEPS,
        content_description=RESEARCH,
        content_label="LIDC_READERS",
        **frames[0].place,
        **identity.arguments(),
    )


def _segment(identity: Identity, number: int, name: str) -> SegmentDescription:
    reader = name.startswith("Reader ")
    unique, readable = tracking(identity.subject, name)
    made_by = highdicom.AlgorithmIdentificationSequence(
        name=f"{name} (LIDC)", version=version(), family=codes.DCM.ManualProcessing, source=MAKER
    )
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type=SegmentAlgorithmTypeValues.MANUAL if reader else SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=None if reader else made_by,
        anatomic_regions=[codes.SCT.Lung],
        tracking_uid=unique,
        tracking_id=readable,
    )
