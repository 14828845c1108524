"""Conformance suites: what every plug-in of a kind must do, as pytest classes to subclass.

    class TestFancy(MethodConformance):
        plugin = Fancy
        settings = {"steps": 5}

`settings` is given to the class; choose few steps, for trials run on 80 images. Each test says which rule it holds.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, get_origin, get_type_hints

import numpy as np
import pytest
import torch

from cu_ray import checks, plugins
from cu_ray.config import declared
from cu_ray.datasets import Dataset
from cu_ray.detections.uniform import Uniform
from cu_ray.errors import FieldFault, UserError
from cu_ray.learning.layers import initialise
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.metrics import Outcome
from cu_ray.models.resnet9 import ResNet9
from cu_ray.stages.evidence import OriginalsEvidence
from cu_ray.stages.poison import OnDevice, detect, poison, upload
from cu_ray.stages.shared import Fingerprints, tensors_of
from cu_ray.stages.train import train
from cu_ray.stages.unlearn import Memo, Unlearned, unlearn
from cu_ray.types import (
    Augmentation,
    Cost,
    DatasetFacts,
    DeletionSplit,
    Images,
    Indices,
    NamedTensors,
    Normalisation,
    OriginalSpec,
    PoisonedDataset,
    Setting,
    Sizes,
    TrainRecipe,
    TrialSpec,
)
from cu_ray.types import Dataset as LoadedDataset

MANIPULATED, FOUND = 20, 10  # of the tiny data set's 80 training samples
_FOR_DETECTIONS = ResNet9(width=2)  # the original that they may look at


@dataclass(frozen=True)
class TinyImages(Dataset):
    """80 training and 40 test images of 12 x 12 pixels, 4 classes that differ in brightness; made in memory."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "80 + 40 made-up images, 12 x 12, for tests"

    def facts(self) -> DatasetFacts:
        """Four classes named after the directions."""
        return DatasetFacts(80, 40, (12, 12, 1), ("north", "east", "south", "west"))

    def load(self) -> LoadedDataset:
        """The same images every time: noise on a brightness of its own for each class."""
        rng = np.random.default_rng(0)
        normalisation, augmentation = Normalisation((0.5,), (0.25,)), Augmentation(crop_padding=1, flip=True)
        train, test = _made_up_images(80, rng), _made_up_images(40, rng)
        return LoadedDataset("tiny", self.facts().class_names, normalisation, augmentation, train, test)


def _made_up_images(count: int, rng: np.random.Generator) -> Images:
    labels = rng.permutation(np.arange(count, dtype=np.int64) % 4)
    noise = rng.integers(0, 60, (count, 12, 12, 1))
    return Images((noise + 50 * labels[:, None, None, None]).astype(np.uint8), labels)


class PluginConformance:
    """What holds for plug-ins of every kind: how they declare themselves. Not used alone."""

    kind: ClassVar[str]
    plugin: ClassVar[type[Any]]
    settings: ClassVar[dict[str, Any]] = {}

    def instance(self) -> Any:
        """The plug-in with its settings."""
        return self.plugin(**self.settings)

    def test_it_is_a_frozen_dataclass_that_derives_from_the_contract(self) -> None:
        assert issubclass(self.plugin, plugins.contract(self.kind)), f"does not derive from {plugins.contract(self.kind)}"
        _assert_all(declared.of_class(self.plugin))
        assert hash(self.instance()) == hash(self.instance()), "equal instances have different hashes"

    def test_it_declares_its_version_and_a_summary(self) -> None:
        hint = get_type_hints(self.plugin, include_extras=True)["version"]
        assert get_origin(hint) is ClassVar, "`version` is no ClassVar: it would be a setting"
        assert "version" in vars(self.plugin), "`version` is inherited: declare it, so that it can be raised"
        _assert_all(declared.of_version(self.plugin))
        assert self.plugin.summary, "there is no `summary` for the listing"
        assert self.plugin.summary == " ".join(self.plugin.summary.split()), "the summary is not one line"

    def test_its_fields_have_defaults_of_their_types_and_within_their_bounds(self) -> None:
        _assert_all(declared.of_defaults(self.plugin))

    def test_its_search_ranges_lie_within_their_bounds(self) -> None:
        _assert_all(declared.of_ranges(self.plugin))

    def test_its_field_names_are_free(self) -> None:
        _assert_all(declared.of_names(self.kind, self.plugin))

    def test_it_defines_what_its_kind_needs(self) -> None:
        _assert_all(declared.of_functions(self.kind, self.plugin))

    def test_it_is_found_by_its_name(self) -> None:
        name = plugins.name_of(self.plugin)
        assert plugins.find(self.kind, name) is self.plugin, f"{name} is {plugins.find(self.kind, name)}, not {self.plugin}"

    def test_its_description_builds_it_again(self) -> None:
        instance = self.instance()
        again = plugins.build(self.kind, plugins.describe(instance))
        assert again == instance, f"{plugins.describe(instance)} builds {again}, not {instance}"


