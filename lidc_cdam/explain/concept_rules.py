"""Which nodules exemplify a concept: a rule over the cohort's columns, or a list."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lidc_cdam.artifacts import read_table
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import TARGETS

COMPARISONS: dict[str, Callable[[Any, float], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
"""Signs of a condition."""
CONDITION = re.compile(rf"\s*([A-Za-z_]\w*)\s*({'|'.join(COMPARISONS)})\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*")
NAME = re.compile(r"[A-Za-z][\w-]*")
RANDOM = "random"
"""A concept's controls are called `<name>_random_1`, ..."""


@dataclass(frozen=True)
class Condition:
    """A column of the cohort compared with a number."""

    column: str
    sign: str
    value: float


@dataclass(frozen=True)
class Definition:
    """A concept as a user defines it: by a rule or by a list of nodules."""

    name: str
    text: str
    """The rule, or the file's path, as given."""
    rule: tuple[Condition, ...] = ()
    """Conditions that an example must all meet."""
    listed: tuple[str, ...] = ()
    """Examples' nodule ids, where there is no rule."""

    def fits(self, cohort: pd.DataFrame) -> pd.Series:
        """Which nodules exemplify it; a nodule without a value in a column of the rule does not.

        Args:
            cohort: indexed by nodule id.

        Raises:
            LidcCdamError: the rule names an unknown column or one of words, the list an unknown nodule, or none fits.
        """
        if self.rule:
            found = pd.Series(True, index=cohort.index)
            for condition in self.rule:
                column = _column(cohort, condition, self)
                found &= COMPARISONS[condition.sign](column, condition.value) & column.notna()
        else:
            strange = [key for key in self.listed if key not in cohort.index]
            if strange:
                raise LidcCdamError(
                    f"--concept {self.name}={self.text} must list nodules of the cohort, but {strange[0]} is none "
                    f"({len(strange)} of {len(self.listed)} are unknown)."
                )
            found = pd.Series(cohort.index.isin(self.listed), index=cohort.index)
        if not found.any():
            raise LidcCdamError(
                f"--concept {self.name}={self.text} must fit at least one of {len(cohort)} nodules, but it fits none."
            )
        return found


def define(text: str) -> Definition:
    """Read `name=RULE` or `name=FILE.csv`.

    A rule compares columns of the cohort with numbers, joined by `and`: `spiculation >= 4 and diameter < 10`. A file is
    a CSV table with the column nodule_id.

    Raises:
        LidcCdamError: it is neither, the name cannot be one, or the file is missing or damaged.
    """
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not rest or not NAME.fullmatch(name):
        raise LidcCdamError(
            f"--concept must be NAME=RULE or NAME=FILE.csv, such as 'spiky=spiculation >= 4', with a name of letters, "
            f"digits, - and _; got {text!r}."
        )
    if name in TARGETS or re.search(rf"_{RANDOM}_\d+$", name):
        raise LidcCdamError(f"--concept must have a name of its own, but {name!r} is taken; choose another.")
    if rest.lower().endswith(".csv"):
        if not Path(rest).is_file():
            raise LidcCdamError(
                f"--concept {text} must name a CSV table with a column nodule_id, but there is no file."
            )
        ids = read_table(Path(rest), ("nodule_id",), "cohort")["nodule_id"].dropna()
        if not len(ids):
            raise LidcCdamError(f"--concept {text} must list at least one nodule, but the file has no row.")
        return Definition(name, rest, listed=tuple(dict.fromkeys(ids)))
    conditions = [CONDITION.fullmatch(part) for part in re.split(r"\band\b", rest)]
    found = tuple(Condition(part[1], part[2], float(part[3])) for part in conditions if part)
    if len(found) < len(conditions):
        raise LidcCdamError(
            f"--concept {name} must be a rule such as 'spiculation >= 4 and diameter < 10' ({', '.join(COMPARISONS)} "
            f"and numbers), or a file that ends in .csv; got {rest!r}."
        )
    return Definition(name, rest, found)


def define_all(texts: Sequence[str]) -> list[Definition]:
    """`define` for each, whose names must differ.

    Raises:
        LidcCdamError: as `define`, or a name repeats, or there is none.
    """
    found = [define(text) for text in texts]
    names = [each.name for each in found]
    if not names or len(set(names)) < len(names):
        raise LidcCdamError(f"--concept must be given at least once and under different names; got {names or 'none'}.")
    return found


@dataclass(frozen=True)
class Examples:
    """The nodules whose mean latent is a concept, and random ones as its control."""

    concept: tuple[str, ...]
    controls: tuple[tuple[str, ...], ...]
    """Each as many nodules as the concept has."""
    available: int
    """Training nodules that exemplify it."""


def draw_examples(
    definition: Definition, fits: pd.Series, training: Sequence[str], wanted: int, controls: int, key: Sequence[int]
) -> Examples:
    """Draw examples out of a fold's training nodules, and control sets of as many out of all of them.

    Args:
        definition: the concept.
        fits: which nodules exemplify it, by nodule id.
        training: the fold's training nodules; no other is ever an example.
        wanted: how many examples, if there are as many.
        controls: how many control sets.
        key: seed, and what else decides the draw.

    Raises:
        LidcCdamError: no training nodule exemplifies the concept.
    """
    pool = sorted(training)
    candidates = [name for name in pool if name in fits.index and fits[name]]
    if not candidates:
        raise LidcCdamError(
            f"--concept {definition.name}={definition.text} must fit a training nodule of every fold, because test "
            f"nodules are never examples, but of {len(pool)} in one fold it fits none; choose a wider rule."
        )
    rng = np.random.default_rng(np.random.SeedSequence([*key, *definition.name.encode()]))
    concept = _drawn(rng, candidates, wanted)
    others = tuple(_drawn(rng, pool, len(concept)) for _ in range(controls))
    return Examples(concept, others, len(candidates))


def _drawn(rng: np.random.Generator, names: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(names[place] for place in rng.permutation(len(names))[:count])


def _column(cohort: pd.DataFrame, condition: Condition, definition: Definition) -> pd.Series:
    numbers = [name for name in cohort.columns if pd.api.types.is_numeric_dtype(cohort[name])]
    if condition.column not in numbers:
        near = get_close_matches(condition.column, numbers, n=1)
        kind = "is a column of words" if condition.column in cohort.columns else "is no column of the cohort"
        raise LidcCdamError(
            f"--concept {definition.name}={definition.text}: {condition.column} {kind}; "
            + (f"did you mean {near[0]}?" if near else f"choose one of {', '.join(numbers)}.")
        )
    return cohort[condition.column]
