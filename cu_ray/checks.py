"""What plug-ins of each kind have to give: rules for the checks before a sweep and for the conformance suites.

Rules are pairs of whether one holds and what is said where it does not. They are read in order up to the first that does not
hold, so that a later one may rest on it. They cost little: no pixel is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from cu_ray.errors import ContractBroken
from cu_ray.lazy import torch
from cu_ray.learning.layers import initialise, num_weight_layers
from cu_ray.plugins import is_own, users_fault
from cu_ray.types import (
    Augmentation,
    Corruption,
    Cost,
    Dataset,
    DatasetFacts,
    Domains,
    Images,
    Indices,
    Normalisation,
    PoisonedDataset,
    Sizes,
    Stamp,
    View,
)

Rules = Iterable[tuple[bool, str]]
Shape = tuple[int, int, int]


def require(rules: Rules) -> None:
    """Raise ContractBroken with the first rule that does not hold."""
    for holds, message in rules:
        if not holds:
            raise ContractBroken(message)


# --------------------------------------------------------------------------------------------------------------- data sets


def facts_of(dataset: Any, where: str = "") -> DatasetFacts:
    """The facts of a data set plug-in. Raises UserError where they are none."""
    with users_fault(dataset, where):
        facts: DatasetFacts = dataset.facts()
        require(of_facts(facts))
    return facts


def loaded(dataset: Any, where: str = "") -> Dataset:
    """The images of a data set plug-in. Raises UserError where they are missing, or are not what its facts say."""
    with users_fault(dataset, where):
        found: Dataset = dataset.load()
        if is_own(dataset):  # those of the package say and load the same thing, which can be millions of files
            require(of_dataset(found, dataset.facts()))
    return found


def of_facts(facts: Any) -> Rules:
    """What is known of a data set without loading it."""
    yield isinstance(facts, DatasetFacts), f"facts() gave {_kind(facts)}: a DatasetFacts is needed"
    for name in ("num_train", "num_test"):
        count = getattr(facts, name)
        yield _is_count(count), f"facts().{name} is {count!r}: an integer from 1 is needed"
    shape, names = facts.image_shape, facts.class_names
    is_shape = isinstance(shape, tuple) and len(shape) == 3 and all(map(_is_count, shape))
    yield is_shape, f"facts().image_shape is {shape!r}: height, width and channels are needed, three integers"
    are_names = isinstance(names, tuple) and all(isinstance(name, str) for name in names) and len(names) >= 2
    yield are_names, f"facts().class_names are {_kind(names)}: a tuple of two or more texts is needed"
    twice = [name for name, count in Counter(names).items() if count > 1]
    yield not twice, f"facts().class_names has {_some(twice)} more than once: different names are needed"


def of_dataset(dataset: Any, facts: DatasetFacts) -> Rules:
    """What was loaded, against what was known before."""
    yield isinstance(dataset, Dataset), f"load() gave {_kind(dataset)}: a cu_ray.types.Dataset is needed"
    names = dataset.class_names
    yield names == facts.class_names, f"load() gave the class names {names!r}, facts() says {facts.class_names!r}"
    yield from _of_images("train", dataset.train, facts.num_train, facts)
    yield from _of_images("test", dataset.test, facts.num_test, facts)
    yield from of_normalisation(dataset.normalisation, facts.image_shape[2])
    augmentation = dataset.augmentation
    yield isinstance(augmentation, Augmentation), f"augmentation is {_kind(augmentation)}: an Augmentation is needed"


def _of_images(part: str, images: Any, count: int, facts: DatasetFacts) -> Rules:
    yield isinstance(images, Images), f"{part} is {_kind(images)}: Images are needed"
    pixels, labels, shape = images.pixels, images.labels, (count, *facts.image_shape)
    yield _is_array(pixels, np.uint8), f"{part}.pixels are {_kind(pixels)}: uint8 is needed, from 0 to 255, not yet normalised"
    yield pixels.shape == shape, f"{part}.pixels are of shape {pixels.shape}: facts() says {shape}, which is [N, H, W, C]"
    yield _is_array(labels, np.int64), f"{part}.labels are {_kind(labels)}: an array of int64 is needed"
    yield labels.shape == (count,), f"{part}.labels are of shape {labels.shape}: one for each image is needed, ({count},)"
    yield from _of_labels(f"{part}.labels", labels, len(facts.class_names))


def of_normalisation(normalisation: Any, channels: int) -> Rules:
    """What pixels are divided by and shifted by."""
    yield isinstance(normalisation, Normalisation), f"normalisation is {_kind(normalisation)}: a Normalisation is needed"
    for name, least in (("mean", -math.inf), ("std", 0)):
        numbers = getattr(normalisation, name)
        one_a_channel = isinstance(numbers, (tuple, list)) and len(numbers) == channels
        needed = f"a number for each of {channels} channels is needed{', above 0' if name == 'std' else ''}"
        sound = one_a_channel and all(least < each < math.inf for each in numbers)
        yield sound, f"normalisation.{name} is {numbers!r}: {needed}"


# ----------------------------------------------------------------------------------------------------------- manipulations


def settled(plugin: Any, facts: DatasetFacts) -> Any:
    """A manipulation or detection, settled for a data set. Raises FieldFault where it does not fit, UserError where it fails."""
    with users_fault(plugin):
        found = plugin.settle(facts)
        require([(type(found) is type(plugin), f"settle() gave {_kind(found)}: a {type(plugin).__name__} is needed")])
    return found


def of_corruption(by: str, corruption: Any, images: Images, num_classes: int) -> Rules:
    """What a manipulation changed in images."""
    yield isinstance(corruption, Corruption), f"{by} gave {_kind(corruption)}: a Corruption is needed"
    indices, labels, stamp = corruption.indices, corruption.labels, corruption.stamp
    yield from of_rows(f"{by} gave indices", indices, len(images))
    yield _is_array(labels, np.int64), f"{by} gave labels that are {_kind(labels)}: an array of int64 is needed"
    yield labels.shape == indices.shape, f"{by} gave {_kind(labels)} labels for {len(indices)} indices: one for each is needed"
    yield from _of_labels(f"{by} gave labels that", labels, num_classes)
    yield stamp is None or isinstance(stamp, Stamp), f"{by} gave a stamp that is {_kind(stamp)}: a Stamp is needed, or None"
    if stamp is not None:
        yield from _of_stamp(by, stamp, images.pixels.shape[1:])


def of_size(corruption: Corruption, size: int) -> Rules:
    """How many training samples a manipulation changed."""
    found = len(corruption.indices)
    yield found == size, f"corrupt() gave {found} indices: its size says {size}"


def _of_stamp(by: str, stamp: Stamp, shape: tuple[int, ...]) -> Rules:
    mask, values = stamp.mask, stamp.values
    fits = _is_array(mask, np.bool_) and mask.shape == shape[:2]
    yield fits, f"{by} gave a stamp whose mask is {_kind(mask)}: bool {list(shape[:2])} is needed, as the images are"
    fits = _is_array(values, np.float32) and values.shape in (shape[2:], shape)
    needed = f"float32 {list(shape[2:])} or {list(shape)} is needed, normalised"
    yield fits, f"{by} gave a stamp whose values are {_kind(values)}: {needed}"
    yield 0 < stamp.blend <= 1, f"{by} gave a stamp whose blend is {stamp.blend!r}: above 0 and at most 1 is needed"


def of_domains(domains: Any, corruption: Corruption, num_test: int, num_classes: int) -> Rules:
    """The test views of a manipulation."""
    yield isinstance(domains, Domains), f"test_domains() gave {_kind(domains)}: Domains are needed"
    for name in ("affected", "retain"):
        view = getattr(domains, name)
        yield isinstance(view, View), f"test_domains() gave as {name} {_kind(view)}: a View is needed"
        yield from of_rows(f"test_domains() gave {name}.rows", view.rows, num_test)
        can_be = not view.stamped or corruption.stamp is not None
        yield can_be, f"test_domains() gave {name} with a trigger, but corrupt() gave no stamp"
    target, confused = domains.target, domains.confused
    is_class = target is None or target in range(num_classes)
    yield is_class, f"test_domains() gave the target {target!r}: a class is needed, 0 to {num_classes - 1}"
    two = confused is None or (isinstance(confused, tuple) and len(confused) == len(set(confused) & set(range(num_classes))) == 2)
    yield two, f"test_domains() gave as confused {confused!r}: two different classes are needed, 0 to {num_classes - 1}"


def of_repetition(first: PoisonedDataset, second: PoisonedDataset) -> Rules:
    """What a manipulation made of the same data when asked twice with the same seed."""
    one, other = _drawn(first), _drawn(second)
    same = len(one) == len(other) and all(map(np.array_equal, one, other))
    yield same, "corrupt() gave two results for one seed: draw from the generator that it is given (rng), not from np.random"


def _drawn(poisoned: PoisonedDataset) -> list[Any]:
    """All that a manipulation may have drawn at random."""
    corruption, validation = poisoned.corruption, poisoned.validation
    stamp = [] if corruption.stamp is None else [corruption.stamp.mask, corruption.stamp.values, corruption.stamp.blend]
    return [corruption.indices, corruption.labels, *stamp, validation.labels, validation.stamped]


# ------------------------------------------------------------------------------------------------------------------ models


def layers_of(model: Any) -> tuple[int, ...]:
    """How many layers each block of a model plug-in counts. Raises UserError where it does not say so."""
    with users_fault(model):
        layers: tuple[int, ...] = model.layers_per_block()
        sound = isinstance(layers, (tuple, list)) and all(isinstance(each, int) and each >= 0 for each in layers)
        require([(sound, f"layers_per_block() gave {layers!r}: a tuple of integers is needed")])
    return tuple(layers)


def try_own_model(model: Any, image_shape: Shape, num_classes: int, where: str = "") -> None:
    """Raise UserError where a user's own model, built once and given two images, does not do what models have to."""
    if not is_own(model):
        return
    with users_fault(model, where), torch.random.fork_rng(devices=[]), torch.no_grad():
        built = model.build(image_shape, num_classes)
        is_module = isinstance(built, torch.nn.Module)
        require([(is_module, f"build() gave {_kind(built)}: a torch.nn.Module is needed")])
        initialise([built], 0)
        height, width, channels = image_shape
        if not torch.cuda.is_available():  # it may have kernels for GPUs alone
            require(of_logits(built.eval()(torch.randn(2, channels, height, width)), num_classes))
        require(of_blocks(model.blocks(built), built))
        require(of_layers(model, built))


