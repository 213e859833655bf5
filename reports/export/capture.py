"""Key pictures as RGB Secondary Capture, and the case report as an encapsulated PDF: what every archive shows."""

import io
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import typst
from highdicom.sc import SCImage
from jaxtyping import UInt8
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from lidc_cdam.errors import LidcCdamError
from reports import pdf
from reports.export.objects import BODY_PART, Identity, describe
from reports.export.source import person_name
from reports.export.subject import Subject
from reports.html import TEMPLATES
from reports.sections import document

PIXELS_PER_INCH = 72
"""One pixel a point of the template."""
ORIENTATION = {"axial": ("L", "P"), "coronal": ("L", "F"), "sagittal": ("P", "F")}
"""Directions in which a view's columns and rows grow (PatientOrientation)."""
SYNTHETIC = "  \u00b7  Synthetic phantom"
"""What a picture of a phantom adds to what it may be used for."""


def captures(subject: Subject) -> Iterator[SCImage]:
    """One picture of the CT with the readers' outlines, then one a map, in one series."""
    identity = Identity(subject, "sc", 9105)
    for number, picture in enumerate(pictures(subject), 1):
        arguments = identity.arguments() | {
            "sop_instance_uid": identity.uid("instance", str(number)),
            "instance_number": number,
        }
        for name in ("manufacturer_model_name", "software_versions", "device_serial_number"):
            del arguments[name]
        made = SCImage(
            pixel_array=rendered(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            study_instance_uid=subject.study_uid,
            patient_id=subject.patient_id,
            patient_name=person_name(subject.patient_id),
            patient_orientation=ORIENTATION["axial"],
            **arguments,
        )
        made.Modality, made.BodyPartExamined = "OT", BODY_PART
        made.BurnedInAnnotation = "NO"
        made.RecognizableVisualFeatures = "NO"
        made.ImageComments = f"{picture['title']}. {picture['note']}"
        yield describe(made, identity, "key pictures")


def pictures(subject: Subject) -> list[dict[str, Any]]:
    """Content of the key pictures: the axial CT, then the map of each target that has one."""
    content = document(subject.material)
    flat = pdf.stand_alone({"ct": content["ct"], "runs": content["runs"]}, content["shared"])
    outlines = f"Yellow: {content['consensus']} (consensus). Light blue: any reader."
    first = [_picture(panel, "", outlines, content) for panel in flat["ct"][:1]]
    maps = [
        _picture(panel, panel["prediction"], _map_note(run, panel), content)
        for run in flat["runs"]
        for panel in run["panels"]
    ]
    return [*first, *maps]


def _map_note(run: dict[str, Any], panel: dict[str, Any]) -> str:
    return f"{run['method']}, full colour at {panel['limit']}. {panel['raises']}"


def _picture(panel: dict[str, Any], value: str, note: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "svg": panel["svg"],
        "title": panel["title"],
        "value": value,
        "note": note,
        "research": f"{content['research']}{SYNTHETIC if content['synthetic'] else ''}",
    }


def rendered(picture: dict[str, Any]) -> UInt8[np.ndarray, "row column 3"]:
    """A key picture's pixels.

    Raises:
        LidcCdamError: the picture breaks a rule of the template.
    """
    try:
        made = _compiler().compile(format="png", ppi=PIXELS_PER_INCH, sys_inputs={"document": json.dumps(picture)})
    except typst.TypstError as error:
        raise LidcCdamError(
            f"The key pictures must be set from the template capture.typ, but typst refuses it ({pdf.refusal(error)}); "
            f"the other formats need it not."
        ) from error
    if not isinstance(made, bytes):
        raise TypeError(f"typst must give one picture as bytes, got {type(made).__name__}")
    with Image.open(io.BytesIO(made)) as image:
        return np.asarray(image.convert("RGB"))


@cache
def _compiler() -> typst.Compiler:
    return pdf.compiler_of(TEMPLATES / "capture.typ")


def encapsulated_pdf(subject: Subject) -> Dataset:
    """The case report as a DICOM object of the source study (PS3.3 A.45.1)."""
    identity = Identity(subject, "pdf", 9106)
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = EncapsulatedPDFStorage, identity.uid("instance")
    made.StudyInstanceUID, made.SeriesInstanceUID = subject.study_uid, identity.uid("series")
    made.PatientID, made.PatientName = subject.patient_id, person_name(subject.patient_id)
    for name in (
        *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"),
        *("ReferringPhysicianName", "AcquisitionDateTime"),
    ):
        setattr(made, name, "")
    made.Modality, made.ConversionType = "DOC", "WSD"
    made.SeriesNumber, made.InstanceNumber = identity.series_number, 1
    # The pages name a pseudonym and no date.
    made.BurnedInAnnotation = "NO"
    made.DocumentTitle = f"Research report of {subject.nodule_id}"[:1024]
    made.ConceptNameCodeSequence = []
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    _put_document(made, pdf.render_case(document(subject.material)))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return describe(made, identity, "report")


def _put_document(made: Any, content: bytes) -> None:
    """The PDF's bytes, of even length, and how many of them are the document's."""
    made.EncapsulatedDocumentLength = len(content)
    made.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
