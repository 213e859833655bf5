"""Files that appear whole or not at all."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import say


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` when the block ends well, removed when it does not.

    Missing parent folders are created. An interrupt, a full disk or an exception leaves `path` as it was; what a killed
    process leaves is overwritten and removed by the next write to the same path.
    """
    temporary = unfinished(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # A disk that fills up while a file is written names no file.
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """Where a file lies while it is written; the name keeps its endings (`.nii.gz`), which tell writers the format."""
    return path.with_name(f".writing-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; NaN is refused (JSON has none)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        LidcCdamError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LidcCdamError(f"{path} is missing; run the step that writes it first.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LidcCdamError(
            f"{path} must be JSON, but it cannot be read ({error}); delete it and run its step again."
        ) from error


@contextmanager
def held(folder: Path, name: str = ".held", wait: bool = False) -> Iterator[bool]:
    """Hold a folder for this process until the block ends; the lock of a killed process is free at once.

    Args:
        folder: created if needed.
        name: the lock, a file in it while it is held; locks of different names do not know of each other.
        wait: whether to wait while another process holds it.

    Yields:
        Whether it is this process's; False while another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, kind = folder / name, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    while True:
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, kind)
            except BlockingIOError:
                yield False
                return
            # The one who held it removed its file: this lock is on a file that nobody else can find.
            if not _is_file(path, stream.fileno()):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def alone(folder: Path, sentence: str, name: str = ".held") -> Iterator[None]:
    """Hold a folder for this process; while another one holds it, say so and wait.

    Args:
        folder: created if needed.
        sentence: what to say before waiting.
        name: the lock, as in `held`.
    """
    with held(folder, name) as mine:
        if mine:
            yield
            return
    say(sentence)
    with held(folder, name, wait=True):
        yield


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
