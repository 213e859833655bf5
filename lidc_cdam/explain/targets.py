"""What a map can explain: an output of the model, a likeness to examples, or a combination of outputs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.explain.inputs import check_images, evaluation_mode, in_chunks
from lidc_cdam.model import NoduleModel

Latents = Float[Tensor, "image latent"]
Latent = Float[Tensor, " latent"]
Similarity = Callable[[Latents, Latent], Float[Tensor, " image"]]

SIMILARITIES: dict[str, Similarity] = {
    "dot": lambda latents, concept: latents @ concept,
    "cosine": lambda latents, concept: F.cosine_similarity(latents, concept[None], dim=1),
    "distance": lambda latents, concept: -torch.linalg.vector_norm(latents - concept, dim=1),
}
"""s(z, z_concept) by name; all grow with likeness, `distance` being the negative Euclidean distance."""


@dataclass(frozen=True, eq=False)
class Concept:
    """What some example images have in common, in the model's latent space (the paper's Eq. 3 and 4)."""

    name: str
    """Name of the map."""
    latent: Latent
    """z_concept, the examples' mean latent."""
    similarity: str = "dot"
    """A key of `SIMILARITIES`; the paper's is the dot product."""

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise LidcCdamError(
                f"A concept's similarity must be one of {', '.join(SIMILARITIES)}; got {self.similarity!r}."
            )

    @classmethod
    def from_images(
        cls,
        model: NoduleModel,
        images: Float[Tensor, "image channel height width"],
        name: str,
        similarity: str = "dot",
        batch_size: int = 64,
    ) -> "Concept":
        """The concept of these images: z_concept = mean of z over them (Eq. 3).

        Args:
            model: whose latent space; a concept belongs to one model.
            images: normalised examples of the model's size.
            name: name of the map.
            similarity: a key of `SIMILARITIES`.
            batch_size: images at a time, which bounds the memory and changes nothing else.

        Raises:
            LidcCdamError: an unknown similarity, or images that do not fit the model.
        """
        check_images(model, images)
        with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
            latent = torch.cat([model.embed(chunk) for chunk in in_chunks(images, batch_size)]).mean(0)
        return cls(name, latent, similarity)

    def read(self, latents: Latents) -> Float[Tensor, " image"]:
        """s(z, z_concept)."""
        return SIMILARITIES[self.similarity](latents, self.latent.to(latents))


@dataclass(frozen=True)
class Contrast:
    """A linear combination of outputs, such as spiculation less what diameter explains: {"spiculation": 1, ...}.

    Its map is the same combination of the outputs' maps, which is exact for every method that is linear in the output.
    Outputs are on the model's own scale (a logit for malignancy, a z-score for a biomarker).
    """

    weights: Mapping[str, float]
    """Weight of each output, by its key."""
    label: str = ""
    """Name of the map; the sum in words by default."""

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(weight) for weight in self.weights.values()):
            raise LidcCdamError(f"A contrast must give at least one target a finite weight; got {dict(self.weights)}.")

    @property
    def name(self) -> str:
        """`label`, or a sum such as `spiculation - 0.5 diameter`."""
        terms: list[str] = []
        for key, weight in self.weights.items():
            sign = ("- " if terms else "-") if weight < 0 else ("+ " if terms else "")
            terms.append(f"{sign}{'' if abs(weight) == 1 else f'{abs(weight):g} '}{key}")
        return self.label or " ".join(terms)


Readout = str | Concept
"""A function of the latent that is differentiated: an output by its key, or a likeness."""
Explained = Readout | Contrast
Targets = Explained | Sequence[Explained] | None
"""One target, several, or None for all outputs of the model."""


def target_names(model: NoduleModel, targets: Targets = None) -> tuple[str, ...]:
    """Names of the maps that `explain(model, images, targets)` returns, in their order."""
    return tuple(target if isinstance(target, str) else target.name for target in _listed(model, targets))


@dataclass(frozen=True)
class Request:
    """Targets, resolved: the readouts that are differentiated, each once, and the maps' recipes from theirs."""

    readouts: tuple[Readout, ...]
    recipes: tuple[tuple[tuple[int, float], ...], ...]
    """Per target: readouts by position, with their weights."""

    @classmethod
    def of(cls, model: NoduleModel, targets: Targets) -> "Request":
        """Resolve and check.

        Raises:
            LidcCdamError: no target, one that the model does not have, or a concept of another model's width.
        """
        places: dict[Readout, int] = {}

        def place(readout: Readout) -> int:
            _check_readout(model, readout)
            return places.setdefault(readout, len(places))

        recipes = []
        for target in _listed(model, targets):
            terms: Mapping[str, float] | dict[Readout, float] = (
                target.weights if isinstance(target, Contrast) else {target: 1.0}
            )
            recipes.append(tuple((place(readout), float(weight)) for readout, weight in terms.items()))
        return cls(tuple(places), tuple(recipes))

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The readouts that are likenesses."""
        return tuple(readout for readout in self.readouts if isinstance(readout, Concept))

    def read(self, model: NoduleModel, latents: Latents) -> Float[Tensor, "image readout"]:
        """Every readout of some latents."""
        outputs: Tensor = model.head(latents)
        return torch.stack(
            [
                readout.read(latents) if isinstance(readout, Concept) else outputs[:, model.targets.index(readout)]
                for readout in self.readouts
            ],
            dim=1,
        )

    def mix(self, maps: Float[Tensor, "image readout *rest"]) -> Float[Tensor, "image target *rest"]:
        """The targets' maps from the readouts'."""
        return torch.stack([_weighted(maps, recipe) for recipe in self.recipes], dim=1)


def _weighted(maps: Tensor, recipe: Iterable[tuple[int, float]]) -> Tensor:
    parts = [maps[:, place] if weight == 1 else weight * maps[:, place] for place, weight in recipe]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _listed(model: NoduleModel, targets: Targets) -> tuple[Explained, ...]:
    if targets is None:
        return model.targets
    listed = (targets,) if isinstance(targets, str | Concept | Contrast) else tuple(targets)
    if not listed:
        raise LidcCdamError(f"--targets must name at least one of this model's targets, {', '.join(model.targets)}.")
    return listed


def _check_readout(model: NoduleModel, readout: Readout) -> None:
    if isinstance(readout, Concept):
        width = model.backbone.num_features
        if tuple(readout.latent.shape) != (width,):
            raise LidcCdamError(
                f"Concept {readout.name!r} must have the width of this model's latent, {width}, got "
                f"{list(readout.latent.shape)}; make it with `Concept.from_images` from this model."
            )
    elif readout not in model.targets:
        near = get_close_matches(str(readout), model.targets, n=1)
        raise LidcCdamError(
            f"--targets must be among this model's targets, {', '.join(model.targets)}; "
            f"got {readout!r}{f'; did you mean {near[0]!r}?' if near else '.'}"
        )
