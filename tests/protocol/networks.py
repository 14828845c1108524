"""What tests of several models share: counters, weights away from their start, parts of networks in plain arithmetic."""

from __future__ import annotations

import math

import torch

from tests.protocol import reference


def num_parameters(model):
    """Of all tensors that are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def on_paper(plugin, image_shape, num_classes):
    """The model without memory for its weights."""
    with torch.device("meta"):
        return plugin.build(image_shape, num_classes)


def count_multiply_adds(model, image_shape):
    """Of convolutions and linear layers, for one image: outputs times the terms of each. The model is one on paper."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    height, width, channels = image_shape
    with torch.no_grad():
        model.eval()(torch.zeros(1, channels, height, width, device="meta"))
    return total


def lively(model, scale=0.3):
    """All weights and statistics away from their usual start, in float64."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.double().state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model.eval()


def some_images(image_shape, count=3):
    """Random images [count, C, H, W] in float64."""
    height, width, channels = image_shape
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_computes(model, expected_logits, image_shape):
    """In eval and in train mode: the logits, and what BatchNorm gathers. expected_logits: (state, images, learning)."""
    images = some_images(image_shape)
    for learning in (False, True):
        state = reference.state_of(model)
        expected = expected_logits(state, images, learning)
        torch.testing.assert_close(model.train(learning)(images), expected, rtol=1e-8, atol=1e-8)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-8, atol=1e-8)


# -------------------------------------------------------------------------------------- parts, by the names in the state


def convolve(values, state, layer, stride=1):
    """With zeros around the image so that a stride of 1 keeps its size; each stride-th result each way."""
    weight = state[f"{layer}.weight"]
    count, channels, height, width = values.shape
    margin = weight.shape[2] // 2
    padded = torch.zeros(count, channels, height + 2 * margin, width + 2 * margin, dtype=values.dtype)
    padded[:, :, margin : margin + height, margin : margin + width] = values
    bias = state.get(f"{layer}.bias", torch.zeros(len(weight), dtype=values.dtype))
    return reference.convolve(padded, weight, bias)[:, :, ::stride, ::stride]


def relu(values):
    """What is above 0."""
    return torch.where(values > 0, values, torch.zeros_like(values))


def pool_3x3(values):
    """The maximum of each 3x3 window, every second one each way; the windows reach one place over the edge."""
    height, width = values.shape[2:]
    rows = []
    for i in range(0, height, 2):
        windows = [
            values[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(2).max(dim=2).values for j in range(0, width, 2)
        ]
        rows.append(torch.stack(windows, dim=2))
    return torch.stack(rows, dim=2)


def projected(values, state, layer, stride, learning):
    """The shortcut: convolution and BatchNorm where the state has them, else the values themselves."""
    if f"{layer}.0.weight" not in state:
        return values
    return reference.normalise(convolve(values, state, f"{layer}.0", stride), state, f"{layer}.1", learning)


def mean_head(values, state, layer):
    """The mean over the image's places and the linear layer."""
    return values.sum(dim=(2, 3)) / (values.shape[2] * values.shape[3]) @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]


def linear(values, state, layer):
    """Of the last dimension."""
    return values @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]


def layer_norm(values, state, layer):
    """Mean 0 and variance 1 over the last dimension, then scale and shift."""
    mean = values.sum(dim=-1, keepdim=True) / values.shape[-1]
    variance = ((values - mean) ** 2).sum(dim=-1, keepdim=True) / values.shape[-1]
    return (values - mean) / torch.sqrt(variance + 1e-6) * state[f"{layer}.weight"] + state[f"{layer}.bias"]


def gelu(values):
    """x times the normal distribution function of x."""
    return values * (1 + torch.erf(values / math.sqrt(2))) / 2
