"""The `demo` command: every public command once, on phantom CT, from nothing to reports."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from lidc_cdam.cli import run_command
from lidc_cdam.configuration import bundled
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import say

RUNS = ("malignancy", "biomarkers")
METHODS = ("cdam", "random")
FIDELITY_NODULES = 10
"""Nodules of each fold whose fidelity is measured, the costliest figure of the chain."""
PHANTOMS = 10
"""Phantoms of each fold whose maps are measured against their known causes."""
TREES = 100
"""Trees of the radiomics baseline: few, for a quick demo."""
NOTE = (
    "All images are synthetic: phantoms drawn from the LIDC-IDRI readers' contours and ratings. "
    "What a model reaches on them says nothing about real nodules."
)


@dataclass(frozen=True)
class Step:
    """One command of the demo."""

    command: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(("lidc-cdam", self.command, *self.words))


def demo(out: Path = Path("demo_out"), scans: int = 2, nodules: int = 96, folds: int = 3, seed: int = 0) -> None:
    """Run the whole chain on phantom CT made from real LIDC-IDRI readings; it needs no data and no network.

    The images are synthetic, so the figures say nothing about real nodules; the files are those of a real study.
    A second call does nothing but say so, and one that was interrupted goes on where it stopped.

    Args:
        out: folder for everything: phantoms, data, runs and the report.
        scans: phantom scans that go through DICOM.
        nodules: phantom nodules that go through a nodule pack.
        folds: folds of the cross-validation.
        seed: decides the phantoms, the folds and the initial weights.
    """
    if folds < 2:
        raise LidcCdamError(f"--folds must be at least 2; got {folds}.")
    began = time.monotonic()
    say(NOTE)
    for step in steps(out, scans, nodules, folds, seed):
        say(f"\n$ {step}")
        run_command(step.command, step.words)
    say(f"\n{NOTE}")
    say(f"The demo took {time.monotonic() - began:.0f} s. Open {(out / 'report' / 'index.html').resolve()}")


def steps(out: Path, scans: int, nodules: int, folds: int, seed: int) -> list[Step]:
    """The demo's commands in order.

    Args:
        out: folder for everything.
        scans: phantom scans that go through DICOM.
        nodules: phantom nodules that go through a nodule pack.
        folds: folds of the cross-validation.
        seed: decides the phantoms, the folds and the initial weights.
    """
    phantoms, data = out / "phantom", out / "data"
    runs = [out / "runs" / name for name in RUNS]
    chain = [
        _step("phantom", out=phantoms, scans=scans, nodules=nodules, seed=seed),
        _step("cohort", preset="all", out=data),
        _step("extract", data=data, dicom=phantoms / "dicom"),
        _step("extract", data=data, pack=phantoms / "pack"),
        _step("causes", data=data, seed=seed),
        _step("split", data=data, protocol="sound", folds=folds, seed=seed),
    ]
    for name, run in zip(RUNS, runs, strict=True):
        config = bundled("demo", f"{name}_tiny")
        chain.append(_step("crossval", config=config, data=data, out=run, seed=seed, trees=TREES))
        chain += [_step("explain", run=run, method=method) for method in METHODS]
        asked = {"phantom": "true", "phantom_nodules": PHANTOMS, "claims": "true"} if name == "biomarkers" else {}
        methods = ",".join(METHODS)
        chain.append(_step("evaluate", run=run, methods=methods, fidelity_nodules=FIDELITY_NODULES, **asked))
    biomarkers, malignancy = runs[1], runs[0]
    chain.append(_step("report", run=biomarkers, also_run=malignancy, out=out / "report"))
    return chain


def _step(command: str, **options: object) -> Step:
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return Step(command, tuple(words))
