"""Synthetic CT from real readings: bodies from the readers' contours, looks from their ratings, in a drawn chest.

A phantom is a function of position: the same HU come out on a crop's grid as on DICOM slices, whatever else is sampled.
It is made for tests and for the demo; what a model reaches on it says nothing about real nodules.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int16

from lidc_cdam.vocabulary import BIOMARKERS, TARGETS
from preprocessing.annotations import IndexBox, Nodule
from preprocessing.phantom_dicom import write_series
from preprocessing.phantom_look import ABSENT, Anatomy, Look, draw, draw_anatomy, generator_for, look_of, ratings_of
from preprocessing.phantom_parts import Ball, Body, Grid, Noise, Tube, Volume, edge, pixel_axis
from preprocessing.phantom_shapes import Shape, reshaped

SOFT_HU = 30.0
AIR_HU = -1000.0
TUBE_EDGE_MM = 1.4
"""Edge width of vessels and spicules, about a scanner's resolution."""
TISSUE = 0.15
"""Share of a thin structure in a position from which on the position counts as part of it."""
DENSE = 0.5
"""Share of calcified tissue in a position from which on the position counts as calcified."""
MOVED = 0.25
"""Share of the lobes' height by which they must move the surface, out or in, where they count."""
AT_SURFACE_MM = 1.0
"""Distance from the surface up to which a position counts as part of it."""