def of_logits(logits: Any, num_classes: int) -> Rules:
    """What a model makes of two images."""
    yield isinstance(logits, torch.Tensor), f"its model gave {_kind(logits)} for two images: logits [2, {num_classes}] are needed"
    shape = tuple(logits.shape)
    yield shape == (2, num_classes), f"its model gave {list(shape)} for two images: logits [2, {num_classes}] are needed"
    yield bool(logits.isfinite().all()), "its model gave logits that are not finite, with new weights"


def of_blocks(blocks: Any, model: torch.nn.Module) -> Rules:
    """A model's blocks: each parameter is in one of them."""
    are_modules = isinstance(blocks, list) and all(isinstance(block, torch.nn.Module) for block in blocks)
    yield are_modules, f"blocks() gave {_kind(blocks)}: a list of modules is needed"
    held = [id(parameter) for block in blocks for parameter in block.parameters()]
    left_out = [name for name, parameter in model.named_parameters() if id(parameter) not in held]
    yield not left_out, f"blocks() leaves out {_some(left_out)}: together the blocks hold every parameter"
    yield len(held) == len(set(held)), "blocks() holds a parameter in two blocks: each is in one"
    others = len(set(held) - set(map(id, model.parameters())))
    yield not others, f"blocks() holds {others} parameters that are not the model's"


