"""What learning costs, counted exactly: images, steps, convolutions, looks at the device, uploads. No timing, on any machine."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cu_ray.detections.uniform import Uniform
from cu_ray.learning.batches import RowStream
from cu_ray.learning.importance import squared_gradient_importance
from cu_ray.learning.sgd import Sgd
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.methods.ssd import Ssd
from cu_ray.stages import evaluate as evaluation
from cu_ray.stages import pipeline
from cu_ray.stages import unlearn as unlearning
from cu_ray.stages.evaluate import evaluate, images_evaluated, training_sets
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.poison import detect
from cu_ray.stages.unlearn import _changed_share
from cu_ray.types import Cost, Sizes
from tests.learning.recording import DATASET, METHODS, trained, unlearned
from tests.protocol.tiny import RECIPE, MemoryStore, trial_spec

STEPS, CONVOLUTIONS, SIZES = 24, 8, Sizes(deletion=9, retain=51, batch_size=16, train_steps=6)
BACKWARD_WITH_RESPECT_TO_INPUTS = "convolution_backward to its inputs"
LOOK = "_local_scalar_dense"  # .item(), float(), bool(): on a GPU the host waits


class Operations(TorchDispatchMode):
    """Counts the operations by name, and indexing by a mask, for which a GPU's host waits too, as `LOOK`."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if torch.is_inference_mode_enabled():  # there composite operations come whole
            with self:
                parts = operation.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        name = operation.overloadpacket.__name__
        self.counts[name] += 1
        if name == "convolution_backward":
            self.counts[BACKWARD_WITH_RESPECT_TO_INPUTS] += args[-1][0]
        if name in ("index", "index_put_") and any(each is not None and each.dtype == torch.bool for each in args[1]):
            self.counts[LOOK] += 1
        return operation(*args, **(kwargs or {}))


class CountedSgd(Sgd):
    """Counts what its epochs do: batches, steps and looks at the loss."""

    operations = Operations()
    steps = epochs = 0

    def __init__(self, *given):
        super().__init__(*given)
        self._optimiser.step = self._counted(self._optimiser.step)

    def epoch(self, batches, loss):
        CountedSgd.epochs += 1
        with self.operations:
            super().epoch(batches, loss)

    @staticmethod
    def _counted(step):
        def counted():
            CountedSgd.steps += 1
            step()

        return counted


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(CountedSgd, "operations", Operations())
    monkeypatch.setattr(CountedSgd, "steps", 0)
    monkeypatch.setattr(CountedSgd, "epochs", 0)


def counted(*names):
    return tuple(CountedSgd.operations.counts[name] for name in names)


CONVOLVED = ("convolution", "convolution_backward", BACKWARD_WITH_RESPECT_TO_INPUTS)


def test_a_training_step_goes_once_forward_and_once_backward_and_nothing_is_looked_at_but_the_loss_of_an_epoch():
    assert trained(CountedSgd, steps=STEPS).cost == Cost(360, 360)  # six passes over 60 images in 16, 16, 16 and 12
    assert (CountedSgd.steps, CountedSgd.epochs) == (STEPS, 6)
    assert counted(*CONVOLVED) == (CONVOLUTIONS * STEPS, CONVOLUTIONS * STEPS, (CONVOLUTIONS - 1) * STEPS)
    assert counted(LOOK) == (CountedSgd.epochs,)


@pytest.mark.parametrize(
    ("name", "cost", "models", "trained_convolutions", "to_inputs", "epochs"),
    [
        ("SCRUB", Cost(2 * 305, 305), 2, 8, 7, 8),  # twice 9 and 51, then 51, 51, 51 and 32
        ("bad teaching", Cost(3 * 360, 360), 3, 8, 7, 6),  # two teachers, and no gradients of theirs
        ("CF-k", Cost(306, 306), 1, 1, 0, 6),  # the frozen blocks are never back-propagated
        ("EU-k", Cost(306, 306), 1, 1, 0, 6),
        ("retraining", Cost(306, 306), 1, 8, 7, 6),
    ],
)
def test_a_method_back_propagates_what_it_trains_and_nothing_else(name, cost, models, trained_convolutions, to_inputs, epochs):
    assert unlearned(METHODS[name], CountedSgd).cost == cost == METHODS[name].cost(SIZES)
    assert (CountedSgd.steps, CountedSgd.epochs) == (STEPS, epochs)
    expected = (models * CONVOLUTIONS * STEPS, trained_convolutions * STEPS, to_inputs * STEPS)
    assert counted(*CONVOLVED) == expected
    assert counted(LOOK) == (epochs,)


def test_the_clock_for_which_the_host_waits_is_read_at_both_ends_of_a_method_and_not_in_between(monkeypatch):
    reads, now = [], unlearning.now
    monkeypatch.setattr(unlearning, "now", lambda device: reads.append(device) or now(device))
    unlearned(METHODS["CF-k"], CountedSgd)
    assert CountedSgd.epochs == 6
    assert len(reads) == 2


