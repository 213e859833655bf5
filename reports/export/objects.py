"""What every exported DICOM object says of itself: identifiers that a second export gives again, and its maker."""

from dataclasses import dataclass
from typing import Any, TypeVar

import highdicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid

from lidc_cdam.provenance import versions
from reports.export.subject import Subject

MAKER, MODEL = "lidc-cdam developers", "lidc-cdam"
Made = TypeVar("Made", bound=Dataset)
BODY_PART = "CHEST"
"""An unpaired part, so that no object must name a side."""


@dataclass(frozen=True)
class Identity:
    """Identifiers of one object; the same nodule, run and kind give the same again, so an archive replaces it."""

    subject: Subject
    kind: str
    """What the object is, such as `seg` or `pmap spiculation crop`."""
    number: int
    """SeriesNumber."""

    def uid(self, *parts: str) -> UID:
        """A UID that depends on the run's models, the nodule, the kind and `parts` alone."""
        run = self.subject.run
        model = run.model_sha256.get(self.subject.case.fold, "")
        return generate_uid(
            entropy_srcs=[run.config_sha256, model, run.method, self.subject.nodule_id, self.kind, *parts]
        )

    def arguments(self) -> dict[str, Any]:
        """The arguments of highdicom's classes that identify the object and its maker."""
        return {
            "series_instance_uid": self.uid("series"),
            "series_number": self.number,
            "sop_instance_uid": self.uid("instance"),
            "instance_number": 1,
            "manufacturer": MAKER,
            "manufacturer_model_name": MODEL,
            "software_versions": version(),
            "device_serial_number": "none",
        }


def version() -> str:
    """This program's version."""
    return versions().get("lidc-cdam", "from source")


def algorithm(subject: Subject) -> highdicom.AlgorithmIdentificationSequence:
    """The model of a nodule's fold, as DICOM names algorithms."""
    return highdicom.AlgorithmIdentificationSequence(
        name=algorithm_name(subject), version=version(), family=codes.DCM.ArtificialIntelligence
    )


def algorithm_name(subject: Subject) -> str:
    """Backbone and fold, and the digest of the weights, in a name that fits."""
    digest = subject.run.model_sha256.get(subject.case.fold, "unknown")[:12]
    return f"{subject.run.backbone or 'model'} fold {subject.case.fold} {digest}"[:64]


def describe(made: Made, words: str) -> Made:
    """Give a series its description, which begins with what it may be used for."""
    made.SeriesDescription = f"RESEARCH {words}"[:64]
    return made
