"""Models of other kinds on the same nodules and folds: what a network must be shown beside.

Each answers for a fold's test nodules after learning from its training and validation nodules; a network chooses its
epoch on the latter, so both have seen the same. A baseline that cannot be fitted is absent with its reason: it never
costs a run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lidc_cdam.artifacts import Fold, read_dataset
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.intensity import FeatureScaling, Scaling
from lidc_cdam.progress import track
from lidc_cdam.vocabulary import BIOMARKERS, MALIGNANCY, Target
from training.data import column_of
from training.inference import predictions_table
from training.kernel import fit_kernel
from training.radiomics import read_features
from training.run import Run

FOLDER = "baselines"
"""`RUN/baselines/<name>.csv`: a baseline's out-of-fold predictions, in the form of `predictions.csv`."""
TREES = 600
LEAF = 2
"""Fewest nodules in a leaf of a tree."""
SHARE = 1 / 3
"""Share of the features that a split looks at."""
KEYS = [biomarker.key for biomarker in BIOMARKERS]

Answers = Float64[np.ndarray, "nodule target"]
FoldAnswers = Callable[[Fold, list[str]], Answers]
"""What a baseline that learnt from a fold answers for nodules."""


@dataclass(frozen=True)
class Baselines:
    """Out-of-fold predictions by baseline, and why others are absent."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def fit_baselines(run: Run, predictions: pd.DataFrame, targets: Sequence[Target], trees: int = TREES) -> Baselines:
    """Fit every baseline on the folds that a table of predictions holds.

    Args:
        run: the run.
        predictions: its pooled predictions: which nodules, and the fold that tests each.
        targets: what to predict.
        trees: trees of the radiomics baseline in each of its two forests; 0 leaves it out.

    Returns:
        `radiomics`, `radiomics_kernel`, and `readers_logistic` where malignancy is predicted.
    """
    found = Baselines()
    fits: dict[str, tuple[Callable[[], FoldAnswers], Sequence[Target]]] = {
        "radiomics": (lambda: _radiomics(run, targets, trees), targets),
        "radiomics_kernel": (lambda: _radiomics_kernel(run, targets), targets),
        "readers_logistic": (lambda: _readers_logistic(run.cohort), [MALIGNANCY]),
    }
    for name, (prepare, predicted) in fits.items():
        if predicted == [MALIGNANCY] and MALIGNANCY not in targets:
            continue
        try:
            found.tables[name] = _out_of_fold(run, predictions, prepare(), predicted, name)
        except LidcCdamError as error:
            found.absent[name] = str(error)
    return found


def _out_of_fold(
    run: Run, predictions: pd.DataFrame, answer: FoldAnswers, targets: Sequence[Target], name: str
) -> pd.DataFrame:
    parts = []
    for fold, rows in track(predictions.groupby("fold").indices.items(), f"Fitting {name}"):
        tested = predictions["nodule_id"].iloc[rows].tolist()
        nodules, index = run.cohort.loc[tested], int(str(fold))
        truth = nodules[[column_of(target) for target in targets]].to_numpy(dtype=np.float64)
        predicted = answer(run.splits.folds[index], tested)
        parts.append(predictions_table(nodules, index, targets, truth, predicted))
    return pd.concat(parts, ignore_index=True)


def learners(cohort: pd.DataFrame, nodule_ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The nodules that malignancy can be learnt from, those with a label, and their labels.

    Raises:
        LidcCdamError: one of the two classes is missing.
    """
    label = cohort["label"].reindex(list(nodule_ids)).dropna()
    if label.nunique() < 2:
        raise LidcCdamError(
            f"Malignancy must be learnt from benign and malignant nodules, but a fold's {len(label)} nodules for "
            f"training have one class alone; divide more nodules with `lidc-cdam split`."
        )
    return label.index.tolist(), label.to_numpy(dtype=np.int64)


def reader_values(cohort: pd.DataFrame, nodule_ids: Sequence[str]) -> Float64[np.ndarray, "nodule 8"]:
    """The readers' means of the eight biomarkers.

    Raises:
        LidcCdamError: a nodule has no value.
    """
    values = cohort.loc[list(nodule_ids), KEYS]
    lacking = values.index[values.isna().any(axis=1)]
    if len(lacking):
        raise LidcCdamError(
            f"Logistic regression on the readers' biomarkers needs all eight of each nodule, but {lacking[0]} lacks "
            f"{values.columns[values.loc[lacking[0]].isna()][0]}; run `lidc-cdam cohort` again."
        )
    return values.to_numpy(dtype=np.float64)


def fit_logistic(cohort: pd.DataFrame, nodule_ids: Sequence[str]) -> Pipeline:
    """Malignancy from the readers' eight biomarkers: standardised, logistic regression with a unit L2 penalty.

    Raises:
        LidcCdamError: a class or a value is missing.
    """
    known, label = learners(cohort, nodule_ids)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(reader_values(cohort, known), label)


