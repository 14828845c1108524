"""Plug-ins of a user's own, outside the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from cu_ray.lazy import torch
from cu_ray.methods import Method
from cu_ray.models.resnet9 import ResNet9
from cu_ray.plugins import Bound
from cu_ray.types import Cost, Sizes, UnlearningTask


@dataclass(frozen=True)
class OtherOriginal(Method):
    """A method that demands an original of its own."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "needs an original trained otherwise"
    original_variant: ClassVar[dict[str, Any]] = {"example_tied_dropout": 0.4}
    steps: Annotated[int, Bound(low=1)] = 5

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original."""
        return task.original

    def cost(self, sizes: Sizes) -> Cost:
        """Every image of every step, forward."""
        return Cost(self.steps * sizes.batch_size, 0)


@dataclass(frozen=True)
class Costless(Method):
    """A method without a cost."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "does not say what it costs"


@dataclass(frozen=True)
class UnknownVariant(OtherOriginal):
    """A method that asks for what no training knows."""

    version: ClassVar[int] = 1
    original_variant: ClassVar[dict[str, Any]] = {"example_tied_dropuot": 0.2}


@dataclass(frozen=True)
class TextualAlpha(Method):
    """A method whose hyperparameter `alpha` is a text, where SCRUB's is a number."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "alpha is a text"
    alpha: str = "auto"

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original."""
        return task.original

    def cost(self, sizes: Sizes) -> Cost:
        """Nothing."""
        return Cost()


@dataclass(frozen=True)
class OwnNet(ResNet9):
    """A model of one's own."""

    version: ClassVar[int] = 3
    summary: ClassVar[str] = "a model outside the package"
