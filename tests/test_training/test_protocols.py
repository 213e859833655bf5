"""The protocols of SCIENCE.md 4 as a table, and every configuration against it."""

import re
from pathlib import Path

import pytest
import yaml

from lidc_cdam.backbones import BACKBONES
from training.settings import TrainingSettings

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))
VIEWS = ["axial", "coronal", "sagittal"]
OURS_OFF = {
    "image_size": None,
    "views": VIEWS,
    "indeterminate": False,
    "stack": "slice",
    "mask_channel": False,
    "radiomics": False,
    "side_head": "mlp",
    "flips": False,
    "shift": 0,
    "grey_jitter": 0.0,
    "average": None,
    "layer_decay": None,
    "clip_gradient": None,
    "patience": None,
    "precision": "auto",
    "seed": 0,
}
"""The paper draws a view, a slice and a quarter turn and has nothing else of what there is here."""
FACTS = {
    "paper_appendix": {
        **OURS_OFF,
        "weights": "hub",
        "dropout": 0.12,
        "trainable_layers": None,
        "optimiser": "adam",
        "max_lr": 3e-5,
        "schedule": "cyclic_triangular2",
        "weight_decay": 0.0,
        "loss": "huber",
    },
    "paper_main": {
        **OURS_OFF,
        "weights": "hub",
        "dropout": 0.003,
        "trainable_layers": 50,
        "epochs": 50,
        "schedule": "exponential",
        "weight_decay": 0.0,
    },
    "sound": {"optimiser": "adamw", "schedule": "cosine", "loss": "huber", "trainable_layers": None},
}
"""What each protocol says (appendix: the authors' final settings, paper and public code)."""
RANGES = {"batch_size": (8, 16), "epochs": (35, 100), "cycles": (2, 4)}
"""Within which the authors' final settings of the appendix lie."""
HEADS = {"malignancy": "linear", "biomarkers": "mlp", "joint": "mlp"}
CHOSEN = {
    "paper_appendix": {"targets", "backbone", "head", "batch_size", "epochs", "cycles"},
    "paper_main": {"targets", "backbone", "head", "batch_size", "max_lr", "optimiser", "loss"},
}
"""What a file of the paper's protocols decides beside the facts: all of it is tested here or named in its header."""
IDLE = {
    "paper_appendix": {"warm_up", "stack_step"},
    "paper_main": {"warm_up", "stack_step", "cycles"},
}
"""Settings without effect there."""


def protocol_of(path):
    name = path.stem.split("_", 1)[1]
    if name == "paper_main":
        return "paper_main"
    return "paper_appendix" if name.startswith(("dino", "deit")) else "sound"


def read(path):
    header = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    return header, TrainingSettings(**yaml.safe_load(path.read_text())).as_dict()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_has_the_facts_of_its_protocol(path):
    _, found = read(path)
    facts = FACTS[protocol_of(path)]
    assert {name: found[name] for name in facts} == facts


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_of_the_paper_differs_in_nothing_but_what_it_states(path):
    header, found = read(path)
    protocol, (target, _) = protocol_of(path), path.stem.split("_", 1)
    if protocol == "sound":
        assert "paper" not in header.lower()
        return
    # Every setting is a fact, a stated choice, or idle: a new setting must be put in its place here.
    assert found.keys() == FACTS[protocol].keys() | CHOSEN[protocol] | IDLE[protocol]
    assert "alidation nodules choose the epoch" in header
    if protocol == "paper_main":
        words = "highest rate and the last one, the batch size, the optimiser, the head and the architecture"
        assert words in header
        assert found["backbone"].startswith("dino_")
        assert found["loss"] == ("mse" if target == "biomarkers" else "huber")
        return
    assert f"Protocol {protocol}" in header
    assert found["head"] == HEADS[target]
    assert all(low <= found[name] <= high for name, (low, high) in RANGES.items())
    told = re.search(r"Chosen within theirs: (\d+) epochs \(35 to 100\), (\d+) cycles \(2 to 4\), batch (\d+)", header)
    assert [int(number) for number in told.groups()] == [found[name] for name in ("epochs", "cycles", "batch_size")]
    assert ("registers" in header) == ("_reg" in found["backbone"])
    assert ("Both tasks at once are this project's" in header) == (target == "joint")


def test_the_appendix_has_every_backbone_of_dino_deit_and_dinov2():
    names = {path.stem for path in CONFIGS if protocol_of(path) == "paper_appendix"}
    theirs = [name for name in BACKBONES if name.startswith(("dino", "deit"))]
    assert names == {f"{target}_{backbone}" for target in HEADS for backbone in theirs}


def test_published_weights_learn_slower_at_their_beginning_in_the_sound_protocol():
    sound = [read(path)[1] for path in CONFIGS if protocol_of(path) == "sound"]
    assert all((found["layer_decay"] is not None) == (found["weights"] == "hub") for found in sound)


def test_the_papers_sweep_has_its_ranges():
    """Appendix: trainable layers 10 to all, dropout 0 to 0.12, batch 8 to 32; the final settings lie within."""
    space = yaml.safe_load((CONFIGS[0].parents[1] / "sweep" / "paper.yaml").read_text())
    assert space["trainable_layers"] == {"low": 10, "high": "all"}
    assert space["dropout"] == {"low": 0.0, "high": 0.12}
    assert (min(space["batch_size"]["choices"]), max(space["batch_size"]["choices"])) == (8, 32)
    assert (space["cycles"]["low"], space["cycles"]["high"]) == RANGES["cycles"]
    assert space["max_lr"]["low"] < FACTS["paper_appendix"]["max_lr"] < space["max_lr"]["high"]
    assert set(space) == {"trainable_layers", "dropout", "batch_size", "cycles", "max_lr"}
