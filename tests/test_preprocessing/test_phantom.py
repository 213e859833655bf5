"""Phantoms: functions of position, looks that follow the ratings, DICOM that says what it is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from lidc_cdam.artifacts import read_dataset
from lidc_cdam.crop_files import read_crop
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.quality import SYNTHETIC
from lidc_cdam.vocabulary import BIOMARKERS
from preprocessing import cohort as cohort_stage
from preprocessing import phantom_stage
from preprocessing.annotations import Nodule, consensus, load_nodules, reader_counts
from preprocessing.extract import extract
from preprocessing.pack import read_cutout, read_pack
from preprocessing.phantom import Phantom
from preprocessing.phantom_dicom import in_plane_origin_mm
from preprocessing.phantom_parts import Grid, Tube, edge, slice_index
from preprocessing.phantom_stage import choose_nodules, choose_scans, label_of
from preprocessing.slices import PHANTOM

PLAIN = {
    "subtlety": 5,
    "calcification": 6,
    "margin": 5,
    "lobulation": 1,
    "spiculation": 1,
    "texture": 5,
    "sphericity": 5,
}
PATIENTS = ("LIDC-IDRI-0001", "LIDC-IDRI-0003", "LIDC-IDRI-0078", "LIDC-IDRI-0719", "LIDC-IDRI-0437")


@pytest.fixture(scope="module")
def nodules() -> dict[str, Nodule]:
    return {nodule.nodule_id: nodule for nodule in load_nodules(patients=PATIENTS)}


@pytest.fixture(scope="module")
def large(nodules: dict[str, Nodule]) -> Nodule:
    """A nodule of about 30 mm."""
    return nodules["LIDC-IDRI-0001_n01"]


def rated(nodule: Nodule, **ratings: int) -> Nodule:
    """The nodule as if all readers had given these ratings, and plain ones else."""
    readings = tuple(replace(reading, ratings={**reading.ratings, **PLAIN, **ratings}) for reading in nodule.readings)
    return replace(nodule, readings=readings)


def axes_around(nodule: Nodule, step_mm: float = 1.0, half_mm: float = 30.0) -> tuple[np.ndarray, ...]:
    """Axes x, y, z through the middle of the nodule."""
    offsets = np.arange(-half_mm, half_mm + step_mm / 2, step_mm)
    return tuple(centre + offsets for centre in Phantom(nodule).body.centre_mm)


def mean_inside(nodule: Nodule) -> float:
    axes = axes_around(nodule, 1.0, 20.0)
    made = Phantom(nodule)
    return float(made.hu(*axes)[made.causes(*axes)["diameter"]].mean())


def test_value_depends_on_the_position_alone(nodules: dict[str, Nodule]) -> None:
    first, *others = [nodule for nodule in nodules.values() if nodule.scan.patient_id == "LIDC-IDRI-0003"]
    x, y, z = axes_around(first)
    whole = Phantom(first, others).hu(x, y, z)
    part = Phantom(first, others).hu(x[20:35], y[7:9], z[30:31])
    np.testing.assert_allclose(part, whole[30:31, 7:9, 20:35], atol=0.05)


def test_every_nodule_of_a_scan_gives_the_same_ct(nodules: dict[str, Nodule]) -> None:
    members = [nodule for nodule in nodules.values() if nodule.scan.patient_id == "LIDC-IDRI-0003"]
    assert len(members) > 1
    axes = axes_around(members[0])
    one, other = Phantom(members[0], members[1:]), Phantom(members[-1], members)
    assert one.anatomy == other.anatomy
    assert np.array_equal(one.hu(*axes), other.hu(*axes))


def test_seed_changes_the_chest_but_not_the_body(large: Nodule) -> None:
    axes = axes_around(large)
    plain = rated(large)
    one, other = Phantom(plain, seed=0), Phantom(plain, seed=1)
    assert np.array_equal(one.causes(*axes)["diameter"], other.causes(*axes)["diameter"])
    assert not np.array_equal(one.hu(*axes), other.hu(*axes))


def test_nodule_of_another_scan_is_refused(nodules: dict[str, Nodule], large: Nodule) -> None:
    other = nodules["LIDC-IDRI-0078_n01"]
    with pytest.raises(ValueError, match="must lie in one scan, that of LIDC-IDRI-0001_n01"):
        Phantom(large, [other])


def test_body_is_the_consensus_at_its_true_size(nodules: dict[str, Nodule]) -> None:
    for nodule in nodules.values():
        plain = rated(nodule)
        mask, box = consensus(nodule)
        step = nodule.scan.pixel_spacing_mm
        columns, rows = (np.arange(*span) * step for span in (box.column, box.row))
        z = np.array(nodule.scan.slice_z_mm[slice(*box.slice)])
        body = np.moveaxis(Phantom(plain).causes(columns, rows, z)["diameter"], 0, 2)
        overlap = 2 * (body & mask).sum() / (body.sum() + mask.sum())
        assert overlap > 0.9, nodule.nodule_id


@pytest.mark.parametrize(
    ("ratings", "darker"),
    [({"texture": 1}, 300), ({"texture": 3}, 100), ({"subtlety": 1}, 200), ({"calcification": 3}, -200)],
)
def test_rating_moves_the_hu(large: Nodule, ratings: Mapping[str, int], darker: float) -> None:
    plain, changed = mean_inside(rated(large)), mean_inside(rated(large, **ratings))
    assert (plain - changed) * np.sign(darker) > abs(darker)


def test_spiculation_grows_with_its_rating(large: Nodule) -> None:
    axes = axes_around(large)
    sizes = [int(Phantom(rated(large, spiculation=code)).causes(*axes)["spiculation"].sum()) for code in (1, 3, 5)]
    assert sizes[0] == 0
    assert sizes[0] < sizes[1] < sizes[2]


def test_spicules_are_bright_thin_and_outside_the_body(large: Nodule) -> None:
    axes = axes_around(large)
    made, smooth = Phantom(rated(large, spiculation=5)), Phantom(rated(large))
    causes = made.causes(*axes)
    assert not (causes["spiculation"] & causes["diameter"]).any()
    raised = made.hu(*axes) - smooth.hu(*axes)
    assert raised[causes["spiculation"]].mean() > 150
    assert causes["spiculation"].sum() < 0.5 * causes["diameter"].sum()


def test_a_poorly_defined_margin_is_wider(large: Nodule) -> None:
    axes = axes_around(large)
    sharp, poor = (Phantom(rated(large, margin=code)).causes(*axes)["margin"].sum() for code in (5, 1))
    assert poor > 1.5 * sharp


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_calcified_part_is_dense_and_inside(large: Nodule, code: int) -> None:
    axes = axes_around(large)
    made = Phantom(rated(large, calcification=code))
    causes = made.causes(*axes)
    assert causes["calcification"].any()
    assert (causes["diameter"] | ~causes["calcification"]).all()
    assert made.hu(*axes)[causes["calcification"]].mean() > 200


def test_lobes_move_the_surface_but_keep_the_size(large: Nodule) -> None:
    axes = axes_around(large)
    smooth, lobed = (Phantom(rated(large, lobulation=code)).causes(*axes) for code in (1, 5))
    assert not smooth["lobulation"].any()
    assert lobed["lobulation"].any()
    assert (smooth["diameter"] != lobed["diameter"]).sum() > 0.04 * smooth["diameter"].sum()
    assert lobed["diameter"].sum() == pytest.approx(smooth["diameter"].sum(), rel=0.25)


def test_causes_follow_the_vocabulary_and_are_empty_elsewhere(large: Nodule) -> None:
    made = Phantom(large)
    causes = made.causes(*axes_around(large))
    assert list(causes) == [biomarker.key for biomarker in BIOMARKERS]
    assert (causes["subtlety"] | ~causes["margin"]).all()
    assert (causes["diameter"] | ~causes["texture"]).all()
    far = tuple(axis + 150.0 for axis in axes_around(large))
    assert not any(mask.any() for mask in made.causes(*far).values())


def test_chest_has_lung_around_the_nodule_soft_tissue_and_air(large: Nodule) -> None:
    made = Phantom(large)
    step = large.scan.pixel_spacing_mm
    plane = made.hu(np.arange(512) * step, np.arange(512) * step, np.array([made.body.centre_mm[2]]))[0]
    assert plane[:20].mean() < -950
    shares = [((plane > low) & (plane < high)).mean() for low, high in ((-980, -700), (-150, 200))]
    assert min(shares) > 0.15
    causes = made.causes(*axes_around(large))
    near = made.hu(*axes_around(large))[~causes["subtlety"]]
    assert np.median(near) < -700


def test_edge_is_flat_beyond_its_width() -> None:
    distance = np.array([-5.0, -1.0, 0.0, 1.0, 5.0])
    np.testing.assert_allclose(edge(distance, 2.0), [0.0, 0.0, 0.5, 1.0, 1.0])


def test_tube_distance_is_positive_inside_only() -> None:
    tube = Tube((0.0, 0.0, 0.0), (10.0, 0.0, 0.0), 2.0, 1.0)
    grid = Grid(np.array([0.0, 5.0, 10.0, 13.0]), np.array([0.0]), np.array([0.0, 1.25]))
    np.testing.assert_allclose(
        tube.distance(grid)[:, 0], [[2.0, 1.5, 1.0, -2.0], [0.75, 0.25, -0.25, 1 - np.hypot(3, 1.25)]], atol=1e-5
    )


def test_slice_index_goes_on_beyond_the_scan(large: Nodule) -> None:
    z = np.array(large.scan.slice_z_mm)
    outside = np.array([z[0] - 5.0, z[0], z[7], z[-1], z[-1] + 5.0])
    np.testing.assert_allclose(slice_index(large.scan, outside), [-2, 0, 7, len(z) - 1, len(z) + 1], atol=1e-6)


@pytest.fixture(scope="module")
def series(nodules: dict[str, Nodule], tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A short scan (its slices around a nodule) as DICOM, with the phantom and its folder."""
    nodule = nodules["LIDC-IDRI-0078_n01"]
    made = Phantom(nodule)
    nearest = int(np.abs(np.array(nodule.scan.slice_z_mm) - made.body.centre_mm[2]).argmin())
    made.scan = replace(nodule.scan, slice_z_mm=nodule.scan.slice_z_mm[nearest - 2 : nearest + 2])
    root = tmp_path_factory.mktemp("dicom")
    return Phantom(nodule), made.scan, made.write_dicom(root), root