def _assert_all(rules: checks.Rules) -> None:
    for holds, message in rules:
        assert holds, message


# ------------------------------------------------------------------------------------------------------------- methods


class MethodConformance(PluginConformance):
    """What an unlearning method must do, on a tiny backdoored data set. `model`: the architecture it is tried on."""

    kind = "methods"
    model: ClassVar[Any] = ResNet9(width=2)

    def original(self) -> OriginalSpec:
        """The original model that it starts from."""
        return OriginalSpec.for_method(_tiny_setting(self.model), self.plugin)

    def spec(self) -> TrialSpec:
        """The trial that is run."""
        size = FOUND if self.plugin.uses_deletion_set else 0
        return TrialSpec(self.original(), Uniform(), size, self.instance())

    def sizes(self) -> Sizes:
        """Those of the sets that it is run on."""
        split, recipe = _tiny_bench(self.original()).split(self.spec()), self.original().setting.train
        return Sizes(len(split.deletion), len(split.retain), recipe.batch_size, recipe.steps)

    def run(self, memos: RememberedMemos | None = None) -> Unlearned:
        """What the method makes of the tiny original model."""
        spec, bench = self.spec(), _tiny_bench(self.original())
        return unlearn(spec, bench.original, bench.poisoned, bench.data, bench.split(spec), memos or RememberedMemos())

    def test_it_returns_the_same_architecture_with_finite_weights(self) -> None:
        unlearned, original = self.run().model.state_dict(), _tiny_bench(self.original()).original.state_dict()
        shapes = [{name: tuple(each.shape) for name, each in weights.items()} for weights in (unlearned, original)]
        assert shapes[0] == shapes[1], f"it returns weights of the shapes {shapes[0]}; the original's are {shapes[1]}"
        not_finite = [name for name, each in unlearned.items() if not each.isfinite().all()]
        assert not not_finite, f"weights that are not finite: {not_finite}"

    def test_the_original_model_stays_as_it_was(self) -> None:
        original = _tiny_bench(self.original()).original
        before = copy.deepcopy(original.state_dict())
        self.run()
        assert _same_bits(before, original.state_dict()), "the original model has changed"
        assert all(parameter.requires_grad for parameter in original.parameters()), "the original model was frozen"

    def test_it_writes_into_no_input(self) -> None:
        bench, memos = _tiny_bench(self.original()), RememberedMemos()
        self.run(memos)
        before = Fingerprints.of(bench.tensors(memos))
        self.run(memos)
        changed = before.first_changed(bench.tensors(memos))
        assert changed is None, f"it writes into {changed}, which trials share"

    def test_the_same_trial_gives_the_same_bits_whatever_the_global_generators_say(self) -> None:
        with _global_generators_kept():
            torch.manual_seed(1)
            first = self.run()
            torch.manual_seed(2)
            np.random.seed(2)
            random.seed(2)
            second = self.run()
        assert _same_bits(first.model.state_dict(), second.model.state_dict()), "draw from task.generator only"
        assert first.notes == second.notes, f"it noted {first.notes}, then {second.notes}: draw from task.generator only"

    def test_it_leaves_the_global_generators_alone(self) -> None:
        with _global_generators_kept():
            torch.manual_seed(3)  # a state that seeding by the trial's key would not leave behind
            np.random.seed(3)
            random.seed(3)
            before = _global_generators()
            self.run()
            assert _global_generators() == before, "it drew from, or seeded, a global generator"

    def test_its_declared_cost_is_what_is_counted(self) -> None:
        _require_cost("cost", self.spec().method.cost(self.sizes()), self.run().cost, exact=not self.plugin.cost_is_bound)

    def test_memos_change_neither_the_result_nor_its_cost(self) -> None:
        memos = RememberedMemos()
        first, second = self.run(memos), self.run(memos)
        assert _same_bits(first.model.state_dict(), second.model.state_dict()), "with its memos there it makes another model"
        assert first.cost == second.cost, f"it costs {first.cost}, and with its memos there {second.cost}"
        spared = first.spent != second.spent
        assert spared == bool(memos.kept), (
            f"it remembers {sorted(memos.kept) or 'nothing'}, spent {first.spent}, then {second.spent}"
        )

    def test_memos_spare_what_it_declares_of_its_cost(self) -> None:
        memos = RememberedMemos()
        first, second = self.run(memos), self.run(memos)
        declared, spared = self.spec().method.memo_cost(self.sizes()), first.spent - second.spent
        _require_cost("memo_cost", declared, spared, exact=not self.plugin.cost_is_bound)

    def test_it_leaves_remembered_memos_as_they_were(self) -> None:
        memos = RememberedMemos()
        self.run(memos)
        before = copy.deepcopy({key: memo.tensors for key, memo in memos.kept.items()})
        self.run(memos)
        assert all(_same_bits(tensors, memos.kept[key].tensors) for key, tensors in before.items()), "a memo was changed"

    def test_it_declares_what_its_memos_depend_on(self) -> None:
        memos = RememberedMemos()
        self.run(memos)
        assert (self.plugin.memo_fields is not None) == bool(memos.kept), "memo_fields: None if and only if it remembers nothing"
        unknown = set(self.plugin.memo_fields or ()) - set(plugins.facts(self.plugin))
        assert not unknown, f"memo_fields names what is no field: {sorted(unknown)}"

    def test_alternatives_are_fields_that_may_be_null(self) -> None:
        facts = plugins.facts(self.plugin)
        for name in (name for group in self.plugin.alternatives for name in group):
            assert declared.typed(facts[name].hint, None) is None, f"{name} has alternatives but cannot be null"

    def test_it_accepts_the_model_it_is_tried_on(self) -> None:
        self.instance().check(self.model.layers_per_block())