def _readers_logistic(cohort: pd.DataFrame) -> FoldAnswers:
    def answer(fold: Fold, tested: list[str]) -> Answers:
        fitted = fit_logistic(cohort, [*fold.train, *fold.val])
        return np.asarray(fitted.predict_proba(reader_values(cohort, tested))[:, 1:], dtype=np.float64)

    return answer


def _radiomics(run: Run, targets: Sequence[Target], trees: int) -> FoldAnswers:
    """Extremely randomised trees (Geurts et al. 2006) on the consensus mask's features.

    Malignancy is a forest of classifiers, the biomarkers are z-scored and share a forest of regressors. The latter
    also learns from nodules that no fold names (those of indeterminate malignancy), unless their patient is tested.
    """
    if not trees:
        raise LidcCdamError("The radiomics baseline was left out by --trees 0.")
    rated = [target.key for target in targets if target is not MALIGNANCY]
    features, others = _read_radiomics(run, rated)

    def answer(fold: Fold, tested: list[str]) -> Answers:
        known = [*fold.train, *fold.val]
        columns = []
        if MALIGNANCY in targets:
            columns.append(_classify(features, *learners(run.cohort, known), tested, trees, run.settings.seed))
        if rated:
            values = run.cohort.loc[[*known, *_untested(run.cohort, others, fold)], rated].dropna()
            columns.append(_regress(features, values, tested, trees, run.settings.seed))
        return np.concatenate(columns, axis=1)

    return answer


def _radiomics_kernel(run: Run, targets: Sequence[Target]) -> FoldAnswers:
    """Kernel ridge regression (`kernel.fit_kernel`) on the same features, from the same nodules as the trees."""
    columns = [column_of(target) for target in targets]
    rated = [target.key for target in targets if target is not MALIGNANCY]
    features, others = _read_radiomics(run, rated)

    def answer(fold: Fold, tested: list[str]) -> Answers:
        known = [*fold.train, *fold.val]
        if MALIGNANCY in targets:
            learners(run.cohort, known)
        nodules = run.cohort.loc[[*known, *_untested(run.cohort, others, fold)]]
        nodules = nodules[nodules[rated].notna().all(axis=1)]
        truth = nodules[columns].to_numpy(dtype=np.float64)
        scaling = Scaling.fit([target.key for target in targets], truth)
        beside = FeatureScaling.fit(list(features.columns), features.loc[nodules.index].to_numpy())
        numbers, asked = (beside.apply(features.loc[list(part)].to_numpy()) for part in (nodules.index, tested))
        head = fit_kernel(numbers, scaling.to_model(truth), nodules["patient_id"].tolist(), scaling.keys).head
        return np.asarray(scaling.to_reader_scale(head(torch.from_numpy(asked)).double().numpy()))

    return answer


def _read_radiomics(run: Run, rated: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The features of all nodules, and the extracted ones that no fold names: `rated` can be learnt from them."""
    named = list(
        dict.fromkeys(key for fold in run.splits.folds for part in (fold.train, fold.val, fold.test) for key in part)
    )
    extracted = read_dataset(run.data).nodules if rated else {}
    others = [key for key in extracted if key in run.cohort.index and key not in set(named)]
    return read_features(run.data, [*named, *others], run.out), others


def _untested(cohort: pd.DataFrame, nodule_ids: Sequence[str], fold: Fold) -> list[str]:
    """Nodules whose patient a fold does not test."""
    patients = set(cohort.loc[list(fold.test), "patient_id"])
    return [key for key in nodule_ids if cohort.loc[key, "patient_id"] not in patients]


def _classify(
    features: pd.DataFrame, known: Sequence[str], label: np.ndarray, tested: Sequence[str], trees: int, seed: int
) -> Answers:
    forest = ExtraTreesClassifier(trees, min_samples_leaf=LEAF, max_features=SHARE, random_state=seed)
    fitted = make_pipeline(_imputer(), forest).fit(features.loc[list(known)].to_numpy(), label)
    return np.asarray(fitted.predict_proba(features.loc[list(tested)].to_numpy())[:, 1:], dtype=np.float64)


def _regress(features: pd.DataFrame, values: pd.DataFrame, tested: Sequence[str], trees: int, seed: int) -> Answers:
    scaling = Scaling.fit(tuple(values.columns), values.to_numpy(dtype=np.float64))
    wanted = scaling.to_model(values.to_numpy(dtype=np.float64))
    forest = ExtraTreesRegressor(trees, min_samples_leaf=LEAF, max_features=SHARE, random_state=seed)
    # A single target is a column for the forest and comes back as a list.
    fitted = make_pipeline(_imputer(), forest).fit(features.loc[values.index].to_numpy(), wanted.squeeze())
    answers = fitted.predict(features.loc[list(tested)].to_numpy()).reshape(len(tested), -1)
    return np.asarray(scaling.to_reader_scale(answers), dtype=np.float64)


def _imputer() -> SimpleImputer:
    """The training part's median where a feature is not defined."""
    return SimpleImputer(strategy="median", keep_empty_features=True)


def baseline_path(run: Path, name: str) -> Path:
    """`RUN/baselines/<name>.csv`."""
    return run / FOLDER / f"{name}.csv"
