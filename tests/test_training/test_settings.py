from pathlib import Path

import pytest
import yaml

from lidc_cdam.backbones import BACKBONES
from lidc_cdam.cli import COMMANDS, command_parser, main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.vocabulary import BIOMARKERS
from training.crossval import crossval
from training.settings import TrainingSettings

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"targets": "size"}, "--targets must name at least one of malignancy, .*; got 'size'"),
        ({"backbone": "resnet"}, "--backbone must be one of .*tiny.*; got 'resnet'"),
        (
            {"views": ["axial", "oblique"]},
            "--views must name at least one of axial, coronal, sagittal; got .*'oblique'",
        ),
        ({"views": []}, "--views must .*; got none"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1; got 1.0"),
        ({"max_lr": 0.0}, "--max-lr must be a number above 0; got 0.0"),
        ({"max_lr": float("nan")}, "--max-lr must be a number above 0; got nan"),
        ({"epochs": 0}, "--epochs must be at least 1; got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1; got 0"),
        ({"trainable_layers": -1}, "--trainable-layers must be at least 0; got -1"),
        ({"patience": 0}, "--patience must be at least 1; got 0"),
        ({"side_head": "kernel"}, "--side-head kernel needs radiomics to read; add --radiomics true"),
        ({"seed": -1}, "--seed must be at least 0; got -1"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(values, sentence):
    with pytest.raises(LidcCdamError, match=sentence):
        TrainingSettings(**values)


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ({"optimiser": "sgd"}, "--optimiser must be one of adam, adamw; got 'sgd'"),
        ({"schedule": "step"}, "--schedule must be one of cosine, cyclic_triangular2, exponential; got 'step'"),
        ({"precision": "8-bit"}, "--precision must be one of auto, 32-true, bf16-mixed; got '8-bit'"),
    ],
)
def test_an_unknown_choice_is_refused_from_python_too(values, known):
    settings = TrainingSettings()
    for name, value in values.items():
        object.__setattr__(settings, name, value)
    with pytest.raises(LidcCdamError, match=known):
        settings.__post_init__()


def test_targets_are_resolved_in_the_vocabularys_order():
    assert TrainingSettings(targets=["diameter", "subtlety"]).targets == ["subtlety", "diameter"]
    assert TrainingSettings(targets="biomarkers").targets == [biomarker.key for biomarker in BIOMARKERS]
    assert TrainingSettings(targets="biomarkers") == TrainingSettings(targets=[each.key for each in BIOMARKERS])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_begins_with_its_command(path):
    parser = command_parser("crossval", crossval)
    values = vars(parser.parse_args([f"--config={path}", "--data=DATA", "--out=RUN"]))
    stored = yaml.safe_load(path.read_text())
    assert {key: values[key] for key in stored} == {key: stored[key] for key in stored}
    TrainingSettings(**stored)
    target, backbone = path.stem.split("_", 1)
    assert stored["targets"] == target
    assert backbone in ("paper_main", "sound") or backbone.startswith(stored["backbone"])
    assert stored["backbone"] in BACKBONES
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0] == f"# lidc-cdam crossval --data DATA --config configs/train/{path.name} --out RUN"
    assert "Time" in " ".join(header)


def test_every_target_and_backbone_has_a_config():
    names = {path.stem for path in CONFIGS}
    assert names >= {
        f"{target}_{backbone}" for target in ("malignancy", "biomarkers", "joint") for backbone in BACKBONES
    }
    assert names >= {"malignancy_sound", "biomarkers_sound", "joint_sound"}


def test_an_unknown_config_key_is_wrong_usage(tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text("targets: malignancy\nlearning_rate: 1\n")
    assert main(["crossval", "--data", "D", "--out", "R", "--config", str(path)]) == 2
    assert "'learning_rate'" in capsys.readouterr().err


def test_lists_dashes_and_bundled_names_reach_the_stage(monkeypatch, tmp_path):
    seen = {}

    def stage(data: Path, out: Path, settings: TrainingSettings, folds: list[int] | None = None) -> None:
        """Remember the call."""
        seen.update(data=data, out=out, settings=settings, folds=folds)

    monkeypatch.setattr("training.crossval.crossval", stage)
    assert COMMANDS["crossval"].function == "training.crossval:crossval"
    options = {"data": "D", "config": "biomarkers_tiny", "out": "R", "folds": "0,2", "max-lr": "2e-3"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert main(["crossval", *words, "--views=axial,coronal"]) == 0
    assert (seen["data"], seen["out"], seen["folds"]) == (Path("D"), Path("R"), [0, 2])
    settings = seen["settings"]
    assert (settings.max_lr, settings.views, len(settings.targets)) == (2e-3, ["axial", "coronal"], 8)


def test_an_unknown_bundled_config_names_those_that_there_are(capsys):
    assert main(["crossval", "--data", "D", "--out", "R", "--config", "biomarker_tiny"]) == 1
    assert "'biomarker_tiny' is not a preset for `train`; choose one of biomarkers_" in capsys.readouterr().err
