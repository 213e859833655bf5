"""Exports as other programs read them: SimpleITK, nibabel, pydicom, highdicom, dciodvfy, Orthanc."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from test_reports import placed, world

from lidc_cdam import cli
from lidc_cdam.artifacts import read_readings
from lidc_cdam.crop_files import mask_path, read_crop, read_reader_masks
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import write_text
from lidc_cdam.geometry import stack_view
from lidc_cdam.map_files import Volume, volume_folder, write_volume
from lidc_cdam.quality import SYNTHETIC
from lidc_cdam.vocabulary import RESEARCH
from reports.context import open_run
from reports.export.capture import pictures
from reports.export.codes import CONCEPTS, value_code
from reports.export.grids import frames_of
from reports.export.source import find_sources, read_source
from reports.export.stage import export
from reports.export.subject import Layer, cohort_rows, repeat_tokens, subject_of
from reports.material import load

EVERY = ["nifti", "nrrd", "sc", "pdf", "seg", "sr", "pmap"]


@pytest.fixture(scope="module", params=list(placed.ORIENTATIONS))
def oriented(request, tmp_path_factory) -> tuple[placed.Placed, Path]:
    """A run on a scan of each orientation, and the crop-sized objects of its first nodule."""
    made = placed.make(tmp_path_factory.mktemp(request.param), request.param, ("malignancy", "spiculation"))
    out = made.run.parent / "crop"
    export(made.run, out, ["seg", "sr", "pmap"], dicom=made.dicom, nodules=[made.nodules[0]])
    return made, out / made.nodules[0]


@pytest.fixture(scope="module")
def axial(tmp_path_factory) -> tuple[placed.Placed, Path]:
    """A run on an axial scan and every format of its first nodule."""
    made = placed.make(tmp_path_factory.mktemp("axial"), "axial", ("malignancy", "spiculation"))
    out = made.run.parent / "out"
    export(made.run, out, EVERY, dicom=made.dicom, nodules=[made.nodules[0]])
    return made, out


def frames(made: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Of each frame of a multi-frame object: pixels, the positions of all its pixels, and its segment."""
    pixels = made.pixel_array if "PixelData" in made else np.frombuffer(made.FloatPixelData, "<f4")
    pixels = pixels.reshape(-1, made.Rows, made.Columns)
    shared = made.SharedFunctionalGroupsSequence[0]
    for image, own in zip(pixels, made.PerFrameFunctionalGroupsSequence, strict=True):

        def groups(name: str, own: Dataset = own) -> Dataset:
            return (own if name in own else shared)[name][0]

        cosines = np.array(groups("PlaneOrientationSequence").ImageOrientationPatient, float)
        down, across = np.array(groups("PixelMeasuresSequence").PixelSpacing, float)
        corner = np.array(groups("PlanePositionSequence").ImagePositionPatient, float)
        row, column = np.mgrid[: made.Rows, : made.Columns]
        places = corner + row[..., None] * cosines[3:] * down + column[..., None] * cosines[:3] * across
        number = (
            own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            if "SegmentIdentificationSequence" in own
            else 0
        )
        yield image, places, int(number)


def value_at(image: sitk.Image, places: np.ndarray, interpolator: int) -> np.ndarray:
    """An ITK image's values at positions; 0 outside it."""
    found = []
    for point in places.reshape(-1, 3):
        index = image.TransformPhysicalPointToContinuousIndex(point)
        inside = all(-0.5 <= at < size - 0.5 for at, size in zip(index, image.GetSize(), strict=True))
        clipped = [min(max(at, 0), size - 1) for at, size in zip(index, image.GetSize(), strict=True)]
        physical = image.TransformContinuousIndexToPhysicalPoint(clipped)
        found.append(image.EvaluateAtPhysicalPoint(physical, interpolator) if inside else 0.0)
    return np.array(found).reshape(places.shape[:-1])


def reader_counts(made: placed.Placed, nodule_id: str) -> sitk.Image:
    return sitk.ReadImage(str(mask_path(made.data, nodule_id)))


def test_reader_masks_add_up_to_the_counts(oriented) -> None:
    made, _ = oriented
    for nodule_id in made.nodules:
        masks, annotation_ids = read_reader_masks(made.data, nodule_id)
        assert np.array_equal(masks.sum(0), read_crop(made.data, nodule_id).readers)
        rows = read_readings(made.data)
        assert list(annotation_ids) == list(rows.loc[rows["nodule_id"] == nodule_id, "annotation_id"])


