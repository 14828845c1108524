"""Unlearning methods: each makes an unlearned model from an original one."""

from __future__ import annotations

from typing import Any, ClassVar

from cu_ray.errors import UserError
from cu_ray.lazy import torch
from cu_ray.plugins import Plugin, name_of
from cu_ray.types import Cost, Sizes, UnlearningTask


class Method(Plugin):
    """An unlearning method. Its fields are its hyperparameters, each with its default and perhaps a range to search.

    uses_deletion_set: False where the result is the same whatever was detected; one trial then stands for all fractions.
    memo_fields: the hyperparameters on which what it `remember`s depends; None where it remembers nothing.
    cost_is_bound: True where the work depends on what is found on the way; `cost` is then the most that it may take.
    alternatives: groups of hyperparameters of which exactly one is given; the others are null.
    original_variant: what changes how the ORIGINAL is trained (it enters its key): {"example_tied_dropout": 0.2}, the share of a
        memory of half its channels that a sample sees (see `cu_ray.learning.tied_dropout`); most methods have none.
    """

    uses_deletion_set: ClassVar[bool] = True
    memo_fields: ClassVar[tuple[str, ...] | None] = None
    cost_is_bound: ClassVar[bool] = False
    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    original_variant: ClassVar[dict[str, Any]] = {}

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The unlearned model: `task.original` changed in place, or another model of the same architecture."""
        raise NotImplementedError

    def cost(self, sizes: Sizes) -> Cost:
        """The images that one trial of it alone takes forward and backward, memos included. Tests hold it to what is counted."""
        raise UserError(f"{name_of(self)} does not say what a trial costs: it needs a `cost` (docs/adding-a-method.md)")

    def memo_cost(self, sizes: Sizes) -> Cost:
        """What of this cost goes into what it `remember`s: of the trials that share it only the first one spends it."""
        return Cost()

    def check(self, layers_per_block: tuple[int, ...]) -> None:
        """Raise FieldFault where a hyperparameter does not fit the model, given its layers per block, input to output."""
