"""What stays on a worker's device between trials: data, originals and memos. Trials may only read it."""

from __future__ import annotations

import contextlib
import gc
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from cu_ray.errors import ContractBroken, StoreFailed
from cu_ray.lazy import torch
from cu_ray.learning.batches import as_tensor
from cu_ray.stages.poison import OnDevice
from cu_ray.stages.shared import Fingerprints, Look, tensors_of
from cu_ray.stages.unlearn import Memo
from cu_ray.types import Cost, NamedTensors, PoisonedDataset, Store

KEPT = {"data": 4, "originals": 4, "memos": 4}  # how many of each, of one data set
MOST_DATASETS = 2  # of which a worker keeps something
SPARE = 1 / 128  # of a GPU's memory: as much may stay with the allocator for the next trial

Value = TypeVar("Value")
Data = tuple[PoisonedDataset, OnDevice]


class Warm:
    """Data, originals and memos on a device, oldest dropped first; memos are in the store too, for other workers."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store, self._device = store, device
        self.data = Recent[Data](KEPT["data"], _tensors_of_data)
        self.originals = Recent[torch.nn.Module](KEPT["originals"], _tensors_of_original)
        self._memos = Recent[Memo](KEPT["memos"], _tensors_of_memo)

    def load(self, key: str) -> Memo | None:
        """A memo, or None where nobody computed it yet."""
        known = self._memos.find(key) or self._from_store(key)
        return known and self._memos.get(key, lambda: known)

    def save(self, key: str, memo: Memo) -> None:
        """Keep a memo, here and in the store. Raises ContractBroken where what it was computed from was written to."""
        self.require_untouched()
        arrays = {name: tensor.cpu().numpy() for name, tensor in memo.tensors.items()}
        facts = {"forward": memo.cost.forward, "backward": memo.cost.backward, "seconds": memo.seconds}
        with contextlib.suppress(StoreFailed):  # others compute it again
            self._store.save("memos", key, arrays, {name: str(fact) for name, fact in facts.items()})
        self._memos.get(key, lambda: memo)

    def require_untouched(self) -> None:
        """Raise ContractBroken where something was written to since it is here."""
        look = Look()
        name = self.data.first_changed(look) or self.originals.first_changed(look) or self._memos.first_changed(look)
        if name is not None:
            raise ContractBroken(f"wrote into {name}: what trials share is read-only")

    def forget(self) -> None:
        """Drop everything, and give its memory back: it comes again from store and data set."""
        self.data.clear()
        self.originals.clear()
        self._memos.clear()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def give_back_spare(self) -> None:
        """Free what PyTorch holds of a GPU's memory for no tensor, where it is much.

        The GPU's other workers need it; and once a small tensor lies in the place of a large one, no large one fits in there.
        """
        if self._device.type != "cuda":
            return
        spare = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        if spare > SPARE * torch.cuda.get_device_properties(self._device).total_memory:
            torch.cuda.empty_cache()

    def _from_store(self, key: str) -> Memo | None:
        try:
            entry = self._store.load("memos", key)
        except StoreFailed:
            entry = None
        if entry is None:
            return None
        arrays, facts = entry
        if not {"forward", "backward", "seconds"} <= facts.keys():  # not written by this code
            return None
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        return Memo(tensors, Cost(int(facts["forward"]), int(facts["backward"])), float(facts["seconds"]))


class Recent(Generic[Value]):
    """The most recently used values by key, each with fingerprints of its tensors."""

    def __init__(self, limit: int, tensors_of_value: Callable[[Value], NamedTensors]) -> None:
        self._limit, self._tensors = limit, tensors_of_value
        self._values = OrderedDict[str, tuple[Value, Fingerprints]]()

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """The value, made where it is not there."""
        if key not in self._values:
            while len(self._values) >= self._limit:  # first, so that the device never holds one more
                self._values.popitem(last=False)
            value = make()
            self._values[key] = value, Fingerprints.of(self._tensors(value))
        self._values.move_to_end(key)
        return self._values[key][0]

    def find(self, key: str) -> Value | None:
        """The value, or None."""
        return self._values[key][0] if key in self._values else None

    def last(self) -> Value | None:
        """The value used last, or None where there is none."""
        return next(reversed(self._values.values()))[0] if self._values else None

    def first_changed(self, look: Look) -> str | None:
        """The name of a tensor that is not as it was when its value was made, or None."""
        for value, prints in self._values.values():
            name = prints.first_changed(self._tensors(value), look)
            if name is not None:
                return name
        return None

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()


def _tensors_of_data(data: Data) -> NamedTensors:
    poisoned, on_device = data
    rows = {
        "manipulated rows": poisoned.corruption.indices,
        "affected rows": poisoned.domains.affected.rows,
        "retain rows": poisoned.domains.retain.rows,
        "selection half": poisoned.selection_half,
        "validation rows": poisoned.validation.rows,
        "validation labels": poisoned.validation.labels,
    }
    return {
        **{f"the {name}": tensor for name, tensor in on_device.tensors().items()},
        **{f"the {name}": as_tensor(array) for name, array in rows.items()},
    }


def _tensors_of_original(model: torch.nn.Module) -> NamedTensors:
    return {f"the original model's {name}": tensor for name, tensor in tensors_of(model).items()}


def _tensors_of_memo(memo: Memo) -> NamedTensors:
    return {f"the remembered {name!r}": tensor for name, tensor in memo.tensors.items()}