def of_layers(plugin: Any, model: torch.nn.Module) -> Rules:
    """What a model plug-in says of its layers, against those of the model that it built."""
    said, counted = tuple(plugin.layers_per_block()), tuple(map(num_weight_layers, plugin.blocks(model)))
    yield said == counted, f"layers_per_block() gave {said}: its blocks have {counted} convolution and linear layers"


# ----------------------------------------------------------------------------------------------------------------- methods


def of_cost(method: Any) -> Rules:
    """What a method says that a trial costs, for a deletion set, retain set and training of usual sizes."""
    for name in ("cost", "memo_cost"):
        cost = getattr(method, name)(Sizes(deletion=500, retain=5500, batch_size=64, train_steps=1000))
        yield isinstance(cost, Cost), f"{name}() gave {_kind(cost)}: a Cost is needed, cu_ray.types.Cost(forward, backward)"


# ------------------------------------------------------------------------------------------------------------------ common


def of_rows(name: str, rows: Any, count: int) -> Rules:
    """Rows of so many images."""
    yield _is_array(rows, np.int64) and rows.ndim == 1, f"{name} that are {_kind(rows)}: an array of int64 [N] is needed"
    yield bool((np.diff(rows) >= 0).all()), f"{name} that are not sorted: sorted ones are needed"
    yield bool((np.diff(rows) > 0).all()), f"{name} in which a row is twice: each is needed once"
    yield _are_within(rows, count), f"{name} {_span(rows)}: rows of the images are needed, 0 to {count - 1}"


def _of_labels(name: str, labels: Indices, num_classes: int) -> Rules:
    within = _are_within(labels, num_classes)
    yield within, f"{name} go {_span(labels)}: 0 to {num_classes - 1} are needed, for {num_classes} classes"


def _are_within(numbers: Indices, count: int) -> bool:
    return not numbers.size or bool(numbers.min() >= 0 and numbers.max() < count)


def _span(numbers: Indices) -> str:
    return f"from {numbers.min()} to {numbers.max()}" if numbers.size else "nowhere"


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def _is_array(value: Any, dtype: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == dtype


def _kind(value: Any) -> str:
    """A value in a few words: 'float64 [600, 28, 28]', 'None', 'a value of type list'."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:1])}{f' and {len(names) - 1} more' if names[1:] else ''}"
