"""What of a model a recorded step takes as given: where its tensors lie, which of them learn, modes, settings and hooks."""

from __future__ import annotations

from typing import Any

from cu_ray.lazy import torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Condition:
    """Reads a model's condition before each step, in tens of microseconds: through what modules keep, not through their tree."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._last: tuple[Any, ...] = ()
        self._gather()

    def read(self) -> tuple[Any, ...]:
        """Equal before two steps if one may stand for the other."""
        found = self._read()
        if found != self._last:  # perhaps there are other modules than those gathered
            self._gather()
            self._last = found = self._read()
        return found

    def _gather(self) -> None:
        self._modules = list(self._model.modules())  # kept, so that no other module gets the id of one of them
        own = [vars(module) for module in self._modules]
        self._own = own
        self._hooks = [each[kind] for each in own for kind in HOOKS]
        self._settings = [(each, name) for each in own for name, value in each.items() if _is_setting(name, value)]
        self._children = [each["_modules"] for each in own]
        self._tensors = [each[kind] for each in own for kind in ("_parameters", "_buffers")]

    def _read(self) -> tuple[Any, ...]:
        tensors = [tensor for each in self._tensors for tensor in each.values() if tensor is not None]
        return (
            tuple([each["training"] for each in self._own]),
            tuple(map(len, self._own)),
            tuple([each.get(name) for each, name in self._settings]),
            tuple([id(hook) for each in self._hooks if each for hook in each.values()]),
            tuple([id(child) for each in self._children for child in each.values()]),
            tuple([tensor.data_ptr() for tensor in tensors]),
            tuple([tensor.requires_grad for tensor in tensors]),
        )


def _is_setting(name: str, value: Any) -> bool:
    """Whether it is a plain value, as BatchNorm's momentum is, or a forward function of the module's own."""
    return name == "forward" or (name != "training" and _is_plain(value))


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) or (isinstance(value, tuple) and all(map(_is_plain, value)))
