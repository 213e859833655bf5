"""Slow, literal twins of the evaluation of maps: perturbation, discrimination, localisation, agreement and intervals.

As in `reference.py`: definitions word by word, one pixel, box or patient at a time. Images are arrays [channel row
column], maps and masks are nested lists [row][column] on the image's pixels. Nothing is shared with the fast code.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from reference import Grid, Output, area_percent, bootstrap_statistics, gaussian_blur, pearson, percentile

# --- What a perturbed pixel becomes -----------------------------------------------------------------------------------

Pixel = tuple[int, int]
Fill = Callable[[np.ndarray, set[Pixel]], np.ndarray]
"""An image and its perturbed pixels to the image in which these have other values, in all channels."""


def replaced(image: np.ndarray, perturbed: set[Pixel], by: np.ndarray) -> np.ndarray:
    changed = image.copy()
    for y, x in perturbed:
        changed[:, y, x] = by[:, y, x]
    return changed


def blur_fill(sigma_px: float, radius: int) -> Fill:
    """The value of the Gaussian-blurred image (the paper's fill)."""
    return lambda image, perturbed: replaced(image, perturbed, gaussian_blur(image, sigma_px, radius))


def mean_fill(image: np.ndarray, perturbed: set[Pixel]) -> np.ndarray:
    """The mean of the channel over the whole, unperturbed image."""
    means = np.zeros_like(image)
    for channel in range(len(image)):
        means[channel] = sum(image[channel].flatten()) / image[channel].size
    return replaced(image, perturbed, means)


NEIGHBOURS = {
    (dy, dx): 1 / 6 if 0 in (dy, dx) else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
}
"""Weights of ROAD's in-painting: 1/6 for the four direct neighbours, 1/12 for the four diagonal ones."""


def neighbours(pixel: Pixel, height: int, width: int) -> Iterator[tuple[Pixel, float]]:
    """The neighbours within the image, with their weights."""
    for (dy, dx), weight in NEIGHBOURS.items():
        if 0 <= pixel[0] + dy < height and 0 <= pixel[1] + dx < width:
            yield (pixel[0] + dy, pixel[1] + dx), weight


def linear_fill(image: np.ndarray, perturbed: set[Pixel]) -> np.ndarray:
    """Every perturbed pixel is the weighted mean of its neighbours, all at once: one linear system (Rong et al. 2022).

    Without ROAD's noise. At the image's border the mean is over the neighbours that exist. Where no pixel is left to
    start from, the system has no single solution: the image's mean is taken.
    """
    height, width = image.shape[1:]
    if len(perturbed) == height * width:
        return mean_fill(image, perturbed)
    unknown = {pixel: place for place, pixel in enumerate(sorted(perturbed))}
    matrix, known = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), len(image)))
    for pixel, place in unknown.items():
        for neighbour, weight in neighbours(pixel, height, width):
            matrix[place, place] += weight
            if neighbour in unknown:
                matrix[place, unknown[neighbour]] -= weight
            else:
                known[place] += weight * image[:, neighbour[0], neighbour[1]]
    solution = np.linalg.solve(matrix, known)
    changed = image.copy()
    for (y, x), place in unknown.items():
        changed[:, y, x] = solution[place]
    return changed


# --- Fidelity ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """Outputs of one image over the perturbed share of its pixels."""

    shares: list[float]
    """0 to 1."""
    mif: list[float]
    """Most important first."""
    lif: list[float]
    """Least important first."""

    @property
    def difference(self) -> list[float]:
        """LIF - MIF at every share."""
        return [lif - mif for lif, mif in zip(self.lif, self.mif, strict=True)]

    @property
    def area(self) -> float:
        """A_(LIF-MIF), output x percent."""
        return area_percent(self.shares, self.difference)


def order_of(scores: Grid, most_first: bool) -> list[Pixel]:
    """Pixels by score; equal ones in the order of reading, whichever the direction."""
    pixels = [(y, x) for y in range(len(scores)) for x in range(len(scores[0]))]
    return sorted(pixels, key=lambda pixel: -scores[pixel[0]][pixel[1]] if most_first else scores[pixel[0]][pixel[1]])


def fidelity_curves(output: Output, image: np.ndarray, scores: Grid, fill: Fill, steps: int) -> Curves:
    """Perturb the first round(k/steps N) pixels, k = 0 .. steps, in either order, and read the output."""
    counts = [round(step / steps * image[0].size) for step in range(steps + 1)]
    curves = []
    for most_first in (True, False):
        order = order_of(scores, most_first)
        curves.append([output(fill(image, set(order[:count]))) for count in counts])
    return Curves([count / image[0].size for count in counts], *curves)


# --- Box sensitivity --------------------------------------------------------------------------------------------------


