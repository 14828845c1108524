"""Evaluations of the last models on one deletion set: a model whose weights are those of one of them is not run again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from cu_ray.lazy import torch
from cu_ray.stages.evaluate import Evaluation
from cu_ray.stages.shared import PLAIN, prints_of_all

KEPT = 16  # evaluations
WEIGHTS = ("_parameters", "_buffers", "_modules")


class Seen:
    """What the last models came to, by the bits of their weights.

    Selective synaptic dampening makes many such: points that select no parameter give the original, others the same set.
    """

    def __init__(self) -> None:
        self._on: Hashable = None
        self._known = OrderedDict[Hashable, Evaluation]()

    def evaluation(
        self, on: Hashable, model: torch.nn.Module, original: torch.nn.Module, evaluate: Callable[[], Evaluation]
    ) -> Evaluation:
        """That of a model with these weights, evaluated only where there is none. on: what decides all else that counts."""
        if on != self._on:
            self._on, self._known = on, OrderedDict()
        if not differs_in_weights_alone(model, original):
            return evaluate()
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())
        key = (shapes, tuple(map(tuple, prints_of_all(tensors))))
        if key not in self._known:
            while len(self._known) >= KEPT:
                self._known.popitem(last=False)
            self._known[key] = evaluate()
        self._known.move_to_end(key)
        return self._known[key]


def differs_in_weights_alone(model: torch.nn.Module, original: torch.nn.Module) -> bool:
    """Whether parameters and buffers decide what the model computes: it is otherwise as the original, and neither has hooks."""
    pairs = list(zip(model.modules(), original.modules(), strict=False))
    return len(pairs) == sum(1 for _ in model.modules()) == sum(1 for _ in original.modules()) and all(
        type(one) is type(other) and _alike(vars(one), vars(other)) for one, other in pairs
    )


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(
        not (value or other[name]) if "_hooks" in name else _plainly_same(value, other[name])
        for name, value in one.items()
        if name not in WEIGHTS
    )


def _plainly_same(one: Any, other: Any) -> bool:
    """Whether two attributes are one object, or equal and nothing but plain values."""
    if one is other:
        return True
    if isinstance(one, (tuple, list, set)):
        return type(one) is type(other) and all(isinstance(each, PLAIN) for each in (*one, *other)) and one == other
    return isinstance(one, PLAIN) and type(one) is type(other) and one == other
