"""Fingerprints of tensors: whatever is written shows, however tensors lie in memory."""

from __future__ import annotations

import pytest
import torch

from cu_ray.stages.shared import COLUMNS, fingerprints, first_changed

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


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_any_element_shows_and_its_undoing_does_not(kind):
    tensor = KINDS[kind].clone(memory_format=torch.preserve_format)
    before = fingerprints({"it": tensor})
    for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
        flat = tensor.flatten()
        kept = flat[place].clone()
        flat[place] = ~kept if kept.dtype == torch.bool else kept + 1
        changed = flat.view(tensor.shape)
        assert first_changed(before, {"it": changed}) == "it"
        flat[place] = kept
        assert first_changed(before, {"it": flat.view(tensor.shape)}) is None


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, COLUMNS), (7, 3 * COLUMNS + 9), (1, 5 * COLUMNS + 1)])
def test_a_swap_of_two_words_shows_in_one_row_in_one_column_and_anywhere(one, other):
    tensor = LARGE.clone()
    before = fingerprints({"it": tensor})
    tensor[[one, other]] = tensor[[other, one]]
    assert first_changed(before, {"it": tensor}) == "it"


def test_the_first_that_differs_is_named_also_where_it_came_or_went():
    tensors = {"a": torch.ones(3), "b": torch.ones(3), "empty": torch.empty(0)}
    before = fingerprints(tensors)
    assert first_changed(before, tensors) is None
    assert first_changed(before, tensors | {"b": torch.zeros(3)}) == "b"
    assert first_changed(before, {"a": torch.ones(3), "empty": torch.empty(0)}) == "b"
    assert first_changed(before, tensors | {"c": torch.ones(3)}) == "c"
    assert first_changed({}, {}) is None
    assert first_changed({}, {"c": torch.ones(3)}) == "c"
