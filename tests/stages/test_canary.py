"""A canary takes the memory of the whole training or trial, on few images, whatever the method does."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from cu_ray import plugins
from cu_ray.learning.sgd import cross_entropy
from cu_ray.methods import Method
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.scrub import Scrub
from cu_ray.methods.ssd import Ssd
from cu_ray.stages import canary, evaluate, short
from cu_ray.stages.canary import CudaProbe, Measure, measure
from cu_ray.stages.pipeline import Workbench
from cu_ray.stages.short import MOST_CALLS, MOST_STEPS
from tests.protocol.tiny import RECIPE, MemoryStore, original_spec, tiny_dataset, trial_spec
from tests.stages.memory import TensorMemory

DATASET = tiny_dataset()
MEBIBYTE = 1 << 20


def measured(spec):
    """The measure of a canary by the tensors it makes."""
    with TensorMemory() as memory:
        return measure(spec, DATASET, memory)


def of(method, **settings):
    """That of a trial of this method."""
    return measured(trial_spec(DATASET, method, **settings))


def whole(spec):
    """The peak of the whole training or trial, as a worker runs it."""
    store = MemoryStore()
    if not hasattr(spec, "setting"):
        Workbench(DATASET, store).run_original(spec.original)
    with TensorMemory() as memory:
        bench = Workbench(DATASET, store)
        record = bench.run_original(spec) if hasattr(spec, "setting") else bench.run_trial(spec)
        assert record.ok, record.error
    return memory.peak_bytes()


def hungry(tensors):
    """Memory that no other part of a canary takes."""
    return torch.zeros(tensors * MEBIBYTE // 4)


# ------------------------------------------------------------------------------------------------------- the whole's memory


@pytest.mark.parametrize("keep", ["last", "best_on_test"])
@pytest.mark.parametrize("name", plugins.names("methods"))
def test_a_canary_takes_the_memory_of_the_whole_trial(name, keep):
    cls = plugins.find("methods", name)
    settings = {"steps": 100} if "steps" in plugins.facts(cls) else {}
    spec = trial_spec(DATASET, cls(**settings), keep=keep)
    result = measured(spec)
    assert result.stopped is None
    # REM sends the deletion set's samples of a batch through twice: up to 9 of these 16 images, as the draw falls
    assert result.peak_bytes == pytest.approx(whole(spec), rel=0.15 if name in ("rem", "rem_etd") else 0.005)


@pytest.mark.parametrize("keep", ["last", "best_on_test"])
def test_that_of_an_original_takes_the_memory_of_its_training_beside_an_original_that_is_kept(keep):
    """Training in batches as large as those of the evaluation after it, or that takes more: the store is memory here, too."""
    spec = original_spec(DATASET, recipe=replace(RECIPE, keep=keep, batch_size=60))
    result = measured(spec)
    assert result.stopped is None
    assert result.peak_bytes == whole(spec) + result.original_bytes


def test_what_shapes_the_computation_shapes_the_canary():
    assert of(Ssd(importance_batch_size=60)).peak_bytes > 1.5 * of(Ssd(importance_batch_size=16)).peak_bytes
    assert of(Scrub()).peak_bytes > 1.1 * of(CatastrophicForgetting()).peak_bytes
    assert of(CatastrophicForgetting()).peak_bytes > 1.1 * of(CatastrophicForgetting(k=1)).peak_bytes
    small, large = (of(Scrub(), recipe=replace(RECIPE, batch_size=size)).peak_bytes for size in (4, 32))
    assert large > 2 * small
    halved = of(Scrub(), recipe=replace(RECIPE, batch_size=32, precision="bf16")).peak_bytes
    assert halved < large


def test_what_a_worker_keeps_is_told_apart():
    result = of(Ssd())
    parameters = sum(
        tensor.numel() for tensor in Workbench(DATASET, MemoryStore()).original(original_spec(DATASET))[0].parameters()
    )
    assert result.memo_bytes == 2 * 4 * parameters
    assert result.original_bytes > 4 * parameters
    assert result.data_bytes == 100 * (12 * 12 + 8)
    assert of(Scrub()).memo_bytes == 0


# ----------------------------------------------------------------------------------------------------- methods of one's own


@dataclass(frozen=True)
class Own(Method):
    """A method that tells what it sees."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "one's own"
    seen: ClassVar[list[Any]] = []


