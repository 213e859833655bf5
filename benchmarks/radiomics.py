"""What learns best from the radiomics of a fold's own nodules: trees, or kernel ridge regression.

    python benchmarks/radiomics.py --data DATA [--fold 0] [--partitions 3] [--trees 600]

Choices for a second head are made here, inside one fold: its training and validation nodules are divided into five by
patient, several times, and each part is answered by what learnt from the other four. The fold's test patients take no
part, not even with nodules of indeterminate malignancy. Prints the AUC of malignancy and the mean z-scored MSE of the
eight biomarkers, each as the mean over the partitions with its lowest and highest.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from lidc_cdam.artifacts import read_splits
from lidc_cdam.vocabulary import BIOMARKERS, TARGETS
from preprocessing.splits import divide
from training.baselines import fit_baselines
from training.run import Run, open_run
from training.settings import TrainingSettings

KINDS = ("radiomics", "radiomics_kernel")


def inner_run(data: Path, out: Path, fold: int, seed: int) -> Run:
    """A run on the fold's training and validation nodules alone, divided into five by patient."""
    run = open_run(data, out, TrainingSettings(targets="joint"), None)
    outer = read_splits(data / "splits.json").folds[fold]
    tested = set(run.cohort.loc[list(outer.test), "patient_id"])
    cohort = run.cohort[~run.cohort["patient_id"].isin(tested)]
    table = cohort.loc[[*outer.train, *outer.val]].astype({"label": int}).sort_index()
    folds = divide(table, "sound", seed, 5)
    return replace(run, cohort=cohort, splits=replace(run.splits, folds=folds))


def figures(table: pd.DataFrame) -> tuple[float, float]:
    """AUC of malignancy, and mean z-scored MSE."""
    errors = [
        ((table[f"{each.key}_predicted"] - table[f"{each.key}_true"]) ** 2).mean()
        / table[f"{each.key}_true"].var(ddof=0)
        for each in BIOMARKERS
    ]
    return float(roc_auc_score(table["malignancy_true"], table["malignancy_predicted"])), float(np.mean(errors))


def main() -> None:
    """Print one line a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--trees", type=int, default=600)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.partitions):
            run = inner_run(options.data, Path(folder), options.fold, seed)
            rows = [(index, key) for index, fold in enumerate(run.splits.folds) for key in fold.test]
            nodules = run.cohort.loc[[key for _, key in rows], ["nodule_id", "patient_id"]].reset_index(drop=True)
            predictions = nodules.assign(fold=[index for index, _ in rows])
            tables = fit_baselines(run, predictions, list(TARGETS.values()), options.trees).tables
            for name in KINDS:
                found[name].append(figures(tables[name]))
    for name, rounds in found.items():
        columns = [f"{np.mean(part):.4f} ({min(part):.4f} to {max(part):.4f})" for part in zip(*rounds, strict=True)]
        print(f"{name:17} AUC {columns[0]}   mean z-scored MSE {columns[1]}")


if __name__ == "__main__":
    main()
