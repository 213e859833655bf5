"""What a run's folder says of itself: its configuration, and the folds that it holds."""

from pathlib import Path
from typing import Any

import yaml

from lidc_cdam.artifacts import CONFIG
from lidc_cdam.errors import LidcCdamError


def read_config(run: Path) -> dict[str, Any]:
    """`RUN/config.yaml`.

    Raises:
        LidcCdamError: the file is missing or damaged, or lacks `data` or `views`.
    """
    path = run / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LidcCdamError(
            f"--run must be the folder of a run, but {path} is missing; run `lidc-cdam crossval --out {run}` first."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LidcCdamError(f"{path} must be YAML, but it cannot be read; run `lidc-cdam crossval` again.") from error
    lacking = [key for key in ("data", "views") if not isinstance(config, dict) or not config.get(key)]
    if lacking:
        raise LidcCdamError(f"{path} must name {' and '.join(lacking)}; run `lidc-cdam crossval` again.")
    return dict(config)


def fold_numbers(run: Path, holding: str) -> list[int]:
    """Numbers of a run's folds whose folder holds the file `holding`, ascending; other folders are passed over."""
    numbers = (path.parent.name.removeprefix("fold_") for path in run.glob(f"fold_*/{holding}"))
    return sorted(int(number) for number in numbers if number.isdecimal())
