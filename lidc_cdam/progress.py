"""Progress for people: a bar in a terminal, nothing but plain lines elsewhere."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def say(sentence: str) -> None:
    """Print one line of a stage's result on stdout, plain, so that it can be piped."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Pass `items` through under a progress bar on stderr; silent when stderr is not a terminal.

    Args:
        items: what to go through.
        label: what is being done ("Extracting crops").
        total: number of items; taken from `items` where it has a length.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    length = total if total is not None else (len(items) if isinstance(items, Sized) else None)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        task = progress.add_task(label, total=length)
        for item in items:
            yield item
            progress.advance(task)