def _require_cost(name: str, declared: Cost, counted: Cost, *, exact: bool) -> None:
    within = declared.forward >= counted.forward and declared.backward >= counted.backward
    what = "is to be what is counted" if exact else "is at least what is counted, as cost_is_bound says"
    assert declared == counted or (within and not exact), f"{name} {what}: declared {declared}, counted {counted}"


class RememberedMemos:
    """Memos in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Memo] = {}

    def load(self, key: str) -> Memo | None:
        """The memo, or None."""
        return self.kept.get(key)

    def save(self, key: str, memo: Memo) -> None:
        """Keep a memo."""
        self.kept[key] = memo


@dataclass(frozen=True, eq=False)
class _Bench:
    original: torch.nn.Module
    poisoned: PoisonedDataset
    data: OnDevice

    def tensors(self, memos: RememberedMemos) -> NamedTensors:
        """What trials share, by name."""
        return {
            **{f"the {name}": tensor for name, tensor in self.data.tensors().items()},
            **{f"the original model's {name}": tensor for name, tensor in tensors_of(self.original).items()},
            **{f"the memo {name!r}": tensor for memo in memos.kept.values() for name, tensor in memo.tensors.items()},
        }

    def evidence(self) -> OriginalsEvidence:
        """Of the original, for detections."""
        return OriginalsEvidence(_FOR_DETECTIONS, lambda: self.original, self.data)

    def split(self, spec: TrialSpec) -> DeletionSplit:
        return detect(self.poisoned, spec.detection, spec.deletion_size, self.evidence())


@functools.cache
def _tiny() -> LoadedDataset:
    return TinyImages().load()


@functools.cache
def _tiny_setting(model: Any) -> Setting:
    recipe = TrainRecipe(steps=20, lr=0.05, batch_size=16, precision="fp32")
    return Setting(TinyImages(), _tiny().content_hash, model, Backdoor(MANIPULATED, target=0), recipe, seed=0)


@functools.cache
def _tiny_bench(original: OriginalSpec) -> _Bench:
    setting = original.setting
    poisoned = poison(_tiny(), setting.manipulation, seed=setting.seed)
    data = upload(poisoned, torch.device("cpu"))
    with _global_generators_kept():
        return _Bench(train(original, poisoned, data), poisoned, data)


def _same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _global_generators() -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().tolist(), kind, np.asarray(keys).tolist(), rest, random.getstate()]


@contextlib.contextmanager
def _global_generators_kept() -> Iterator[None]:
    """A context after which the global generators are as they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


# -------------------------------------------------------------------------------------------------------------- models


