import shutil
import signal
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from lidc_cdam.artifacts import read_latents, read_predictions, read_splits, write_splits
from lidc_cdam.backbones import build_backbone
from lidc_cdam.cli import main
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain import explain
from lidc_cdam.intensity import Statistics
from lidc_cdam.kernel import KernelHead
from lidc_cdam.model import NoduleModel
from lidc_cdam.provenance import sha256
from training import fit
from training.data import evaluation_images, read_cubes
from training.fit import train
from training.inference import predict_nodules
from training.lightning import enough_memory, precision
from training.module import NoduleTask
from training.run import open_run
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(epochs=3, batch_size=4, views=["axial"], dropout=0.1, max_lr=2e-3)
FILES = (
    "model.safetensors",
    "model.json",
    "statistics.json",
    "history.csv",
    "predictions.csv",
    "validation.csv",
    "latents.npz",
)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An uninterrupted training of fold 0."""
    run = tmp_path_factory.mktemp("fit") / "run"
    train(data, run, SETTINGS)
    return run / "fold_0"


def same_files(first, second):
    return {name: (first / name).read_bytes() == (second / name).read_bytes() for name in FILES}


def test_a_fold_holds_its_files_and_nothing_else(finished):
    assert {path.name for path in finished.iterdir()} == {*FILES, "provenance.json"}
    history = pd.read_csv(finished / "history.csv")
    assert list(history["epoch"]) == [0, 1, 2]
    assert history[["train_loss", "val_loss", "val_auc", "learning_rate"]].notna().all().all()


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(data, finished, tmp_path):
    train(data, tmp_path / "same", SETTINGS)
    assert all(same_files(finished, tmp_path / "same" / "fold_0").values())
    train(data, tmp_path / "other", TrainingSettings(**{**SETTINGS.as_dict(), "seed": 1}))
    assert not same_files(finished, tmp_path / "other" / "fold_0")["model.safetensors"]


def stop_at(monkeypatch, epoch, index, error=KeyboardInterrupt):
    step = NoduleTask.training_step

    def stopping(self, batch, position):
        if (self.current_epoch, position) == (epoch, index):
            raise error
        return step(self, batch, position)

    monkeypatch.setattr(NoduleTask, "training_step", stopping)


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (2, 1)])
def test_an_interrupted_fold_goes_on_and_ends_as_if_it_had_not_been(data, finished, tmp_path, monkeypatch, place):
    with monkeypatch.context() as patch:
        stop_at(patch, *place)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", SETTINGS)
    left = {path.name for path in (tmp_path / "run" / "fold_0").iterdir()}
    assert left == ({"provenance.json"} if place[0] == 0 else {"provenance.json", "last.ckpt"})
    train(data, tmp_path / "run", SETTINGS)
    assert all(same_files(finished, tmp_path / "run" / "fold_0").values())


def test_an_interrupt_after_the_last_epoch_loses_nothing(data, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fit, "write_predictions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", SETTINGS)
    stop_at(monkeypatch, 0, 0, AssertionError("no step is trained again"))
    train(data, tmp_path / "run", SETTINGS)
    assert all(same_files(finished, tmp_path / "run" / "fold_0").values())


def test_training_leaves_the_process_as_it_was(data, tmp_path, monkeypatch):
    before = (torch.get_rng_state(), signal.getsignal(signal.SIGINT))
    filters = list(warnings.filters)
    stop_at(monkeypatch, 1, 0)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", SETTINGS)
    assert torch.equal(before[0], torch.get_rng_state())
    assert signal.getsignal(signal.SIGINT) is before[1]
    assert not torch.are_deterministic_algorithms_enabled()
    assert warnings.filters == filters


def test_ctrl_c_on_the_command_line_ends_in_a_sentence_and_goes_on(data, tmp_path, monkeypatch, capsys):
    words = ["train", f"--data={data}", f"--out={tmp_path / 'run'}", "--epochs=2", "--batch-size=4", "--views=axial"]
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        assert main(words) == 1
    assert capsys.readouterr().err == (
        "lidc-cdam train: interrupted; what is finished is kept, and the same command goes on from there.\n"
    )
    assert main(words) == 0


def test_a_full_disk_leaves_the_last_whole_checkpoint(data, finished, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", SETTINGS)
    folder = tmp_path / "run" / "fold_0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            train(data, tmp_path / "run", SETTINGS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    train(data, tmp_path / "run", SETTINGS)
    assert all(same_files(finished, folder).values())


def test_nothing_is_written_outside_the_run(data, tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    train(data, tmp_path / "run", TrainingSettings(epochs=1, batch_size=8))
    assert not list(elsewhere.iterdir())
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith("Fold 0: epoch 0 of 1 is best on validation (loss ")


@pytest.mark.parametrize(("name", "role"), [("predictions.csv", "test"), ("validation.csv", "val")])
def test_the_reloaded_model_reproduces_its_predictions(data, finished, name, role):
    model, statistics = NoduleModel.load(finished), Statistics.read(finished / "statistics.json")
    table = pd.read_csv(finished / name, dtype=str)
    images = evaluation_images(read_cubes(data, list(table["nodule_id"])), list(table["nodule_id"]), ["axial"])
    outputs = predict_nodules(model, statistics.intensity, images)
    printed = [float(text) for text in table["malignancy_predicted"]]
    assert np.array_equal(statistics.scaling.to_reader_scale(outputs)[:, 0], printed)
    assert tuple(table["nodule_id"]) == getattr(read_splits(data / "splits.json").folds[0], role)


def test_the_latents_are_those_that_the_head_read(data, finished):
    latents, splits = read_latents(finished / "latents.npz"), read_splits(data / "splits.json")
    fold, model = splits.folds[0], NoduleModel.load(finished)
    assert latents.nodule_ids == (*fold.train, *fold.val, *fold.test)
    assert [latents.roles.count(role) for role in ("train", "val", "test")] == [
        len(part) for part in (fold.train, fold.val, fold.test)
    ]
    test = latents.vectors[[role == "test" for role in latents.roles]]
    with torch.no_grad():
        probability = torch.sigmoid(model.head(torch.from_numpy(test)))[:, 0]
    predicted = read_predictions(finished / "predictions.csv")["malignancy_predicted"]
    np.testing.assert_allclose(probability.numpy(), predicted, rtol=1e-4)


def test_a_fold_of_an_older_version_gets_its_latents_without_training(data, finished, tmp_path, monkeypatch):
    shutil.copytree(finished.parent, tmp_path / "run")
    latents = tmp_path / "run" / "fold_0" / "latents.npz"
    latents.unlink()
    stop_at(monkeypatch, 0, 0, AssertionError("no step is trained again"))
    train(data, tmp_path / "run", SETTINGS)
    found, before = read_latents(latents), read_latents(finished / "latents.npz")
    assert found.nodule_ids == before.nodule_ids
    np.testing.assert_allclose(found.vectors, before.vectors, rtol=1e-5, atol=1e-6)


def test_the_weights_are_those_of_the_best_validation_epoch(data, tmp_path, monkeypatch):
    weights, losses = {}, iter([0.5, 0.2, 0.9])

    def noting(self):
        self._answers.clear()
        weights[self.current_epoch] = self.model.head.weight.detach().clone()
        self.log("val_loss", next(losses))

    monkeypatch.setattr(NoduleTask, "on_validation_epoch_end", noting)
    train(data, tmp_path / "run", SETTINGS)
    stored = NoduleModel.load(tmp_path / "run" / "fold_0").head.weight
    assert torch.equal(stored, weights[1])


def test_changed_settings_are_refused(data, finished):
    other = TrainingSettings(**{**SETTINGS.as_dict(), "targets": "biomarkers"})
    with pytest.raises(LidcCdamError, match=r"was made by `crossval` with targets = \[\"malignancy\"\].*another --out"):
        train(data, finished.parent, other)


def test_a_wrong_fold_is_told(data, tmp_path):
    with pytest.raises(LidcCdamError, match="A fold must be one of 0 to 1, the folds of the splits; got 2"):
        train(data, tmp_path / "run", SETTINGS, fold=2)


def test_a_diverging_training_is_told(data, tmp_path):
    wild = TrainingSettings(epochs=2, batch_size=4, targets="diameter", loss="mse", max_lr=1e30, optimiser="adam")
    with pytest.raises(
        LidcCdamError, match=r"Fold 0 must have a finite loss, but in epoch 0 it has none; lower --max-lr"
    ):
        train(data, tmp_path / "run", wild)


def test_a_damaged_checkpoint_is_told(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", SETTINGS)
    checkpoint = tmp_path / "run" / "fold_0" / "last.ckpt"
    for damage in (b"", b"not a checkpoint", checkpoint.read_bytes()[:1000]):
        checkpoint.write_bytes(damage)
        with pytest.raises(LidcCdamError, match=r"last.ckpt must be the checkpoint .* delete it"):
            train(data, tmp_path / "run", SETTINGS)


def test_missing_weights_and_foreign_splits_are_told(data, tmp_path):
    with pytest.raises(LidcCdamError, match="--weights must be 'hub' or a file of weights"):
        train(data, tmp_path / "run", TrainingSettings(weights=str(tmp_path / "none.pth")))
    other = tmp_path / "data"
    shutil.copytree(data, other)
    cohort = other / "cohort.csv"
    cohort.write_text(cohort.read_text() + "\n")
    with pytest.raises(LidcCdamError, match=r"must divide the cohort of .* made from another one"):
        train(other, tmp_path / "run", SETTINGS)


def test_early_stopping_looks_at_validation_alone(data, tmp_path):
    settings = TrainingSettings(epochs=8, batch_size=4, max_lr=1e-12, patience=2, views=["axial"])
    train(data, tmp_path / "run", settings)
    history = pd.read_csv(tmp_path / "run" / "fold_0" / "history.csv")
    assert len(history) < 8
    assert len(history) == history["val_loss"].idxmin() + 3


def test_frozen_layers_stay_and_the_last_ones_learn(data, tmp_path):
    frozen = TrainingSettings(epochs=1, batch_size=4, trainable_layers=2, max_lr=1e-2, views=["axial"])
    train(data, tmp_path / "frozen", frozen)
    still = TrainingSettings(**{**frozen.as_dict(), "max_lr": 1e-30})
    train(data, tmp_path / "still", still)
    moved = {
        name
        for (name, first), second in zip(
            NoduleModel.load(tmp_path / "frozen" / "fold_0").named_parameters(),
            NoduleModel.load(tmp_path / "still" / "fold_0").parameters(),
            strict=True,
        )
        if not torch.equal(first, second)
    }
    assert moved == {"backbone.norm.weight", "backbone.norm.bias", "head.weight", "head.bias"}


def test_bf16_trains_in_half_the_digits_and_predicts_in_float32(data, finished, tmp_path, monkeypatch):
    half = replace(SETTINGS, precision="bf16-mixed")
    kinds = set()
    forward = NoduleModel.forward
    monkeypatch.setattr(
        NoduleModel, "forward", lambda self, *given: kinds.add((found := forward(self, *given)).dtype) or found
    )
    train(data, tmp_path / "whole", half)
    assert kinds == {torch.bfloat16, torch.float32}
    whole, full = (pd.read_csv(fold / "history.csv") for fold in (tmp_path / "whole" / "fold_0", finished))
    assert not whole["train_loss"].equals(full["train_loss"])
    assert np.allclose(whole["train_loss"], full["train_loss"], rtol=0.1)
    assert {tensor.dtype for tensor in NoduleModel.load(tmp_path / "whole" / "fold_0").state_dict().values()} == {
        torch.float32
    }
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", half)
    train(data, tmp_path / "run", half)
    assert all(same_files(tmp_path / "whole" / "fold_0", tmp_path / "run" / "fold_0").values())


@pytest.mark.parametrize(
    ("gpu", "emulated", "expected"), [(False, True, "32-true"), (True, True, "32-true"), (True, False, "bf16-mixed")]
)
def test_auto_takes_bf16_only_where_a_gpu_has_it(monkeypatch, gpu, emulated, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    assert precision(SETTINGS) == expected


def test_it_learns_what_can_be_seen(data, tmp_path):
    settings = TrainingSettings(epochs=8, batch_size=4, max_lr=2e-3, views=["axial"])
    train(data, tmp_path / "run", settings)
    table = pd.read_csv(tmp_path / "run" / "fold_0" / "predictions.csv")
    bright = table["malignancy_true"] == 1
    assert table.loc[bright, "malignancy_predicted"].min() > table.loc[~bright, "malignancy_predicted"].max()


def test_undecided_nodules_train_biomarkers_only_where_their_patients_play_no_other_role(own_data, tmp_path):
    folder = own_data
    cohort = pd.read_csv(folder / "cohort.csv")
    splits = read_splits(folder / "splits.json")
    # One nodule loses its label and its place in the folds; its patient's other one, if any, keeps its role.
    lone = splits.folds[0].train[0]
    cohort.loc[cohort["nodule_id"] == lone, "label"] = pd.NA
    shared = splits.folds[0].train[1]
    cohort.loc[cohort["nodule_id"] == shared, "label"] = pd.NA
    owner = cohort.loc[cohort["nodule_id"] == splits.folds[0].val[0], "patient_id"].item()
    cohort.loc[cohort["nodule_id"] == shared, "patient_id"] = owner
    cohort.astype({"label": "Int64"}).to_csv(folder / "cohort.csv", index=False)
    gone = {lone, shared}
    folds = tuple(
        type(fold)(*(tuple(key for key in part if key not in gone) for part in (fold.train, fold.val, fold.test)))
        for fold in splits.folds
    )
    write_splits(folder / "splits.json", replace(splits, cohort_sha256=sha256(folder / "cohort.csv"), folds=folds))
    settings = TrainingSettings(targets="joint", epochs=1, batch_size=8, views=["axial"], indeterminate=True)
    run = open_run(folder, tmp_path / "run", settings, None)
    assert run.fold(0).train == (*folds[0].train, lone)
    train(folder, tmp_path / "run", settings)
    assert np.isfinite(pd.read_csv(tmp_path / "run" / "fold_0" / "history.csv")["train_loss"]).all()


def test_undecided_nodules_need_a_biomarker():
    with pytest.raises(LidcCdamError, match="--indeterminate needs a biomarker"):
        TrainingSettings(indeterminate=True)


RICH = TrainingSettings(
    epochs=2,
    batch_size=8,
    views=["axial"],
    targets="joint",
    stack="adjacent",
    mask_channel=True,
    radiomics=True,
    shift=2,
    grey_jitter=0.1,
    average=0.9,
)


@pytest.mark.parametrize("side_head", ["mlp", "kernel"])
def test_a_model_with_everything_beside_the_slice_goes_through_the_chain(data, tmp_path, monkeypatch, side_head):
    settings = replace(RICH, side_head=side_head)
    run, crops = tmp_path / "run", tmp_path / "data"
    shutil.copytree(data, crops)
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            train(crops, run, settings)
    train(crops, run, settings)
    train(crops, tmp_path / "whole", settings)
    assert all(same_files(run / "fold_0", tmp_path / "whole" / "fold_0").values())
    words = ["--run", str(run), "--data", str(crops), "--out", str(tmp_path / "other.csv")]
    assert main(["predict", *words]) == 0
    assert main(["explain", "--run", str(run), "--method", "cdam"]) == 0
    assert (
        main(["evaluate", "--run", str(run), "--methods", "cdam", "--fidelity-nodules", "2", "--replicates", "9"]) == 0
    )
    beside = NoduleModel.load(run / "fold_0").side_head
    assert isinstance(beside, KernelHead) == (side_head == "kernel")
    kept = pd.read_csv(run / "fold_0" / "predictions.csv").set_index("nodule_id")
    again = pd.read_csv(tmp_path / "other.csv").set_index("nodule_id").loc[kept.index]
    columns = [name for name in kept if name.endswith("_predicted")]
    assert np.allclose(kept[columns], again[columns], atol=1e-5)


def test_maps_explain_the_images_part_of_a_model_that_also_reads_numbers():
    model = NoduleModel(build_backbone("tiny", channels=4), ["margin"], features=5).eval()
    images, numbers = torch.randn(2, 4, 32, 32), torch.randn(2, 5)
    torch.nn.init.normal_(model.side_head[-1].weight)
    beside = model(images, numbers) - model(images)
    assert torch.allclose(beside, model(torch.zeros_like(images), numbers) - model(torch.zeros_like(images)), atol=1e-6)
    assert beside.abs().min() > 0
    before = explain(model, images)
    torch.nn.init.normal_(model.side_head[-1].weight)
    assert torch.equal(explain(model, images), before)


def test_a_further_channel_changes_nothing_until_it_is_trained(tmp_path):
    narrow = build_backbone("tiny").eval()
    save_file(narrow.state_dict(), tmp_path / "tiny.safetensors")
    wide = build_backbone("tiny", tmp_path / "tiny.safetensors", channels=4).eval()
    images = torch.randn(2, 4, 32, 32)
    assert torch.allclose(wide(images), narrow(images[:, :3]), atol=1e-6)


def test_published_weights_out_of_reach_leave_no_claim(data, tmp_path, monkeypatch):
    def unreachable(name):
        raise LidcCdamError(f"no network for {name}")

    monkeypatch.setattr("lidc_cdam.backbones.published_weights", unreachable)
    settings = TrainingSettings(backbone="deit_small16", weights="hub", epochs=1)
    with pytest.raises(LidcCdamError, match="no network for deit_small16"):
        train(data, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
    assert TrainingSettings(weights="none").weights is None


CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "GPU"),
        (RuntimeError("CUDA error: out of memory"), "GPU"),
        (RuntimeError(CPU_MESSAGE), "machine"),
        (MemoryError(), "machine"),
    ],
)
def test_a_full_memory_says_which_batch_to_try_and_keeps_the_checkpoint(
    data, finished, tmp_path, monkeypatch, error, place
):
    folder = tmp_path / "run" / "fold_0"
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0, error)
        with pytest.raises(
            LidcCdamError, match=f"Fold 0 must fit into the {place}'s memory.* of 4 do not; try --batch-size 2"
        ):
            train(data, tmp_path / "run", SETTINGS)
    assert {path.name for path in folder.iterdir()} == {"provenance.json", "last.ckpt"}
    train(data, tmp_path / "run", SETTINGS)
    assert all(same_files(finished, folder).values())


def test_another_error_of_pytorch_is_not_taken_for_a_full_memory():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("Fold 0", 4):
        raise RuntimeError("shapes cannot be multiplied")
    with pytest.raises(LidcCdamError, match="try a smaller --backbone or --image-size"), enough_memory("Fold 0", 1):
        raise MemoryError


@pytest.mark.parametrize("change", [{"max_lr": 1e-3}, {"targets": "biomarkers"}])
def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        for name, settings in (("run", SETTINGS), ("other", replace(SETTINGS, **change))):
            with pytest.raises(KeyboardInterrupt):
                train(data, tmp_path / name, settings)
    checkpoint = tmp_path / "run" / "fold_0" / "last.ckpt"
    foreign = (tmp_path / "other" / "fold_0" / "last.ckpt").read_bytes()
    checkpoint.write_bytes(foreign)
    with pytest.raises(LidcCdamError, match=r"last.ckpt must be the checkpoint of this training.*other settings"):
        train(data, tmp_path / "run", SETTINGS)
    assert checkpoint.read_bytes() == foreign


@pytest.mark.parametrize("role", ["train", "val"])
def test_a_part_of_one_class_is_refused_before_anything_is_trained(own_data, tmp_path, role):
    labels = pd.read_csv(own_data / "cohort.csv").set_index("nodule_id")["label"]
    splits = read_splits(own_data / "splits.json")
    benign = tuple(key for key in getattr(splits.folds[0], role) if labels[key] == 0)
    first = replace(splits.folds[0], **{role: benign})
    write_splits(own_data / "splits.json", replace(splits, folds=(first, splits.folds[1])))
    with pytest.raises(LidcCdamError, match=r"Fold 0 must have benign and malignant (training|validation) nodules"):
        train(own_data, tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists()
    train(own_data, tmp_path / "sizes", replace(SETTINGS, targets="diameter", epochs=1))


def test_a_nodule_without_a_value_is_named_before_anything_is_trained(own_data, tmp_path):
    cohort, splits = pd.read_csv(own_data / "cohort.csv"), read_splits(own_data / "splits.json")
    cohort.loc[cohort["nodule_id"] == splits.folds[0].train[2], "margin"] = np.nan
    cohort.to_csv(own_data / "cohort.csv", index=False)
    write_splits(own_data / "splits.json", replace(splits, cohort_sha256=sha256(own_data / "cohort.csv")))
    with pytest.raises(LidcCdamError, match=f"a value for margin, but {splits.folds[0].train[2]} has none"):
        train(own_data, tmp_path / "run", replace(SETTINGS, targets="biomarkers"))
    assert not (tmp_path / "run").exists()