def box_pixels(corner: Pixel, side: int) -> set[Pixel]:
    return {(corner[0] + dy, corner[1] + dx) for dy in range(side) for dx in range(side)}


def all_corners(height: int, width: int, side: int) -> list[Pixel]:
    """Upper left corners of every box within the image; a random box is one of them, each as likely."""
    return [(y, x) for y in range(height - side + 1) for x in range(width - side + 1)]


def box_r(output: Output, image: np.ndarray, scores: Grid, fill: Fill, corners: Sequence[Pixel], side: int) -> float:
    """Pearson r between a box's sum of scores and the drop of the output when the box alone is perturbed.

    NaN where it does not exist: all sums or all drops are equal.
    """
    sums, drops, whole = [], [], output(image)
    for corner in corners:
        box = box_pixels(corner, side)
        sums.append(sum(float(scores[y][x]) for y, x in box))
        drops.append(whole - output(fill(image, box)))
    if max(sums) == min(sums) or max(drops) == min(drops):
        return math.nan
    return pearson(sums, drops)


def mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def box_sensitivity(
    outputs: Sequence[Output],
    images: Sequence[np.ndarray],
    maps: Sequence[Grid],
    fill: Fill,
    corners: Mapping[int, Sequence[Sequence[Pixel]]],
) -> tuple[list[float], float]:
    """R(b), the mean over images, and A_box, its area over the list of sides (trapezia; unit: pixels).

    Args:
        outputs: one per image.
        images: the images.
        maps: one per image.
        fill: what a perturbed pixel becomes.
        corners: for each side b, in ascending order, the boxes of every image.
    """
    curve = []
    for side, boxes in corners.items():
        each = zip(outputs, images, maps, boxes, strict=True)
        curve.append(mean_of_known([box_r(*parts[:3], fill, parts[3], side) for parts in each]))
    return curve, area_over(list(corners), curve)


def area_over(places: Sequence[float], values: Sequence[float]) -> float:
    """Area by trapezia."""
    area = 0.0
    for left in range(len(places) - 1):
        area += (places[left + 1] - places[left]) * (values[left] + values[left + 1]) / 2
    return area


# --- Class discrimination ---------------------------------------------------------------------------------------------


def discrimination_matrix(figure: Callable[[int, int], float], targets: int) -> list[list[float]]:
    """A[read][map]: the figure of the output `read` under the map of the target `map` (biomarkers: 8 x 8)."""
    return [[figure(read, explained) for explained in range(targets)] for read in range(targets)]