def test_dicom_has_the_scan_s_own_identity_and_positions(series: tuple) -> None:
    _, scan, folder, root = series
    assert folder == root / scan.patient_id / scan.study_uid / scan.series_uid
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert [path.name for path in sorted(folder.iterdir())] == [f"1-{n:03d}.dcm" for n in (1, 2, 3, 4)]
    assert [float(file.ImagePositionPatient[2]) for file in files] == pytest.approx(scan.slice_z_mm[::-1])
    assert len({file.SOPInstanceUID for file in files}) == len(files)
    x, y = in_plane_origin_mm(scan)
    for file in files:
        assert (file.StudyInstanceUID, file.SeriesInstanceUID) == (scan.study_uid, scan.series_uid)
        assert [float(step) for step in file.PixelSpacing] == [scan.pixel_spacing_mm] * 2
        assert file.ImagePositionPatient[:2] == pytest.approx([x, y])
        assert file.SeriesDescription == PHANTOM
        assert (file.PatientName, file.PatientBirthDate, file.StudyDate) == ("Phantom", "", "")


def test_dicom_holds_the_phantom_s_hu(series: tuple) -> None:
    made, scan, folder, _ = series
    file = pydicom.dcmread(folder / "1-002.dcm")
    axis = np.arange(512) * scan.pixel_spacing_mm
    expected = np.clip(made.hu(axis, axis, np.array([file.ImagePositionPatient[2]], float))[0], -1024, None)
    stored = file.pixel_array.astype(float) * file.RescaleSlope + file.RescaleIntercept
    assert np.abs(stored - expected).max() <= 0.51


