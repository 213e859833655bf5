"""Published weights: found in the caches of Hugging Face and torch, or fetched into them once."""

import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from lidc_cdam.errors import LidcCdamError

FILE = "model.safetensors"
"""The file of weights in each of timm's repositories."""
PATIENCE_S = 5.0
"""How long a server may take to answer before it counts as out of reach."""
_CLIENTS = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *_CLIENTS)
"""What a broken download raises; the last are the errors of whatever HTTP client the hub's package stands on."""


def timm_file(architecture: str) -> Path:
    """The weights of one of timm's tagged architectures (`vit_small_patch8_224.dino`), in Hugging Face's cache.

    Raises:
        LidcCdamError: the cache lacks them, and they cannot be fetched.
    """
    repository = timm.get_pretrained_cfg(architecture).hf_hub_id
    cached = try_to_load_from_cache(repository, FILE)
    if isinstance(cached, str):
        return Path(cached)
    place = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    with _fetching(hf_hub_url(repository, FILE), place, "copy it to this machine and give its path: --weights FILE"):
        return Path(hf_hub_download(repository, FILE))


def torchvision_file(weights: str) -> Path:
    """The file of one of torchvision's sets of weights (`ViT_B_16_Weights.IMAGENET1K_V1`), in torch's cache.

    Raises:
        LidcCdamError: the cache lacks it, and it cannot be fetched.
    """
    from torchvision.models import get_weight

    url = get_weight(weights).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    with _fetching(url, path, f"copy it to {path.parent} or give its path: --weights FILE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        # torchvision's file names end in the first figures of the file's SHA-256, which are compared.
        digest = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), digest, progress=sys.stderr.isatty())
    return path


@contextmanager
def _fetching(url: str, place: Path, remedy: str) -> Iterator[None]:
    told = f"fetch {url} on a machine with a network, then {remedy}."
    host = urlsplit(url).hostname
    # The hub's client tries again for most of a minute; one short question first tells at once that there is no way.
    if not reachable(url):
        raise LidcCdamError(f"--weights hub found nothing at {place}, and {host} does not answer; {told}")
    try:
        yield
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LidcCdamError(f"--weights hub could not fetch from {host} to {place} ({reason}); {told}") from error


def reachable(url: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether the server behind a URL answers anything at all in time, the look-up of its name included."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=patience_s).close()
        except HTTPError:
            answers.append(True)
        except URLError as error:
            # A certificate that Python's own store does not know may still be one that the client's store does.
            answers.append(isinstance(error.reason, ssl.SSLError))
        except (OSError, HTTPException):
            answers.append(False)
        else:
            answers.append(True)

    # The look-up of a name knows no time limit, so the question is asked on a thread that may be left behind.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience_s)
    return answers == [True]