def pair_deltas(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Delta = A - A' for every output and every wrong map: A[t][t] - A[t][k]; 0 where k = t."""
    return [[row[read] - foreign for foreign in row] for read, row in enumerate(matrix)]


def deltas(matrix: Sequence[Sequence[float]]) -> list[float]:
    """For every output the mean of its Deltas over the wrong maps."""
    return [sum(row) / (len(row) - 1) for row in pair_deltas(matrix)]


# --- Localisation -----------------------------------------------------------------------------------------------------


def pairs(scores: Grid, inside: Grid) -> list[tuple[float, float]]:
    """(score, how much the pixel is inside) of every pixel in the order of reading."""
    return [(float(s), float(i)) for sr, ir in zip(scores, inside, strict=True) for s, i in zip(sr, ir, strict=True)]


def soft_relevance_mass(scores: Grid, fractions: Grid) -> float:
    """Sum_p s+_p f_p / sum_p s+_p, f the fraction of the readers who marked the pixel."""
    pixels = pairs(scores, fractions)
    total = sum(max(score, 0.0) for score, _ in pixels)
    return sum(max(score, 0.0) * fraction for score, fraction in pixels) / total if total > 0 else math.nan


def soft_relevance_rank(scores: Grid, fractions: Grid, size: int | None = None) -> float:
    """Sum of f over the K highest pixels, over the most that any K pixels have.

    Args:
        scores: the map.
        fractions: f, the fraction of the readers who marked each pixel.
        size: K, by default the consensus mask's size, the pixels with f >= 1/2.

    Pixels that are equal at rank K stand for every order of themselves: each brings its f times the share of them that
    is still wanted. With f = 0 and 1 this is the hard relevance rank accuracy.
    """
    pixels = pairs(scores, fractions)
    wanted = sum(fraction >= 0.5 for _, fraction in pixels) if size is None else size
    best = sum(sorted((fraction for _, fraction in pixels), reverse=True)[:wanted])
    if best == 0:
        return math.nan
    edge = sorted((score for score, _ in pixels), reverse=True)[wanted - 1]
    above = [fraction for score, fraction in pixels if score > edge]
    tied = [fraction for score, fraction in pixels if score == edge]
    return (sum(above) + sum(tied) * (wanted - len(above)) / len(tied)) / best


def average_precision(scores: Grid, mask: Grid) -> float:
    """AUPRC: sum over thresholds of (recall gained) x precision; equal scores pass a threshold together."""
    pixels = pairs(scores, mask)
    marked = sum(inside for _, inside in pixels)
    if marked == 0:
        return math.nan
    area, recall = 0.0, 0.0
    for threshold in sorted({score for score, _ in pixels}, reverse=True):
        called = [inside for score, inside in pixels if score >= threshold]
        area += (sum(called) / marked - recall) * sum(called) / len(called)
        recall = sum(called) / marked
    return area


# --- Chance: the expectation of a figure over random orders of the map's units ----------------------------------------
# A map on pixels has pixels as units, an upsampled token map has tokens: blocks of equal size.


def units(mask: Grid, rows: int, columns: int) -> list[float]:
    """How much of the mask each token covers: sums over equal blocks, in the order of reading."""
    height, width = len(mask) // rows, len(mask[0]) // columns
    sums = [0.0] * (rows * columns)
    for y, row in enumerate(mask):
        for x, inside in enumerate(row):
            sums[y // height * columns + x // width] += float(inside)
    return sums


def chance_of_share(inside: Grid) -> float:
    """Of relevance mass (hard and soft), relevance rank and pointing game: the mean of the mask or of the fractions.

    By symmetry, whatever the units are.
    """
    values = [float(value) for row in inside for value in row]
    return sum(values) / len(values)


def chance_of_soft_rank(fractions: Grid, size: int | None = None) -> float:
    """K mean(f), over the most that any K pixels have."""
    values = sorted((float(value) for row in fractions for value in row), reverse=True)
    wanted = sum(value >= 0.5 for value in values) if size is None else size
    return wanted * sum(values) / len(values) / sum(values[:wanted])


def chance_of_average_precision(mask: Grid, rows: int, columns: int) -> float:
    """The expectation over all orders of the units; above the mask's share, and the more so the fewer the units.

    A unit t with m_t of the K marked pixels comes at each rank r = 1 .. T as likely; then the r - 1 before it have
    (r - 1) (K - m_t) / (T - 1) on average, the precision is (m_t + that) / (r n) with n pixels a unit, and the recall
    gained m_t / K.
    """
    marked = units(mask, rows, columns)
    count, pixels, total = len(marked), len(mask) * len(mask[0]) / len(marked), sum(marked)
    area = 0.0
    for own in marked:
        for rank in range(1, count + 1):
            before = (rank - 1) * (total - own) / (count - 1)
            area += own / total * (own + before) / (rank * pixels) / count
    return area


# --- Sanity, repeatability, completeness ------------------------------------------------------------------------------


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the lowest; equal values share the mean of their places."""
    return [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]


def spearman(first: Grid, second: Grid) -> float:
    """Rank correlation of two signed maps; NaN where one of them is constant."""
    one, other = ([float(value) for row in scores for value in row] for scores in (first, second))
    if min(one) == max(one) or min(other) == max(other):
        return math.nan
    return pearson(ranks(one), ranks(other))


def repeatability(maps: Sequence[Grid]) -> float:
    """Mean rank correlation over all pairs of maps of one nodule and target (seeds, or folds' models)."""
    return mean_of_known([spearman(first, second) for first, second in itertools.combinations(maps, 2)])


def completeness_error(scores: Grid, output: float, output_at_baseline: float) -> float:
    """|sum S - (f(T) - f(B))| / |f(T) - f(B)|, S of all tokens, prefix tokens included."""
    difference = output - output_at_baseline
    return abs(sum(float(value) for row in scores for value in row) - difference) / abs(difference)


# --- Intervals, differences, many comparisons -------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """The mean difference of two methods over the same nodules."""

    value: float
    low: float
    high: float
    p: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], patients: Sequence[str], draws: Sequence[Sequence[str]]
) -> Paired:
    """Mean of first - second, its 95 % percentile interval and its two-sided p over drawn cohorts of patients.

    P = 2 min(1 + replicates <= 0, 1 + replicates >= 0) / (1 + replicates), at most 1.

    Args:
        first: a figure of the first method, one per nodule.
        second: the same nodules' figure of the second method.
        patients: each nodule's patient.
        draws: patients of every replicate, with repetition.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    drawn = bootstrap_statistics(patients, draws, lambda rows: sum(differences[row] for row in rows) / len(rows))
    below, above = sum(value <= 0 for value in drawn), sum(value >= 0 for value in drawn)
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn)))
    return Paired(sum(differences) / len(differences), percentile(drawn, 2.5), percentile(drawn, 97.5), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p: the k-th smallest of m times m - k + 1, never less than the one before, at most 1."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, last = [0.0] * len(p_values), 0.0
    for k, place in enumerate(order):
        last = max(last, min(1.0, (len(p_values) - k) * p_values[place]))
        adjusted[place] = last
    return adjusted
