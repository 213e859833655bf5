"""Which files of a nodule are there, by format: each nodule's own list, and the one of all that is made from them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pandas as pd

from lidc_cdam import artifacts
from lidc_cdam.errors import LidcCdamError
from reports.context import SAFE_NAME
from reports.export.formats import FORMATS, Item
from reports.export.subject import Subject

EXPORTED = "exported.csv"
"""In a nodule's folder its own list; beside the folders that of all nodules."""
COLUMNS = ("nodule_id", "format", "file")
FAILED_FORMAT = ("nodule_id", "series_uid", "format", "reason")
"""Columns of `failed.csv`: `artifacts.FAILED_COLUMNS`, and which format it was."""


def listed(item: Item) -> dict[str, list[str]]:
    """Files by format, relative to OUT, of the formats that are whole; empty where nothing is."""
    if not SAFE_NAME.fullmatch(item.case.nodule_id) or not (item.folder / EXPORTED).exists():
        return {}
    found: dict[str, list[str]] = {}
    # A list that cannot be read lists nothing: its files are made again.
    with suppress(LidcCdamError):
        for row in artifacts.read_table(item.folder / EXPORTED, COLUMNS, "export").to_dict("records"):
            found.setdefault(str(row["format"]), []).append(str(row["file"]))
    return {name: files for name, files in found.items() if all((item.out / file).exists() for file in files)}


def write_format(subject: Subject, item: Item, name: str, done: Mapping[str, list[str]]) -> list[str]:
    """Write one format's files and list them; where one fails, none of the format's own is left.

    Args:
        subject: the nodule's content.
        item: the nodule.
        name: of the format.
        done: files of the formats that are whole already.

    Returns:
        The files, relative to OUT.
    """
    made: list[Path] = []
    try:
        for path in FORMATS[name].write(subject, item):
            made.append(path)  # noqa: PERF402 - what comes before a failure is needed
        files = [path.relative_to(item.out).as_posix() for path in made]
        _write_list(item, {**done, name: files})
    except BaseException:
        shared = set(chain.from_iterable(done.values()))
        for path in made:
            if path.relative_to(item.out).as_posix() not in shared:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            item.folder.rmdir()  # Where nothing else lies in it.
        raise
    return files


def _write_list(item: Item, files: Mapping[str, list[str]]) -> None:
    artifacts.write_table(item.folder / EXPORTED, pd.DataFrame(_rows(item, files), columns=list(COLUMNS)), COLUMNS)


def _rows(item: Item, files: Mapping[str, list[str]]) -> Iterator[tuple[str, str, str]]:
    """A row for each file of each format, in the table's order; a file that two formats have is a row of each."""
    for name in FORMATS:
        yield from ((item.case.nodule_id, name, file) for file in files.get(name, ()))


def write_exported(out: Path, items: Sequence[Item]) -> pd.DataFrame:
    """Write the list of all nodules' files, and give it."""
    table = pd.DataFrame([row for item in items for row in _rows(item, listed(item))], columns=list(COLUMNS))
    artifacts.write_table(out / EXPORTED, table, COLUMNS)
    return table


def write_failed(out: Path, failed: Sequence[Mapping[str, str]], tried: Sequence[str]) -> None:
    """Write which format of which nodule failed, and why; no file where none did.

    Args:
        out: the folder.
        failed: rows of this call.
        tried: its formats; what an earlier call says of others stays.
    """
    path = out / artifacts.FAILED
    table = pd.DataFrame(failed, columns=list(FAILED_FORMAT))
    if path.exists():
        earlier = artifacts.read_table(path, FAILED_FORMAT, "export")
        table = pd.concat([earlier[~earlier["format"].isin(tried)], table], ignore_index=True)
    if len(table):
        artifacts.write_table(path, table, FAILED_FORMAT)
    else:
        path.unlink(missing_ok=True)


def read_exported(out: Path) -> pd.DataFrame:
    """The list of all nodules' files.

    Raises:
        LidcCdamError: there is none, or it is damaged.
    """
    return artifacts.read_table(out / EXPORTED, COLUMNS, "export")


def is_whole(out: Path) -> bool:
    """Whether there is a list and every file that it names."""
    return (out / EXPORTED).exists() and all((out / str(name)).exists() for name in read_exported(out)["file"])
