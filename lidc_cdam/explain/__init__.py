"""Signed maps of what a model's outputs rest on: one file per family of estimators, each in the registry."""

from lidc_cdam.explain import (
    attention,
    cdam,
    controls,
    gradcam,
    legrad,
    libragrad,
    partial_lrp,
    pixels,
    relevance,
)
from lidc_cdam.explain.registry import EXPLAINERS, Explainer, explain
from lidc_cdam.explain.targets import Concept, Contrast, target_names

__all__ = [
    "EXPLAINERS",
    "Concept",
    "Contrast",
    "Explainer",
    "attention",
    "cdam",
    "controls",
    "explain",
    "gradcam",
    "legrad",
    "libragrad",
    "partial_lrp",
    "pixels",
    "relevance",
    "target_names",
]
