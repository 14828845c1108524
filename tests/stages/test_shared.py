"""Fingerprints of tensors: whatever is written shows, however tensors lie in memory."""

from __future__ import annotations

import pytest
import torch

from cu_ray.stages import shared
from cu_ray.stages.shared import COLUMNS, Fingerprints

LARGE = torch.arange(5 * COLUMNS + 3) ** 2  # five rows of words and a rest
KINDS = {
    "words": LARGE,
    "bytes": (LARGE % 251).to(torch.uint8),
    "floats": LARGE.sqrt().to(torch.float32),
    "bools": LARGE % 3 == 0,
    "channels last": torch.rand(64, 16, 3, 3).to(memory_format=torch.channels_last),
    "a view that words do not fit": (LARGE % 251).to(torch.uint8)[3:],
    "every second": LARGE[::2],
    "one number": torch.tensor(5.0),
    "few": torch.arange(3, dtype=torch.int32),
}


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_any_element_shows_and_its_undoing_does_not(kind, joined, monkeypatch):
    monkeypatch.setattr(shared, "SMALL", 1 << 20 if joined else 0)
    tensor = KINDS[kind].clone(memory_format=torch.preserve_format)
    before = Fingerprints.of({"other": torch.ones(3), "it": tensor})
    for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
        flat = tensor.flatten()
        kept = flat[place].clone()
        flat[place] = ~kept if kept.dtype == torch.bool else kept + 1
        changed = flat.view(tensor.shape)
        assert before.first_changed({"other": torch.ones(3), "it": changed}) == "it"
        flat[place] = kept
        assert before.first_changed({"other": torch.ones(3), "it": flat.view(tensor.shape)}) is None


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, COLUMNS), (7, 3 * COLUMNS + 9), (1, 5 * COLUMNS + 1)])
def test_a_swap_of_two_words_shows_in_one_row_in_one_column_and_anywhere(one, other):
    tensor = LARGE.clone()
    before = Fingerprints.of({"it": tensor})
    tensor[[one, other]] = tensor[[other, one]]
    assert before.first_changed({"it": tensor}) == "it"


def test_the_first_that_differs_is_named_also_where_it_came_or_went():
    tensors = {"a": torch.ones(3), "b": torch.ones(3), "empty": torch.empty(0)}
    before = Fingerprints.of(tensors)
    assert before.first_changed(tensors) is None
    assert before.first_changed(tensors | {"b": torch.zeros(3)}) == "b"
    assert before.first_changed({"a": torch.ones(3), "empty": torch.empty(0)}) == "b"
    assert before.first_changed(tensors | {"c": torch.ones(3)}) == "c"
    assert Fingerprints.of({}).first_changed({}) is None
    assert Fingerprints.of({}).first_changed({"c": torch.ones(3)}) == "c"
