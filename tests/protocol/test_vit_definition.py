"""The vision transformer: size, work, patches for each image size, and the function that it computes."""

from __future__ import annotations

import math

import pytest
import torch

from cu_ray.errors import UserError
from cu_ray.models.vit import Vit
from tests.protocol import networks


def test_the_usual_size_and_work_of_vit_b_16():
    model = networks.on_paper(Vit(), (224, 224, 3), 1000)
    assert networks.num_parameters(model) == 86_567_656
    patches, attention_and_network = 196 * 768 * 768, 197 * 12 * (4 + 8) * 768 * 768
    assert networks.count_multiply_adds(model, (224, 224, 3)) == patches + attention_and_network + 768 * 1000


def expected_logits(state, images, patch, depth, heads):
    """Token by token and head by head."""
    height, image_width = images.shape[2:]
    kernel = state["0.patches.weight"]
    tokens = [state["0.class_token"][0, 0].expand(len(images), -1)]
    for i in range(0, height, patch):
        for j in range(0, image_width, patch):
            pixels = images[:, :, i : i + patch, j : j + patch]
            tokens.append(torch.einsum("bcij,wcij->bw", pixels, kernel) + state["0.patches.bias"])
    values = torch.stack(tokens, dim=1) + state["0.positions"]
    width = values.shape[2]
    for block in range(1, depth + 1):
        attention, network = f"{block}.0.branch", f"{block}.1.branch"
        inputs = networks.linear(networks.layer_norm(values, state, f"{attention}.0"), state, f"{attention}.1.inputs")
        values = values + networks.linear(attended(inputs, width, heads), state, f"{attention}.1.outputs")
        inner = networks.linear(networks.layer_norm(values, state, f"{network}.0"), state, f"{network}.1")
        values = values + networks.linear(networks.gelu(inner), state, f"{network}.3")
    return networks.linear(networks.layer_norm(values[:, 0], state, f"{depth + 1}.1"), state, f"{depth + 1}.2")


def attended(inputs, width, heads):
    """Each head's values, averaged with softmax weights of query times key over the root of a head's width."""
    mixed, each = [], width // heads
    for head in range(heads):
        query, key, value = (inputs[:, :, part * width + head * each :][:, :, :each] for part in range(3))
        weights = torch.exp(torch.einsum("bqd,bkd->bqk", query, key) / math.sqrt(each))
        mixed.append(torch.einsum("bqk,bkd->bqd", weights / weights.sum(dim=2, keepdim=True), value))
    return torch.cat(mixed, dim=2)


@pytest.mark.parametrize(
    ("patch", "depth", "width", "heads", "mlp_ratio", "image_shape"),
    [(4, 2, 6, 3, 4, (32, 32, 3)), (4, 1, 8, 2, 2, (12, 20, 1)), (1, 1, 4, 1, 1, (3, 3, 1)), (5, 1, 4, 4, 1, (5, 5, 1))],
)
def test_it_computes_the_usual_function(patch, depth, width, heads, mlp_ratio, image_shape):
    model = networks.lively(Vit(patch, depth, width, heads, mlp_ratio).build(image_shape, 5))
    networks.assert_computes(model, lambda state, images, _: expected_logits(state, images, patch, depth, heads), image_shape)


@pytest.mark.parametrize(
    ("height", "width", "patch"),
    [
        *[(224, 224, 16), (256, 256, 16), (128, 128, 16), (96, 96, 12), (64, 64, 8), (48, 48, 6), (32, 32, 4), (28, 28, 4)],
        *[(24, 24, 3), (14, 14, 2), (12, 12, 1), (5, 5, 1), (31, 31, 1), (32, 48, 4), (224, 96, 8), (30, 20, 2)],
    ],
)
def test_the_default_patch_fits_the_image(height, width, patch):
    Vit().check((height, width, 3))
    assert networks.on_paper(Vit(), (height, width, 3), 10)[0].patches.kernel_size == (patch, patch)


@pytest.mark.parametrize(
    ("settings", "image_shape", "message"),
    [
        ({"patch": 5}, (32, 32, 3), "vit with patch 5 takes images whose sides are multiples of 5, not 32 x 32"),
        ({"patch": 4}, (32, 30, 3), "multiples of 4, not 32 x 30"),
        ({"patch": 16}, (8, 8, 3), "multiples of 16, not 8 x 8"),
        ({"width": 100}, (32, 32, 3), "not 100 with 12 heads"),
        ({"patch": 1}, (33, 33, 3), "up to 1024 patches, not 33 x 33 in 1089 of 1 x 1"),
        ({}, (227, 227, 3), "up to 1024 patches, not 227 x 227 in 51529 of 1 x 1"),
    ],
)
def test_images_and_settings_that_do_not_fit_are_refused(settings, image_shape, message):
    with pytest.raises(UserError, match=message):
        Vit(**settings).check(image_shape)


def test_predictions_are_the_same_bits_in_every_mode():
    model, images = networks.lively(Vit(4, 2, 8, 2).build((32, 32, 3), 5)).float(), networks.some_images((32, 32, 3)).float()
    trained = model.train()(images).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert all(torch.equal(model.eval()(images), trained) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.eval()(images).float(), trained, rtol=0.1, atol=0.1)


def test_the_class_token_starts_at_0_and_positions_with_small_random_values():
    tokens = Vit(4, 1, 64, 2).build((32, 32, 3), 5)[0]
    assert torch.count_nonzero(tokens.class_token) == 0
    assert float(tokens.positions.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(tokens.positions.detach().mean())) < 0.001