def test_slices_that_exist_are_kept(series: tuple) -> None:
    made, scan, folder, root = series
    kept, lost = folder / "1-001.dcm", folder / "1-003.dcm"
    before, gone = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    short = Phantom(made.nodule)
    short.scan = scan
    short.write_dicom(root)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == gone


@pytest.fixture
def known(nodules: dict[str, Nodule], monkeypatch: pytest.MonkeyPatch) -> list[Nodule]:
    """The stage sees these patients alone."""
    monkeypatch.setattr(phantom_stage, "load_nodules", lambda: list(nodules.values()))
    return list(nodules.values())


def test_choice_is_balanced_repeatable_and_leaves_patients_out(known: list[Nodule]) -> None:
    chosen = choose_nodules(known, 4, 0, {"LIDC-IDRI-0001"})
    assert [label_of(nodule) for nodule in chosen].count(1) == 2
    assert chosen == choose_nodules(known, 4, 0, {"LIDC-IDRI-0001"})
    assert "LIDC-IDRI-0001" not in {nodule.scan.patient_id for nodule in chosen}
    malignant = [nodule for nodule in chosen if label_of(nodule) == 1]
    assert len({nodule.scan.patient_id for nodule in malignant}) == 2


def test_scans_with_few_slices_come_first(known: list[Nodule]) -> None:
    lengths = [len(members[0].scan.slice_z_mm) for members in choose_scans(known, 3)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 87


def test_pack_holds_phantoms_in_the_pack_format(
    known: list[Nodule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phantom_stage.phantom(tmp_path / "out", scans=0, nodules=2, seed=3)
    table = pd.read_csv(tmp_path / "out/pack/nodules.csv")
    assert len(table) == 2
    for row in table.itertuples():
        nodule = next(nodule for nodule in known if nodule.nodule_id == row.nodule_id)
        with np.load(tmp_path / f"out/pack/cutouts/{row.nodule_id}.npz") as stored:
            hu, readers = stored["hu"], stored["readers"]
            assert stored["flags"].tolist() == [SYNTHETIC]
        shape = (row.row_stop - row.row_start, row.column_stop - row.column_start, row.slice_stop - row.slice_start)
        assert hu.shape == readers.shape == shape
        assert hu.dtype == np.int16
        assert readers.dtype == np.uint8
        assert readers.sum() == reader_counts(nodule)[0].sum()
        z = np.array([float(z) for z in row.slice_z_mm.split()])
        assert z == pytest.approx(nodule.scan.slice_z_mm[row.slice_start : row.slice_stop])
        inside = readers * 2 >= len(nodule.readings)
        assert hu[inside].mean() > hu[readers == 0].mean() + 100
    capsys.readouterr()
    phantom_stage.phantom(tmp_path / "out", scans=0, nodules=2, seed=3)
    assert "are finished; nothing to do" in capsys.readouterr().out
    with pytest.raises(LidcCdamError, match=r"was made by `phantom` with seed = 3, but this call has seed = 4"):
        phantom_stage.phantom(tmp_path / "out", scans=0, nodules=2, seed=4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scans": -1}, "--scans must be at least 0; got -1."),
        ({"scans": 99}, r"--scans must be at most \d, the scans that phantoms can be made of; got 99."),
        ({"scans": 0, "nodules": 5000}, r"--nodules must be at most \d+; got 5000."),
    ],
)
def test_impossible_numbers_are_refused(
    known: list[Nodule], tmp_path: Path, options: dict[str, int], sentence: str
) -> None:
    with pytest.raises(LidcCdamError, match=sentence):
        phantom_stage.phantom(tmp_path / "out", **options)


def test_phantom_agrees_with_its_own_dicom_after_extraction(
    nodules: dict[str, Nodule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [nodule for nodule in nodules.values() if nodule.scan.patient_id == "LIDC-IDRI-0078"]
    monkeypatch.setattr(cohort_stage, "load_nodules", lambda **_: members)
    made = Phantom(members[0], members[1:])
    made.write_dicom(tmp_path / "dicom")
    cohort_stage.cohort(tmp_path / "data")
    extract(tmp_path / "data", dicom=tmp_path / "dicom")
    dataset = read_dataset(tmp_path / "data")
    assert len(dataset.nodules) >= 3
    corner = (*in_plane_origin_mm(made.scan), 0.0)
    for nodule_id, record in dataset.nodules.items():
        assert SYNTHETIC in record.flags
        crop = read_crop(tmp_path / "data", nodule_id)
        axes = [origin - first + np.arange(32.0) for origin, first in zip(crop.origin_mm, corner, strict=True)]
        direct = made.hu(*axes)
        # Noise is linear between voxels, so it agrees to rounding; edges differ where they lie between two slices.
        assert np.median(np.abs(direct - crop.hu)) < 1.0
        assert np.corrcoef(direct.ravel(), crop.hu.ravel())[0, 1] > 0.97
        body = Phantom(nodules[nodule_id]).causes(*axes)["diameter"]
        marked = crop.readers * 2 >= len(nodules[nodule_id].readings)
        assert 2 * (body & marked).sum() / (body.sum() + marked.sum()) > 0.8


@pytest.mark.data
def test_phantoms_are_about_as_dense_as_the_real_nodules(shared_data: Path) -> None:
    pack = shared_data / "nodule-pack"
    table = read_pack(pack)
    table = table[table["patient_id"].isin(sorted(set(table["patient_id"]))[::20])]
    real, made = [], []
    for nodule in load_nodules(patients=set(table["patient_id"])):
        if nodule.nodule_id in table.index:
            row = table.loc[nodule.nodule_id]
            block, _ = read_cutout(pack, row.to_dict())
            columns, rows = (np.arange(*span) * row["pixel_spacing_mm"] for span in (block.box.column, block.box.row))
            inside = block.readers * 2 >= len(nodule.readings)
            hu = np.moveaxis(Phantom(nodule).hu(columns, rows, np.array(block.z_mm)), 0, 2)
            real.append(block.hu[inside].mean())
            made.append(hu[inside].mean())
    assert len(real) > 30
    assert np.corrcoef(real, made)[0, 1] > 0.6
    assert abs(np.mean(made) - np.mean(real)) < 120
