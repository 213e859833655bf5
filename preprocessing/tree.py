"""What lies below a folder: its files with size and time of change, links followed, each folder entered once."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from preprocessing.slices import UNREADABLE


class File(NamedTuple):
    """A regular file."""

    folder: str
    name: str
    size: int
    """Bytes."""
    changed_ns: int
    """Time of the last change, nanoseconds."""


def files_below(root: str, others: Counter[str]) -> Iterator[File]:
    """The regular files below a folder, in the order of their names.

    Links to folders are followed, and a folder that was entered before is not entered again: links may form loops.

    Args:
        root: the folder.
        others: counts what is left out, by kind.

    Raises:
        OSError: the root itself cannot be listed.
    """
    status = Path(root).stat()
    seen = {(status.st_dev, status.st_ino)}
    waiting = [_listed(root)]
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
            continue
        try:
            status = entry.stat()
        except OSError:
            others[UNREADABLE] += 1
            continue
        if stat.S_ISREG(status.st_mode):
            yield File(entry.path[: -len(entry.name) - 1], entry.name, status.st_size, status.st_mtime_ns)
        elif not stat.S_ISDIR(status.st_mode):
            others["device or pipe"] += 1
        elif (status.st_dev, status.st_ino) in seen:
            others["folder reached a second time"] += 1
        else:
            seen.add((status.st_dev, status.st_ino))
            try:
                waiting.append(_listed(entry.path))
            except OSError:
                others["unreadable folder"] += 1


def _listed(folder: str) -> "Iterator[os.DirEntry[str]]":
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))
