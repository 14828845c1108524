"""Counts the images that go forward and backward through models: a trial's cost in units that depend on no machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from cu_ray.lazy import torch
from cu_ray.types import Cost

_tape: list[Callable[[], None]] | None = None  # no context variable: backward passes on a GPU run in a thread of their own


@contextlib.contextmanager
def taped() -> Iterator[list[Callable[[], None]]]:
    """A context in which counts are kept for later: the list of what to call when the passes are really made."""
    global _tape
    before, _tape = _tape, []
    try:
        yield _tape
    finally:
        _tape = before


class Meter:
    """The count of images forward and backward through all models that it watches."""

    def __init__(self) -> None:
        self.cost = Cost()

        def count(_: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            num_images = len(args[0])
            _now_or_later(partial(self._count_forward, num_images))
            if output.requires_grad:
                output.register_hook(lambda _: _now_or_later(partial(self._count_backward, num_images)))

        count.repeats = True  # type: ignore[attr-defined]  # see cu_ray.learning.graphs
        self.hook = count  # a plain function: a bound method would be copied with a model, and the meter with it

    def watch(self, model: torch.nn.Module) -> torch.nn.Module:
        """The same model, counted from now on; copies made of it are counted too."""
        model.register_forward_hook(self.hook)
        return model

    def let_go(self, model: torch.nn.Module) -> torch.nn.Module:
        """The same model, counted no longer."""
        for module in model.modules():
            for place in [place for place, hook in module._forward_hooks.items() if hook is self.hook]:
                del module._forward_hooks[place]
        return model

    def _count_forward(self, num_images: int) -> None:
        self.cost += Cost(forward=num_images)

    def _count_backward(self, num_images: int) -> None:
        self.cost += Cost(backward=num_images)


def _now_or_later(count: Callable[[], None]) -> None:
    if _tape is None:
        count()
    else:
        _tape.append(count)
