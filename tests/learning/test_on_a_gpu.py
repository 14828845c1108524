"""On a GPU: graphs give what plain steps give, leave nothing behind, and the host does not wait inside the loop.

python -m pytest -m gpu tests/learning tests/stages/test_canary.py
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from cu_ray.learning.batches import RowStream
from cu_ray.learning.graphs import repeats
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.learning.layers import initialise
from cu_ray.learning.sgd import Sgd, cross_entropy
from cu_ray.models.resnet9 import ResNet9
from cu_ray.stages.evaluate import predict
from cu_ray.stages.poison import poison, upload
from cu_ray.types import TrainRecipe
from tests.learning.recording import DATASET, FURTHER, METHODS, PlainSgd, trained, unlearned
from tests.protocol.tiny import original_spec

pytestmark = pytest.mark.gpu
TOLERANCE = {
    "fp32": {"rtol": 1e-3, "atol": 1e-4},
    "bf16": {"rtol": 2e-2, "atol": 2e-3},
    "fp16": {"rtol": 2e-2, "atol": 2e-3},
}


class GraphSgd(Sgd):
    """Remembers how many graphs each optimisation had."""

    made: ClassVar[list] = []

    def __init__(self, *given):
        super().__init__(*given)
        self.made.append(self)


@pytest.fixture(autouse=True)
def alike(monkeypatch):
    """Kernels that give the same bits each time."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(GraphSgd, "made", [])


def num_graphs():
    return sum(len(sgd._graphs._recorded) for sgd in GraphSgd.made)


def assert_alike(first, second, precision="fp32"):
    assert first.cost == second.cost
    for name, tensor in first.state.items():
        torch.testing.assert_close(tensor, second.state[name], **TOLERANCE[precision], msg=lambda text, at=name: f"{at}: {text}")


def cuda_training():
    """Images on the GPU, a stream of them and a ResNet-9."""
    device = torch.device("cuda")
    data = upload(poison(DATASET, original_spec(DATASET).setting.manipulation, seed=0), device)
    nothing = torch.zeros(60, dtype=torch.bool, device=device)
    stream = RowStream(data.train, torch.arange(60).numpy(), nothing, 16, torch.Generator(device).manual_seed(0))
    torch.manual_seed(0)
    model = ResNet9(width=8).build((12, 12, 1), 4).to(device, memory_format=torch.channels_last).train()
    return data, stream, model


def sgd_of(model, kind=GraphSgd, **recipe):
    return kind(
        model, TrainRecipe(**{"steps": 40, "batch_size": 16, "lr": 0.05, "precision": "fp32"} | recipe), torch.device("cuda")
    )


# ---------------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("precision", TOLERANCE)
def test_training_is_alike_with_graphs_and_without(precision):
    plain, graphs = (trained(kind, "cuda", width=8, precision=precision) for kind in (PlainSgd, GraphSgd))
    assert num_graphs() > 0
    assert_alike(plain, graphs, precision)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(
    "name", sorted((METHODS | FURTHER).keys() - {"CUTS"})
)  # which steps on by accuracies: rounding may be seen
def test_methods_are_alike_with_graphs_and_without(name, precision):
    method = (METHODS | FURTHER)[name]
    plain, graphs = (unlearned(method, kind, "cuda", width=8, precision=precision) for kind in (PlainSgd, GraphSgd))
    assert num_graphs() > 0
    assert_alike(plain, graphs, precision)


def test_a_gpu_and_a_cpu_step_alike():
    """The fused update against the one that CPUs make, from the same batches."""
    _, stream, model = cuda_training()
    cpu = ResNet9(width=8).build((12, 12, 1), 4).train()
    cpu.load_state_dict(model.state_dict())
    on_gpu, on_cpu = sgd_of(model), Sgd(cpu, TrainRecipe(steps=40, lr=0.05, precision="fp32"), torch.device("cpu"))
    for batch in stream.epoch():
        on_gpu.step(batch, cross_entropy)
        fields = (batch.images, batch.labels, batch.indices, batch.in_deletion)
        on_cpu.step(type(batch)(*(each.cpu() for each in fields)), cross_entropy)
    for name, tensor in cpu.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].cpu(), tensor, rtol=1e-2, atol=1e-3)


@repeats
def loss_that_may_overflow(logits, batch):
    return cross_entropy(logits, batch) * (1 + 1e35 * batch.in_deletion.sum())


def test_in_fp16_a_recorded_step_that_overflows_is_left_out():
    _, stream, model = cuda_training()
    other = ResNet9(width=8).build((12, 12, 1), 4).to("cuda", memory_format=torch.channels_last).train()
    other.load_state_dict(model.state_dict())
    graphs, plain = (sgd_of(each, kind, precision="fp16") for each, kind in ((model, GraphSgd), (other, PlainSgd)))
    scales, changed = [], []
    for number, batch in enumerate(batch for _ in range(4) for batch in stream.epoch() if len(batch) == 16):
        batch = replace(batch, in_deletion=torch.full_like(batch.in_deletion, number in (7, 9)))
        before = [each.clone() for each in model.parameters()]
        for sgd in (graphs, plain):
            sgd.step(batch, loss_that_may_overflow)
        scales.append((graphs._scaler.get_scale(), plain._scaler.get_scale()))
        changed.append(not all(map(torch.equal, before, model.parameters())))
    assert num_graphs() == 1
    assert [one for one, _ in scales] == [other for _, other in scales]
    assert not changed[7] and not changed[9] and changed[8] and changed[11]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], **TOLERANCE["fp16"])


