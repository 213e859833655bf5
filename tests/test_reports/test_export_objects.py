"""What exported DICOM objects say of themselves, beside their pixels."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import highdicom
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset
from test_reports import placed

from lidc_cdam import artifacts, crop_files
from reports.context import open_run
from reports.export.codes import CONCEPTS, LIDC, VALUES
from reports.export.stage import export

FORMATS = ["sc", "pdf", "seg", "sr", "pmap"]


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> tuple[placed.Placed, dict[str, Dataset]]:
    """Every object of three nodules of one scan, whose patient has a name beyond ASCII."""
    made = placed.make(tmp_path_factory.mktemp("objects"), "flipped", ("malignancy", "spiculation"))
    table = artifacts.read_predictions(made.run / artifacts.PREDICTIONS)
    table["patient_id"] = "Zoë-Ω1"
    artifacts.write_predictions(made.run / artifacts.PREDICTIONS, table)
    out = made.run.parent / "out"
    export(made.run, out, FORMATS, dicom=made.dicom)
    paths = sorted(out.rglob("*.dcm"))
    return made, {path.relative_to(out).as_posix(): pydicom.dcmread(path) for path in paths}


def test_each_object_says_who_made_it_and_whose_it_is_not(objects) -> None:
    _, found = objects
    assert len(found) == 3 * (3 + 1 + 2 + 2 + 2)
    for name, each in found.items():
        assert (each.PatientID, str(each.PatientName)) == ("Zoë-Ω1", "Zoë-Ω1^"), name
        assert each.SpecificCharacterSet == "ISO_IR 192"
        assert each.PatientIdentityRemoved == "YES"
        assert 0 < len(each.DeidentificationMethod) <= 64
        assert each.LongitudinalTemporalInformationModified == "REMOVED"
        assert (each.Manufacturer, each.ManufacturerModelName) == ("lidc-cdam developers", "lidc-cdam")
        assert each.SoftwareVersions
        assert each.get("BurnedInAnnotation", "NO") == "NO"


def test_series_and_instances_of_a_study_are_told_apart(objects) -> None:
    made, found = objects
    assert max(Counter(each.SOPInstanceUID for each in found.values()).values()) == 1
    series: dict[str, list[Dataset]] = {}
    for name, each in found.items():
        series.setdefault(each.SeriesInstanceUID, []).append(each)
        assert each.SeriesDescription.startswith("RESEARCH ")
        assert each.SeriesDescription.endswith(name.split("/")[0])
        assert len(each.SeriesDescription) <= 64
    assert len(series) == 3 * (1 + 1 + 2 + 2 + 2)
    for instances in series.values():
        assert len({each.InstanceNumber for each in instances}) == len(instances)
    numbers = [instances[0].SeriesNumber for instances in series.values()]
    assert len(set(numbers)) == len(series)
    # A nodule exported alone has the number that it has among the others.
    export(made.run, made.run.parent / "last", ["pdf"], nodules=[made.nodules[2]])
    alone = pydicom.dcmread(made.run.parent / "last" / made.nodules[2] / "report.dcm")
    assert alone.SeriesNumber == found[f"{made.nodules[2]}/report.dcm"].SeriesNumber == 11106


def test_no_object_tells_when_it_was_made(objects) -> None:
    _, found = objects
    for name, each in found.items():
        times = {str(element.value) for element in each.iterall() if element.VR in ("DA", "TM", "DT") and element.value}
        assert times <= {"19700101", "000000"}, name


def test_segments_and_reports_track_the_same_things(objects) -> None:
    made, found = objects
    for nodule in made.nodules:
        segments = {
            segment.SegmentNumber: (segment.TrackingUID, segment.TrackingID)
            for segment in found[f"{nodule}/seg_readers.dcm"].SegmentSequence
        }
        assert len({unique for unique, _ in segments.values()}) == len(segments)
        tracked = {}
        for name in ("sr_readers", "sr_predictions"):
            report = highdicom.sr.Comprehensive3DSR.from_dataset(found[f"{nodule}/{name}.dcm"])
            for group in report.content.get_volumetric_roi_measurement_groups():
                (number,) = group.referenced_segment.referenced_segment_numbers
                tracked[number] = (group.tracking_uid, group.tracking_identifier)
        assert tracked == segments


def test_nothing_claims_to_be_the_scanner(objects) -> None:
    _, found = objects
    for each in found.values():
        for equipment in each.get("ContributingEquipmentSequence", ()):
            assert equipment.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Processing Equipment"


def test_references_point_at_slices_and_segments_that_there_are(objects) -> None:
    made, found = objects
    slices = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in made.dicom.rglob("*.dcm")}
    known = slices | {each.SOPInstanceUID for each in found.values()}
    for name, each in found.items():
        referred = {str(item.value) for item in each.iterall() if item.keyword == "ReferencedSOPInstanceUID"}
        assert referred <= known, name
        assert bool(referred & slices) == name.split("/")[1].startswith(("seg", "sr", "pmap")), name


def test_a_map_names_its_model_and_its_quantity(objects) -> None:
    made, found = objects
    each = found[f"{made.nodules[0]}/pmap_cdam_spiculation.dcm"]
    mapping = each.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    (quantity,) = mapping.QuantityDefinitionSequence
    assert quantity.ConceptCodeSequence[0].CodeMeaning == "Class activation"
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    first, last = mapping.DoubleFloatRealWorldValueFirstValueMapped, mapping.DoubleFloatRealWorldValueLastValueMapped
    assert first < np.frombuffer(each.FloatPixelData, "<f4").min() < 0 < last
    assert each.ContentQualification == "RESEARCH"
    for frame in each.PerFrameFunctionalGroupsSequence:
        told = frame.DerivationImageSequence[0].DerivationDescription
        assert told.startswith("cdam of spiculation by tiny fold 0 ")


def test_each_segment_says_how_it_was_made(objects) -> None:
    made, found = objects
    outlines = found[f"{made.nodules[0]}/seg_readers.dcm"].SegmentSequence
    (share,) = found[f"{made.nodules[0]}/seg_agreement.dcm"].SegmentSequence
    assert [each.SegmentAlgorithmType for each in outlines] == ["SEMIAUTOMATIC", *["MANUAL"] * (len(outlines) - 1)]
    assert outlines[0].SegmentAlgorithmName == "Consensus of the readers (LIDC)"
    assert share.SegmentAlgorithmName == "Share of the readers (LIDC)"
    for each in (*outlines, share):
        assert each.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Nodule"
        assert each.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"


def test_the_codes_are_those_of_the_published_collection() -> None:
    assert {key: (code.value, code.scheme_designator) for key, code in CONCEPTS.items()} == {
        "malignancy": ("RID36042", "RadLex"),
        "subtlety": ("C45992", "NCIt"),
        "internalStructure": ("200", LIDC),
        "calcification": ("C3672", "NCIt"),
        "sphericity": ("400", LIDC),
        "margin": ("C25563", "NCIt"),
        "lobulation": ("C62175", "NCIt"),
        "spiculation": ("C28749", "NCIt"),
        "texture": ("C41144", "NCIt"),
        "diameter": ("81827009", "SCT"),
    }
    assert {VALUES["sphericity"][step].value for step in (1, 3, 5)} == {"RID5811", "RID5800", "RID5799"}
    assert [VALUES["calcification"][step].value for step in (1, 5, 6)] == ["RID35453", "RID5827", "RID28473"]
    assert VALUES["margin"][1].value == "RID5709"


def volumes(folder: Path) -> list[int]:
    """How many volumes each reader's group tells."""
    report = highdicom.sr.srread(folder / "sr_readers.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    return [len(group.get_measurements(name=pydicom.sr.codedict.codes.SCT.Volume)) for group in groups]


def test_no_volume_is_told_of_what_the_cube_may_cut(tmp_path) -> None:
    made = placed.make(tmp_path, keys=("malignancy",))
    nodule = made.nodules[0]
    masks, annotation_ids = crop_files.read_reader_masks(made.data, nodule)
    export(made.run, tmp_path / "whole", ["sr"], dicom=made.dicom, nodules=[nodule])
    # The last reader outlined a mass that is larger than the cube.
    assert volumes(tmp_path / "whole" / nodule) == [1, 1, 1, 0]
    masks[0, 0, 16, 16] = True
    crop_files.write_reader_masks(made.data, nodule, masks, annotation_ids)
    export(made.run, tmp_path / "cut", ["sr"], dicom=made.dicom, nodules=[nodule])
    assert volumes(tmp_path / "cut" / nodule) == [0, 1, 1, 0]


def test_predictions_tell_their_intervals(tmp_path) -> None:
    made = placed.make(tmp_path, keys=("malignancy", "spiculation", "diameter"))
    names = [f"VAL-{index}" for index in range(40)]
    table = pd.DataFrame({"nodule_id": names, "patient_id": names, "fold": 0})
    for key in ("malignancy", "spiculation", "diameter"):
        table[f"{key}_true"] = np.arange(40) % 2 if key == "malignancy" else 3.0
        table[f"{key}_predicted"] = 0.4 if key == "malignancy" else np.linspace(2.5, 3.25, 40)
    artifacts.write_predictions(made.run / "fold_0" / "validation.csv", table)
    nodule = made.nodules[0]
    export(made.run, tmp_path / "out", ["sr"], dicom=made.dicom, nodules=[nodule])
    path = tmp_path / "out" / nodule / "sr_predictions.dcm"
    (group,) = highdicom.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    predicted = artifacts.read_predictions(made.run / artifacts.PREDICTIONS).set_index("nodule_id").loc[nodule]
    (case,) = (case for case in open_run(made.run, "cdam")[1] if case.nodule_id == nodule)
    for key, unit in (("spiculation", "1"), ("diameter", "mm")):
        (measured,) = group.get_measurements(name=CONCEPTS[key])
        value, (low, high) = predicted[f"{key}_predicted"], case.calibrated.intervals[key]
        ranges = {
            item.ConceptNameCodeSequence[0].CodeValue: item.MeasuredValueSequence[0]
            for item in measured[0].ContentSequence
            if item.ValueType == "NUM"
        }
        assert float(ranges["371886008"].NumericValue) == pytest.approx(high - value, abs=1e-3)
        assert float(ranges["371885007"].NumericValue) == pytest.approx(value - low, abs=1e-3)
        assert {each.MeasurementUnitsCodeSequence[0].CodeValue for each in ranges.values()} == {unit}
        assert measured.unit.value == unit
        assert measured.method.meaning == "Uncertainty: readers' mean in nine of ten cases"
        assert high > low
    (malignancy,) = group.get_measurements(name=CONCEPTS["malignancy"])
    assert not [item for item in malignancy[0].ContentSequence if item.ValueType == "NUM"]
    if shutil.which("dciodvfy"):
        told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
        assert not [line for line in told.splitlines() if line.startswith("Error")], told