def test_segments_lie_where_the_crop_does(oriented) -> None:
    made, folder = oriented
    nodule_id = made.nodules[0]
    counts = reader_counts(made, nodule_id)
    readers = len(read_reader_masks(made.data, nodule_id)[0])
    seen: dict[int, float] = {}
    for image, places, segment in frames(pydicom.dcmread(folder / "seg_readers.dcm")):
        seen[segment] = seen.get(segment, 0) + float(image.sum())
        if segment == 1:
            expected = value_at(counts, places, sitk.sitkNearestNeighbor) >= readers / 2
            assert np.array_equal(image > 0, expected)
    consensus = read_crop(made.data, nodule_id).consensus(readers)
    assert seen[1] == consensus.sum()
    assert [seen[number] for number in range(2, 2 + readers)] == [
        mask.sum() for mask in read_reader_masks(made.data, nodule_id)[0]
    ]


def test_agreement_is_the_share_of_the_readers(oriented) -> None:
    made, folder = oriented
    counts = reader_counts(made, made.nodules[0])
    readers = len(read_reader_masks(made.data, made.nodules[0])[0])
    total = 0.0
    for image, places, _ in frames(pydicom.dcmread(folder / "seg_agreement.dcm")):
        expected = value_at(counts, places, sitk.sitkNearestNeighbor) / readers
        assert np.abs(image / 255 - expected).max() <= 0.5 / 255
        total += float(image.sum())
    assert total > 0


