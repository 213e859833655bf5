"""What reports say of each estimator: what a score means, what its maps show, how far into the model they reach."""

from collections.abc import Sequence
from dataclasses import dataclass

LAST, PAID, FLOW, WHOLE, NOTHING = "last block", "attention paid", "attention", "whole model", "nothing"
REACHES: dict[str, str] = {
    LAST: "explains the model's head and last block only, not how the earlier blocks read the image",
    PAID: "shows what the class token of the last block attends to, not what the model makes of it",
    FLOW: "follows the model's attention through all blocks, not what else each block does",
    WHOLE: "goes back through the whole model, close to this very image",
    NOTHING: "is a control and explains nothing of the model",
}
"""Which part of a model maps go through, in words."""

SIGNED, RAISING, ASKED, SHARED, CONTROL = "signed", "raising", "signed if asked", "shared", "control"
KINDS: dict[str, str] = {
    SIGNED: "Signed maps per target",
    RAISING: "Maps per target of what raises an output",
    ASKED: "Maps per target, of what raises an output unless asked for both signs",
    SHARED: "Unsigned maps, the same for every target",
    CONTROL: "Maps of a control, which explain nothing",
}
"""What maps show, in words."""


@dataclass(frozen=True)
class Method:
    """What reports say of one estimator."""

    kind: str
    """One of `KINDS`."""
    reach: str
    """One of `REACHES`."""
    score: str
    """What a score means; `{unit}` is the unit of the model's output."""


METHODS: dict[str, Method] = {
    "cdam": Method(
        SIGNED,
        LAST,
        "A score says how strongly the model's output ({unit}) reacts when that token is turned up or down; scores are "
        "not shares and do not add up to the output.",
    ),
    "smooth_cdam": Method(
        SIGNED,
        LAST,
        "A score says how strongly the model's output ({unit}) reacts when that token is turned up or down, as a mean "
        "over small noise; scores are not shares and do not add up to the output.",
    ),
    "integrated_cdam": Method(
        SIGNED,
        LAST,
        "A score is that token's part of the model's output ({unit}) against tokens that are all zero; the parts of "
        "the class and register tokens are not shown.",
    ),
    "attention": Method(
        SHARED,
        PAID,
        "Not signed, and the same for every target: a score is a token's share of the attention that the class token "
        "pays in the last block.",
    ),
    "rollout": Method(
        SHARED,
        FLOW,
        "Not signed, and the same for every target: a score is a token's share of what flows to the class token "
        "through the attention of all blocks.",
    ),
    "input_gradient": Method(
        SIGNED,
        WHOLE,
        "A score is the image's normalised values times the gradient of the model's output ({unit}), added up over the "
        "token's pixels.",
    ),
    "smoothgrad": Method(
        SIGNED,
        WHOLE,
        "A score is the gradient of the model's output ({unit}), a mean over noise, added up over the token's pixels: "
        "it says what brighter pixels would do.",
    ),
    "integrated_gradients": Method(
        SIGNED,
        WHOLE,
        "A score is the token's pixels' part of the model's output ({unit}) against a black image.",
    ),
    "gradcam": Method(ASKED, LAST, "Only what raises the predicted value is shown, unless the map was made signed."),
    "relevance_propagation": Method(
        RAISING,
        FLOW,
        "Only what speaks for a higher predicted value is followed through the attention of all blocks; blue does not "
        "occur.",
    ),
    "partial_lrp": Method(
        ASKED, LAST, "Only relevance for a higher predicted value is shown, unless the map was made signed."
    ),
    "legrad": Method(
        RAISING,
        FLOW,
        "A score is how much more attention to that token would raise the predicted value; blue does not occur.",
    ),
    "libragrad": Method(
        SIGNED,
        WHOLE,
        "A score is that token's part of the model's output ({unit}) with attention, norms and gates held fixed.",
    ),
    "random": Method(
        CONTROL, NOTHING, "A control, drawn at random: its colours say nothing about this nodule or the model."
    ),
    "centre": Method(
        CONTROL,
        NOTHING,
        "A control, the same blob for every image: its colours say nothing about this nodule or the model.",
    ),
}
"""By the estimator's key; a test holds it against the table of estimators."""
OTHER = Method(SIGNED, "", "Scores are in the method's own unit.")
"""What is said of an estimator that someone else has registered."""


def method_of(key: str) -> Method:
    """The row of an estimator."""
    return METHODS.get(key, OTHER)


def score_words(key: str, units: Sequence[str]) -> str:
    """What colours and scores of a method's maps mean.

    Args:
        key: of an estimator.
        units: of the model's outputs.
    """
    method = method_of(key)
    meaning = method.score.format(unit=" and ".join(units))
    if method.kind in (SHARED, CONTROL):
        return meaning
    return f"Orange raises, blue lowers the predicted value; no colour: a score near zero. {meaning}"


def reach_sentence(key: str) -> str:
    """What part of the model a method's maps explain."""
    reach = REACHES.get(method_of(key).reach, "explains the model in its method's own way")
    return f"A map ({key}) {reach}; it shows what moved a prediction, right or wrong, not the nodule."


def inherits_attention(key: str) -> bool:
    """Whether a method's maps go through attention, whose outlier tokens they then show."""
    return method_of(key).reach in (LAST, PAID, FLOW)


def map_words(key: str) -> str:
    """What kind of maps a method makes."""
    return KINDS[method_of(key).kind]