class ModelConformance(PluginConformance):
    """What an architecture must do. `image_shapes`: height, width and channels of images that it takes."""

    kind = "models"
    image_shapes: ClassVar[tuple[tuple[int, int, int], ...]] = ((32, 32, 3), (28, 28, 1))
    num_classes: ClassVar[int] = 7

    def built(self, image_shape: tuple[int, int, int], seed: int = 0) -> torch.nn.Module:
        """The model with weights drawn from the seed, in eval mode."""
        model: torch.nn.Module = self.instance().build(image_shape, self.num_classes)
        initialise([model], seed)
        return model.eval()

    def built_each(self) -> Iterator[tuple[torch.nn.Module, torch.Tensor]]:
        """The model for each image shape, with a batch of two images for it."""
        for shape in self.image_shapes:
            yield self.built(shape), _random_images(shape)

    def test_it_maps_images_to_logits(self) -> None:
        for model, images in self.built_each():
            _assert_all(checks.of_logits(model(images), self.num_classes))

    def test_its_blocks_hold_every_parameter_once(self) -> None:
        for model, _ in self.built_each():
            _assert_all(checks.of_blocks(self.instance().blocks(model), model))

    def test_its_blocks_run_from_input_to_output(self) -> None:
        for model, images in self.built_each():
            blocks, ran = self.instance().blocks(model), list[torch.nn.Module]()
            for block in blocks:
                block.register_forward_hook(lambda block, *_, ran=ran: ran.append(block))
            model(images)
            order = [next(index for index, block in enumerate(blocks) if block is each) for each in ran]
            assert order == list(range(len(blocks))), f"the blocks run in the order {order}, of {len(blocks)}"

    def test_it_knows_its_layers_without_being_built(self) -> None:
        for model, _ in self.built_each():
            _assert_all(checks.of_layers(self.instance(), model))

    def test_a_seed_determines_all_weights(self) -> None:
        shape = self.image_shapes[0]
        with _global_generators_kept():
            torch.manual_seed(1)
            first = self.built(shape).state_dict()
            torch.manual_seed(2)
            assert _same_bits(first, self.built(shape).state_dict()), "a parameter is of no layer that has reset_parameters"
        assert not _same_bits(first, self.built(shape, seed=1).state_dict()), "another seed gives the same weights"

    def test_it_runs_on_every_image_size_that_it_does_not_refuse(self) -> None:
        channels = self.image_shapes[0][2]
        for side in range(1, 33):
            shape = (side, side, channels)
            try:
                self.instance().check(shape)
            except UserError:
                continue
            assert self.built(shape).train()(_random_images(shape)).shape == (2, self.num_classes), f"fails on {shape}"

    def test_it_accepts_the_images_it_is_tried_on(self) -> None:
        for shape in self.image_shapes:
            self.instance().check(shape)


def _random_images(image_shape: tuple[int, int, int]) -> torch.Tensor:
    height, width, channels = image_shape
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------- manipulations, detections


