import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lidc_cdam import cli
from lidc_cdam.cli import COMMANDS, Command, main
from lidc_cdam.errors import LidcCdamError


def step(count: int, out: Path = Path("out")) -> None:
    """Do a step.

    Args:
        count: how often.
        out: where to.
    """
    errors = {
        1: LidcCdamError("--count must be 0; got 1."),
        2: OSError(errno.ENOSPC, "No space left on device", "out/a.csv"),
        3: KeyboardInterrupt(),
        4: ZeroDivisionError("division by zero"),
    }
    if count:
        raise errors[count]


def turn(switch_on: bool = False, count: int = 0) -> None:
    """Say what arrived.

    Args:
        switch_on: a switch.
        count: a number.
    """
    raise LidcCdamError(f"{switch_on} {count}")


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    monkeypatch.setitem(COMMANDS, "step", Command("step:step", "Do a step"))
    monkeypatch.setitem(COMMANDS, "turn", Command("step:turn", "Say what arrived"))
    monkeypatch.setitem(sys.modules, "step", sys.modules[__name__])


def test_a_step_that_works_ends_with_0(capsys):
    assert main(["step", "--count", "0"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "lidc-cdam step: --count must be 0; got 1.\n"),
        (2, "No space left on device"),
        (3, "interrupted; what is finished is kept"),
        (4, "unexpected ZeroDivisionError"),
    ],
)
def test_a_failed_step_is_one_sentence_and_ends_with_1(capsys, count, sentence):
    assert main(["step", "--count", str(count)]) == 1
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


def test_debug_shows_the_traceback(capsys):
    assert main(["step", "--count", "4", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["step"], ["step", "--count", "x"], ["step", "--count", "0", "--cuont", "1"], ["stepp"]]
)
def test_wrong_usage_ends_with_2(capsys, words):
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "arrived"),
    [
        ([], "False 0"),
        (["--switch-on"], "True 0"),
        (["--switch-on", "--count", "2"], "True 2"),
        (["--count", "2", "--switch-on"], "True 2"),
        (["--switch-on", "false"], "False 0"),
        (["--switch_on=true"], "True 0"),
    ],
)
def test_a_switch_needs_no_value(capsys, words, arrived):
    assert main(["turn", *words]) == 1
    assert f": {arrived}\n" in capsys.readouterr().err


def test_options_are_shown_as_they_are_written(capsys):
    assert main(["turn", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--switch-on {true,false}" in shown
    assert "--switch_on" not in shown
    assert main(["turn", "--switch-on", "7"]) == 2
    assert "--switch-on must be true or false, but it is 7; see" in capsys.readouterr().err


def test_an_unknown_key_of_a_config_file_ends_with_2(capsys, tmp_path):
    config = tmp_path / "step.yaml"
    config.write_text("count: 0\ncolour: red\n")
    assert main(["step", "--config", str(config)]) == 2
    assert "colour" in capsys.readouterr().err
    config.write_text("count: 0\n")
    assert main(["step", "--config", str(config)]) == 0


def test_a_near_miss_is_guessed(capsys):
    assert main(["exctract"]) == 2
    assert "did you mean `extract`?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "step"])
def test_every_command_has_help(capsys, name):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lidc-cdam {name}")
    assert "--config" in shown


def test_the_overview_loads_no_heavy_package():
    code = (
        "import sys, lidc_cdam.cli as c; c.main(['--help']); sys.exit(int(bool({'torch','pandas'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(cli.__file__).parents[1], check=False).returncode == 0


def test_debug_shows_the_traceback_once_and_only_where_asked(capsys):
    assert main(["step", "--count", "1"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["step", "--count", "1", "--debug"]) == 1
    assert capsys.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize(
    "words", [["crossval"], ["export"], ["train", "--task"], ["explain", "--images"], ["evaluate", "--images"]]
)
def test_help_speaks_of_no_python_types(capsys, words):
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert not re.search(r"<class\s+'|null|Literal|Optional|--\w+\+", shown)
    assert not re.search(r"^ +,", shown, re.MULTILINE), "a line that begins with a comma"


def test_a_wrong_choice_names_the_choices(capsys):
    assert main(["crossval", "--data", "a", "--out", "b", "--schedule", "linear"]) == 2
    shown = capsys.readouterr().err
    assert "--schedule must be one of cosine, cyclic_triangular2, exponential, but it is linear" in shown
    assert main(["crossval", "--data", "a", "--out", "b", "--epoch", "2"]) == 2
    assert "--epoch 2" in capsys.readouterr().err


def test_a_bare_switch_is_true_and_a_value_still_counts(monkeypatch):
    called = []

    def toggled(out: Path = Path("out"), deep_look: bool = False) -> None:
        """Do it.

        Args:
            out: where to.
            deep_look: whether to look twice.
        """
        called.append((str(out), deep_look))

    monkeypatch.setattr(sys.modules[__name__], "step", toggled)
    usages = (["--deep-look"], ["--deep-look", "--out", "d"], ["--out", "d", "--deep_look"], ["--deep-look", "false"])
    for words in usages:
        assert main(["step", *words]) == 0
    assert called == [("out", True), ("d", True), ("d", True), ("out", False)]


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, row in COMMANDS.items() for form in row.forms])
def test_every_form_of_a_command_has_help(capsys, name, form):
    assert main([name, f"--{form}", "x", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lidc-cdam {name}")
    assert f"--{form}" in shown
    assert f"`lidc-cdam {name} --help`" in " ".join(shown.split())


def test_an_option_chooses_a_form_in_words_or_in_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(COMMANDS, "step", Command("step:step", "Do a step", forms={"switch_on": "step:turn"}))
    config = tmp_path / "step.yaml"
    config.write_text("switch_on: true\n")
    for words in (["--switch-on"], ["--switch_on=true"], ["--config", str(config)], [f"--config={config}"]):
        assert main(["step", *words]) == 1
        assert "True 0" in capsys.readouterr().err
    assert main(["step", "--count", "0"]) == 0
    assert main(["step", "--switch-on", "--out", "a"]) == 2
    assert "lidc-cdam step --switch-on: unrecognized arguments: --out a; see" in capsys.readouterr().err


def test_a_list_that_is_given_again_grows(capsys, monkeypatch):
    called = []

    def listed(words: list[str] | None = None, numbers: tuple[int, ...] = ()) -> None:
        """Say what arrived.

        Args:
            words: some.
            numbers: some.
        """
        called.append((words, numbers))

    monkeypatch.setattr(sys.modules[__name__], "step", listed)
    assert main(["step", "--words", "a=b >= 4", "--words", "c,d", "--numbers", "1,2"]) == 0
    assert called == [(["a=b >= 4", "c", "d"], (1, 2))]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "x"], "--workers must be a whole number, but it is x; see"),
        (["--nodules", ""], "--nodules must be values separated by commas, but it is empty; see"),
    ],
)
def test_a_wrong_kind_of_value_is_told_in_a_users_words(words, told, tmp_path, capsys):
    assert main(["report", "--run", str(tmp_path), "--out", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
