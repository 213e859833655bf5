"""Settings of `evaluate` that decide a value of `explainers.csv`."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.metrics.boxes import BOXES
from lidc_cdam.metrics.perturbation import Fill, check_fill


@dataclass(frozen=True)
class Measurement:
    """How maps are measured, and of which nodules the costly metrics are."""

    fidelity_nodules: int | None = 20
    steps: int = 8
    fill: Fill = "blur"
    blur_sigma: float | None = None
    box_sides: tuple[int, ...] | None = None
    boxes: int = BOXES
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            LidcCdamError: one is out of range.
        """
        if self.fidelity_nodules is not None and self.fidelity_nodules < 0:
            raise LidcCdamError(f"--fidelity-nodules must be at least 0; got {self.fidelity_nodules}.")
        if self.steps < 1:
            raise LidcCdamError(f"--steps must be at least 1; got {self.steps}.")
        if self.boxes < 3:
            raise LidcCdamError(f"--boxes must be at least 3, or nothing can be correlated; got {self.boxes}.")
        if self.box_sides is not None and (len(set(self.box_sides)) < 2 or min(self.box_sides) < 1):
            raise LidcCdamError(
                f"--box-sides must be at least two different whole numbers of pixels; got {list(self.box_sides)}."
            )
        check_fill(self.fill, self.blur_sigma)

    def sample(self, nodule_ids: Sequence[str]) -> set[str]:
        """The nodules of a fold whose costly metrics are measured; the same for every method."""
        return set(sample_of(nodule_ids, self.fidelity_nodules, self.seed))

    def seed_of(self, nodule_id: str) -> int:
        """Seed of what is drawn for one nodule."""
        return int.from_bytes(digest_of(f"{self.seed}/boxes/{nodule_id}")[:8], "little")


def sample_of(nodule_ids: Iterable[str], count: int | None, seed: int) -> list[str]:
    """The first `count` nodules in an order that the seed draws; a larger count adds to a smaller one's."""
    return sorted(nodule_ids, key=lambda key: digest_of(f"{seed}/{key}").hex())[:count]


def digest_of(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()