@pytest.mark.parametrize("name", METHODS)
def test_an_update_is_a_few_operations_whatever_the_number_of_parameters(name):
    unlearned(METHODS[name], CountedSgd)
    assert counted("_foreach_mul_", "_foreach_add_") == (STEPS, 2 * STEPS)
    assert counted("add_")[0] < 24 * STEPS, "BatchNorm counts its batches, and no parameter is updated by itself"


def test_importances_are_one_pass_forward_and_backward_in_few_operations_and_no_look():
    stream_of = trial_spec(DATASET, Ssd(), recipe=replace(RECIPE, batch_size=16))
    bench = Workbench(DATASET, MemoryStore())
    original, _ = bench.original(stream_of.original)
    _, data = bench.poisoned(stream_of.original.setting)
    rows = torch.arange(51).numpy()
    stream = RowStream(data.train, rows, torch.zeros(60, dtype=torch.bool), 16, torch.Generator())
    with Operations() as operations:
        squared_gradient_importance(original, stream, 16)
    batches, counts = 4, operations.counts
    assert [counts[name] for name in CONVOLVED] == [CONVOLUTIONS * batches, CONVOLUTIONS * batches, 7 * batches]
    assert (counts["_foreach_addcmul_"], counts[LOOK]) == (batches, 0)


def test_an_evaluation_takes_each_image_once_forward_in_whole_batches_and_looks_at_nothing(monkeypatch):
    monkeypatch.setitem(evaluation.BATCH_SIZES, "cpu", 7)
    spec = trial_spec(DATASET, METHODS["SCRUB"], deletion_size=9)
    bench, batches = Workbench(DATASET, MemoryStore()), []
    model, _ = bench.original(spec.original)
    poisoned, data = bench.poisoned(spec.original.setting)
    split = detect(poisoned, Uniform(), spec.deletion_size, None)
    model.register_forward_pre_hook(lambda model, inputs: batches.append(len(inputs[0])))
    with Operations() as operations:
        evaluate(model, poisoned, data, split, "fp32")
    sets = [len(rows) for rows in training_sets(poisoned, split).values()] + 2 * [len(DATASET.test)]
    assert sum(batches) == sum(sets) == images_evaluated(poisoned, split)
    assert len(batches) == sum(-(-size // 7) for size in sets)
    assert [operations.counts[name] for name in CONVOLVED] == [CONVOLUTIONS * len(batches), 0, 0]
    assert operations.counts[LOOK] == 0


def test_what_a_method_changed_is_counted_in_one_look():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[1, 1:] += 1
        other[1].bias.fill_(torch.nan)
    with Operations() as operations:
        assert _changed_share(model, other) == 4 / 26
    assert operations.counts[LOOK] == 1


def test_many_trials_on_one_worker_upload_the_data_once_and_compute_importances_once(monkeypatch):
    uploads, upload = [], pipeline.upload
    monkeypatch.setattr(pipeline, "upload", lambda *given: uploads.append(given) or upload(*given))
    bench = Workbench(DATASET, MemoryStore())
    points = [Ssd(selection_share=share) for share in (0.01, 0.02, 0.05, 0.1)]
    records = [bench.run_trial(trial_spec(DATASET, method)) for method in (*points, METHODS["SCRUB"], METHODS["CF-k"])]
    assert all(record.ok for record in records)
    assert len(uploads) == 1
    spent = [(each.facts["images_forward_spent"], each.facts["images_backward_spent"]) for each in records[:4]]
    assert spent == [(60, 60), (0, 0), (0, 0), (0, 0)]


def test_pixels_are_uploaded_once_for_all_manipulations_and_seeds_and_anew_after_damage():
    bench = Workbench(DATASET, MemoryStore())
    settings = [replace(trial_spec(DATASET, Ssd()).original.setting, seed=seed) for seed in (0, 1)]
    settings += [replace(each, manipulation=Backdoor(size=5)) for each in settings]
    there = [bench.poisoned(each)[1] for each in settings]
    assert len({id(each) for each in there}) == 4
    for part in ("train", "test"):
        first, *others = (getattr(each, part) for each in there)
        assert all(each.pixels_NHWC is first.pixels_NHWC for each in others)
        assert len({id(each.labels) for each in (first, *others)}) == 4
    bench.forget()
    assert bench.poisoned(settings[0])[1].train.pixels_NHWC is not there[0].train.pixels_NHWC


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="another torch may do the same in other operations")
def test_a_pass_of_four_steps_is_so_many_operations():
    def operations(steps):
        CountedSgd.operations.counts.clear()
        trained(CountedSgd, steps=steps)
        return sum(number for name, number in CountedSgd.operations.counts.items() if name != BACKWARD_WITH_RESPECT_TO_INPUTS)

    first, second, third = (operations(4 * passes) for passes in (1, 2, 3))
    assert second - first == third - second == 721