class Phantom:
    """A nodule, its neighbours in the same scan, and the chest around them, as a function of position.

    Positions are mm in the scan's own frame: x = column * pixel spacing, y = row * pixel spacing, z as in DICOM.
    Everything random is drawn here, once, from the seed, the nodules' ids and the series; `look` and `anatomy` keep it.
    """

    def __init__(self, nodule: Nodule, others: Sequence[Nodule] = (), seed: int = 0) -> None:
        """Draw a phantom.

        Args:
            nodule: the nodule whose causes `causes` tells.
            others: further nodules of the same scan; `nodule` itself among them is passed over.
            seed: another seed, another chest, other spicules; the bodies stay.

        Raises:
            ValueError: a nodule of another scan.
        """
        rest = [other for other in others if other.nodule_id != nodule.nodule_id]
        if any(other.scan.series_uid != nodule.scan.series_uid for other in rest):
            raise ValueError(f"all nodules of a phantom must lie in one scan, that of {nodule.nodule_id}")
        self.nodule, self.scan, self.seed = nodule, nodule.scan, seed
        # The scan's nodules in one order, so that each of them as `nodule` gives the same CT.
        self.nodules = sorted((nodule, *rest), key=lambda item: item.number)
        self.bodies = {item.nodule_id: Body.of(item) for item in self.nodules}
        draws = {key: draw(body, seed, key) for key, body in self.bodies.items()}
        self.looks = {
            item.nodule_id: look_of(ratings_of(item), self.bodies[item.nodule_id], draws[item.nodule_id])
            for item in self.nodules
        }
        self.ratings = ratings_of(nodule)
        self._drawn, self._draws = self.bodies[nodule.nodule_id], draws[nodule.nodule_id]
        generator = generator_for(seed, self.scan.series_uid)
        self.anatomy: Anatomy = draw_anatomy(self.scan, list(self.bodies.values()), generator)
        self._noise = Noise.draw(self.scan, (0.6, 0.6, 1.0), generator)
        self._parenchyma = Noise.draw(self.scan, (2.0, 2.0, 2.0), generator)

    @property
    def look(self) -> Look:
        """The drawn look of `nodule`."""
        return self.looks[self.nodule.nodule_id]

    @property
    def body(self) -> Body:
        """The body of `nodule`."""
        return self.bodies[self.nodule.nodule_id]

    def with_rating(self, key: str, value: float) -> "Phantom":
        """The same phantom with one biomarker of `nodule` changed: all that was drawn stays.

        Lung, vessels, noise and neighbours are the same to the last bit, and so are the nodule's other parts where
        they do not hang on the changed one: spicules, lobes and calcifications follow the surface of a body that
        `sphericity` or `diameter` reshapes. A higher rating of spiculation only adds to the spicules.

        Args:
            key: one of the eight biomarkers.
            value: its rating, on the readers' scale; for calcification one of its codes, for diameter the readers' mean
                diameter in mm (every length of the body grows with it).

        Raises:
            ValueError: an unknown key, or a value off the scale.
        """
        known = [biomarker.key for biomarker in BIOMARKERS]
        if key not in known:
            raise ValueError(f"key must be one of {', '.join(known)}; got {key!r}")
        target = TARGETS[key]
        if key == "diameter" and not 0 < value < np.inf:
            raise ValueError(f"a diameter must be above 0 mm; got {value}")
        if key != "diameter" and not target.low <= value <= target.high:
            raise ValueError(f"{key} must be from {target.low:g} to {target.high:g}; got {value}")
        if key == "calcification" and value != round(value):
            raise ValueError(f"calcification must be one of the codes 1 to 6; got {value}")
        made = copy.copy(self)
        made.ratings = {**self.ratings, key: float(value)}
        name, own = self.nodule.nodule_id, ratings_of(self.nodule)
        scale = made.ratings["diameter"] / own["diameter"]
        body = reshaped(self._drawn, Shape.between(own["sphericity"], made.ratings["sphericity"], scale))
        made.bodies = {**self.bodies, name: body}
        made.looks = {**self.looks, name: look_of(made.ratings, body, self._draws)}
        return made

    def hu(
        self,
        x_mm: Float[np.ndarray, " column"],
        y_mm: Float[np.ndarray, " row"],
        z_mm: Float[np.ndarray, " slice"],
    ) -> Float32[np.ndarray, "slice row column"]:
        """HU at the positions of three ascending axes, mm.

        The value at a position does not depend on the other positions.
        """
        grid = Grid(np.asarray(x_mm), np.asarray(y_mm), np.asarray(z_mm))
        lung = self._lung_share(grid)
        structure = self.anatomy.lung_hu + self.anatomy.parenchyma_hu * self._parenchyma.at(grid)
        hu = SOFT_HU + lung * (structure - SOFT_HU)
        for tube in (*self.anatomy.vessels, *(tube for look in self.looks.values() for tube in look.vessels)):
            _blend(hu, grid, tube, SOFT_HU)
        for key, look in self.looks.items():
            self._add_nodule(hu, grid, self.bodies[key], look)
        hu += (AIR_HU - hu) * (1.0 - edge(self._chest_distance(grid), 2.0))
        hu += self.anatomy.noise_hu * self._noise.at(grid)
        return np.asarray(hu, np.float32)

    def causes(
        self,
        x_mm: Float[np.ndarray, " column"],
        y_mm: Float[np.ndarray, " row"],
        z_mm: Float[np.ndarray, " slice"],
    ) -> dict[str, Bool[np.ndarray, "slice row column"]]:
        """Where each biomarker of `nodule` has its cause, at the positions of three ascending axes, mm.

        Returns:
            By biomarker key, in the vocabulary's order: the body (diameter), the positions within 1 mm of its surface
            (sphericity), within half the edge's width (margin), the body with its edge and its spicules (subtlety), the
            body without its edge and its calcified part (texture), where lobes or the grooves between them moved the
            surface (lobulation), the spicules outside the body (spiculation), the calcified part (calcification). A
            mask is empty where the readers saw no such thing.
        """
        grid = Grid(np.asarray(x_mm), np.asarray(y_mm), np.asarray(z_mm))
        depth, dense, spicules, lobes = (np.full(grid.shape, fill, np.float32) for fill in (-1e3, 0.0, 0.0, 0.0))
        index, part = grid.part(*self.body.box())
        if 0 not in part.shape:
            lobes[index] = _lobes(part, self.body, self.look)
            depth[index] = self.body.depth(part) + lobes[index]
            dense[index] = _dense_share(depth[index], part, self.look)
        for spicule in self.look.spicules:
            _fill(spicules, grid, spicule)
        half_edge = max(self.look.edge_mm / 2, 0.75)
        calcified, spiculated = (dense > DENSE) & (depth > 0), spicules > TISSUE
        moved = (np.abs(lobes) > MOVED * self.look.bump_mm) & (self.look.bump_mm > 0)
        masks = {
            "subtlety": (depth > -half_edge) | spiculated,
            "calcification": calcified,
            "sphericity": np.abs(depth) <= AT_SURFACE_MM,
            "margin": np.abs(depth) <= half_edge,
            "lobulation": moved & (np.abs(depth) <= AT_SURFACE_MM + np.abs(lobes)),
            "spiculation": spiculated & (depth <= 0),
            "texture": (depth > min(half_edge, 0.5 * self.body.deepest_mm)) & ~calcified,
            "diameter": depth > 0,
        }
        return {biomarker.key: masks[biomarker.key] for biomarker in BIOMARKERS}

    def write_dicom(self, folder: Path) -> Path:
        """Write the scan as a CT series below `folder`; see `preprocessing.phantom_dicom.write_series`."""
        size = pixel_axis(self.scan)
        return write_series(self.scan, lambda z_mm: self.hu(size, size, z_mm), folder, self.seed)

    def _lung_share(self, grid: Grid) -> Volume:
        """Share of lung: two elliptic lungs without ends across the slices, and the hollows around the nodules."""
        x, y = grid.x_mm[None, :], grid.y_mm[:, None]
        lung = np.zeros((len(grid.y_mm), len(grid.x_mm)), np.float32)
        for centre_x, centre_y, half_x, half_y in self.anatomy.lungs:
            lung = np.maximum(lung, edge(_ellipse(x - centre_x, y - centre_y, half_x, half_y), 2.0))
        share = np.repeat(lung[None], len(grid.z_mm), axis=0)
        for hollow in self.anatomy.hollows:
            _fill(share, grid, hollow)
        return share

    def _chest_distance(self, grid: Grid) -> Float[np.ndarray, "1 row column"]:
        centre_x, centre_y = self.anatomy.centre_mm
        x, y = grid.x_mm[None, :] - centre_x, grid.y_mm[:, None] - centre_y
        return _ellipse(x, y, *self.anatomy.chest_mm)[None]

    def _add_nodule(self, hu: Volume, grid: Grid, body: Body, look: Look) -> None:
        tissue_hu = self.anatomy.lung_hu + look.contrast * (SOFT_HU - self.anatomy.lung_hu)
        for spicule in look.spicules:
            _blend(hu, grid, spicule, tissue_hu)
        index, part = grid.part(*body.box())
        if 0 in part.shape:
            return
        depth = body.depth(part) + _lobes(part, body, look)
        solid: Volume | float = 1.0
        if look.core_depth_mm > 0:
            ragged = 0.25 * body.deepest_mm * self._parenchyma.at(part)
            solid = edge(depth - look.core_depth_mm + ragged, 1.5)
        inside = look.ground_hu + solid * (SOFT_HU - look.ground_hu)
        inside = self.anatomy.lung_hu + look.contrast * (inside - self.anatomy.lung_hu)
        inside = inside + _dense_share(depth, part, look) * (look.dense_hu - inside)
        hu[index] += edge(depth, look.edge_mm) * (inside - hu[index])


