"""Fingerprints of tensors: whatever is written shows, however tensors lie in memory."""

from __future__ import annotations

import pytest
import torch

from cu_ray.errors import ContractBroken
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.stages import shared
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.shared import COLUMNS, Fingerprints, Look
from tests.protocol.tiny import MemoryStore, tiny_dataset, trial_spec

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


@pytest.fixture
def read(monkeypatch):
    """The places of large memory that is read, one by one; all is large."""
    places, fingerprint = [], shared._fingerprint
    monkeypatch.setattr(shared, "SMALL", 0)
    monkeypatch.setattr(shared, "_fingerprint", lambda bits: places.append(bits.data_ptr()) or fingerprint(bits))
    return places


def test_a_look_reads_what_tensors_share_once_and_copies_and_parts_by_themselves(read):
    tensor = LARGE.clone()
    tensors = {"it": tensor, "again": tensor.view(-1, 1), "copy": tensor.clone(), "part": tensor[:9], "every second": tensor[::2]}
    before = Fingerprints.of(tensors)
    assert read.count(tensor.data_ptr()) == 2, "whole, and a part"
    read.clear()
    assert before.first_changed(tensors) is None
    assert read.count(tensor.data_ptr()) == 2
    tensor[4] += 1
    assert before.first_changed(tensors) == "it"
    assert before.first_changed({**tensors, "it": tensors["copy"], "again": tensors["copy"].view(-1, 1)}) == "part"


def test_a_look_never_takes_memory_that_came_later_for_what_lay_there_before():
    look = Look()
    prints = [Fingerprints.of({"it": torch.full((shared.SMALL // 8,), number)}, look).each["it"] for number in range(5)]
    assert len(set(map(tuple, prints))) == 5


def test_images_that_settings_share_are_read_once_a_trial_and_a_write_to_them_still_shows(read):
    dataset = tiny_dataset()
    bench, specs = Workbench(dataset, MemoryStore()), [trial_spec(dataset, NoUnlearning(), seed=seed) for seed in range(3)]
    for spec in specs:
        bench.poisoned(spec.original.setting)
    read.clear()
    bench._warm.require_untouched()
    places = [images.pixels.__array_interface__["data"][0] for images in (dataset.train, dataset.test)]
    assert [read.count(place) for place in places] == [1, 1]
    dataset.test.pixels[3, 2, 1, 0] ^= 1
    with pytest.raises(ContractBroken, match="wrote into the test images"):
        bench._warm.require_untouched()


@pytest.mark.gpu
def test_a_tensor_has_the_same_fingerprint_wherever_it_lies():
    here = {**KINDS, "large": torch.rand(shared.SMALL)}
    there = {name: tensor.to("cuda" if number % 2 else "cpu") for number, (name, tensor) in enumerate(here.items())}
    before = Fingerprints.of(there)
    assert before.each == Fingerprints.of(here).each
    assert before.first_changed(there) is None
    assert before.first_changed(there | {"large": there["large"] + 1}) == "large"
