"""Batches: crop with zeros before normalisation, flip, normalise, and only then the patch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cu_ray.learning.batches import DeviceImages, RowStream
from cu_ray.types import Augmentation, Images, Normalisation, Stamp

COUNT, HEIGHT, WIDTH, CHANNELS, PAD = 13, 6, 5, 3, 2
NORMALISATION = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
PEAK = 2.75  # the value of the patch


def some_images(seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 256, (COUNT, HEIGHT, WIDTH, CHANNELS), dtype=np.uint8)  # no zero: padding shows
    return Images(pixels, rng.integers(0, 4, COUNT))


def stamp():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[-3:, -3:] = True
    return Stamp(mask, np.full(CHANNELS, PEAK, dtype=np.float32))


STAMPED = np.arange(COUNT) % 3 == 0


def device_images(images, *, crop_padding=0, flip=False, stamped=None):
    return DeviceImages(
        images,
        NORMALISATION,
        torch.device("cpu"),
        augmentation=Augmentation(crop_padding, flip),
        stamp=stamp(),
        stamped=stamped,
    )


def stream(images, seed=0, rows=None, batch_size=5, **how):
    rows = np.arange(COUNT) if rows is None else rows
    in_deletion = torch.arange(COUNT) < 4
    return RowStream(device_images(images, **how), rows, in_deletion, batch_size, torch.Generator().manual_seed(seed))


def view_of(pixels, top, left, flipped, stamped, pad):
    """What becomes of one image [H, W, C], pixel by pixel, in float64, as [C, H, W]."""
    view = np.empty((CHANNELS, HEIGHT, WIDTH))
    for channel, row, column in itertools.product(range(CHANNELS), range(HEIGHT), range(WIDTH)):
        source_row = top + row - pad
        source_column = left + (WIDTH - 1 - column if flipped else column) - pad
        inside = 0 <= source_row < HEIGHT and 0 <= source_column < WIDTH
        value = pixels[source_row, source_column, channel] / 255 if inside else 0.0
        view[channel, row, column] = (value - NORMALISATION.mean[channel]) / NORMALISATION.std[channel]
        if stamped and row >= HEIGHT - 3 and column >= WIDTH - 3:
            view[channel, row, column] = PEAK
    return view


def all_views(images, pad, flips, stamped):
    """Every possible view of every image, by (row, top, left, flipped)."""
    places = range(2 * pad + 1)
    return {
        (row, top, left, flipped): view_of(images.pixels[row], top, left, flipped, stamped[row], pad)
        for row, top, left, flipped in itertools.product(range(COUNT), places, places, flips)
    }


def which_view(image, row, views):
    """The (top, left, flipped) of the only view of this row that equals the image."""
    fits = [key[1:] for key, view in views.items() if key[0] == row and np.allclose(image, view, rtol=1e-5, atol=1e-5)]
    assert len(fits) == 1, f"row {row} has {len(fits)} matching views"
    return fits[0]


@pytest.mark.parametrize(("pad", "flip"), [(PAD, True), (PAD, False), (0, True), (1, True)])
def test_every_image_is_one_of_the_possible_crops_and_flips_of_its_source(pad, flip):
    images = some_images()
    views = all_views(images, pad, (False, True) if flip else (False,), STAMPED)
    seen = set()
    for seed in range(12):
        for batch in stream(images, seed, crop_padding=pad, flip=flip, stamped=STAMPED).epoch():
            assert batch.images.dtype == torch.float32
            for image, row in zip(batch.images.numpy(), batch.indices.tolist(), strict=True):
                seen.add(which_view(image, row, views))
    assert len(seen) == (2 * pad + 1) ** 2 * (2 if flip else 1)  # every place and both ways occur


def test_crops_and_flips_are_uniform_and_drawn_for_each_image_alone():
    images = some_images()
    views = all_views(images, 1, (False, True), STAMPED)
    counts, alike = dict.fromkeys(itertools.product(range(3), range(3), (False, True)), 0), 0
    for seed in range(60):
        drawn = []
        for batch in stream(images, seed, crop_padding=1, flip=True, stamped=STAMPED, batch_size=COUNT).epoch():
            drawn += [
                which_view(image, row, views) for image, row in zip(batch.images.numpy(), batch.indices.tolist(), strict=True)
            ]
        for view in drawn:
            counts[view] += 1
        alike += len(set(drawn)) == 1
    expected = 60 * COUNT / 18
    assert all(abs(count - expected) < 4 * expected**0.5 for count in counts.values()), counts
    assert alike == 0


def test_the_patch_is_set_after_crop_flip_and_normalisation_to_the_value_itself():
    images = some_images()
    for seed in range(5):
        for batch in stream(images, seed, crop_padding=PAD, flip=True, stamped=STAMPED).epoch():
            for image, row in zip(batch.images, batch.indices.tolist(), strict=True):
                patch = image[:, -3:, -3:]
                assert bool((patch == np.float32(PEAK)).all()) == bool(STAMPED[row])


def test_without_augmentation_each_image_is_normalised_as_it_is():
    images = some_images()
    for batch in stream(images, crop_padding=PAD, flip=True, stamped=STAMPED).epoch(augment=False):
        for image, row in zip(batch.images.numpy(), batch.indices.tolist(), strict=True):
            expected = view_of(images.pixels[row], 0, 0, False, STAMPED[row], 0)
            np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stamp_all", "expected"), [(True, np.ones(COUNT, bool)), (False, np.zeros(COUNT, bool))])
def test_test_images_carry_the_patch_only_where_all_are_asked_to(stamp_all, expected):
    images = some_images()
    loaded = device_images(images).load(torch.arange(COUNT), stamp_all=stamp_all).numpy()
    for row in range(COUNT):
        np.testing.assert_allclose(loaded[row], view_of(images.pixels[row], 0, 0, False, expected[row], 0), rtol=1e-5, atol=1e-6)


def test_an_epoch_holds_each_row_once_with_its_label_and_keeps_the_partial_batch():
    images, rows = some_images(), np.array([12, 0, 3, 5, 7, 8, 11])
    batches = list(stream(images, rows=rows, batch_size=3).epoch())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == sorted(rows)
    assert torch.cat([batch.labels for batch in batches]).tolist() == images.labels[indices].tolist()
    assert torch.cat([batch.in_deletion for batch in batches]).tolist() == [index < 4 for index in indices.tolist()]
    assert [len(batch) for batch in stream(images, rows=rows, batch_size=3).epoch(2)] == [2, 2, 2, 1]
    assert len(stream(images, rows=rows)) == 7


def test_order_is_new_in_each_epoch_and_as_given_without_shuffling():
    rows = np.array([12, 0, 3, 5, 7, 8, 11, 1, 2, 4])
    samples = stream(some_images(), rows=rows, batch_size=10)
    orders = [next(iter(samples.epoch())).indices.tolist() for _ in range(5)]
    assert len(set(map(tuple, orders))) == 5
    assert next(iter(samples.epoch(shuffle=False))).indices.tolist() == rows.tolist()


def test_all_orders_are_equally_likely():
    samples, first = stream(some_images(), rows=np.arange(4), batch_size=1), np.zeros(4)
    for _ in range(200):
        first[int(next(iter(samples.epoch(augment=False))).indices[0])] += 1
    assert (abs(first - 50) < 4 * 50**0.5).all()


def test_draws_belong_to_the_streams_own_generator():
    images, states = some_images(), []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        states.append(torch.cat([batch.images for batch in stream(images, 5, crop_padding=2, flip=True).epoch()]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*states)
    assert not torch.equal(states[0], torch.cat([batch.images for batch in stream(images, 6, crop_padding=2, flip=True).epoch()]))


def test_the_images_themselves_stay_as_they_are():
    images = some_images()
    pixels, labels = images.pixels.copy(), images.labels.copy()
    for array in (images.pixels, images.labels):
        array.setflags(write=False)  # as in shared memory
    list(stream(images, crop_padding=2, flip=True, stamped=STAMPED).epoch())
    assert np.array_equal(images.pixels, pixels)
    assert np.array_equal(images.labels, labels)


def test_the_largest_normalised_value_is_found_channel_by_channel():
    pixels = some_images(3).pixels
    pixels[..., 1] //= 2
    values = [
        (int(pixels[index]) / 255 - NORMALISATION.mean[index[3]]) / NORMALISATION.std[index[3]]
        for index in np.ndindex(pixels.shape)
    ]
    assert NORMALISATION.maximum(pixels) == pytest.approx(max(values), rel=1e-12)
