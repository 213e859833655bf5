"""Counterfactual phantoms: one biomarker changes, everything else stays to the last bit."""

import numpy as np
import pytest
from scipy import ndimage

from lidc_cdam.vocabulary import BIOMARKERS
from preprocessing.annotations import load_nodules
from preprocessing.phantom import Phantom
from preprocessing.phantom_look import ratings_of
from preprocessing.phantom_shapes import Shape, reshaped

PATIENTS = ("LIDC-IDRI-0003", "LIDC-IDRI-0078", "LIDC-IDRI-0437")
KEYS = tuple(biomarker.key for biomarker in BIOMARKERS)
CHANGES = {
    "subtlety": (1.0, 5.0),
    "calcification": (6.0, 3.0, 1.0),
    "sphericity": (1.0, 5.0),
    "margin": (1.0, 5.0),
    "lobulation": (1.0, 5.0),
    "spiculation": (1.0, 5.0),
    "texture": (1.0, 5.0),
    "diameter": (6.0, 16.0),
}
REACH_MM = 2.5
"""A spicule's visible edge beyond the share of tissue from which on it counts, at its tip."""


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    """Phantoms of several real nodules, one calcified and one small."""
    nodules = [nodule for nodule in load_nodules(patients=PATIENTS) if len(nodule.readings) >= 3]
    scan = [nodule for nodule in nodules if nodule.scan.patient_id == "LIDC-IDRI-0003"]
    chosen = [scan[0], scan[1], nodules[-1], next(n for n in nodules if n.nodule_id == "LIDC-IDRI-0078_n04")]
    return [Phantom(nodule, scan if nodule in scan else ()) for nodule in chosen]


def axes(made: Phantom, half_mm: float = 20.0) -> tuple[np.ndarray, ...]:
    offsets = np.arange(-half_mm, half_mm + 0.5)
    return tuple(centre + offsets for centre in made.body.centre_mm)


def changes(made: Phantom) -> list[tuple[str, Phantom]]:
    return [(key, made.with_rating(key, value)) for key, values in CHANGES.items() for value in values]


def test_only_voxels_within_reach_of_the_cause_change(phantoms: list[Phantom]) -> None:
    for made in phantoms:
        where = axes(made)
        hu, causes = made.hu(*where), made.causes(*where)
        body = causes["diameter"] | causes["margin"]
        for key, other in changes(made):
            changed = other.hu(*where) != hu
            after = other.causes(*where)
            whole = causes["subtlety"] | after["subtlety"]
            far = ndimage.distance_transform_edt(~whole) > REACH_MM
            assert not (changed & far).any(), (made.nodule.nodule_id, key)
            if key == "margin":
                assert not (changed & ~ndimage.binary_dilation(causes[key] | after[key])).any()
            if key in ("calcification", "texture", "lobulation"):
                assert not (changed & ~(body | after["diameter"] | after["margin"])).any(), key
            if key == "spiculation":
                deep = ndimage.distance_transform_edt(causes["diameter"]) > REACH_MM
                assert not (changed & deep).any()


def test_neighbours_chest_and_noise_stay_to_the_last_bit(phantoms: list[Phantom]) -> None:
    made = phantoms[0]
    other = phantoms[1]
    where = axes(other, 20.0)
    assert other.nodule.nodule_id != made.nodule.nodule_id
    for key, changed in changes(made):
        assert np.array_equal(changed.hu(*where), made.hu(*where)), key
        assert changed.anatomy is made.anatomy


def test_a_rating_of_its_own_changes_nothing_and_the_original_stays(phantoms: list[Phantom]) -> None:
    for made in phantoms:
        where = axes(made, 12.0)
        before = made.hu(*where)
        for key, value in ratings_of(made.nodule).items():
            assert np.array_equal(made.with_rating(key, value).hu(*where), before), key
        changed = made.with_rating("diameter", 25.0).with_rating("texture", 1.0)
        assert not np.array_equal(changed.hu(*where), before)
        assert np.array_equal(made.hu(*where), before)
        back = changed.with_rating("diameter", made.ratings["diameter"]).with_rating("texture", made.ratings["texture"])
        assert np.array_equal(back.hu(*where), before)