@pytest.fixture(autouse=True)
def nothing_seen():
    Own.seen.clear()


@dataclass(frozen=True)
class LateByStep(Own):
    """Takes much memory in its last tenth only."""

    def unlearn(self, task):
        sgd = task.sgd(task.original.train(), steps=1000, lr=None)
        while not sgd.done:
            sgd.epoch(task.retain, cross_entropy)
            if sgd.num_steps > 900:
                hungry(64)
        return task.original


@dataclass(frozen=True)
class LateBySingleStep(Own):
    """The same, making its steps itself."""

    def unlearn(self, task):
        sgd = task.sgd(task.original.train(), steps=1000, lr=None)
        while not sgd.done:
            for batch in task.retain.epoch():
                sgd.step(batch, cross_entropy)
                if 900 < sgd.num_steps <= 1000:
                    hungry(64)
        return task.original


@dataclass(frozen=True)
class LateAfterwards(Own):
    """Takes much memory after fifty epochs of its own."""

    def unlearn(self, task):
        for _ in range(50):
            for batch in task.retain.epoch():
                task.original(batch.images)
        hungry(64)
        return task.original


@pytest.mark.parametrize("method", [LateByStep(), LateBySingleStep(), LateAfterwards()])
def test_a_late_phase_is_reached(method):
    result = of(method)
    assert result.stopped is None
    assert 64 * MEBIBYTE < result.peak_bytes < 65 * MEBIBYTE


@dataclass(frozen=True)
class ForEver(Own):
    """Repeats an epoch until an accuracy that never comes; catches what it can."""

    def unlearn(self, task):
        while True:
            try:
                for batch in task.retain.epoch():
                    Own.seen.append(len(batch))
            except Exception:
                pass


@dataclass(frozen=True)
class ForEverOnOneBatch(Own):
    """The same on a batch that it keeps, with copies of the original."""

    def unlearn(self, task):
        import copy

        (batch, *_), model = list(task.retain.epoch()), copy.deepcopy(task.original)
        while True:
            Own.seen.append(len(batch))
            model(batch.images)


@dataclass(frozen=True)
class Idle(Own):
    """Does nothing with the deletion set that it asks for."""

    def unlearn(self, task):
        return task.original


@pytest.mark.parametrize("method", [ForEver(), ForEverOnOneBatch()])
def test_a_method_that_never_ends_is_ended_and_the_evaluation_still_measured(method):
    result = of(method, recipe=replace(RECIPE, batch_size=2))
    assert "more than 500 batches" in result.stopped
    assert len(Own.seen) <= MOST_CALLS
    assert result.seconds_per_pass is None
    assert result.peak_bytes >= of(Idle()).peak_bytes - result.original_bytes


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_the_number_of_images_depends_on_no_number_of_steps(name, monkeypatch):
    watches = []
    monkeypatch.setattr(canary, "Watch", lambda *given: watches.append(short.Watch(*given)) or watches[-1])
    cls = plugins.find("methods", name)
    for steps in (2400, 24_000_000):
        settings = {"steps": steps} if "steps" in plugins.facts(cls) else {}
        assert of(cls(**settings), recipe=replace(RECIPE, steps=steps)).stopped is None
    few, many = watches[:2], watches[2:]
    assert len(few) == len(many) == 2
    if not cls.cost_is_bound:  # a search may end early: that depends on the untrained weights
        assert [watch.passes for watch in few] == [watch.passes for watch in many]
    assert all(watch.passes <= 5 * (MOST_STEPS + 6) * RECIPE.batch_size + 4 * 100 for watch in watches)


