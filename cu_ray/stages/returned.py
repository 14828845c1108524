"""What a method may return: a model of the original's architecture on its device, that is its weights and nothing more."""

from __future__ import annotations

from typing import Any

from cu_ray.errors import ContractBroken
from cu_ray.lazy import torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def require_like_the_original(name: str, original: torch.nn.Module, model: Any, meter_hook: Any) -> None:
    """Raise ContractBroken, saying what this method's model has that is not the original's, or lacks."""
    if not isinstance(model, torch.nn.Module):
        raise ContractBroken(f"{name} returned a {type(model).__name__}: a model (torch.nn.Module) is needed")
    if model is original:
        raise ContractBroken(f"{name} returned the original that all trials share: task.original is the copy to work on")
    if difference := _other_modules(original, model) or _other_tensors(original, model):
        raise ContractBroken(f"{name} returned another architecture than the original's: {difference}")
    if surplus := _beside_weights(original, model, meter_hook):
        raise ContractBroken(f"{name} returned a model with {surplus}: what is scored and exported is its weights alone")


def _other_modules(original: torch.nn.Module, model: torch.nn.Module) -> str | None:
    expected, given = (
        {name or "the model": type(each).__qualname__ for name, each in of.named_modules()} for of in (original, model)
    )
    for name, kind in expected.items():
        if name in given and given[name] != kind:
            return f"{name} is a {given[name]}, not a {kind}"
    return _come_or_gone(expected, given)


def _other_tensors(original: torch.nn.Module, model: torch.nn.Module) -> str | None:
    expected, given = original.state_dict(), model.state_dict()
    if difference := _come_or_gone(expected, given):
        return difference
    for name, tensor in expected.items():
        for fact in (_shape, _dtype, _device):
            if fact(given[name]) != fact(tensor):
                return f"{name} is {fact(given[name])}, not {fact(tensor)}"
    return None


def _come_or_gone(expected: dict[str, Any], given: dict[str, Any]) -> str | None:
    for name in expected:
        if name not in given:
            return f"it lacks {name}"
    for name in given:
        if name not in expected:
            return f"it has {name}"
    return None


def _beside_weights(original: torch.nn.Module, model: torch.nn.Module, meter_hook: Any) -> str | None:
    """What in the model changes its outputs but is in no weight."""
    for (name, before), (_, after) in zip(original.named_modules(), model.named_modules(), strict=True):
        place = name or "the model itself"
        if "forward" in vars(after) and "forward" not in vars(before):
            return f"a forward of its own in {place}"
        for kind in HOOKS:
            hooks = [hook for hook in vars(after)[kind].values() if hook is not meter_hook]
            if len(hooks) > len(vars(before)[kind]):
                return f"a hook on {place}"
    return None


def _shape(tensor: torch.Tensor) -> str:
    return f"of shape {list(tensor.shape)}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype)


def _device(tensor: torch.Tensor) -> str:
    return f"on {tensor.device}"
