"""Damage DICOM files at random and watch what the readers make of them.

As a program (`python tests/dicom_fuzz.py --slices FOLDER --number 2000`) it prints how often each outcome came.
"""

import argparse
import io
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_files

from lidc_cdam.errors import LidcCdamError
from preprocessing.pixels import SlicePixels, read_hu
from preprocessing.series import SAME_Z_MM, Series, index_series

PATIENCE_S = 30
"""One file that takes longer hangs."""
PIXELS = b"\xe0\x7f\x10\x00"
LENGTHS = (0, 1, 2, 7, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
REPRESENTATIONS = (
    *LONG,
    "AE",
    "AS",
    "AT",
    "CS",
    "DA",
    "DS",
    "DT",
    "FD",
    "FL",
    "IS",
    "LO",
    "PN",
    "SH",
    "SL",
    "SS",
    "TM",
)


@dataclass(frozen=True)
class Element:
    """Where one element of a file lies."""

    start: int
    value: int
    stop: int
    name: str


@dataclass(frozen=True)
class Damaged:
    """A file's bytes after one mutation."""

    raw: bytes
    what: str
    in_pixels: bool
    """Whether pixel data may have changed, which no reader can notice: DICOM has no checksum."""


def elements(raw: bytes) -> list[Element]:
    """The top-level elements of a readable file, those of the file meta information left out."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(raw), force=True)
        items = [dataset.get_item(tag) for tag in sorted(dataset.keys())]
    implicit, _ = dataset.original_encoding
    for item in items:
        place, length = getattr(item, "value_tell", None), getattr(item, "length", None)
        if place is None or length is None or length == 0xFFFFFFFF or place + length > len(raw):
            continue
        size = 8 if implicit or item.VR not in LONG else 12
        found.append(Element(place - size, place, place + length, str(item.tag)))
    return found


def mutate(raw: bytes, random: np.random.Generator) -> Damaged:
    """One mutation, drawn at random."""
    found = elements(raw)
    headers = [one for one in found if one.name != "(7FE0,0010)"]
    # Compressed pixel data are no plain element, so their tag is looked for.
    pixels = raw.find(PIXELS) if PIXELS in raw else len(raw)
    kind = random.choice(["bits", "anywhere", "truncate", "length", "representation", "delete", "duplicate", "value"])
    if kind in ("bits", "anywhere") or not headers:
        places = random.integers(132, len(raw) if kind == "anywhere" else pixels, random.integers(1, 9))
        changed = bytearray(raw)
        for place in places:
            changed[place] ^= 1 << int(random.integers(8))
        return Damaged(bytes(changed), f"{kind} at {places.tolist()}", bool(places.max() >= pixels))
    if kind == "truncate":
        stop = int(random.integers(0, pixels if random.random() < 0.7 else len(raw)))
        return Damaged(raw[:stop], f"truncated at {stop}", False)
    one = headers[random.integers(len(headers))] if random.random() < 0.8 else found[random.integers(len(found))]
    return _spoil(raw, one, str(kind), random)


def _spoil(raw: bytes, one: Element, kind: str, random: np.random.Generator) -> Damaged:
    before, element, after = raw[: one.start], raw[one.start : one.stop], raw[one.stop :]
    size, what = one.value - one.start, f"{kind} of {one.name}"
    if kind == "delete":
        return Damaged(before + after, what, False)
    if kind == "representation":
        name = str(random.choice(REPRESENTATIONS)).encode()
        return Damaged(before + element[:4] + name + element[6:] + after, f"{what} {name!r}", False)
    if kind == "length":
        wide = 4 if size == 12 or element[4:6].decode("latin-1") not in REPRESENTATIONS else 2
        length = (int(random.choice(LENGTHS)) & (256**wide - 1)).to_bytes(wide, "little")
        return Damaged(before + element[: size - wide] + length + element[size:] + after, f"{what} {length!r}", False)
    value = bytearray(element[size:])
    for place in random.integers(0, max(len(value), 1), 3 if value else 0):
        value[place] = int(random.choice(list(b"0123456789.-\\eE \0\xff")))
    other = element[:size] + bytes(value)
    in_pixels = one.name == "(7FE0,0010)"
    if kind == "duplicate":
        return Damaged(before + (other if random.random() < 0.5 else element) + raw[one.start :], what, in_pixels)
    return Damaged(before + other + after, f"{what} {bytes(value)[:60]!r}", in_pixels)


class Stackful:
    """Neighbouring slices of a series, of which one is damaged at a time."""

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        self.folder = folder
        self.raws = [path.read_bytes() for path in files]
        for place, raw in enumerate(self.raws):
            self._path(place).write_bytes(raw)
        (self.series,) = index_series(folder).series.values()
        self.hu = [read_hu(one) for one in self.series.slices]

    def _path(self, place: int) -> Path:
        return self.folder / f"{place}.dcm"

    def outcome(self, place: int, damaged: Damaged) -> str:
        """What becomes of the stack with one damaged file.

        Raises:
            AssertionError: pixels or their place are wrong, and nothing says so.
        """
        self._path(place).write_bytes(damaged.raw)
        try:
            return self._judge(damaged)
        finally:
            self._path(place).write_bytes(self.raws[place])

    def _judge(self, damaged: Damaged) -> str:
        series = index_series(self.folder).series.get(self.series.series_uid)
        if series is None:
            return "refused"
        try:
            frame = series.frame()
            same = [self._is_same(series, place) for place in range(len(self.hu))]
        except LidcCdamError:
            return "refused"
        near = np.abs(np.subtract(frame.corner_mm, self.series.frame().corner_mm)).max() < 0.01
        if near and all(one is True for one in same) and len(series.positions_mm) == len(self.hu):
            return "equal, flagged" if set(series.flags()) - set(self.series.flags()) else "equal"
        if None in same:
            return "slice missing"
        if set(series.flags()) - set(self.series.flags()):
            return "wrong, flagged"
        assert damaged.in_pixels, f"a wrong slice without a flag: {damaged.what}"
        return "pixels changed"

    def _is_same(self, series: Series, place: int) -> bool | None:
        """Whether a slice's HU are as before; None where it is missing."""
        z = self.series.slices[place].z_mm
        group = next((group for group in series.by_position if abs(group[0].z_mm - z) < SAME_Z_MM), None)
        return None if group is None else bool(np.array_equal(read_hu(group[0]), self.hu[place]))


def outcome_alone(path: Path, damaged: Damaged) -> str:
    """What becomes of a single damaged file, of any kind: found and read, or refused; anything else is raised."""
    path.write_bytes(damaged.raw)
    index = index_series(path.parent)
    flags = [series.flags() for series in index.series.values()]
    try:
        SlicePixels(path).hu()
    except LidcCdamError:
        return "refused"
    return "read, flagged" if any(flags) else "read"


def files_of_pydicom() -> list[Path]:
    """pydicom's own test files that come with the package."""
    inside = Path(pydicom.__file__).parent
    paths = sorted(path for path in inside.rglob("*.dcm") if path.stat().st_size < 1 << 20)
    return paths or sorted(map(Path, get_testdata_files("*.dcm")))


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Raise where something hangs."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(what)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(files: Sequence[Path], number: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Mutate slices of one series, and pydicom's files, half and half; returns how often each outcome came."""
    random = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    (folder / "stack").mkdir()
    (folder / "alone").mkdir()
    stack, others = Stackful(files, folder / "stack"), files_of_pydicom()
    for turn in range(number):
        if turn % 2:
            place = int(random.integers(len(stack.raws)))
            damaged = mutate(stack.raws[place], random)
            with patience(damaged.what):
                outcomes["slices: " + stack.outcome(place, damaged)] += 1
        else:
            chosen = others[random.integers(len(others))]
            damaged = mutate(chosen.read_bytes(), random)
            with patience(f"{chosen}: {damaged.what}"):
                outcomes["files: " + outcome_alone(folder / "alone" / "file", damaged)] += 1
    return outcomes


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=Path, required=True, help="folder of a CT series")
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        outcomes = fuzz(sorted(options.slices.glob("*.dcm"))[30:35], options.number, Path(name), options.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for outcome, count in sorted(outcomes.items()):
        sys.stdout.write(f"{count:6} {outcome}\n")
    sys.stdout.write(f"peak memory {peak:.0f} MiB\n")


if __name__ == "__main__":
    main()
