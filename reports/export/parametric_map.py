"""DICOM Parametric Maps: the signed scores of one target a series, as 32-bit floats."""

from collections.abc import Sequence

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from lidc_cdam.vocabulary import RESEARCH, TARGETS
from reports.export.grids import Extent, frames_of
from reports.export.objects import BODY_PART, Identity, algorithm_name, describe
from reports.export.subject import Layer, Subject


def parametric_map(
    subject: Subject, target: str, layer: Layer, source: Sequence[Dataset], extent: Extent, limit: float
) -> ParametricMap:
    """A target's signed scores.

    Args:
        subject: the nodule.
        target: its key, or the name of another map.
        layer: its scores.
        source: headers of the source series.
        extent: see `frames_of`.
        limit: score at which a viewer's window should end; minus it is where it should begin.
    """
    frames = frames_of(layer, source, extent, 1)
    title = TARGETS[target].title if target in TARGETS else target
    known = list(TARGETS)
    number = 9200 + (known.index(target) if target in TARGETS else len(known))
    identity = Identity(subject, f"pmap {target} {extent}", number)
    mapping = RealWorldValueMapping(
        lut_label="SCORE",
        lut_explanation=f"{subject.run.method}: above 0 raises, below 0 lowers {title.lower()}"[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.ClassActivation,
    )
    made = ParametricMap(
        source_images=source,
        pixel_array=frames.values.astype(np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(0.0, 2 * limit, voi_lut_function="LINEAR_EXACT")],
        content_description=RESEARCH,
        content_label="CDAM",
        **frames.place,
        **identity.arguments(),
    )
    made.BodyPartExamined = BODY_PART
    words = f"{subject.run.method} of {title.lower()} by {algorithm_name(subject)}"
    for frame in made.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence", ()):
            derivation.DerivationDescription = words
    return describe(made, identity, f"{subject.run.method} {title}")
