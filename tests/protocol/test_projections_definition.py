"""Fine-pruning, SAP and CUTS, re-derived in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cu_ray.errors import AssumptionFailed
from cu_ray.methods.cuts import Cuts
from cu_ray.methods.fine_pruning import FinePruning
from cu_ray.methods.sap import Sap
from tests.protocol import fakes, reference

LEARNING = (0, 1)


def numbered(seed, sizes):
    """Batches whose rows are numbered through."""
    starts = np.cumsum([0, *sizes])
    pairs = zip(fakes.some_batches(seed, sizes), starts, strict=False)
    return [replace(batch, indices=batch.indices + int(start)) for batch, start in pairs]


DELETION, RETAIN = numbered(60, [3, 4]), numbered(61, [4, 4, 3])


def run(method, **given):
    task = fakes.FakeTask(fakes.small_net(4), **{"retain": RETAIN, "deletion": DELETION, **given})
    return task, method.unlearn(task)


def hidden(state, images):
    """The inputs of the three weight layers: images, the first block's values, the flattened second block's."""
    values = [images]
    for block in (0, 1):
        convolved = reference.convolve(values[-1], state[f"{block}.0.weight"], state[f"{block}.0.bias"])
        values.append(reference.celu(reference.normalise(convolved, state, f"{block}.1", False)))
    return [*values[:2], values[2].flatten(1)]


# ---------------------------------------------------------------------------------------------------------- fine-pruning


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_fine_pruning_zeroes_the_least_active_inputs_of_the_head_for_good(share):
    start, names = reference.state_of(fakes.small_net(4)), reference.parameter_names()
    activity = sum(hidden(dict(start), batch.images)[2].abs().sum(dim=0) for batch in RETAIN) / 11
    pruned = sorted(range(len(activity)), key=lambda place: float(activity[place]))[: int(share * len(activity))]
    state, velocity = dict(start), {name: torch.zeros_like(start[name]) for name in names}

    def prune():
        state["2.1.weight"] = state["2.1.weight"].clone()
        state["2.1.weight"][:, pruned] = 0

    prune()
    for step in range(4):
        batch = RETAIN[step % 3]
        found = reference.gradients(
            state,
            lambda working, batch=batch: reference.mean_cross_entropy(
                reference.forward(working, batch.images, LEARNING), batch.labels
            ),
            names,
        )
        for name in names:
            velocity[name] = fakes.RECIPE.momentum * velocity[name] + found[name] + fakes.RECIPE.weight_decay * state[name]
            state[name] = state[name] - 0.1 * reference.rate_factor(step, 4) * velocity[name]
        prune()
    task, model = run(FinePruning(share=share, lr=0.1, steps=4), deletion=())
    fakes.assert_close(fakes.snapshot(model), state)
    assert task.notes == {"features_pruned": len(pruned)}
    assert not model[2][1]._forward_pre_hooks


def test_a_model_whose_last_block_has_no_linear_layer_fails_the_assumption():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5), torch.nn.Flatten()).double()
    with pytest.raises(AssumptionFailed, match="linear layer"):
        FinePruning(steps=1).unlearn(fakes.FakeTask(model, retain=RETAIN))


# ------------------------------------------------------------------------------------------------------------------- SAP


def patches(values, kernel):
    """What a kernel without padding sees of values [B, C, H, W]: a column for each place and image."""
    count, _, height, width = values.shape
    columns = [
        values[image, :, i : i + kernel, j : j + kernel].flatten().numpy()
        for image in range(count)
        for i in range(height - kernel + 1)
        for j in range(width - kernel + 1)
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("scaling", "trusted"), [(1.0, 5), (30.0, 5), (1e4, 100)])
def test_sap_projects_the_weights_on_what_trusted_samples_activate(scaling, trusted):
    state = reference.state_of(fakes.small_net(4))
    images, labels = (torch.cat([getattr(batch, name) for batch in RETAIN]) for name in ("images", "labels"))
    logs = reference.log_probabilities(reference.forward(dict(state), images))
    order = sorted(range(11), key=lambda row: -float(logs[row, int(labels[row])]))
    inputs = hidden(dict(state), images[sorted(order[:trusted])])
    expected = dict(state)
    for layer, matrix in (
        ("0.0", patches(inputs[0], 3)),
        ("1.0", patches(inputs[1], 2)),
        ("2.1", inputs[2].numpy().T),
    ):
        vectors, singular, _ = np.linalg.svd(matrix, full_matrices=True)
        energy = np.zeros(len(vectors))
        energy[: len(singular)] = singular**2 / (singular**2).sum()
        kept = scaling * energy / ((scaling - 1) * energy + 1)
        weight = state[f"{layer}.weight"].flatten(1).numpy()
        projected = weight @ vectors @ np.diag(kept) @ vectors.T
        expected[f"{layer}.weight"] = torch.from_numpy(projected).view_as(state[f"{layer}.weight"])
    task, model = run(Sap(scaling=scaling, trusted=trusted), deletion=())
    fakes.assert_close(fakes.snapshot(model), expected, atol=1e-7)
    assert task.memo_calls == [("spectra", {"trusted": trusted})]


def test_sap_keeps_everything_as_its_scaling_grows():
    """Where the samples span the inputs; eleven images of 25 pixels span the kernel's nine, not the head's inputs."""
    _, model = run(Sap(scaling=1e12, trusted=100))
    before = fakes.small_net(4).state_dict()
    torch.testing.assert_close(model.state_dict()["0.0.weight"], before["0.0.weight"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect"])
def test_sap_uses_the_padding_and_the_stride_of_a_convolution(padding):
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1, stride=2, bias=False, padding_mode=padding)
    model = torch.nn.Sequential(convolution, torch.nn.Flatten()).double()
    weight = model[0].weight.detach().clone()
    images = torch.cat([batch.images for batch in RETAIN])
    padded = np.pad(
        images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode={"zeros": "constant", "circular": "wrap"}.get(padding, padding)
    )
    seen = [padded[n, 0, i : i + 3, j : j + 3].flatten() for n in range(11) for i in (0, 2, 4) for j in (0, 2, 4)]
    vectors, singular, _ = np.linalg.svd(np.stack(seen, axis=1), full_matrices=False)
    energy = singular**2 / (singular**2).sum()
    expected = weight.flatten(1).numpy() @ vectors @ np.diag(5 * energy / (4 * energy + 1)) @ vectors.T
    projected = Sap(scaling=5.0).unlearn(fakes.FakeTask(model, retain=RETAIN))
    np.testing.assert_allclose(projected[0].weight.detach().flatten(1).numpy(), expected, rtol=1e-9)


def test_a_convolution_in_groups_fails_the_assumption():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 5, groups=2), torch.nn.Flatten()).double()
    batches = fakes.some_batches(3, [4], channels=2)
    with pytest.raises(AssumptionFailed, match="2 groups"):
        Sap().unlearn(fakes.FakeTask(model, retain=batches))


# ------------------------------------------------------------------------------------------------------------------ CUTS


def of_one_class():
    """The deletion set with one label, as of a backdoor: that can be forgotten everywhere."""
    return [replace(batch, labels=torch.zeros_like(batch.labels)) for batch in DELETION]


def proxy_state(deletion, lr, steps):
    start = reference.state_of(fakes.small_net(4))
    losses = [
        lambda state, batch=deletion[step % 2]: reference.mean_cross_entropy(
            reference.forward(state, batch.images, LEARNING), batch.labels
        )
        for step in range(steps)
    ]
    recipe = fakes.RECIPE
    return reference.descend(start, losses, lr=lr, num_steps=steps, momentum=recipe.momentum, weight_decay=recipe.weight_decay)[
        -1
    ]


def accuracy(state, deletion):
    hits = [reference.forward(dict(state), batch.images).argmax(dim=1) == batch.labels for batch in deletion]
    return float(torch.cat(hits).double().mean())


def extrapolated(proxy, coefficient):
    """Convolutions and the linear layer moved; BatchNorm (0.1, 1.1) as it was."""
    start = reference.state_of(fakes.small_net(4))
    return {
        name: value if name[:3] in ("0.1", "1.1") else value + coefficient * (proxy[name] - value)
        for name, value in start.items()
    }


@pytest.mark.parametrize(("deletion", "forgets", "lr", "steps"), [(of_one_class(), True, 0.1, 4), (DELETION, False, 0.2, 4)])
def test_cuts_takes_the_first_step_that_forgets_the_labels_or_that_of_the_lowest_accuracy(deletion, forgets, lr, steps):
    proxy = proxy_state(deletion, lr, steps)
    coefficients = [-0.05 * n for n in range(1, 101)]
    accuracies = [accuracy(extrapolated(proxy, each), deletion) for each in coefficients]
    reached = [n for n, each in enumerate(accuracies) if round(each, 2) <= 0.01]
    assert bool(reached) == forgets
    place = reached[0] if reached else accuracies.index(min(accuracies))
    task, model = run(Cuts(lr=lr, steps=steps), retain=(), deletion=deletion)
    fakes.assert_close(fakes.snapshot(model), extrapolated(proxy, coefficients[place]))
    assert task.notes["coefficient"] == pytest.approx(coefficients[place])
    assert place > 0
