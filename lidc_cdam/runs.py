"""What a run's folder says of itself: its configuration, and the folds that it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lidc_cdam.artifacts import CONFIG
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.geometry import VIEWS


def read_config(run: Path, option: str = "--run") -> dict[str, Any]:
    """`RUN/config.yaml`.

    Args:
        run: the run's folder.
        option: what named it, for the error.

    Raises:
        LidcCdamError: the file is missing or damaged, or what it says of `data`, `splits` or `views` is of no use.
    """
    path = run / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LidcCdamError(
            f"{option} must be the folder of a run, but {path} is missing; run `lidc-cdam crossval --out {run}` first."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LidcCdamError(f"{path} must be YAML, but it cannot be read; run `lidc-cdam crossval` again.") from error
    lacking = [key for key in ("data", "views") if not isinstance(config, dict) or not config.get(key)]
    if lacking:
        raise LidcCdamError(f"{path} must name {' and '.join(lacking)}; run `lidc-cdam crossval` again.")
    wrong = next((key for key in ("data", "splits") if not isinstance(config.get(key), str | None)), None)
    if wrong:
        raise LidcCdamError(
            f"{path} must name a folder or file under `{wrong}`, but it has {config[wrong]!r}; run "
            f"`lidc-cdam crossval` again."
        )
    views = config["views"]
    if not isinstance(views, list) or not all(isinstance(view, str) and view in VIEWS for view in views):
        raise LidcCdamError(
            f"{path} must list views of {', '.join(VIEWS)}, but it has {views!r}; run `lidc-cdam crossval` again."
        )
    return dict(config)


def shown_words(config: Mapping[str, Any]) -> list[str]:
    """What every result of a run must say of what its models are shown beside the slices; nothing for a plain model.

    Args:
        config: the run's `config.yaml`.
    """
    words = []
    if config.get("mask_channel"):
        words.append(
            "The models are shown the readers' consensus beside the image, so they predict only nodules that someone "
            "has outlined."
        )
    if config.get("permute_labels"):
        words.append("The labels were permuted before training: a control, which predicts nothing.")
    if config.get("radiomics"):
        words.append(
            "A second head adds what radiomics of the readers' consensus say; maps and fidelity are of the image's "
            "part of the output alone."
        )
    if config.get("side_head") == "kernel":
        words.append(
            "That head was fitted first and the image's part learnt what it leaves to say, so maps show nothing that "
            "radiomics say already."
        )
    return words


def fold_numbers(run: Path, holding: str) -> list[int]:
    """Numbers of a run's folds whose folder holds the file `holding`, ascending; other folders are passed over."""
    numbers = (path.parent.name.removeprefix("fold_") for path in run.glob(f"fold_*/{holding}"))
    return sorted(int(number) for number in numbers if number.isdecimal())
