"""Where the settings that come with the package lie."""

from pathlib import Path

from lidc_cdam.errors import LidcCdamError


def bundled(kind: str, name: str) -> Path:
    """The file of a bundled preset, `configs/<kind>/<name>.yaml`.

    In a source tree the folder `configs/` stands beside the package; an installed wheel carries it inside.

    Raises:
        LidcCdamError: there is no such preset; the sentence names those that there are.
    """
    package = Path(__file__).resolve().parent
    folders = [
        folder / kind for folder in (package / "configs", package.parent / "configs") if (folder / kind).is_dir()
    ]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    names = sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
    raise LidcCdamError(
        f"{name!r} is not a preset for `{kind}`; choose one of {', '.join(names)}, or give a path to a YAML file."
    )