def test_full_extent_lies_on_the_source_slices(oriented, tmp_path) -> None:
    made, _ = oriented
    nodule_id = made.nodules[0]
    crop = read_crop(made.data, nodule_id)
    volume = np.random.default_rng(1).normal(size=(1, *crop.hu.shape)).astype(np.float32)
    write_volume(
        volume_folder(made.run, 0, "cdam", nodule_id),
        "spiculation",
        Volume(volume, ("axial",), crop.origin_mm, crop.spacing_mm, ""),
    )
    # A gap: slices that are gone from the source can have no frame.
    gapped = tmp_path / "gapped"
    shutil.copytree(made.dicom, gapped)
    paths = sorted(gapped.rglob("*.dcm"), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    heights = np.array([float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in paths])
    inside = int(np.abs(heights - (crop.origin_mm[2] + 16)).argmin())
    for path in paths[inside + 1 : inside + 3]:
        path.unlink()
    try:
        export(made.run, tmp_path / "out", ["seg", "pmap"], dicom=gapped, extent="full", nodules=[nodule_id])
    finally:
        shutil.rmtree(volume_folder(made.run, 0, "cdam", nodule_id))
    folder = tmp_path / "out" / nodule_id
    sources = {
        tuple(float(value) for value in header.ImagePositionPatient)
        for header in read_source(list(gapped.rglob("*.dcm")), "someone")
    }
    scores = sitk.GetImageFromArray(volume[0])
    scores.SetOrigin(crop.origin_mm)
    made_map = pydicom.dcmread(folder / "pmap_cdam_spiculation.dcm")
    assert made_map.NumberOfFrames == len(sources) == len(heights) - 2
    compared = 0
    for image, places, _ in frames(made_map):
        assert any(np.allclose(places[0, 0], source, atol=1e-3) for source in sources)
        touched = np.argwhere(image != 0)
        for row, column in touched[:: max(len(touched) // 20, 1)]:
            expected = value_at(scores, places[row : row + 1, column : column + 1], sitk.sitkLinear)[0, 0]
            assert image[row, column] == pytest.approx(expected, abs=1e-5)
            compared += 1
    assert compared > 100
    counts, readers = reader_counts(made, nodule_id), len(read_reader_masks(made.data, nodule_id)[0])
    marked = 0
    for image, places, segment in frames(pydicom.dcmread(folder / "seg_readers.dcm")):
        if segment == 1:
            window = tuple(slice(edge.min() - 2, edge.max() + 3) for edge in np.nonzero(image))
            expected = value_at(counts, places[window], sitk.sitkNearestNeighbor) >= readers / 2
            assert np.array_equal(image[window] > 0, expected)
            marked += int(image.sum())
    assert marked > 0


def test_maps_keep_their_sign_and_size(oriented) -> None:
    made, folder = oriented
    from lidc_cdam.artifacts import maps_path, read_maps

    maps = read_maps(maps_path(made.run, 0, "cdam", made.nodules[0]))
    crop = read_crop(made.data, made.nodules[0])
    stored = pydicom.dcmread(folder / "pmap_cdam_spiculation.dcm")
    ((image, places, _),) = frames(stored)
    expected = repeat_tokens(maps.scores[maps.targets.index("spiculation"), 0, 0], len(crop.hu))
    assert np.array_equal(image, expected)
    assert (image < 0).any()
    assert (image > 0).any()
    x, y, z = crop.origin_mm
    assert places[0, 0] == pytest.approx((x, y, z + 16 * crop.spacing_mm))
    mapping = stored.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert highdicom.imread(folder / "pmap_cdam_spiculation.dcm").get_volume().array.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("height", "heights", "hit"),
    [
        (10.0, (7.5, 10.4, 12.5), [1]),  # it passes through the slice
        (11.2, (7.5, 10.0, 12.5), [1]),  # it lies between two
        (11.4, (7.5, 10.0, 12.5), [2]),
        (30.0, (7.5, 10.0, 12.5), []),  # it lies beyond all of them
    ],
)
def test_a_map_between_two_source_slices_stands_on_the_nearer_one(height, heights, hit) -> None:
    scores = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    headers = []
    for z in heights:
        header = Dataset()
        header.Rows, header.Columns, header.PixelSpacing = 8, 8, [1.0, 1.0]
        header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [3.0, 4.0, z]
        headers.append(header)
    values = frames_of(Layer(scores, (3.0, 4.0, height), 1.0), headers, "full", 1).values
    assert [place for place, frame in enumerate(values) if frame.any()] == hit
    assert all(np.allclose(values[place], scores[0]) for place in hit)


def test_oblique_planes_are_sampled_at_their_own_positions() -> None:
    ramp = np.arange(20 * 20 * 20, dtype=float).reshape(20, 20, 20)
    layer = Layer(ramp, (5.0, -3.0, 2.0), 1.0)
    tilt = np.radians(25)
    header = Dataset()
    header.Rows, header.Columns, header.PixelSpacing = 40, 36, [0.8, 0.7]
    header.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(tilt)), float(np.sin(tilt))]
    header.ImagePositionPatient = [2.0, -6.0, 6.0]
    frame = frames_of(layer, [header], "full", 1).values[0]
    image = sitk.GetImageFromArray(ramp)
    image.SetOrigin(layer.origin_mm)
    row, column = np.mgrid[:40, :36]
    down = np.array([0, np.cos(tilt), np.sin(tilt)]) * 0.8
    places = np.array([2.0, -6.0, 6.0]) + row[..., None] * down + column[..., None] * np.array([0.7, 0, 0])
    assert (frame != 0).sum() > 300
    assert frame == pytest.approx(value_at(image, places, sitk.sitkLinear), abs=1e-3)


@pytest.mark.parametrize("extent", ["crop", "full"])
def test_objects_of_a_tilted_series_lie_where_the_crop_does(axial, tmp_path, extent) -> None:
    made, _ = axial
    nodule_id = made.nodules[0]
    tilt, middle_mm = np.radians(20), read_crop(made.data, nodule_id).origin_mm[1] + 16
    for path in made.dicom.rglob("*.dcm"):
        header = pydicom.dcmread(path)
        # The gantry leans: rows run to the back and up, slices are stacked along the table.
        header.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(tilt).round(9)), float(np.sin(tilt).round(9))]
        x, y, z = header.ImagePositionPatient
        header.ImagePositionPatient = [x, y, round(float(z) - (middle_mm - float(y)) * np.tan(tilt), 6)]
        target = tmp_path / "tilted" / path.relative_to(made.dicom)
        target.parent.mkdir(parents=True, exist_ok=True)
        header.save_as(target)
    out = tmp_path / "out"
    export(made.run, out, ["seg", "sr"], dicom=tmp_path / "tilted", extent=extent, nodules=[nodule_id])
    counts, readers = reader_counts(made, nodule_id), len(read_reader_masks(made.data, nodule_id)[0])
    stored = pydicom.dcmread(out / nodule_id / "seg_readers.dcm")
    cosines = np.array(stored.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient)
    assert (abs(float(cosines[5])) > 0.3) == (extent == "full")
    marked = 0
    for image, places, segment in frames(stored):
        if segment == 1:
            window = tuple(slice(max(edge.min() - 2, 0), edge.max() + 3) for edge in np.nonzero(image))
            expected = value_at(counts, places[window], sitk.sitkNearestNeighbor) >= readers / 2
            assert np.array_equal(image[window] > 0, expected)
            marked += int(image.sum())
    whole = read_crop(made.data, nodule_id).consensus(readers).sum()
    # A pixel of a leaning slice stands for its area times the slices' distance.
    pixel_mm3 = 1.0 if extent == "crop" else float(np.prod(header.PixelSpacing)) * 2.5 * np.cos(tilt)
    assert marked * pixel_mm3 == pytest.approx(whole, rel=0 if extent == "crop" else 0.02)