class ManipulationConformance(PluginConformance):
    """What a manipulation must do, on the tiny data set of four classes."""

    kind = "manipulations"
    settings: ClassVar[dict[str, Any]] = {"size": MANIPULATED}

    def settled(self) -> Any:
        """The manipulation, fitted to the tiny data set."""
        return self.instance().settle(TinyImages().facts())

    def corrupted(self, seed: int = 0) -> Any:
        """What it changes in the tiny training set."""
        return self.settled().corrupt(_tiny().train, _tiny().normalisation, np.random.default_rng(seed))

    def test_settling_twice_is_settling_once(self) -> None:
        once = self.settled()
        assert once.settle(TinyImages().facts()) == once, f"settled {once}, and again {once.settle(TinyImages().facts())}"

    def test_it_refuses_more_samples_than_there_are(self) -> None:
        with pytest.raises(FieldFault) as caught:
            dataclasses.replace(self.instance(), size=82).settle(TinyImages().facts())
        assert caught.value.field == "size", f"the fault is to be of 'size', not of {caught.value.field!r}"

    def test_it_changes_as_many_samples_as_its_size_says(self) -> None:
        corruption = self.corrupted()
        _assert_all(checks.of_rows("indices", corruption.indices, 80))
        _assert_all(checks.of_size(corruption, self.settled().size))

    def test_it_gives_rows_labels_and_a_stamp_that_fit_the_images(self) -> None:
        _assert_all(checks.of_corruption("corrupt()", self.corrupted(), _tiny().train, 4))

    def test_it_leaves_the_images_as_they_were(self) -> None:
        before = TinyImages().load()
        self.corrupted()
        self.settled().test_domains(_tiny().test)
        for images, same in ((_tiny().train, before.train), (_tiny().test, before.test)):
            assert np.array_equal(images.pixels, same.pixels), "it writes into the images that it is given"
            assert np.array_equal(images.labels, same.labels), "it writes into the labels that it is given"

    def test_the_same_generator_gives_the_same_corruption(self) -> None:
        with _global_generators_kept():
            np.random.seed(1)
            first = self.corrupted(seed=5)
            np.random.seed(2)
            second = self.corrupted(seed=5)
        for name in ("indices", "labels"):
            one, other = getattr(first, name), getattr(second, name)
            assert np.array_equal(one, other), f"{name} differ, draw from rng only: {_shown(one)}, then {_shown(other)}"
        assert (first.stamp is None) == (second.stamp is None), "there is a stamp at one time only: draw from rng only"

    def test_its_domains_are_rows_of_the_test_images(self) -> None:
        _assert_all(checks.of_domains(self.settled().test_domains(_tiny().test), self.corrupted(), 40, 4))

    def test_it_manipulates_unseen_images_at_the_same_rate(self) -> None:
        """A share of the images, or the nearest that it can do with them."""
        manipulation, unseen = self.settled(), _tiny().test
        changed = manipulation.corrupt_unseen(unseen, _tiny(), self.corrupted(), np.random.default_rng(0))
        _assert_all(checks.of_corruption("corrupt_unseen()", changed, unseen, 4))
        most = max(2, round(manipulation.size / 80 * 40))
        assert len(changed.indices) <= most, f"it changes {len(changed.indices)} of 40 unseen images, more than {most}"

    def test_it_poisons_a_data_set(self) -> None:
        poisoned = poison(_tiny(), self.settled(), seed=0)
        changed = int((poisoned.labels != _tiny().train.labels).sum()) + int(poisoned.stamped.sum())
        assert changed > 0 or not poisoned.corruption.truth_known, "neither a label nor an image has changed"
        told, truth_known = self.settled(), poisoned.corruption.truth_known
        assert told.has_trigger == (poisoned.corruption.stamp is not None), "has_trigger: whether there is a stamp"
        assert told.truth_known == truth_known, f"truth_known is {told.truth_known}, of its corruption {truth_known}"


class DetectionConformance(PluginConformance):
    """What a detection must do, on the tiny data set with a backdoor in 20 of its samples."""

    kind = "detections"

    def settled(self) -> Any:
        """The detection, ready for the tiny data set."""
        return self.instance().settle(TinyImages().facts())

    def test_settling_twice_changes_nothing(self) -> None:
        once = self.settled()
        assert once.settle(TinyImages().facts()) == once, f"settled {once}, and again {once.settle(TinyImages().facts())}"

    def found(self, size: int, seed: int = 0) -> Indices:
        """The rows that it identifies."""
        bench = _tiny_bench(OriginalSpec(_tiny_setting(_FOR_DETECTIONS)))
        rows: Indices = self.settled().find(bench.poisoned, size, np.random.default_rng(seed), bench.evidence())
        return rows

    def sizes(self) -> list[int]:
        """How many it finds for all deletion fractions."""
        found = {self.settled().num_found(number / MANIPULATED, MANIPULATED) for number in range(1, MANIPULATED + 1)}
        return sorted(found)

    def test_it_finds_as_many_different_samples_as_it_is_asked_for(self) -> None:
        assert self.sizes()[0] > 0, f"num_found() is {self.sizes()[0]} for some deletion fraction"
        for size in self.sizes():
            rows = self.found(size)
            different = len(np.unique(rows))
            assert len(rows) == different == size, f"asked for {size} it finds {len(rows)}, {different} of them different"

    def test_it_finds_rows_of_the_training_set(self) -> None:
        rows = self.found(self.sizes()[-1])
        assert _are_rows(np.sort(rows), 80), f"it is to find different int64 rows of the training set, not {_shown(rows)}"

    def test_smaller_sets_are_part_of_larger_ones(self) -> None:
        for smaller, larger in itertools.pairwise(self.sizes()):
            few, many = set(self.found(smaller).tolist()), set(self.found(larger).tolist())
            assert few < many, f"of the {smaller} it finds, {sorted(few - many)} are not among the {larger} for a larger fraction"

    def test_the_same_generator_finds_the_same_samples(self) -> None:
        size = self.sizes()[-1]
        first, second = self.found(size, seed=5), self.found(size, seed=5)
        assert np.array_equal(first, second), f"draw from rng only: it finds {_shown(first)}, then {_shown(second)}"

    def test_it_leaves_the_data_as_they_were(self) -> None:
        bench = _tiny_bench(OriginalSpec(_tiny_setting(_FOR_DETECTIONS)))
        indices, before = bench.poisoned.corruption.indices.copy(), Fingerprints.of(bench.tensors(RememberedMemos()))
        self.found(self.sizes()[-1])
        assert np.array_equal(bench.poisoned.corruption.indices, indices), "it writes into the indices of what was manipulated"
        changed = before.first_changed(bench.tensors(RememberedMemos()))
        assert changed is None, f"it writes into {changed}"