@dataclass(frozen=True)
class TellsSizes(Own):
    """Notes what the streams give."""

    def unlearn(self, task):
        for stream in (task.retain, task.deletion, task.everything):
            Own.seen.append((len(stream), [len(batch) for batch in stream.epoch()], [len(batch) for batch in stream.epoch(7)]))
        Own.seen.append((task.train, task.num_classes))
        return task.original


def test_batches_have_their_sizes_and_streams_their_lengths():
    of(TellsSizes())
    assert Own.seen[:3] == [
        (51, [16, 16, 3], [7, 7, 2]),
        (9, [9], [7, 2]),
        (60, [16, 16, 12], [7, 7, 4]),
    ]
    assert Own.seen[3] == (RECIPE, 4)


@dataclass(frozen=True)
class Diverges(Own):
    """Leaves the finite numbers at its first step."""

    def unlearn(self, task):
        sgd = task.sgd(task.original.train(), steps=200, lr=1e30)
        while not sgd.done:
            sgd.epoch(task.retain, cross_entropy)
        Own.seen.append("done")
        return task.original


def test_it_evaluates_what_a_trial_does_in_its_order_but_for_batches_in_the_middle(monkeypatch):
    spec, sizes, classes = trial_spec(DATASET, CatastrophicForgetting()), [], evaluate._classes
    monkeypatch.setattr(evaluate, "_classes", lambda model, images: (sizes.append(len(images)), classes(model, images))[1])
    monkeypatch.setitem(evaluate.BATCH_SIZES, "cpu", 12)
    bench = Workbench(DATASET, MemoryStore())
    bench.run_original(spec.original)
    sizes.clear()
    assert bench.run_trial(spec).ok
    # 40 test images, these with the trigger; deletion set, not found, retain set; the deletion set by the original
    assert sizes == [*(12, 12, 12, 4), *(12, 12, 12, 4), 9, 6, *(12, 12, 12, 12, 3), 9]
    sizes.clear()
    measured(spec)
    once = [*(12, 12, 4), *(12, 12, 4), 9, 6, *(12, 12, 3)]  # and again, for the time that it takes
    assert sizes == [*once, *once, 9]


def test_untrained_weights_that_diverge_are_no_fault():
    assert of(Diverges()).stopped is None
    assert Own.seen == ["done", "done"]


@dataclass(frozen=True)
class Raises(Own):
    """Fails before it has taken much."""

    def unlearn(self, task):
        raise Own.seen[0]


def test_a_method_that_fails_is_measured_until_there_and_its_evaluation_too():
    Own.seen.append(RuntimeError("no luck"))
    result = of(Raises())
    assert result.stopped == "RuntimeError: no luck"
    assert result.seconds_per_pass is None
    assert result.peak_bytes > 100_000


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["allocator", "cuBLAS"],
)
def test_one_that_runs_out_of_memory_needs_more_than_there_is(problem):
    Own.seen.append(problem)
    result = of(Raises())
    assert str(problem) in result.stopped
    assert result.peak_bytes >= result.device_bytes == TensorMemory.total_bytes


def test_one_that_loses_the_gpu_counts_for_nothing(monkeypatch):
    monkeypatch.setattr(TensorMemory, "lost", lambda self: True)
    monkeypatch.setattr(TensorMemory, "peak_bytes", lambda self: pytest.fail("there is nothing to ask"))
    Own.seen.append(RuntimeError("CUDA error: device-side assert triggered"))
    result = of(Raises())
    assert "device-side assert" in result.stopped
    assert result.peak_bytes == 0


def test_an_interruption_is_not_swallowed():
    Own.seen.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        of(Raises())