def test_reports_hold_ratings_and_predictions_in_the_published_codes(axial) -> None:
    made, out = axial
    folder = out / made.nodules[0]
    rows = read_readings(made.data).query("nodule_id == @made.nodules[0]")
    readers = highdicom.sr.srread(folder / "sr_readers.dcm")
    groups = readers.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(rows)
    segmentation = pydicom.dcmread(folder / "seg_readers.dcm")
    for number, (group, (_, row)) in enumerate(zip(groups, rows.iterrows(), strict=True)):
        (coded,) = group.get_qualitative_evaluations(name=CONCEPTS["malignancy"])
        assert coded.value == value_code("malignancy", int(row["malignancy"]))
        (spiked,) = group.get_qualitative_evaluations(name=CONCEPTS["spiculation"])
        assert spiked.value == value_code("spiculation", int(row["spiculation"]))
        (diameter,) = group.get_measurements(name=CONCEPTS["diameter"])
        assert diameter.value == pytest.approx(row["diameter"], abs=1e-3)
        assert group.referenced_segment.referenced_segment_numbers == [number + 2]
        assert segmentation.SegmentSequence[number + 1].SegmentLabel == f"Reader {number + 1}"
    predicted = highdicom.sr.srread(folder / "sr_predictions.dcm")
    (group,) = predicted.content.get_volumetric_roi_measurement_groups()
    (malignancy,) = group.get_measurements(name=CONCEPTS["malignancy"])
    assert malignancy.value == pytest.approx(0.7)
    assert not group.get_qualitative_evaluations(name=CONCEPTS["malignancy"])


def test_volumes_open_at_one_place_in_every_reader(axial) -> None:
    made, out = axial
    folder = out / made.nodules[0]
    crop = sitk.ReadImage(str(made.data / "crops" / f"{made.nodules[0]}.nii.gz"))
    for name in ("ct", "consensus", "reader_fraction", "reader_1", "cdam_spiculation"):
        nifti, nrrd = sitk.ReadImage(str(folder / f"{name}.nii.gz")), sitk.ReadImage(str(folder / f"{name}.nrrd"))
        for measure in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(nifti, measure)() == pytest.approx(getattr(nrrd, measure)(), abs=1e-4)
        assert np.array_equal(sitk.GetArrayFromImage(nifti), sitk.GetArrayFromImage(nrrd))
        corner = nibabel.load(folder / f"{name}.nii.gz").affine[:3, 3] * (-1, -1, 1)
        assert corner == pytest.approx(nrrd.GetOrigin(), abs=1e-4)
        if not name.startswith("cdam"):
            assert nrrd.GetOrigin() == pytest.approx(crop.GetOrigin(), abs=1e-4)
    compile((folder / "open_in_slicer.py").read_text(encoding="utf-8"), "open_in_slicer.py", "exec")


def test_key_pictures_and_report(axial) -> None:
    made, out = axial
    folder = out / made.nodules[0]
    pictures = sorted(folder.glob("sc_*.dcm"))
    assert len(pictures) == 3
    for path in pictures:
        picture = pydicom.dcmread(path)
        assert picture.pixel_array.shape == (912, 768, 3)
        assert picture.BurnedInAnnotation == "NO"
        assert picture.pixel_array[100:600, 100:600].std() > 5
    report = pydicom.dcmread(folder / "report.dcm")
    assert report.EncapsulatedDocument[: report.EncapsulatedDocumentLength].startswith(b"%PDF-")
    assert report.PatientID == "LIDC-IDRI-0003"


