"""Memory of tensors on the CPU, as the allocator of a GPU would see it."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """A probe: while it is entered, the bytes of all storages that operations made and that are still alive."""

    device, name, total_bytes = torch.device("cpu"), "imagined", 1 << 30

    def __init__(self):
        super().__init__()
        self._alive, self._bytes, self._peak = weakref.WeakSet(), 0, 0

    def begin(self):
        """Measure anew."""
        self._peak = self._bytes

    def peak_bytes(self):
        """The most at once."""
        return self._peak

    def lost(self):
        """Never."""
        return False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._alive:
                self._take(tensor.untyped_storage())
        return result

    def _take(self, storage):
        num_bytes = storage.nbytes()
        self._alive.add(storage)
        self._bytes += num_bytes
        self._peak = max(self._peak, self._bytes)
        weakref.finalize(storage, self._give_back, num_bytes)

    def _give_back(self, num_bytes):
        self._bytes -= num_bytes
