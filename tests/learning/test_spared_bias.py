"""Layers that a chain makes one give the numbers of the layers one by one: on GPUs (here by CPU, in float64) and processors."""

from __future__ import annotations

import copy

import pytest
import torch

from cu_ray.learning.sgd import learning_rate_factor
from cu_ray.models import _blocks
from cu_ray.models._blocks import Chain, MaxPool, Pooled, _with_whole_eights, conv_norm_celu
from cu_ray.models.resnet9 import ResNet9
from cu_ray.models.wide_resnet import WideResNet


def blocks():
    """A plain block and one of ours with the same weights, none of them as they begin."""
    torch.manual_seed(0)
    ours = conv_norm_celu(3, 5, 3).double()
    for tensor in ours.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    plain = torch.nn.Sequential(*(copy.deepcopy(module) for module in ours))
    return plain, ours


def images(seed=1):
    return torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def spared(monkeypatch):
    monkeypatch.setattr(Chain, "spares_bias", staticmethod(lambda inputs: True))


def same(given, expected):
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)


def test_training_steps_give_the_same_outputs_weights_and_running_statistics(spared):
    plain, ours = blocks()
    optimisers = [torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01) for block in (plain, ours)]
    for step in range(5):
        outputs = []
        for block, optimiser in zip((plain, ours), optimisers, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = 0.1 * learning_rate_factor(step, 5)
            optimiser.zero_grad()
            outputs.append(block.train()(images(step)))
            (outputs[-1] ** 2).sum().backward()
            optimiser.step()
        same(outputs[1], outputs[0])
    for name, tensor in plain.state_dict().items():
        same(ours.state_dict()[name], tensor)
    assert not (ours[0].bias.grad).any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "changed",
    [
        {"momentum": None},
        {"running_mean": None, "running_var": None},
        {"running_mean": None, "running_var": None, "track_running_stats": False},
    ],
)
def test_a_batchnorm_that_a_method_set_otherwise_is_run_as_it_is(spared, changed, training):
    plain, ours = blocks()
    for block in (plain, ours):
        for name, value in changed.items():
            setattr(block[1], name, value)
    with torch.no_grad():
        same(ours.train(training)(images()), plain.train(training)(images()))
    for name, tensor in plain.state_dict().items():
        same(ours.state_dict()[name], tensor)


def test_the_gradient_of_the_input_is_the_same(spared):
    gradients = []
    for block in blocks():
        batch = images().requires_grad_()
        (block.train()(batch) ** 2).sum().backward()
        gradients.append(batch.grad)
    same(gradients[1], gradients[0])


def test_evaluation_gives_the_same(spared, monkeypatch):
    plain, ours = blocks()
    with torch.no_grad():
        same(ours.eval()(images()), plain.eval()(images()))
    monkeypatch.setattr(
        ours[0], "_conv_forward", lambda inputs, weight, bias: pytest.fail("with the bias") if bias is not None else None
    )
    with torch.no_grad(), pytest.raises(TypeError):  # it is really left out: BatchNorm gets our None
        ours(images())


def test_where_our_kernels_do_not_take_the_images_evaluation_has_both_layers(spared, monkeypatch):
    monkeypatch.setattr(_blocks, "_kernels_work", lambda device: True)
    plain, ours = blocks()
    with torch.no_grad():
        same(ours.eval()(images()), plain.eval()(images()))


def test_importances_in_eval_mode_have_the_gradient_of_the_bias(spared):
    gradients = []
    for block in blocks():
        loss = (block.eval()(images()) ** 2).sum()
        gradients.append(torch.autograd.grad(loss, list(block.parameters())))
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        same(given, expected)
    assert gradients[0][1].any()


def test_a_frozen_block_passes_gradients_on(spared):
    gradients = []
    for block in blocks():
        batch = images().requires_grad_()
        (block.eval().requires_grad_(False)(batch) ** 2).sum().backward()
        gradients.append(batch.grad)
    same(gradients[1], gradients[0])