def _are_rows(rows: Indices, count: int) -> bool:
    """Whether these are sorted, unique rows (int64) of so many."""
    return rows.dtype == np.int64 and bool((np.diff(rows) > 0).all()) and set(rows.tolist()) <= set(range(count))


def _shown(array: Any) -> str:
    """What an array is, and its first values."""
    return f"{array.dtype} {list(array.shape)} [{', '.join(map(str, array.ravel()[:5].tolist()))}, ...]"


# --------------------------------------------------------------------------------------------------- data sets, metrics


class DatasetConformance(PluginConformance):
    """What a data set must do. `needs_download`: its images are not loaded here."""

    kind = "datasets"
    needs_download: ClassVar[bool] = False

    def loaded(self) -> LoadedDataset:
        """The images; skips where they would have to be downloaded."""
        if self.needs_download:
            pytest.skip("needs a download")
        return _loaded(self.instance())

    def test_its_facts_are_what_it_loads(self) -> None:
        """Pixels, labels, class names and normalisation among them."""
        _assert_all(checks.of_dataset(self.loaded(), self.instance().facts()))

    def test_every_class_is_in_both_sets(self) -> None:
        for images in (self.loaded().train, self.loaded().test):
            there, count = sorted(set(images.labels.tolist())), self.loaded().num_classes
            assert there == list(range(count)), f"the labels are {there}; the classes are 0 to {count - 1}, in both sets"

    def test_its_facts_are_sizes_a_shape_and_class_names(self) -> None:
        _assert_all(checks.of_facts(self.instance().facts()))

    def test_loading_it_again_gives_the_same_content_hash(self) -> None:
        hashes = self.loaded().content_hash, self.instance().load().content_hash
        assert hashes[0] == hashes[1], f"other images, or in another order, when loaded again: {hashes[0]}, then {hashes[1]}"


@functools.cache
def _loaded(dataset: Any) -> LoadedDataset:
    loaded: LoadedDataset = dataset.load()
    return loaded


class MetricConformance(PluginConformance):
    """What a metric must do, on random outcomes of four classes."""

    kind = "metrics"

    def test_it_is_between_0_and_1_or_has_no_value(self) -> None:
        for seed in range(50):
            for target, confused in ((None, None), (1, None), (None, (0, 2))):
                value = self.instance().measure(_random_outcome(seed, target=target, confused=confused))
                assert value is None or (isinstance(value, float) and 0 <= value <= 1), (
                    f"a float from 0 to 1 or None, not {value!r}"
                )

    def test_it_has_no_value_on_empty_domains(self) -> None:
        nothing = np.empty(0, dtype=np.int64)
        for target, confused in ((None, None), (1, None), (None, (0, 2))):
            value = self.instance().measure(Outcome(nothing, nothing, nothing, nothing, target, confused))
            assert value is None, f"None where there are no images, not {value!r}"

    def test_it_leaves_the_outcome_as_it_was(self) -> None:
        outcome, same = (_random_outcome(0, target=1, confused=(0, 2)) for _ in range(2))
        self.instance().measure(outcome)
        for name in ("affected_predicted", "affected_true", "retain_predicted", "retain_true"):
            assert np.array_equal(getattr(outcome, name), getattr(same, name)), f"it writes into outcome.{name}"


def _random_outcome(seed: int, *, target: int | None, confused: tuple[int, int] | None) -> Outcome:
    rng = np.random.default_rng(seed)
    affected_true, retain_true = rng.integers(0, 4, rng.integers(1, 30)), rng.integers(0, 4, rng.integers(1, 30))
    if confused is not None:
        affected_true = rng.choice(confused, len(affected_true))
    predicted = [rng.integers(0, 4, len(true)) for true in (affected_true, retain_true)]
    return Outcome(predicted[0], affected_true, predicted[1], retain_true, target, confused)
