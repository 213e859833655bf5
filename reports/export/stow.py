"""Send DICOM files to an archive that speaks DICOMweb (STOW-RS)."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.progress import track

FAILED_SOPS = "FailedSOPSequence"
ATTEMPTS, FIRST_WAIT_MS = 3, 250
"""A service that is busy is asked again twice, after half a second and after one; then the sentence comes."""


def check_address(url: str) -> None:
    """Raise where an address is none.

    Raises:
        LidcCdamError: it has another scheme than http and https, or names no machine, or a port that is none.
    """
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or re.search(r"\s", url):
        raise LidcCdamError(
            f"--stow must be the http(s) address of a DICOMweb service, such as http://localhost:8042/dicom-web; got "
            f"{without_login(url)!r}."
        )


def without_login(url: str) -> str:
    """An address as it may be shown: without the name and password that it may hold."""
    return re.sub(r"(?<=//)[^/]*@", "", url)


def send(url: str, paths: Sequence[Path]) -> int:
    """Store files, one a request, so that one that is refused does not hold back the others.

    Args:
        url: base address of the service, such as http://localhost:8042/dicom-web.
        paths: DICOM files.

    Returns:
        How many were stored.

    Raises:
        LidcCdamError: the address is none, the service cannot be reached, or it refuses an object.
    """
    check_address(url)
    shown = without_login(url)
    client = DICOMwebClient(url)
    client.set_http_retry_params(max_attempts=ATTEMPTS, wait_exponential_multiplier=FIRST_WAIT_MS)
    for path in track(list(paths), "Sending"):
        try:
            answer = client.store_instances([pydicom.dcmread(path)])
        except (requests.RequestException, OSError, ValueError) as error:
            raise LidcCdamError(
                f"--stow must be a DICOMweb service that takes objects, but {shown} does not take {path.name}: "
                f"{_reason(error)}; the files stay in {path.parent.parent}, and the same command sends them again."
            ) from error
        # Some services name the refused objects in a sequence that is there, and empty, where there are none.
        refused = answer[FAILED_SOPS].value if FAILED_SOPS in answer else ()
        if refused:
            codes = ", ".join(f"{int(item.FailureReason):#06x}" for item in refused)
            raise LidcCdamError(f"--stow: {shown} refuses {path.name} with the reason {codes}; ask its administrator.")
    return len(paths)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"status {response.status_code}"
    if isinstance(error, requests.ConnectionError):
        return f"nobody answers there ({type(error).__name__})"
    return str(error).splitlines()[0][:120]