def test_who_watches_a_layer_sees_it_as_it_is(spared):
    plain, ours = blocks()
    seen = []
    for block in (plain, ours):
        block[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        block.train()(images())
    same(seen[1], seen[0])


@pytest.mark.parametrize("model", [ResNet9(width=2), WideResNet(depth=10, width=1)])
def test_whole_models_give_the_same(spared, model, monkeypatch):
    states = []
    for forward in (Chain.forward, torch.nn.Sequential.forward):
        monkeypatch.setattr(Chain, "forward", forward)
        torch.manual_seed(0)
        network = model.build((12, 12, 3), 4).double().train()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        for step in range(3):
            optimiser.zero_grad()
            batch = torch.randn(6, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            torch.nn.functional.cross_entropy(network(batch), torch.arange(6) % 4).backward()
            optimiser.step()
        with torch.inference_mode():
            states.append({**network.state_dict(), "logits": network.eval()(batch)})
    for name, tensor in states[1].items():
        torch.testing.assert_close(states[0][name], tensor, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------ on processors

CELU_OF_TORCH = {"rtol": 1e-6, "atol": 1e-6}  # its gradient has alpha rounded to 32 bits, in float64 too


def saved_by(block, batch):
    """What a training step keeps for the way back: sizes in values."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.setdefault(each.data_ptr(), each), lambda each: each):
        block.train()(batch)
    return [each.numel() for each in kept.values()]


def test_a_training_step_on_a_processor_is_that_of_the_layers_and_keeps_less():
    plain, ours = blocks()
    gradients = []
    for block in (plain, ours):
        batch = images().requires_grad_()
        outputs = block.train()(batch)
        gradients.append([outputs.detach(), *torch.autograd.grad((outputs**2).sum(), (batch, *block.parameters()))])
    assert torch.equal(gradients[1][0], gradients[0][0])
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(given, expected, **CELU_OF_TORCH)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    size = outputs.numel()
    followed = [torch.nn.Sequential(block, torch.nn.Conv2d(5, 2, 1).double()) for block in (plain, ours)]
    assert [sum(each == size for each in saved_by(block, images())) for block in followed] == [3, 2]


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_on_a_processor_is_one_convolution(without, monkeypatch):
    plain, ours = blocks()
    with without():
        expected, given = plain.eval()(images()), images()
        monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda *given, **more: pytest.fail("it is folded"))
        same(ours.eval()(given), expected)
    assert torch.equal(given, images())


def test_importances_on_a_processor_have_the_small_gradients_too():
    """Those of where CELU is all but flat, of which there are no others for some weights."""
    gradients = []
    for block in blocks():
        block.eval()[1].bias.data.fill_(-3)  # so that all is far below 0
        loss = (block.float()(images().float()) * 1e6).sum()
        gradients.append(torch.autograd.grad(loss, list(block.parameters())))
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        assert torch.equal(given, expected)
        assert expected.any()


def test_statistics_gathered_without_gradients_are_those_of_the_layers():
    plain, ours = blocks()
    with torch.no_grad():
        for seed in range(3):
            same(ours.train()(images(seed)), plain.train()(images(seed)))
    for name, tensor in plain.state_dict().items():
        same(ours.state_dict()[name], tensor)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_who_watches_a_layer_on_a_processor_sees_it_as_it_is(layer, training):
    seen = []
    for block in blocks():
        block[layer].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
        with torch.set_grad_enabled(training):
            block.train(training)(images())
    for given, expected in zip(seen[1], seen[0], strict=True):
        same(given, expected)


def doubled(block):
    """A convolution whose own forward function gives twice as much."""
    given = block[0].forward
    block[0].forward = lambda inputs: 2 * given(inputs)
    return images()


def in_halves(block):
    """The convolution alone in halves, as a method that saves memory has it."""
    block[0].bfloat16()
    block[1].float()
    return images().bfloat16()


def without_shift(block):
    """BatchNorm with weights and no bias, as torch 2.13 can build it."""
    block[1].register_parameter("bias", None)
    return images()


@pytest.mark.parametrize("change", [doubled, in_halves, without_shift])
@pytest.mark.parametrize("training", [True, False])
def test_layers_that_are_not_as_built_run_as_they_are_on_a_processor(change, training):
    outputs = []
    for block in blocks():
        batch = change(block)
        with torch.no_grad():
            outputs.append(block.train(training)(batch))
    same(outputs[1], outputs[0])


def test_who_watches_all_modules_sees_each_layer():
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append((module, output)))
    try:
        for block in blocks():
            with torch.no_grad():
                block.eval()(images())
    finally:
        hook.remove()
    assert [type(module) for module, _ in seen[4:7]] == [type(module) for module, _ in seen[:3]]
    for (_, given), (_, expected) in zip(seen[4:7], seen[:3], strict=True):
        same(given, expected)


def test_a_hook_may_write_into_what_a_block_gives():
    gradients = []
    for block in blocks():
        block.train().register_forward_hook(lambda module, inputs, output: output.mul_(2))
        gradients.append(torch.autograd.grad((block(images()) ** 2).sum(), list(block.parameters())))
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(given, expected, **CELU_OF_TORCH)


def test_a_training_step_in_halves_has_the_gradients_of_the_layers():
    """Of what CELU gave in halves, gradients would be off by a quarter of a percent, all to the same side."""
    gradients = []
    for block in blocks():
        block.float().train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = block(images().float()).float().square().sum()
        gradients.append(torch.autograd.grad(loss, list(block.parameters())))
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        assert torch.equal(given, expected)


def test_evaluation_in_halves_is_as_near_to_the_exact_one_as_that_of_the_layers(monkeypatch):
    """BatchNorm's weights go into the convolution's before these are rounded."""
    off = {Chain.forward: 0.0, torch.nn.Sequential.forward: 0.0}
    batch = torch.cat([images(seed) for seed in range(9, 20)]).repeat(1, 1, 2, 2)
    for seed in range(4):
        torch.manual_seed(seed)
        network = ResNet9(width=4).build((12, 12, 3), 4)
        with torch.no_grad():
            for number in range(5):
                network.train()(images(number).float().repeat(8, 1, 2, 2))
            exact = copy.deepcopy(network).double().eval()(batch)
        for forward in off:
            for part in (Chain, Pooled):
                monkeypatch.setattr(part, "forward", part.forward if forward is Chain.forward else forward)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                found = network.eval()(batch.float())
            off[forward] += float((found.double() - exact).square().mean().sqrt() / exact.std()) / 4
        monkeypatch.undo()
    ours, layers = off.values()
    assert ours < 1.1 * layers < 0.05


# ------------------------------------------------------------------------------------------------- pooling, on processors


def pooled(block):
    """A block with a pooling after it: ours, or of plain layers."""
    return Pooled(block, MaxPool(2)) if isinstance(block, Chain) else torch.nn.Sequential(block, torch.nn.MaxPool2d(2))


def test_pooling_before_celu_gives_the_same_training_step_from_a_fourth_of_the_values():
    gradients = []
    for block in map(pooled, blocks()):
        batch = images().requires_grad_()
        outputs = block.train()(batch)
        gradients.append([outputs.detach(), *torch.autograd.grad((outputs**2).sum(), (batch, *block.parameters()))])
        running = [each.clone() for each in block.buffers()]
        gradients[-1] += running
    assert torch.equal(gradients[1][0], gradients[0][0])
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(given, expected, **CELU_OF_TORCH)
    size = outputs.numel()
    plain, ours = (sorted(saved_by(pooled(block), images()), reverse=True) for block in blocks())
    assert plain.count(4 * size) == 3  # what BatchNorm, CELU and the pooling read
    assert ours.count(4 * size) == 2
    assert ours.count(size) == plain.count(size) + 1  # what CELU gave


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_pooling_before_celu_gives_the_same_evaluation(without, monkeypatch):
    seen = []
    celu = torch.nn.functional.celu
    monkeypatch.setattr(
        torch.nn.functional, "celu", lambda x, *given, **more: (seen.append(x.numel()), celu(x, *given, **more))[1]
    )
    with without():
        expected, found = (pooled(block).eval()(images()) for block in blocks())
    same(found, expected)
    assert seen == [4 * found.numel(), found.numel()]


def test_in_halves_pooling_before_celu_is_the_same_to_the_bit():
    gradients = []
    for block in map(pooled, blocks()):
        block.float().train()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = block(images().float())
        gradients.append([outputs, *torch.autograd.grad(outputs.float().square().sum(), list(block.parameters()))])
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        assert torch.equal(given, expected)


def test_importances_see_the_first_of_the_values_that_celu_rounds_to_one():
    """As the layers have it: next to nothing, and still the only gradient that some weights have."""
    gradients = []
    for block in map(pooled, blocks()):
        block.eval()[0][1].bias.data.fill_(-3)
        loss = (block.float()(images().float()) * 1e6).sum()
        gradients.append(torch.autograd.grad(loss, list(block.parameters())))
    for given, expected in zip(gradients[1], gradients[0], strict=True):
        assert torch.equal(given, expected)
        assert expected.any()


@pytest.mark.parametrize("place", ["the chain", "its celu", "the pooling", "all"])
@pytest.mark.parametrize("training", [True, False])
def test_who_watches_a_chain_or_its_pooling_sees_what_the_layers_give(place, training):
    seen = []
    for block in map(pooled, blocks()):
        watched = {"the chain": block[0], "its celu": block[0][2], "the pooling": block[1], "all": block}[place]
        watched.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output.clone(), output.mul_(2))[:2]))
        with torch.set_grad_enabled(training):
            block.train(training)(images())
    for given, expected in zip(seen[1], seen[0], strict=True):
        same(given, expected)


def without_celu(block):
    """The same without the chain's end."""
    del block[0][2]


def with_another(block):
    """A pooling that is no maximum."""
    block[1] = torch.nn.AvgPool2d(2)


def with_more(block):
    """A layer after the pooling."""
    block.append(torch.nn.CELU())


@pytest.mark.parametrize("change", [without_celu, with_another, with_more])
@pytest.mark.parametrize("training", [True, False])
def test_chains_with_pooling_that_are_not_as_built_run_as_they_are(change, training):
    outputs = []
    for block in map(pooled, blocks()):
        change(block)
        with torch.no_grad():
            outputs.append(block.train(training)(images()))
    same(outputs[1], outputs[0])


def test_a_part_of_a_chain_with_pooling_is_had_by_slicing():
    plain, ours = (pooled(block).train() for block in blocks())
    same(ours[:1](images()), plain[:1](images()))


# ----------------------------------------------------------------------------------------------------- channels of nothing


@pytest.mark.parametrize("groups", [1, 3])
def test_channels_of_nothing_change_nothing(groups):
    weight = torch.randn(6, 3 // groups, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide, wider = _with_whole_eights(images(), weight)
    assert wide.shape[1] == wider.shape[1] * groups == (8 if groups == 1 else 3)
    expected = torch.nn.functional.conv2d(images(), weight, groups=groups)
    torch.testing.assert_close(torch.nn.functional.conv2d(wide, wider, groups=groups), expected)


def test_what_has_whole_eights_is_left_alone():
    wide, weight = torch.zeros(2, 16, 4, 4), torch.zeros(4, 16, 3, 3)
    assert _with_whole_eights(wide, weight)[0] is wide
    assert _with_whole_eights(wide, weight)[1] is weight


def test_what_transforms_functions_knows_the_plain_layers(spared):
    """As a method's per-sample gradients do: kernels know nothing of them."""
    model = ResNet9(width=4).build((12, 12, 3), 4).eval()
    pixels = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    model.requires_grad_(False)
    each = torch.func.vmap(lambda image: model(image[None])[0])(pixels)
    torch.testing.assert_close(each, model(pixels), rtol=1e-4, atol=1e-5)