def test_a_key_picture_of_a_phantom_says_so(tmp_path) -> None:
    words = {}
    for name, flags in (("phantoms", (SYNTHETIC,)), ("patients", ())):
        made = world.make(tmp_path / name, count=2, flags=flags)
        run, cases = open_run(made.biomarkers, "cdam")
        row = cohort_rows(made.data, [cases[0].nodule_id])[cases[0].nodule_id]
        words[name] = {picture["research"] for picture in pictures(subject_of(load([run], [cases[0]]), row))}
    assert words["patients"] == {RESEARCH}
    assert words["phantoms"] == {f"{RESEARCH}  \u00b7  Synthetic phantom"}


def test_nothing_of_a_person_is_taken_along(axial) -> None:
    made, out = axial
    words = [
        *placed.CANARIES.values(),
        *(part for name in ("Canaria^Serinus", "Finch^Doctor") for part in name.split("^")),
    ]
    for path in filter(Path.is_file, out.rglob("*")):
        held = path.read_bytes()
        found = [word for word in words if word.encode() in held or word.encode("utf-16-le") in held]
        assert not found, f"{path.name} holds {found}"
        assert str(made.data.parent).encode() not in held or path.name == "provenance.json", path


def test_a_second_export_gives_the_same_identifiers(axial, tmp_path) -> None:
    made, out = axial
    export(made.run, tmp_path, ["seg", "sc"], dicom=made.dicom, nodules=[made.nodules[0]])
    for name in ("seg_readers.dcm", "sc_01.dcm"):
        first, second = (pydicom.dcmread(folder / made.nodules[0] / name) for folder in (out, tmp_path))
        for element in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            assert first[element].value == second[element].value
        assert first.PixelData == second.PixelData


def test_a_finished_export_does_nothing(axial, capsys) -> None:
    made, out = axial
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}
    export(made.run, out, EVERY, dicom=made.dicom, nodules=[made.nodules[0]])
    assert "exported already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("extent", ["crop", "full"])
def test_objects_are_valid_dicom(axial, tmp_path, extent) -> None:
    made, out = axial
    if extent == "full":
        out = tmp_path / "full"
        export(made.run, out, EVERY, dicom=made.dicom, nodules=[made.nodules[0]], extent="full")
    assert len(list(out.rglob("*.dcm"))) == 10
    for path in sorted(out.rglob("*.dcm")):
        told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
        assert not [line for line in told.splitlines() if line.startswith("Error")], f"{path.name}: {told}"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "dicom"], "--format must name at least one of nifti, nrrd, sc, pdf, seg, sr, pmap; got 'dicom'."),
        (["--format", "seg"], "--format seg refers to the source series: give the folder of its DICOM files"),
        (["--format", "nifti", "--nodules", "nobody"], "--nodules must be test nodules"),
        (["--format", "seg", "--dicom", "nowhere"], "--dicom must be a folder of DICOM files"),
        (["--format", "nifti", "--stow", "ftp://x"], "--stow must be the http(s) address"),
        (["--format", "sc", "--stow", "http://"], "--stow must be the http(s) address of a DICOMweb service"),
        (["--format", "sc", "--stow", "http://me:secret@127.0.0.1:port"], "got 'http://127.0.0.1:port'."),
        (["--format", "nifti", "--stow", "http://127.0.0.1:9"], "--format nifti makes none; choose among sc, pdf, seg"),
        (
            ["--format", "sc", "--stow", "http://me:secret@127.0.0.1:9"],
            "http://127.0.0.1:9 does not take sc_01.dcm: no",
        ),
    ],
)
def test_bad_options_are_one_sentence(axial, tmp_path, capsys, options: Sequence[str], sentence: str) -> None:
    made, _ = axial
    words = ["export", "--run", str(made.run), "--out", str(tmp_path / "out"), *options]
    if "--nodules" not in options:
        words += ["--nodules", made.nodules[0]]
    assert cli.main(words) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
    assert "unexpected" not in told
    assert "secret" not in told
    assert not list(tmp_path.rglob(".writing-*"))


