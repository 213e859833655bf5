"""Signed maps of what a model's outputs rest on: one file per family of estimators, each in the registry."""

from lidc_cdam.explain import cdam, controls
from lidc_cdam.explain.registry import EXPLAINERS, Explainer, explain

__all__ = ["EXPLAINERS", "Explainer", "cdam", "controls", "explain"]
