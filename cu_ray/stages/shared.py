"""What trials share on a device, and whether a bit of it has changed since: a method may only read it.

Version counters of tensors would be cheaper still, but miss what is written by way of `.data`, `.numpy()` or DLPack.
"""

from __future__ import annotations

from typing import Any

from cu_ray.lazy import torch
from cu_ray.types import NamedTensors

COLUMNS = 1024  # words of a row
ROW = 8 * COLUMNS  # bytes
PLAIN = (bool, int, float, str, type(None))


def fingerprints(tensors: NamedTensors) -> NamedTensors:
    """Of each tensor the sums of its bits, taken as words in a grid, over rows and over columns (a short rest: itself).

    A change of one word, or a swap of two, changes them; reading memory twice is all that they cost.
    """
    return {name: _fingerprint(tensor) for name, tensor in tensors.items()}


def first_changed(before: NamedTensors, tensors: NamedTensors) -> str | None:
    """The first name whose tensor does not have the fingerprint that it had, or has come or gone; None where there is none."""
    after = fingerprints(tensors)
    if before.keys() == after.keys() and (not before or torch.equal(_joined(before), _joined(after))):
        return None
    names = [*before, *(name for name in after if name not in before)]
    return next(name for name in names if not (name in before and name in after and torch.equal(before[name], after[name])))


def tensors_of(model: torch.nn.Module) -> NamedTensors:
    """The model's parameters and buffers, and as `modules` what else copies of it inherit: modes, hooks, plain attributes."""
    state = model.state_dict()
    modules = [(name, type(module).__qualname__, _attributes(module)) for name, module in model.named_modules()]
    parameters = [(name, each.requires_grad, len(each._backward_hooks or ())) for name, each in model.named_parameters()]
    text = repr((modules, parameters, [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()]))
    device = next((tensor.device for tensor in state.values()), None)
    return {**state, "modules": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)}


def _fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.detach().reshape(-1).view(torch.uint8)
    if bits.storage_offset() % 8:  # a view that words do not fit
        bits = bits.clone()
    num_rows = len(bits) // ROW
    grid = bits[: num_rows * ROW].view(torch.int64).view(num_rows, COLUMNS)
    rest = torch.nn.functional.pad(bits[num_rows * ROW :], (0, -len(bits) % 8)).view(torch.int64)
    return torch.cat([grid.sum(dim=0), grid.sum(dim=1), rest])


def _joined(prints: NamedTensors) -> torch.Tensor:
    return torch.cat(list(prints.values()))


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Its attributes by name: the value of a plain one, of hooks how many there are."""

    def shown(name: str, value: Any) -> Any:
        return len(value) if name.endswith("_hooks") else value if isinstance(value, PLAIN) else None

    return {name: shown(name, value) for name, value in vars(module).items()}