def test_a_pack_without_patient_geometry_is_refused_with_what_is_possible(tmp_path) -> None:
    made = world.make(tmp_path)
    empty = tmp_path / "dicom"
    write_text(empty / "readme.txt", "no DICOM")
    with pytest.raises(LidcCdamError, match="must lie in patient coordinates, but it comes from a pack"):
        export(made.biomarkers, tmp_path / "out", ["seg"], dicom=empty)
    export(made.biomarkers, tmp_path / "volumes", ["nifti"])
    assert (tmp_path / "volumes" / made.nodules[0] / "consensus.nii.gz").exists()


def test_sources_are_found_in_any_layout(tmp_path) -> None:
    made = placed.make(tmp_path, keys=("malignancy",))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(made.dicom.rglob("*.dcm")):
        shutil.copy(path, flat / f"{number}.bin")
    write_text(flat / "notes.txt", "not DICOM")
    (uid,) = {folder.name for folder in made.dicom.iterdir()}
    assert len(find_sources(flat, {uid})[uid]) == len(find_sources(made.dicom, {uid})[uid])
    headers = read_source(find_sources(flat, {uid})[uid], "someone")
    heights = [float(header.ImagePositionPatient[2]) for header in headers]
    assert heights == sorted(heights)
    assert {element.keyword for element in headers[0]}.isdisjoint(
        {"InstitutionName", "StationName", "StudyDescription"}
    )


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


ORTHANC, PLUGIN = (
    shutil.which("Orthanc") or "/usr/sbin/Orthanc",
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
)


@pytest.fixture
def orthanc(tmp_path) -> Iterator[str]:
    """A real archive on loopback."""
    if not Path(ORTHANC).exists() or not PLUGIN.exists():
        pytest.skip("Orthanc and its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb) are not installed")
    web = free_port()
    config = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "index"),
        "HttpPort": web,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(config), encoding="utf-8")
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([ORTHANC, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{web}"
            for _ in range(200):
                try:
                    urllib.request.urlopen(f"{address}/system", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                pytest.fail((tmp_path / "log").read_text())
            yield address
        finally:
            server.terminate()
            server.wait()


@pytest.mark.orthanc
@pytest.mark.parametrize("extent", ["crop", "full"])
def test_an_archive_takes_the_objects_and_gives_them_back(axial, tmp_path, orthanc: str, extent) -> None:
    made, _ = axial
    out = tmp_path / "sent"
    chosen = {"dicom": made.dicom, "nodules": [made.nodules[0]], "extent": extent, "stow": f"{orthanc}/dicom-web"}
    export(made.run, out, ["sc", "pdf", "seg", "sr", "pmap"], **chosen)
    sent = {pydicom.dcmread(path).SOPInstanceUID: path for path in out.rglob("*.dcm")}
    with urllib.request.urlopen(f"{orthanc}/instances?expand") as answer:
        stored = {item["MainDicomTags"]["SOPInstanceUID"]: item["ID"] for item in json.load(answer)}
    assert set(stored) == set(sent)
    for uid, path in sent.items():
        with urllib.request.urlopen(f"{orthanc}/instances/{stored[uid]}/file") as answer:
            (tmp_path / "back.dcm").write_bytes(answer.read())
        back, own = pydicom.dcmread(tmp_path / "back.dcm"), pydicom.dcmread(path)
        for name in ("PixelData", "FloatPixelData", "EncapsulatedDocument", "ContentSequence"):
            assert (name in own) == (name in back)
            assert name not in own or own[name].value == back[name].value
    # The same objects again replace themselves.
    export(made.run, out, ["sc", "pdf", "seg", "sr", "pmap"], **chosen)
    with urllib.request.urlopen(f"{orthanc}/instances") as answer:
        assert len(json.load(answer)) == len(sent)


def test_whole_volumes_are_exported_where_they_are(axial, tmp_path) -> None:
    made, _ = axial
    nodule_id = made.nodules[1]
    crop = read_crop(made.data, nodule_id)
    scores = stack_view(np.random.default_rng(2).normal(size=(1, *crop.hu.shape)).astype(np.float32), "axial")
    folder = volume_folder(made.run, 0, "cdam", nodule_id)
    write_volume(folder, "spiculation", Volume(scores, ("axial",), crop.origin_mm, crop.spacing_mm, ""))
    export(made.run, tmp_path, ["nifti"], nodules=[nodule_id])
    found = sitk.ReadImage(str(tmp_path / nodule_id / "cdam_spiculation.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(found), scores[0])
    assert found.GetOrigin() == pytest.approx(crop.origin_mm, abs=1e-4)