# -------------------------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Clocked(Own):
    """Moves a clock: new weights, the first images and then each image take their time."""

    def unlearn(self, task):
        clock = Own.seen[0]
        clock.time += 1000
        for number, batch in enumerate(task.retain.epoch()):
            task.original.train()(batch.images).sum().backward()
            clock.time += 3 * 5.0 * len(batch) + (0 if clock.warm else 777)
            clock.warm = clock.warm or number == 2
        return task.original


def test_seconds_are_those_of_a_second_time_and_from_its_first_batch_on(monkeypatch):
    clock = SimpleNamespace(time=0.0, warm=False)
    Own.seen.append(clock)
    monkeypatch.setattr(short, "moment", lambda device: clock.time)
    assert of(Clocked()).seconds_per_pass == 5.0


def test_there_are_no_seconds_where_no_image_was_learned_from():
    assert of(NoUnlearning()).seconds_per_pass is None
    assert of(CatastrophicForgetting()).seconds_per_pass > 0
    assert measured(original_spec(DATASET)).seconds_per_pass > 0


def test_an_evaluation_takes_what_its_second_time_took_for_each_image(monkeypatch):
    clock, predicted = SimpleNamespace(time=0.0, warm=False), canary.predict_some

    def slowly(*given, **also):
        number = predicted(*given, **also)
        clock.time += 0.5 * number + (0 if clock.warm else 777)
        clock.warm = True
        return number

    monkeypatch.setattr(canary, "predict_some", slowly)
    monkeypatch.setattr(canary, "now", lambda device: clock.time)
    monkeypatch.setattr(short, "moment", lambda device: 0.0)
    spec = trial_spec(DATASET, CatastrophicForgetting())
    bench = Workbench(DATASET, MemoryStore())
    bench.run_original(spec.original)
    assert measured(spec).besides_seconds == 0.5 * bench.run_trial(spec).facts["images_evaluated"]


def test_where_a_step_takes_long_its_pace_is_known_after_a_few(monkeypatch):
    """Of fifteen passes of three batches, a second for each image, as many are made as fit."""
    clock = SimpleNamespace(time=0.0)
    monkeypatch.setattr(short, "moment", lambda device: clock.time)
    monkeypatch.setattr(short, "time", SimpleNamespace(perf_counter=lambda: clock.time))
    taken = []

    @dataclass(frozen=True)
    class Slow(Own):
        def unlearn(self, task):
            taken.append(0)
            for _ in range(15):
                for batch in task.retain.epoch():
                    task.original.train()(batch.images).sum().backward()
                    clock.time += 3.0 * len(batch)
                    taken[-1] += 1
            return task.original

    for seconds, batches in ((math.inf, 45), (240.0, 4), (0.0, 2)):
        taken.clear()
        result = canary.measure(trial_spec(DATASET, Slow()), DATASET, TensorMemory(), seconds)
        assert (result.seconds_per_pass, result.stopped) == (1.0, None)
        assert result.besides_seconds is not None
        assert taken == [batches, batches]


def watched(monkeypatch, *batches):
    """A watch after batches of so many passes and seconds; of some it is told that they are no usual ones."""
    clock = SimpleNamespace(time=0.0)
    monkeypatch.setattr(short, "moment", lambda device: clock.time)
    watch = short.Watch(torch.device("cpu"))
    for passes, seconds, *once in batches:
        watch.batch()
        watch.passes += passes
        clock.time += seconds
        if once:
            watch.once()
    return watch


def test_what_takes_very_much_longer_with_one_batch_than_with_most_is_told_apart_from_the_pace(monkeypatch):
    """Something is computed from a whole set at the end of a phase."""
    usual = [(100, 50.0)] * 9
    assert watched(monkeypatch, *usual, (100, 1050.0)).pace() == pytest.approx((0.5, 10 * 50 + 1000 - 0.5 * 1000))
    assert watched(monkeypatch, *usual, (100, 150.0)).pace() == pytest.approx((0.6, 0)), "a slower phase is part of it"
    assert watched(monkeypatch, *usual, (0, 300.0)).pace() == pytest.approx((0.5, 300)), "no image went through a model"
    draws = [(0, 10.0), (100, 40.0)] * 9  # of two batches one goes through the model, in each step
    assert watched(monkeypatch, *draws).pace() == pytest.approx((0.5, 0))


