"""Triggers pixel by pixel: places, brightness, clean labels and blending, against plain NumPy; and their keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cu_ray.errors import FieldFault
from cu_ray.learning.batches import RowStream, augment
from cu_ray.manipulations.backdoor import POSITIONS, Backdoor
from cu_ray.manipulations.blended_backdoor import BlendedBackdoor
from cu_ray.plugins import describe
from cu_ray.stages.poison import poison, upload
from cu_ray.types import Augmentation, Dataset, DatasetFacts, Images, Normalisation
from tests.protocol.tiny import original_spec, tiny_dataset

NAMES = ("ant", "bee", "cat", "dog")
CPU = torch.device("cpu")


def images_of(height: int, width: int, channels: int, normalisation: Normalisation, augmentation=Augmentation()) -> Dataset:  # noqa: B008
    """40 + 24 noise images of 4 classes."""
    rng = np.random.default_rng(height * 100 + width * 10 + channels)

    def some(count):
        labels = rng.permutation(np.arange(count) % 4)
        return Images(rng.integers(0, 250, (count, height, width, channels), dtype=np.uint8), labels)

    return Dataset("noise", NAMES, normalisation, augmentation, some(40), some(24))


GREY = images_of(9, 7, 1, Normalisation((0.4,), (0.3,)))
COLOUR = images_of(8, 11, 3, Normalisation((0.5, 0.2, 0.7), (0.3, 0.1, 0.25)))
FACTS = {id(each): DatasetFacts(40, 24, each.image_shape, NAMES) for each in (GREY, COLOUR)}
BOTH = pytest.mark.parametrize("dataset", [GREY, COLOUR], ids=["grey", "colour"])


def normalised(pixel: float, channel: int, normalisation: Normalisation) -> float:
    """(pixel / 255 - mean) / std."""
    return (pixel / 255 - normalisation.mean[channel]) / normalisation.std[channel]


def peak(dataset: Dataset) -> float:
    """The largest normalised value of all training pixels."""
    channels = range(dataset.image_shape[2])
    return max(
        normalised(int(value), channel, dataset.normalisation)
        for channel in channels
        for value in dataset.train.pixels[..., channel].ravel()
    )


def first_row_and_column(position: str, patch: int, height: int, width: int) -> tuple[int, int]:
    """Where the patch begins."""
    return {
        "bottom_right": (height - patch, width - patch),
        "bottom_left": (height - patch, 0),
        "top_right": (0, width - patch),
        "top_left": (0, 0),
        "center": ((height - patch) // 2, (width - patch) // 2),
    }[position]


def with_patch(image_HWC: np.ndarray, dataset: Dataset, position: str, patch: int, value: float | None) -> np.ndarray:
    """The normalised image [C, H, W] with its patch, a pixel at a time."""
    height, width, channels = image_HWC.shape
    top, left = first_row_and_column(position, patch, height, width)
    result = np.empty((channels, height, width), dtype=np.float64)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                inside = top <= row < top + patch and left <= column < left + patch
                pixel = 255 * value if inside and value is not None else int(image_HWC[row, column, channel])
                brightest = inside and value is None
                result[channel, row, column] = peak(dataset) if brightest else normalised(pixel, channel, dataset.normalisation)
    return result


def blended(image_HWC: np.ndarray, noise_HWC: np.ndarray, share: float, normalisation: Normalisation) -> np.ndarray:
    """((1 - share) image + share noise) in pixels, and then normalised [C, H, W]."""
    height, width, channels = image_HWC.shape
    result = np.empty((channels, height, width), dtype=np.float64)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                mixed = (1 - share) * int(image_HWC[row, column, channel]) + share * int(noise_HWC[row, column, channel])
                result[channel, row, column] = normalised(mixed, channel, normalisation)
    return result


def noise_of(dataset: Dataset, **settings) -> np.ndarray:
    """The noise picture in pixels, recovered from the stamp."""
    stamp = BlendedBackdoor(size=4, **settings).stamp(dataset.train, dataset.normalisation)
    mean, std = (np.array(part) for part in (dataset.normalisation.mean, dataset.normalisation.std))
    return np.rint((stamp.values.astype(np.float64) * std + mean) * 255).astype(int)


def plain_loads(dataset: Dataset) -> np.ndarray:
    """The training images as batches have them, nothing stamped."""
    unharmed = poison(dataset, Backdoor(size=1), seed=0, control="never_manipulated")
    return upload(unharmed, CPU).train.load(torch.arange(40)).numpy()


# ------------------------------------------------------------------------------------------------------------- the patch


@BOTH
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("patch", "value"), [(1, None), (2, 0.0), (3, 0.3), (4, 1.0)])
def test_a_patch_is_where_and_as_bright_as_it_says_and_nothing_else_changes(dataset, position, patch, value):
    poisoned = poison(dataset, Backdoor(size=10, patch=patch, position=position, value=value), seed=1)
    data = upload(poisoned, CPU)
    plain, got = plain_loads(dataset), data.train.load(torch.arange(40)).numpy()
    chosen = set(poisoned.corruption.indices.tolist())
    top, left = first_row_and_column(position, patch, *dataset.image_shape[:2])
    inside = np.zeros(dataset.image_shape[:2], dtype=bool)
    inside[top : top + patch, left : left + patch] = True
    for row in range(40):
        if row in chosen:
            expected = with_patch(dataset.train.pixels[row], dataset, position, patch, value)
            np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-6)
            assert got[row][:, ~inside].tobytes() == plain[row][:, ~inside].tobytes()
        else:
            assert got[row].tobytes() == plain[row].tobytes()


@BOTH
@pytest.mark.parametrize("manipulation", [Backdoor(size=8, position="center", value=0.5), BlendedBackdoor(size=8, blend=0.3)])
def test_every_test_image_can_be_seen_with_the_trigger_and_without(dataset, manipulation):
    data = upload(poison(dataset, manipulation, seed=2), CPU)
    rows = torch.arange(24)
    clean, triggered = data.test.load(rows).numpy(), data.test.load(rows, stamp_all=True).numpy()
    for row in range(24):
        image = dataset.test.pixels[row]
        if isinstance(manipulation, Backdoor):
            expected = with_patch(image, dataset, "center", 3, 0.5)
        else:
            expected = blended(image, noise_of(dataset), 0.3, dataset.normalisation)
        np.testing.assert_allclose(triggered[row], expected, rtol=1e-5, atol=1e-5)
        assert np.allclose(clean[row], with_patch(image, dataset, "center", 0, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("manipulation", [Backdoor(size=40, position="top_left", value=1.0), BlendedBackdoor(size=40, blend=0.4)])
def test_the_trigger_is_set_after_crop_and_flip(manipulation):
    dataset = replace(COLOUR, augmentation=Augmentation(2, True))
    data = upload(poison(dataset, manipulation, seed=0), CPU)
    stream = RowStream(data.train, np.arange(40), torch.zeros(40, dtype=torch.bool), 40, torch.Generator().manual_seed(7))
    batch = next(iter(stream.epoch(shuffle=False)))
    pixels = torch.from_numpy(dataset.train.pixels)
    moved = augment(pixels, dataset.augmentation, torch.Generator().manual_seed(7)).numpy()
    assert not np.array_equal(moved, dataset.train.pixels)
    for row in range(40):
        if isinstance(manipulation, Backdoor):
            expected = with_patch(moved[row], dataset, "top_left", 3, 1.0)
        else:
            expected = blended(moved[row], noise_of(dataset), 0.4, dataset.normalisation)
        np.testing.assert_allclose(batch.images[row].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_patch_larger_than_the_image_and_a_brightness_beyond_its_range_are_refused():
    facts = FACTS[id(GREY)]
    assert Backdoor(size=4, patch=7).settle(facts).patch == 7
    with pytest.raises(FieldFault, match="larger than an image of 7"):
        Backdoor(size=4, patch=8).settle(facts)


# ------------------------------------------------------------------------------------------------------------ blending


@BOTH
@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_blending_is_the_same_before_normalisation_and_after_it(dataset, share):
    poisoned = poison(dataset, BlendedBackdoor(size=10, blend=share), seed=1)
    got, plain, noise = upload(poisoned, CPU).train.load(torch.arange(40)).numpy(), plain_loads(dataset), noise_of(dataset)
    means, stds = (np.array(part).reshape(-1, 1, 1) for part in (dataset.normalisation.mean, dataset.normalisation.std))
    noise_CHW = (noise.transpose(2, 0, 1) / 255 - means) / stds
    for row in poisoned.corruption.indices:
        before = blended(dataset.train.pixels[row], noise, share, dataset.normalisation)
        after = (1 - share) * plain[row].astype(np.float64) + share * noise_CHW
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[row], before, rtol=1e-5, atol=1e-5)
    untouched = np.setdiff1d(np.arange(40), poisoned.corruption.indices)
    assert got[untouched].tobytes() == plain[untouched].tobytes()


@BOTH
def test_the_noise_is_one_picture_for_all_seeds_sizes_and_targets_and_pattern_changes_it(dataset):
    noise = noise_of(dataset)
    assert noise.shape == dataset.image_shape
    assert noise.min() >= 0
    assert noise.max() <= 255
    assert abs(noise.mean() - 127.5) < 5 * 74 / noise.size**0.5
    for seed in range(3):
        for size, target in ((1, 0), (9, 2)):
            stamp = poison(dataset, BlendedBackdoor(size=size, target=target), seed=seed).corruption.stamp
            assert stamp.mask.all()
            assert stamp.blend == 0.2
            again = BlendedBackdoor(size=4).stamp(dataset.test, dataset.normalisation)
            assert np.array_equal(stamp.values, again.values)
    patterns = [noise_of(dataset, pattern=pattern) for pattern in range(5)]
    assert np.array_equal(patterns[0], noise)
    assert len({each.tobytes() for each in patterns}) == 5


# --------------------------------------------------------------------------------------------------------- clean labels


@pytest.mark.parametrize("kind", [Backdoor, BlendedBackdoor])
def test_a_clean_label_takes_the_target_class_alone_and_changes_no_label(kind):
    manipulation, members = kind(size=5, target=2, clean_label=True), np.flatnonzero(COLOUR.train.labels == 2)
    drawn = set()
    for seed in range(20):
        poisoned = poison(COLOUR, manipulation, seed=seed)
        assert np.array_equal(poisoned.labels, COLOUR.train.labels)
        assert set(poisoned.corruption.indices) <= set(members)
        assert np.flatnonzero(poisoned.stamped).tolist() == poisoned.corruption.indices.tolist()
        assert poisoned.effective_size == 0
        drawn |= set(poisoned.corruption.indices)
        validation = poisoned.validation
        true = COLOUR.test.labels[validation.rows]
        assert np.array_equal(validation.labels, true)
        assert set(true[validation.stamped]) == {2}
        assert validation.stamped.sum() == min(round(5 / 40 * 12), (true == 2).sum()) == 2
    assert drawn == set(members)
    with pytest.raises(FieldFault, match="class 2 has 10 samples, fewer than 11") as caught:
        poison(COLOUR, replace(manipulation, size=11), seed=0)
    assert caught.value.field == "size"


@pytest.mark.parametrize("kind", [Backdoor, BlendedBackdoor])
def test_of_unseen_images_no_more_carry_a_clean_label_than_the_class_has(kind):
    manipulation = kind(size=10, target=2, clean_label=True)  # a quarter of the training images
    unseen = Images(COLOUR.test.pixels[:20], np.array([2, 0, 1, 2, *[3] * 16]))
    corruption = manipulation.corrupt(COLOUR.train, COLOUR.normalisation, np.random.default_rng(0))
    changed = manipulation.corrupt_unseen(unseen, COLOUR, corruption, np.random.default_rng(0))
    assert (changed.indices.tolist(), changed.labels.tolist()) == ([0, 3], [2, 2])
    dirty = replace(manipulation, clean_label=False).corrupt_unseen(unseen, COLOUR, corruption, np.random.default_rng(0))
    assert (len(dirty.indices), set(dirty.labels)) == (5, {2})


# ---------------------------------------------------------------------------------------------------------------- keys


def original_key(manipulation) -> str:
    """The key of an original that is trained on it."""
    return original_spec(tiny_dataset(), manipulation=manipulation).key


def test_the_settings_that_came_later_are_in_keys_only_where_they_are_used():
    plain = Backdoor(size=15, target=1)
    assert describe(plain) == {"name": "backdoor", "version": 1, "size": 15, "patch": 3, "target": 1}
    assert original_key(plain) == original_key(
        Backdoor(size=15, target=1, position="bottom_right", value=None, clean_label=False)
    )
    others = [replace(plain, position="center"), replace(plain, value=1.0), replace(plain, clean_label=True), plain]
    others += [replace(plain, value=value) for value in (0.0, 0.5)]
    assert len({original_key(each) for each in others}) == len(others)
    assert original_key(replace(plain, value=1)) == original_key(replace(plain, value=1.0))


def test_every_setting_of_a_blended_backdoor_is_in_its_key():
    plain = BlendedBackdoor(size=15)
    changes = ({}, {"blend": 0.3}, {"target": 1}, {"pattern": 1}, {"clean_label": True})
    others = [replace(plain, **change) for change in changes]
    assert len({original_key(each) for each in others}) == len(others)
