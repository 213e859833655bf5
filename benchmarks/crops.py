"""How well a cube's mask and distances keep the volume and the centre of bodies of known size.

    python benchmarks/crops.py [--places 8]

Balls, ellipsoids and rods are drawn as a reader would (a voxel counts if its centre is inside), at each spacing and in
many positions against the voxels, then resampled as `extract` does. For each spacing and size the table gives the
greatest error of the volume over all bodies and places: of the drawn voxels themselves, of the masks at 1 mm and at
0.5 mm, and of the signed distances at 1 mm; then how far the centre by the 1 mm mask and by the distances lies from
the true one along an axis, at most.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from crop_reference import Body, Ellipsoid, Rod, draw, soft_centre, soft_volume_mm3

from lidc_cdam.geometry import Grid
from preprocessing.crops import CropSettings, centre_mm, consensus_box, cut_cube
from preprocessing.distances import surface_distance

SPACINGS = ((0.46, 0.6), (0.7, 1.25), (0.7, 2.5), (0.98, 3.0), (0.98, 5.0))
COLUMNS = ("drawn", "mask, 1 mm", "mask, 0.5 mm", "distances, 1 mm")
DIAMETERS_MM = (6.0, 10.0, 16.0, 24.0, 36.0)


def bodies(diameter_mm: float, generator: np.random.Generator) -> list[Body]:
    """A ball, an ellipsoid and a slanting rod of about one diameter, somewhere between the voxels."""
    centre, half = tuple(generator.uniform(-5, 5, 3)), diameter_mm / 2
    return [
        Ellipsoid(centre, (half,) * 3),
        Ellipsoid(centre, (1.2 * half, half, 0.8 * half)),
        Rod(centre, 0.8 * half, 1.6 * half, tuple(generator.normal(size=3))),
    ]


def errors(body: Body, pixel_mm: float, step_mm: float, side: int) -> list[float]:
    """Relative errors of the volume (`COLUMNS`), and how far two centres lie from the true one, mm."""
    block = draw(body, (pixel_mm, pixel_mm), tuple(np.arange(-40, 40, step_mm)))
    centre = centre_mm(consensus_box(block.readers, 1, block.box), block.frame, block.z_mm)
    grid = Grid(side)
    crop, _ = cut_cube(block, centre, CropSettings(side=side))
    fine, _ = cut_cube(block, centre, CropSettings(side=2 * side, spacing_mm=0.5))
    distance = surface_distance(block, block.readers > 0, centre, grid)
    drawn = block.readers.sum() * pixel_mm**2 * step_mm
    volumes = (drawn, crop.readers.sum(), fine.readers.sum() / 8, soft_volume_mm3(distance, 1.0))
    marked = 1.0 - 2 * (crop.readers > 0)
    centres = (soft_centre(kind, crop.origin_mm, 1.0) for kind in (marked, distance))
    away = (float(np.abs(np.subtract(found, body.centre)).max()) for found in centres)
    return [*(volume / body.volume_mm3 - 1 for volume in volumes), *away]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=8)
    places = parser.parse_args().places
    print("pixel x slice   diameter  " + "".join(f"{name:>20}" for name in COLUMNS) + "   centre: mask, distances (mm)")
    for pixel_mm, step_mm in SPACINGS:
        for diameter_mm in DIAMETERS_MM:
            generator = np.random.default_rng(0)
            side = 64 if diameter_mm > 20 else 32
            drawn = [body for _ in range(places) for body in bodies(diameter_mm, generator)]
            table = np.array([errors(body, pixel_mm, step_mm, side) for body in drawn])
            cells = "".join(
                f"{100 * np.abs(part).max():9.1f} % ({100 * part.mean():+5.1f})" for part in table[:, :-2].T
            )
            places_mm = "".join(f"{part.max():9.2f}" for part in table[:, -2:].T)
            print(f"{pixel_mm:5.2f} x {step_mm:4.2f} mm {diameter_mm:6.0f} mm {cells} {places_mm}", flush=True)


if __name__ == "__main__":
    main()
