"""What every exported DICOM object says of itself: identifiers that a second export gives again, and its maker."""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import UID, ParametricMapStorage, generate_uid

from lidc_cdam.provenance import versions
from reports.export.subject import Subject

MAKER, MODEL = "lidc-cdam developers", "lidc-cdam"
Made = TypeVar("Made", bound=Dataset)
NODULES_APART = 1000
"""Between the series numbers of two nodules of a study."""
BODY_PART = "CHEST"
"""An unpaired part, so that no object must name a side."""


@dataclass(frozen=True)
class Identity:
    """Identifiers of one object; the same nodule, run and kind give the same again, so an archive replaces it."""

    subject: Subject
    kind: str
    """What the object is, such as `seg` or `pmap spiculation crop`."""
    number: int
    """SeriesNumber of the study's first nodule; those of another one are higher by thousands."""

    def uid(self, *parts: str) -> UID:
        """A UID that depends on the run's models, the nodule, the kind and `parts` alone."""
        run = self.subject.run
        model = run.model_sha256.get(self.subject.case.fold, "")
        return generate_uid(
            entropy_srcs=[run.config_sha256, model, run.method, self.subject.nodule_id, self.kind, *parts]
        )

    @property
    def series_number(self) -> int:
        """SeriesNumber, which no other object of the nodule's study has."""
        return self.number + NODULES_APART * self.subject.place

    def arguments(self) -> dict[str, Any]:
        """The arguments of highdicom's classes that identify the object and its maker."""
        return {
            "series_instance_uid": self.uid("series"),
            "series_number": self.series_number,
            "sop_instance_uid": self.uid("instance"),
            "instance_number": 1,
            "manufacturer": MAKER,
            "manufacturer_model_name": MODEL,
            "software_versions": version(),
            "device_serial_number": "none",
        }


def tracking(subject: Subject, name: str) -> tuple[UID, str]:
    """Unique and readable identifier of what is marked or measured, the same in segments and in reports.

    Args:
        subject: the nodule.
        name: `Reader 2`, say.
    """
    return Identity(subject, "tracking", 0).uid(name), f"{subject.nodule_id} {name}"[:64]


def version() -> str:
    """This program's version."""
    return versions().get("lidc-cdam", "from source")


def algorithm_name(subject: Subject) -> str:
    """Backbone and fold, and the digest of the weights, in a name that fits."""
    digest = subject.run.model_sha256.get(subject.case.fold, "unknown")[:12]
    return f"{subject.run.backbone or 'model'} fold {subject.case.fold} {digest}"[:64]


def describe(made: Made, identity: Identity, words: str) -> Made:
    """Say of an object what it is of, that it names nobody, and nothing of the day on which it was made.

    So a second export gives the same bytes, as an object of the same UID must. Segmentations, maps and reports must
    have a date: they bear the epoch, as the PDF reports do.

    Args:
        made: the object.
        identity: its own.
        words: of its series, short; the description begins with what the object may be used for.
    """
    made.SeriesDescription = f"RESEARCH {words} {identity.subject.nodule_id}"[:64]
    made.SpecificCharacterSet = "ISO_IR 192"
    made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = MAKER, MODEL, version()
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "Pseudonym of the cohort; of the source: geometry, UIDs"
    made.LongitudinalTemporalInformationModified = "REMOVED"
    dated = made.Modality not in ("OT", "DOC") or made.SOPClassUID == ParametricMapStorage
    made.ContentDate, made.ContentTime = ("19700101", "000000") if dated else ("", "")
    for name in CLOCKS:
        if name in made:
            del made[name]
    for equipment in made.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(name, ()):
            item.DimensionOrganizationUID = identity.uid("dimensions")
    return made


CLOCKS = ("InstanceCreationDate", "InstanceCreationTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture")
"""What need not be there."""
