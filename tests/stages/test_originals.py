"""An original model is trained once, whoever else needs it at the same time."""

from __future__ import annotations

import contextlib

from cu_ray.stages.pipeline import Workbench, arrays_of
from tests.protocol.tiny import MemoryStore, original_spec, tiny_dataset


class SharedStore(MemoryStore):
    """A store in which another sweep keeps an original while this one waits for its claim."""

    def __init__(self, arrays):
        super().__init__()
        self._arrays = arrays

    @contextlib.contextmanager
    def claimed(self, kind, key):
        """What the other one made is there."""
        self.save(kind, key, self._arrays, {})
        yield


def test_an_original_that_another_sweep_made_meanwhile_is_used():
    dataset = tiny_dataset()
    spec = original_spec(dataset)
    first = Workbench(dataset, MemoryStore())
    trained = first.run_original(spec)
    assert trained.facts["train_seconds"] > 0

    second = Workbench(dataset, SharedStore(arrays_of(first.original(spec)[0])))
    used = second.run_original(spec)
    assert used.facts["train_seconds"] is None
    assert used.scores == trained.scores
