"""What a model answers for nodules: the mean over the views at the central slice, on the model's own scale."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64, Int16
from torch import Tensor, nn

from lidc_cdam.intensity import Intensity, Scaling
from lidc_cdam.model import NoduleModel, best_device
from lidc_cdam.vocabulary import Target

BATCH = 32
"""Nodules a pass; fixed, because the size of a pass can move a float32 result in its last digit."""


def mean_over_views(
    model: nn.Module,
    intensity: Intensity,
    images_hu: Tensor,
    size: int | tuple[int, int],
    features: Float[Tensor, "nodule feature"] | None = None,
) -> Float[Tensor, "nodule target"]:
    """Mean of the outputs over each nodule's views.

    Args:
        model: images to outputs.
        intensity: the fold's.
        images_hu: planes [nodule, view, plane, row, column].
        size: side, or height and width, of the model's input in pixels.
        features: scaled numbers beside the images; none, or without a column, for a model that reads the images alone.
    """
    nodules, views = images_hu.shape[:2]
    images = intensity.apply(images_hu.flatten(0, 1), size)
    beside = features.repeat_interleave(views, 0) if features is not None and features.shape[1] else None
    outputs: Tensor = model(images) if beside is None else model(images, beside)
    return outputs.float().reshape(nodules, views, -1).mean(1)


def predict_nodules(
    model: NoduleModel,
    intensity: Intensity,
    images_hu: Int16[np.ndarray, "nodule view plane row column"],
    features: Float32[np.ndarray, "nodule feature"] | None = None,
    device: torch.device | None = None,
) -> Float64[np.ndarray, "nodule target"]:
    """A model's outputs for nodules, in float32 whatever it was trained in; the model is left as it was."""
    beside = np.zeros((len(images_hu), 0), np.float32) if features is None else features
    with _answering(model, device) as place:
        parts = zip(*(torch.split(torch.from_numpy(part), BATCH) for part in (images_hu, beside)), strict=True)
        passes = [
            mean_over_views(model, intensity, batch.to(place), model.image_size, numbers.to(place)).cpu()
            for batch, numbers in parts
        ]
    return torch.cat(passes).double().numpy()


def embed_nodules(
    model: NoduleModel,
    intensity: Intensity,
    images_hu: Int16[np.ndarray, "nodule view plane row column"],
    device: torch.device | None = None,
) -> Float32[np.ndarray, "nodule latent"]:
    """The latents that a model's head reads, mean over each nodule's views; the model is left as it was."""
    passes = []
    with _answering(model, device) as place:
        for batch in torch.split(torch.from_numpy(images_hu), BATCH):
            images = intensity.apply(batch.flatten(0, 1).to(place), model.image_size)
            latents = model.embed(images).float().reshape(*batch.shape[:2], -1)
            passes.append(latents.mean(1).cpu())
    return torch.cat(passes).numpy()


@contextmanager
def _answering(model: NoduleModel, device: torch.device | None) -> Iterator[torch.device]:
    """The model in evaluation mode, without gradients, on `device`; afterwards as it was."""
    place = device or best_device()
    was_training, home = model.training, next(model.parameters()).device
    model.eval().to(place)
    try:
        with torch.inference_mode():
            yield place
    finally:
        model.to(home).train(was_training)


def predictions_table(
    nodules: pd.DataFrame,
    fold: int,
    targets: Sequence[Target],
    truth: Float64[np.ndarray, "nodule target"],
    predicted: Float64[np.ndarray, "nodule target"],
) -> pd.DataFrame:
    """A table of predictions on the readers' scale (`artifacts.write_predictions`).

    Args:
        nodules: `nodule_id` and `patient_id`, one row per nodule.
        fold: index of the fold, or -1 for the mean over a run's folds.
        targets: columns of the next two.
        truth: the readers' values; NaN where there is none.
        predicted: the model's.
    """
    table = nodules[["nodule_id", "patient_id"]].reset_index(drop=True).assign(fold=fold)
    for index, target in enumerate(targets):
        table[f"{target.key}_true"] = truth[:, index]
        table[f"{target.key}_predicted"] = predicted[:, index]
    return table


def mean_over_models(
    outputs: Iterable[Float64[np.ndarray, "nodule target"]], scalings: Sequence[Scaling]
) -> Float64[np.ndarray, "nodule target"]:
    """Mean over several folds' models, on the readers' scale.

    Each fold has its own z-scores, so biomarkers are put back into ratings and mm before the mean; logits are
    averaged as they are.
    """
    linear = [
        values * scaling.deviation + np.asarray(scaling.mean) for values, scaling in zip(outputs, scalings, strict=True)
    ]
    keys = scalings[0].keys
    plain = Scaling(keys, (0.0,) * len(keys), (1.0,) * len(keys))
    return np.asarray(plain.to_reader_scale(np.mean(linear, axis=0)), dtype=np.float64)
