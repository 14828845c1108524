"""What trials share on a device, and whether a bit of it has changed since: a method may only read it.

Version counters of tensors would be cheaper still, but miss what is written by way of `.data`, `.numpy()` or DLPack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cu_ray.lazy import torch
from cu_ray.types import NamedTensors

COLUMNS = 1024  # words of a row
ROW = 8 * COLUMNS  # bytes
SMALL = 1 << 20  # bytes
ODD = 0x1E3779B97F4A7C15  # without a pattern
PLAIN = (bool, int, float, str, type(None))

Prints = list[list[int]]


@dataclass(frozen=True)
class Fingerprints:
    """Of each tensor two numbers: its bits, taken as words in a grid, summed over rows and over columns with weights.

    A change of one word changes them, a swap too; reading memory twice is all that they cost. Those of all together are
    enough to see that nothing changed: the many small tensors of a model are then one.
    """

    of_all: Prints
    each: dict[str, list[int]]

    @classmethod
    def of(cls, tensors: NamedTensors, look: Look | None = None) -> Fingerprints:
        """The fingerprints of these."""
        look = look or Look()
        return cls(prints_of_all(tensors, look), dict(zip(tensors, look.prints(tensors.values()), strict=True)))

    def first_changed(self, tensors: NamedTensors, look: Look | None = None) -> str | None:
        """The first name whose tensor has another fingerprint than it had, or has come or gone; None where there is none."""
        look = look or Look()
        if self.each.keys() == tensors.keys() and self.of_all == prints_of_all(tensors, look):
            return None
        after = Fingerprints.of(tensors, look).each
        return next((name for name in self.each | after if self.each.get(name) != after.get(name)), None)


class Look:
    """One look at tensors, each on the device where it lies; large memory that several of them share is read once."""

    def __init__(self) -> None:
        self._read: dict[tuple[torch.device, int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def prints(self, tensors: Iterable[torch.Tensor]) -> Prints:
        """The fingerprint of each; the host waits once for each device."""
        numbers = [self._print(each) for each in tensors]
        devices = dict.fromkeys(each.device for each in numbers)
        found = {device: iter(torch.stack([each for each in numbers if each.device == device]).tolist()) for device in devices}
        return [next(found[each.device]) for each in numbers]

    def _print(self, tensor: torch.Tensor) -> torch.Tensor:
        bits = _bits(tensor)
        if len(bits) < SMALL or not tensor.is_contiguous():  # else they may be a copy
            return _fingerprint(bits)
        place = (bits.device, bits.data_ptr(), len(bits))
        if place not in self._read:
            self._read[place] = bits, _fingerprint(bits)  # the bits are kept, so that nothing else comes to lie there
        return self._read[place][1]


def tensors_of(model: torch.nn.Module) -> NamedTensors:
    """The model's parameters and buffers, and as `modules` what else copies of it inherit: modes, hooks, plain attributes."""
    state = model.state_dict()
    modules = [(name, type(module).__qualname__, _attributes(module)) for name, module in model.named_modules()]
    parameters = [(name, each.requires_grad, len(each._backward_hooks or ())) for name, each in model.named_parameters()]
    text = repr((modules, parameters, [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()]))
    return {**state, "modules": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def prints_of_all(tensors: NamedTensors, look: Look | None = None) -> Prints:
    """The fingerprints of all together: the small ones as one."""
    large: list[torch.Tensor] = []
    small: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors.values():
        if tensor.nbytes >= SMALL:
            large.append(tensor)
        else:
            small.setdefault(tensor.device, []).append(_bits(tensor))
    return (look or Look()).prints([*map(torch.cat, small.values()), *large])


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _fingerprint(bits: torch.Tensor) -> torch.Tensor:
    if bits.storage_offset() % 8:  # a view that words do not fit
        bits = bits.clone()
    num_rows = len(bits) // ROW
    grid = bits[: num_rows * ROW].view(torch.int64).view(num_rows, COLUMNS)
    rest = torch.nn.functional.pad(bits[num_rows * ROW :], (0, -len(bits) % ROW)).view(torch.int64).view(-1, COLUMNS)
    rows = torch.cat([grid.sum(dim=1), rest.sum(dim=1)])
    return torch.stack([_weighted(rows), _weighted(grid.sum(dim=0) + rest.sum(dim=0))])


def _weighted(sums: torch.Tensor) -> torch.Tensor:
    """Their sum, each times an odd number of its own: no change of one is lost, as int64 is exact modulo 2 to the 64."""
    places = torch.arange(len(sums), device=sums.device)
    return (sums * (2 * places + 1) * ODD).sum()


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Its attributes by name: the value of a plain one, of hooks how many there are."""

    def shown(name: str, value: Any) -> Any:
        return len(value) if name.endswith("_hooks") else value if isinstance(value, PLAIN) else None

    return {name: shown(name, value) for name, value in vars(module).items()}