def stored_hu(made: Phantom, box: IndexBox) -> Int16[np.ndarray, "row column slice"]:
    """A phantom's HU on a box of its scan's voxels, whole numbers as a CT's 12 bits hold them."""
    rows, columns = (np.arange(*span) * made.scan.pixel_spacing_mm for span in (box.row, box.column))
    hu = made.hu(columns, rows, np.array(made.scan.slice_z_mm[slice(*box.slice)]))
    return np.asarray(np.moveaxis(np.clip(np.rint(hu), -1024, 3071), 0, 2), np.int16)


def _ellipse(
    x: Float[np.ndarray, "1 column"], y: Float[np.ndarray, "row 1"], half_x: float, half_y: float
) -> Float[np.ndarray, "row column"]:
    """About the signed distance to an ellipse, mm: exact on its axes, and its zero is exact everywhere."""
    return np.asarray((1.0 - np.hypot(x / half_x, y / half_y)) * min(half_x, half_y))


def _blend(hu: Volume, grid: Grid, shape: Tube | Ball, target_hu: float) -> None:
    index, part = grid.part(*shape.box())
    if 0 not in part.shape:
        # Never darker than what is there: a vessel that meets another leaves no seam.
        share = edge(shape.distance(part), TUBE_EDGE_MM)
        hu[index] += share * np.maximum(target_hu - hu[index], 0.0)


def _fill(share: Volume, grid: Grid, shape: Tube | Ball) -> None:
    index, part = grid.part(*shape.box())
    if 0 not in part.shape:
        share[index] = np.maximum(share[index], edge(shape.distance(part), TUBE_EDGE_MM))


def _lobes(grid: Grid, body: Body, look: Look) -> Volume:
    """How far the lobes move the surface outwards (negative: the grooves between them, inwards), mm."""
    x, y, z = grid.from_point(body.centre_mm)
    length = np.sqrt(x**2 + y**2 + z**2) + 1e-3
    if look.bump_mm == 0:
        return np.zeros_like(length)
    caps = [np.exp(5.0 * ((x * a + y * b + z * c) / length - 1.0)) for a, b, c in look.bumps.astype(np.float32)]
    # A direction has no meaning at the centre, so the lobes fade in over the outer half.
    fade = np.clip(2.0 * length / body.radius_mm - 0.5, 0.0, 1.0)
    return np.asarray(look.bump_mm * fade * (np.maximum.reduce(caps) - 0.4), np.float32)


def _dense_share(depth_mm: Volume, grid: Grid, look: Look) -> Volume:
    """Calcified share, 0 to 1, by the pattern that the readers named."""
    share = np.zeros_like(depth_mm)
    if look.calcification == 3:
        share = edge(depth_mm - 0.5, 1.5)
    elif look.calcification == 2:
        share = edge(np.cos(2 * np.pi * depth_mm / 3.0 + np.pi) * 1.5, 1.5) * (depth_mm > 0)
    for grain in look.grains:
        share = np.maximum(share, edge(grain.distance(grid), TUBE_EDGE_MM))
    return np.asarray(share if look.calcification != ABSENT else share * 0, np.float32)
