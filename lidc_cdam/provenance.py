"""What made a folder: configuration, versions, commit, input digests; and the refusal of a mismatch.

Each stage that writes into a folder keeps one record in the folder's `provenance.json`. A stage that finds its own
record with another configuration refuses the folder; with the same one it goes on, or says that it is finished.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import held, read_json, write_json

FILE = "provenance.json"
SCHEMA = 1
"""Version of the file's form, kept in it beside the stages' records; a file without one is of this form too."""
PACKAGES = (
    "lidc-cdam",
    "pylidc",
    "numpy",
    "SimpleITK",
    "pydicom",
    "torch",
    "timm",
    "pytorch-lightning",
    "scikit-learn",
)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_of(value: Any) -> str:
    """Hexadecimal SHA-256 digest of a value's canonical JSON form."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; a package that is missing is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source tree this package runs from; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


@dataclass(frozen=True)
class Record:
    """One stage's entry in a folder's `provenance.json`."""

    folder: Path
    stage: str
    finished: bool
    """Whether an earlier run of the same configuration wrote everything."""

    def finish(self, **results: Any) -> None:
        """Mark the stage as finished; `results` are kept beside its configuration."""
        with _changing(self.folder) as records:
            records[self.stage] |= {"finished": True, "results": _plain(results)}


def begin(
    folder: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path | str] | None = None,
    remedy: str = "choose another --out",
) -> Record:
    """Claim `folder` for one configuration of a stage.

    Args:
        folder: output folder; created.
        stage: the stage's name, with its variant where one folder holds several (`explain/cdam`).
        config: every setting that decides the result (no paths of inputs, no worker counts).
        inputs: what else decides the result, by name (a path is read as its bytes' digest, a string stands for itself).
        remedy: what the user can do about a mismatch, for the error.

    Returns:
        The stage's record; `finished` says that nothing is left to do.

    Raises:
        LidcCdamError: the folder holds the same stage with other settings or inputs, or records of another form.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise LidcCdamError(
            f"The output folder must be a folder, but {folder} is a file or lies in one; {remedy}."
        ) from error
    digests = {name: sha256(source) if isinstance(source, Path) else source for name, source in (inputs or {}).items()}
    claim = {"config": _plain(dict(config)), "inputs": digests}
    earlier = read_records(folder).get(stage)
    if earlier is None:
        # A folder that is claimed already is only read here: it may lie where nothing can be written.
        fresh = {**claim, "versions": versions(), "commit": commit(), "finished": False}
        with _changing(folder) as records:
            earlier = records.setdefault(stage, fresh)
    _refuse_difference(folder, stage, earlier, claim, remedy)
    return Record(folder, stage, bool(earlier.get("finished")))


def refuse_others(folder: Path, stages: Collection[str]) -> None:
    """Refuse a folder that holds results of other stages than these, whose files would mix with theirs.

    Raises:
        LidcCdamError: the folder holds them, or as `read_records`.
    """
    others = sorted(set(read_records(folder)) - set(stages))
    if others:
        raise LidcCdamError(
            f"--out must be a folder of its own, but {folder} holds what `{others[0]}` made; choose another --out."
        )


def reopen(folder: Path, stage: str) -> None:
    """Take back a stage's `finished` mark, for a stage that can grow (a second source for `extract`)."""
    with _changing(folder) as records:
        if stage in records:
            records[stage]["finished"] = False


def forget(folder: Path, stage: str) -> None:
    """Drop a stage's claim, for a stage of one output file that was never written."""
    with _changing(folder) as records:
        records.pop(stage, None)


def read_record(folder: Path, stage: str) -> dict[str, Any] | None:
    """A stage's record as stored; None if the folder has none.

    Raises:
        LidcCdamError: as `read_records`.
    """
    return read_records(folder).get(stage)


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """A folder's records by stage; none if it has no file of them.

    Raises:
        LidcCdamError: the file is damaged, or another version of this program wrote it in another form.
    """
    path = folder / FILE
    stored = read_json(path) if path.exists() else {}
    found = stored.pop("schema", SCHEMA) if isinstance(stored, dict) else "no object"
    if found != SCHEMA:
        raise LidcCdamError(
            f"{path} must have schema {SCHEMA}, but it has {found}; use the version of lidc-cdam that wrote the "
            f"folder, or make it again with this one."
        )
    broken = [name for name, record in stored.items() if not isinstance(record, dict)]
    if broken:
        raise LidcCdamError(
            f"{path} must hold one record a stage, but {broken[0]!r} is none; make the folder again with this version."
        )
    return dict(stored)


@contextmanager
def _changing(folder: Path) -> Iterator[dict[str, Any]]:
    """A folder's records, written back if the block changed them; other processes wait until then."""
    with held(folder, name=".claim", wait=True):
        records = read_records(folder)
        before = json.dumps(records)
        yield records
        if json.dumps(records) != before:
            write_json(folder / FILE, {"schema": SCHEMA, **records})


def _refuse_difference(
    folder: Path, stage: str, earlier: Mapping[str, Any], claim: Mapping[str, Any], remedy: str
) -> None:
    for part in ("config", "inputs"):
        # In the stage's own order, whose first settings are the ones that a user knows.
        for name in (*claim[part], *(name for name in earlier[part] if name not in claim[part])):
            old, new = earlier[part].get(name), claim[part].get(name)
            if old != new:
                raise LidcCdamError(
                    f"{folder} was made by `{stage}` with {name} = {_short(old)}, "
                    f"but this call has {name} = {_short(new)}; {remedy}."
                )


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]} (digest)"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: Any) -> Any:
    """`value` as JSON would give it back, so that stored and fresh configurations compare equal."""
    return json.loads(json.dumps(value, default=str))
