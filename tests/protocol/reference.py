"""The benchmark's definitions written down a second time, plainly and in float64, to compare the package with.

The net is block 1 = convolution 3x3, BatchNorm, CELU; block 2 = convolution 2x2, BatchNorm, CELU; block 3 = linear. Its state
is a dictionary of tensors named as in `state_dict`. Gradients come from automatic differentiation of these formulas.
"""

from __future__ import annotations

import math

import torch

CELU_ALPHA = 0.075
BLOCKS = {0: ("0.0", "0.1"), 1: ("1.0", "1.1"), 2: ("2.1",)}  # the layers of each block


def rate_factor(step, num_steps):
    """The learning rate relative to the base rate, at a step counted from 0."""
    warm_up = num_steps // 100
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 1 - (step - warm_up) / (1.25 * num_steps)


def convolve(images, weight, bias):
    """The cross-correlation without padding, one element of the kernel at a time."""
    kernel_height, kernel_width = weight.shape[2:]
    height, width = images.shape[2] - kernel_height + 1, images.shape[3] - kernel_width + 1
    total = bias.view(1, -1, 1, 1)
    for i in range(kernel_height):
        for j in range(kernel_width):
            window = images[:, :, i : i + height, j : j + width]
            total = total + torch.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return total


def normalise(values, state, layer, learning):
    """BatchNorm: with the batch's statistics (and the running ones moved a tenth towards them) or with the running ones."""
    if learning:
        count = values.numel() // values.shape[1]
        mean = values.sum(dim=(0, 2, 3)) / count
        squares = ((values - mean.view(1, -1, 1, 1)) ** 2).sum(dim=(0, 2, 3))
        variance = squares / count
        state[f"{layer}.running_mean"] = 0.9 * state[f"{layer}.running_mean"] + 0.1 * mean.detach()
        state[f"{layer}.running_var"] = 0.9 * state[f"{layer}.running_var"] + 0.1 * squares.detach() / (count - 1)
        state[f"{layer}.num_batches_tracked"] = state[f"{layer}.num_batches_tracked"] + 1
    else:
        mean, variance = state[f"{layer}.running_mean"], state[f"{layer}.running_var"]
    scaled = (values - mean.view(1, -1, 1, 1)) / torch.sqrt(variance + 1e-5).view(1, -1, 1, 1)
    return scaled * state[f"{layer}.weight"].view(1, -1, 1, 1) + state[f"{layer}.bias"].view(1, -1, 1, 1)


def celu(values):
    """x above 0, a (exp(x / a) - 1) below."""
    below = CELU_ALPHA * (torch.exp(values.clamp(max=0) / CELU_ALPHA) - 1)
    return torch.where(values > 0, values, below)


def forward(state, images, learning=()):
    """The logits; the BatchNorm layers of the blocks in `learning` use and gather the batch's statistics."""
    values = images
    for block in (0, 1):
        values = convolve(values, state[f"{block}.0.weight"], state[f"{block}.0.bias"])
        values = celu(normalise(values, state, f"{block}.1", block in learning))
    return values.flatten(1) @ state["2.1.weight"].T + state["2.1.bias"]


def log_probabilities(logits):
    """Each logit minus the logarithm of the sum of exponentials over the classes."""
    return logits - torch.log(torch.exp(logits).sum(dim=1, keepdim=True))


def mean_cross_entropy(logits, labels):
    """Minus the log-probability of each sample's label, averaged over the batch."""
    logs = log_probabilities(logits)
    return -sum(logs[row, int(label)] for row, label in enumerate(labels)) / len(labels)


def preference(logits, before, labels, beta):
    """The mean of 2 / beta log sigmoid(beta (CE - CE before)) over the samples."""
    total = 0
    for row, label in enumerate(labels):
        losses = [-log_probabilities(each)[row, int(label)] for each in (logits, before)]
        total = total + torch.log(1 / (1 + torch.exp(-beta * (losses[0] - losses[1]))))
    return 2 / beta * total / len(labels)


def summed_divergence(teacher_logits, student_logits):
    """KL(teacher || student) summed over samples and classes."""
    teacher, student = log_probabilities(teacher_logits), log_probabilities(student_logits)
    total = 0
    for row in range(len(teacher)):
        for label in range(teacher.shape[1]):
            total = total + math.exp(float(teacher[row, label])) * (teacher[row, label] - student[row, label])
    return total


def state_of(model):
    """A float64 copy of a model's parameters and buffers."""
    return {
        name: tensor.detach().clone().double() if tensor.is_floating_point() else tensor.detach().clone()
        for name, tensor in model.state_dict().items()
    }


def parameter_names(blocks=(0, 1, 2)):
    """The names of the blocks' parameters, input to output."""
    return [f"{layer}.{kind}" for block in blocks for layer in BLOCKS[block] for kind in ("weight", "bias")]


def gradients(state, loss, names):
    """The gradients of loss(state) by parameter name, and its value; buffers in the state move on."""
    leaves = {name: state[name].detach().clone().requires_grad_() for name in names}
    working = {**state, **leaves}
    value = loss(working)
    found = torch.autograd.grad(value, list(leaves.values()))
    for name in state:
        if name not in leaves:
            state[name] = working[name].detach()
    return dict(zip(names, found, strict=True))


def descend(state, losses, *, lr, num_steps, momentum, weight_decay, blocks=(0, 1, 2)):
    """The state after each step of SGD on loss(state) for each of the losses.

    velocity = momentum * velocity + (gradient + weight_decay * weight); weight -= lr * factor(step) * velocity.
    """
    state, names, states = dict(state), parameter_names(blocks), []
    velocity = {name: torch.zeros_like(state[name]) for name in names}
    for step, loss in enumerate(losses):
        found = gradients(state, loss, names)
        for name in names:
            velocity[name] = momentum * velocity[name] + found[name] + weight_decay * state[name]
            state[name] = state[name] - lr * rate_factor(step, num_steps) * velocity[name]
        states.append(dict(state))
    return states
