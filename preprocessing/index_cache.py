"""What the headers below a DICOM root say, kept in one file beside the output, so that each file is read only once.

The file is a journal of JSON lines, each with some files of one folder. A pass over the tree appends what it reads as
it goes, so an interrupted pass loses at most the files it was reading; a finished one rewrites the journal whole. A
line that cannot be read (torn by a crash, written by another version) is as good as absent: its files are read again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from lidc_cdam.compute import HERE, Pool, Workers, map_items
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import replacing
from lidc_cdam.progress import track
from preprocessing.slices import UNREADABLE, Common, Slice, read_slice
from preprocessing.tree import File, files_below

SERIES_INDEX = "series_index.jsonl"
"""The journal's name, beside the output that the series are read for."""
VERSION = 1
"""Raised with each change of what a line holds or of how a header is judged."""
CHUNK = 500
"""Files that are read between two additions to the journal, and by one call of a worker."""

Known = tuple[int, int, Slice | str]
"""A file's size and time of change, and what it is."""
Files = dict[str, dict[str, Known]]
"""By folder and name."""


def read_tree(
    root: Path, others: Counter[str], journal: Path | None = None, workers: Workers | Pool = HERE
) -> Iterator[Slice | str]:
    """What each file below a folder is, in the order of their names; headers only, and only those not read before.

    Args:
        root: the folder.
        others: counts what is left out before it is opened, by kind.
        journal: where to keep what was read; nowhere by default.
        workers: processes that read headers.

    Raises:
        LidcCdamError: what should be the journal's folder is a file.
        OSError: the root cannot be listed, or the journal cannot be written.
    """
    if journal is not None and journal.parent.is_file():
        raise LidcCdamError(f"The output folder must be a folder, but {journal.parent} is a file; choose another.")
    top = str(root.resolve())
    listed = list(track(files_below(top, others), "Listing files"))
    known = _load(journal) if journal is not None else {}
    new = [file for file in listed if not _is_known(known, file)]
    if new:
        _read(new, known, journal, workers)
    present = _only(known, listed)
    if journal is not None:
        elsewhere = {folder: files for folder, files in known.items() if not _is_below(folder, top)}
        gone = sum(map(len, known.values())) > sum(map(len, (*present.values(), *elsewhere.values())))
        if new or gone:
            _rewrite(journal, present | elsewhere)
    return (present[file.folder][file.name][2] for file in listed)


def _read(new: Sequence[File], known: Files, journal: Path | None, workers: Workers | Pool) -> None:
    """Read files' headers into `known` and the journal."""
    chunks = [tuple(new[first : first + CHUNK]) for first in range(0, len(new), CHUNK)]
    results = map_items(_read_chunk, chunks, "Reading headers", workers)
    if journal is None:
        for chunk, found in results:
            _add(known, chunk, found)
        return
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as stream:
        # What follows a torn last line must not be torn with it.
        stream.write("\n")
        for chunk, found in results:
            _add(known, chunk, found)
            _write(stream, _only(known, chunk))
            stream.flush()


def _read_chunk(chunk: tuple[File, ...]) -> tuple[tuple[File, ...], list[Slice | str]]:
    return chunk, [read_slice(file.folder, file.name) for file in chunk]


def _add(known: Files, chunk: Sequence[File], found: Sequence[Slice | str]) -> None:
    for file, what in zip(chunk, found, strict=True):
        known.setdefault(file.folder, {})[file.name] = (file.size, file.changed_ns, what)


def _is_known(known: Files, file: File) -> bool:
    size, changed_ns, what = known.get(file.folder, {}).get(file.name, (0, 0, UNREADABLE))
    # What could not be read may be readable today: leave to read it changes neither size nor time.
    return what != UNREADABLE and (size, changed_ns) == (file.size, file.changed_ns)


def _only(known: Files, files: Sequence[File]) -> Files:
    return {
        folder: {file.name: known[folder][file.name] for file in group}
        for folder, group in groupby(sorted(files), key=lambda file: file.folder)
    }


def _is_below(folder: str, top: str) -> bool:
    return os.path.commonpath((folder, top)) == top


def _rewrite(journal: Path, files: Files) -> None:
    with replacing(journal) as temporary, temporary.open("w", encoding="utf-8") as stream:
        _write(stream, files)


def _write(stream: TextIO, files: Files) -> None:
    for folder in sorted(files):
        stream.write(_line(folder, files[folder]) + "\n")


def _line(folder: str, files: Mapping[str, Known]) -> str:
    """One folder's files; what slices share, and the kinds of other files, are written once."""
    shared: dict[Common | str, int] = {}
    rows: list[list[Any]] = []
    for name, (size, changed_ns, what) in files.items():
        key = what if isinstance(what, str) else what.common
        row = [name, size, changed_ns, shared.setdefault(key, len(shared))]
        rows.append(row if isinstance(what, str) else [*row, *what.corner_mm, what.z_mm, what.number])
    common = [key if isinstance(key, str) else astuple(key) for key in shared]
    return json.dumps({"version": VERSION, "folder": folder, "shared": common, "files": rows}, separators=(",", ":"))


def _load(journal: Path) -> Files:
    files: Files = {}
    if not journal.exists():
        return files
    with journal.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                folder, found = _unpacked(json.loads(line))
            except (ValueError, TypeError, LookupError):
                continue
            files.setdefault(folder, {}).update(found)
    return files


def _unpacked(line: dict[str, Any]) -> tuple[str, dict[str, Known]]:
    if line["version"] != VERSION:
        raise ValueError("another version")
    folder = line["folder"]
    shared = [key if isinstance(key, str) else _common(*map(_frozen, key)) for key in line["shared"]]
    files: dict[str, Known] = {}
    for name, size, changed_ns, index, *place in line["files"]:
        what = shared[index]
        if isinstance(what, Common):
            x, y, z, number = place
            what = Slice(folder, name, z, (x, y), number, what)
        files[name] = (size, changed_ns, what)
    return folder, files


@lru_cache(maxsize=256)
def _common(*values: Any) -> Common:
    return Common(*values)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