def test_the_order_of_changes_does_not_matter(phantoms: list[Phantom]) -> None:
    made = phantoms[1]
    where = axes(made, 15.0)
    one = made.with_rating("spiculation", 5).with_rating("diameter", 14).with_rating("sphericity", 1)
    other = made.with_rating("sphericity", 1).with_rating("spiculation", 5).with_rating("diameter", 14)
    assert np.array_equal(one.hu(*where), other.hu(*where))


def test_spiculation_only_adds_spicules(phantoms: list[Phantom]) -> None:
    for made in phantoms:
        where = axes(made)
        steps = [made.with_rating("spiculation", rating) for rating in (1.0, 2.0, 3.5, 5.0)]
        images, masks = [step.hu(*where) for step in steps], [step.causes(*where) for step in steps]
        assert not masks[0]["spiculation"].any()
        for lower, higher in zip(range(3), range(1, 4), strict=True):
            assert (images[higher] >= images[lower] - 1e-3).all()  # but for single precision
            assert (masks[higher]["spiculation"] | ~masks[lower]["spiculation"]).all()
            assert masks[higher]["spiculation"].sum() > masks[lower]["spiculation"].sum()
        for key in KEYS:
            if key not in ("spiculation", "subtlety"):
                assert np.array_equal(masks[0][key], masks[3][key]), key


def test_diameter_scales_the_body(phantoms: list[Phantom]) -> None:
    for made in phantoms:
        for factor in (0.75, 1.3):
            other = made.with_rating("diameter", factor * made.ratings["diameter"])
            assert other.body.radius_mm == pytest.approx(factor * made.body.radius_mm, rel=0.06)
            assert other.body.centre_mm == made.body.centre_mm
            # The same shape: the same share of the ball of its volume fits inside.
            assert other.body.deepest_mm / other.body.radius_mm == pytest.approx(
                made.body.deepest_mm / made.body.radius_mm, rel=0.15
            )
            assert len(other.look.spicules) == len(made.look.spicules)


def elongation(made: Phantom) -> float:
    """Longest over shortest principal deviation of the body."""
    where = axes(made)
    centred = np.argwhere(made.causes(*where)["diameter"])
    return float(np.sqrt(np.divide(*np.linalg.eigvalsh(np.cov(centred.T))[[2, 0]])))


def test_sphericity_changes_the_shape_and_keeps_the_volume(phantoms: list[Phantom]) -> None:
    for made in phantoms:
        made = made.with_rating("lobulation", 1.0)
        linear, own, round_ = (made.with_rating("sphericity", v) for v in (1, made.ratings["sphericity"], 5))
        assert elongation(linear) > 1.3 * elongation(own)
        assert elongation(round_) <= elongation(own)
        assert elongation(round_) < 1.25
        for other in (linear, round_):
            assert other.body.radius_mm == pytest.approx(made.body.radius_mm, rel=0.05)


def test_a_reshaped_body_is_a_distance_about_its_surface(phantoms: list[Phantom]) -> None:
    body = phantoms[3].body
    assert reshaped(body, Shape()) is body
    spacing = (body.scan.slice_z_mm[1] - body.scan.slice_z_mm[0],) + (body.scan.pixel_spacing_mm,) * 2
    for shape in (Shape(1.4), Shape(0.7), Shape(1.0, 1.8), Shape(1.2, 1.0, 0.6)):
        depth = reshaped(body, shape).depth_mm
        exact = ndimage.distance_transform_edt(depth > 0, spacing) - ndimage.distance_transform_edt(depth <= 0, spacing)
        near = np.abs(exact) < 3
        assert np.abs(depth - exact)[near].mean() < 0.6, shape


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("malignancy", 3, "key must be one of subtlety, .*; got 'malignancy'"),
        ("margin", 6, "margin must be from 1 to 5; got 6"),
        ("calcification", 2.5, "calcification must be one of the codes 1 to 6; got 2.5"),
        ("diameter", 0, "a diameter must be above 0 mm; got 0"),
        ("texture", float("nan"), "texture must be from 1 to 5; got nan"),
    ],
)
def test_a_rating_off_the_scale_is_refused(phantoms: list[Phantom], key: str, value: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        phantoms[0].with_rating(key, value)