class OneWeight(torch.nn.Module):
    """A model whose every logit is its one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="cuda"))

    def forward(self, images):
        return self.weight.expand(len(images), 1)


def test_in_fp16_a_first_step_that_overflows_leaves_the_velocity_at_zero():
    _, stream, _ = cuda_training()
    batch, model, weights = next(iter(stream.epoch())), OneWeight(), []
    sgd = sgd_of(model, steps=4, lr=0.5, weight_decay=0.0, precision="fp16")
    for gradient in (1e35, 1.0, 1.0):
        sgd.step(batch, lambda logits, batch, gradient=gradient: logits.mean() * gradient)
        weights.append(model.weight.item())
    rates = [0.5 * (1 - step / 5) for step in range(3)]
    assert weights == pytest.approx([0, -rates[1], -rates[1] - 1.9 * rates[2]], rel=1e-5)


# ------------------------------------------------------------------------------------------------------- what it leaves behind


def waits_in_the_host(logits, batch):
    return cross_entropy(logits, batch) * float(logits.detach().isfinite().all())


def waits_unseen(logits, batch):
    torch.cuda.synchronize()
    return cross_entropy(logits, batch)


@pytest.mark.parametrize("loss", [waits_in_the_host, waits_unseen])
def test_a_loss_that_broke_its_promise_is_run_plainly_and_graphs_work_afterwards(loss):
    _, stream, model = cuda_training()
    other = ResNet9(width=8).build((12, 12, 1), 4).to("cuda", memory_format=torch.channels_last).train()
    other.load_state_dict(model.state_dict())
    batches = [batch for _ in range(3) for batch in stream.epoch() if len(batch) == 16]
    broken, plain = sgd_of(model), sgd_of(other, PlainSgd)
    for batch in batches:
        broken.step(batch, repeats(loss))
        plain.step(batch, loss)
    assert num_graphs() == 0
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert torch.rand(3, device="cuda").isfinite().all(), "the generator of the device is as it was"
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    again = sgd_of(model)
    for batch in batches:
        again.step(batch, cross_entropy)
    assert len(again._graphs._recorded) == 1
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_the_memory_of_graphs_is_free_when_a_trial_has_ended():
    def held():
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    unlearned(METHODS["SCRUB"], Sgd, "cuda", width=16)
    before = held()
    for _ in range(3):
        unlearned(METHODS["SCRUB"], Sgd, "cuda", width=16)
    assert held() <= before


# ---------------------------------------------------------------------------------------------- the host does not wait inside


@contextlib.contextmanager
def waiting(mode):
    """What torch does inside where the host waits for the device: "error", "warn" or "default"."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Hurrying:
    """Raises where the host waits inside a step; looking at the loss now and then is not one."""

    def step(self, *given):
        with waiting("error"):
            super().step(*given)

    def _require_finite_loss(self):
        with waiting("default"):
            super()._require_finite_loss()


class HurryingSgd(Hurrying, GraphSgd):
    """With graphs."""


class HurryingPlainSgd(Hurrying, PlainSgd):
    """Without."""


@pytest.mark.parametrize("kind", [HurryingSgd, HurryingPlainSgd])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_of_a_training_waits(kind, precision):
    trained(kind, "cuda", width=8, precision=precision)


@pytest.mark.parametrize("kind", [HurryingSgd, HurryingPlainSgd])
@pytest.mark.parametrize("method", (METHODS | FURTHER).values(), ids=METHODS | FURTHER)
def test_no_step_of_a_method_waits(kind, method):
    unlearned(method, kind, "cuda", width=8, precision="bf16")


def test_no_batch_and_no_importances_wait():
    _, stream, model = cuda_training()
    with waiting("error"):
        assert len(list(stream.epoch())) == 4
        squared_gradient_importance(model, stream, 16)


@pytest.mark.parametrize("stamp_all", [False, True])
def test_a_prediction_waits_once_for_all_batches(stamp_all):
    data, _, model = cuda_training()
    rows = torch.arange(40, device="cuda").repeat(40)  # four batches
    predict(model, data.test, rows, "bf16", stamp_all=stamp_all)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            predict(model, data.test, rows, "bf16", stamp_all=stamp_all)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing CUDA operation" in str(each.message) for each in caught) == 1


def test_new_weights_of_layers_without_parameters_of_their_own_lie_on_the_gpu():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4, affine=False)).cuda()
    initialise([net], 0)
    assert all(tensor.is_cuda for tensor in net.state_dict().values())