def test_steps_before_a_recording_and_the_recording_itself_are_no_part_of_the_pace(monkeypatch):
    """Of 24 short steps they are a third, of thousands of whole ones next to nothing."""
    batches = [*[(100, 160.0, True)] * 3, (100, 900.0, True), *[(100, 50.0)] * 12]
    assert watched(monkeypatch, *batches).pace() == pytest.approx((0.5, 3 * 110 + 850))
    assert watched(monkeypatch, *batches[:2]).pace() == pytest.approx((1.6, 0)), "where there is nothing else"


def test_there_is_no_pace_without_passes_in_batches(monkeypatch):
    assert watched(monkeypatch).pace() is None
    assert watched(monkeypatch, (0, 5.0)).pace() is None
    watch = watched(monkeypatch)
    watch.passes = 10
    watch.batch()
    assert watch.pace() is None, "passes before the first batch have no time"


def test_a_measure_can_be_kept_as_json():
    result = of(CatastrophicForgetting())
    assert Measure(**json.loads(json.dumps(result.to_json()))) == result


# -------------------------------------------------------------------------------------------------------------------- GPUs


class FakeCuda:
    """What the probe asks of torch.cuda; `used` is of the whole GPU, `reserved` by this process's allocator."""

    def __init__(self):
        self.used, self.reserved, self.most = 700, 0, 0

    def get_device_name(self, device):
        return "a GPU"

    def mem_get_info(self, device):
        return 10_000 - self.used, 10_000

    def memory_reserved(self, device):
        return self.reserved

    def max_memory_reserved(self, device):
        return self.most

    def empty_cache(self):
        self.used, self.reserved = self.used - self.reserved, 0

    def reset_peak_memory_stats(self, device):
        self.most = self.reserved

    def synchronize(self, device):
        pass

    def take(self, reserved, outside=0):
        """Take memory in the allocator and outside it."""
        self.used, self.reserved = self.used + reserved + outside, self.reserved + reserved
        self.most = max(self.most, self.reserved)


def test_the_probe_counts_what_is_reserved_and_what_grows_beside_it_but_not_the_context(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr("cu_ray.stages.canary.torch.cuda", cuda)  # which remembers what it was asked for before
    probe = CudaProbe()
    assert (probe.name, probe.total_bytes) == ("a GPU", 10_000)
    probe.begin()
    cuda.take(3000, outside=40)
    cuda.take(-1000)
    assert probe.peak_bytes() == 3040
    probe.begin()
    cuda.take(500, outside=2)
    assert probe.peak_bytes() == 542, "kernels stay loaded"


@pytest.mark.gpu
@pytest.mark.parametrize("name", plugins.names("methods"))
def test_on_a_gpu_a_canary_takes_the_memory_of_the_whole_trial(name):
    from cu_ray.models.resnet9 import ResNet9

    recipe = replace(RECIPE, steps=40, batch_size=32, precision="bf16")
    spec = trial_spec(DATASET, plugins.find("methods", name)(), recipe=recipe)
    setting = replace(spec.original.setting, model=ResNet9(width=64))
    spec = replace(spec, original=replace(spec.original, setting=setting))
    probe = CudaProbe()
    result = measure(spec, DATASET, probe)
    assert result.stopped is None
    store = MemoryStore()
    Workbench(DATASET, store, "cuda").run_original(spec.original)
    probe.begin()
    assert Workbench(DATASET, store, "cuda").run_trial(spec).ok
    assert result.peak_bytes == pytest.approx(probe.peak_bytes(), rel=0.1)
