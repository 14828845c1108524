"""A bad method is one failed row that names it and the rule it broke; nothing of what it did reaches a later trial."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import sys
import threading
import time
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from cu_ray.errors import ContractBroken, TimeIsUp
from cu_ray.methods.catastrophic_forgetting import CatastrophicForgetting
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.ssd import Ssd
from cu_ray.plugins import name_of
from cu_ray.stages.pipeline import Workbench, arrays_of
from cu_ray.stages.reasons import LONGEST, reason_of
from cu_ray.stages.seen import Seen
from cu_ray.sweep.breaker import kind_of
from cu_ray.types import OriginalSpec
from tests.protocol import fakes
from tests.protocol.tiny import MemoryStore, Tiny, tiny_dataset, trial_spec


@dataclass(frozen=True)
class Again(Tiny):
    """Can load its images again, as every data set can."""

    def load(self):
        return tiny_dataset()


@dataclass(frozen=True)
class Bad(Ssd):
    """SSD; or it does one thing, then remembers SSD's importances and returns the original, or what the thing returned."""

    version: ClassVar[int] = 1
    what: str = ""

    def unlearn(self, task):
        if not self.what:
            return super().unlearn(task)
        model = THINGS[self.what](task)
        task.remember("importances", self.importances, importance_batch_size=self.importance_batch_size)
        return task.original if model is None else model


NAME = name_of(Bad)
THINGS = {}
ORIGINALS = {}  # what a store holds when original models are trained


def group(**things):
    """The names of things that a bad method does."""
    THINGS.update(things)
    return list(things)


def spec_of(method):
    spec = trial_spec(DATASET, method)
    return replace(spec, original=OriginalSpec(replace(spec.original.setting, dataset=Again())))


DATASET = tiny_dataset()
GOOD = [spec_of(Bad()), spec_of(CatastrophicForgetting(steps=3))]


def bench_of_its_own():
    """A warm worker's: its own images, originals in the store, one good trial done, so that a memo is there to spoil."""
    store = MemoryStore()
    if not ORIGINALS:
        Workbench(tiny_dataset(), store).run_original(GOOD[0].original)
        ORIGINALS.update(store.entries)
    store.entries |= copy.deepcopy(ORIGINALS)
    return Workbench(tiny_dataset(), store)


def results(bench):
    records = [bench.run_trial(spec) for spec in GOOD]
    assert [record.error for record in records] == [None, None]
    weights = [arrays_of(bench.unlearned(spec).model) for spec in GOOD]
    return [(record.scores, record.notes) for record in records], [
        {name: array.tobytes() for name, array in each.items()} for each in weights
    ]


@pytest.fixture(scope="module")
def expected():
    return results(bench_of_its_own())


@pytest.fixture(params=["cold", "warm"])
def bench(request):
    bench = bench_of_its_own()
    if request.param == "warm":
        for spec in GOOD:
            assert bench.run_trial(spec).ok
    return bench


def run(bench, what):
    return bench.run_trial(spec_of(Bad(what=what)))


# -------------------------------------------------------------------------------------------- writes into what is shared


def images(task):
    return task.retain._images


def memo(task):
    return task.remember("importances", Bad().importances, importance_batch_size=512)


def in_inference_mode(write):
    def inside(task):
        with torch.inference_mode():
            write(task)

    return inside


def swap(task):
    pixels = images(task).pixels_NHWC
    pixels[:2] = pixels[:2].flip(0)


def set_anew(task):
    with torch.no_grad():
        next(task._original.parameters()).set_(torch.zeros(2, 1, 3, 3))


def attached(write):
    """By way of DLPack, whose tensors count their versions alone."""
    return lambda task: write(torch.from_dlpack(next(task._original.parameters()).detach()))


WEIGHT = "the original model's 0.0.weight"
WRITES = {
    "weight": (WEIGHT, lambda task: next(task._original.parameters()).detach().mul_(2)),
    "weight by .data": (WEIGHT, lambda task: next(task._original.parameters()).data.mul_(2)),
    "weight by numpy": (WEIGHT, lambda task: next(task._original.parameters()).detach().numpy().fill(1)),
    "weight by storage": (WEIGHT, lambda task: next(task._original.parameters()).untyped_storage().fill_(1)),
    "weight by dlpack": (WEIGHT, attached(lambda tensor: tensor.mul_(2))),
    "weight exchanged": (WEIGHT, lambda task: setattr(next(task._original.parameters()), "data", torch.zeros(2, 1, 3, 3))),
    "weight in inference mode": (WEIGHT, in_inference_mode(lambda task: next(task._original.parameters()).mul_(2))),
    "weight set": (WEIGHT, set_anew),
    "buffer": ("the original model's 0.1.running_mean", lambda task: task._original[0][1].running_mean.add_(1)),
    "hook": ("the original model's modules", lambda task: task._original[0].register_forward_hook(lambda *_: None)),
    "mode": ("the original model's modules", lambda task: task._original.train()),
    "frozen": ("the original model's modules", lambda task: task._original.requires_grad_(False)),
    "epsilon": ("the original model's modules", lambda task: setattr(task._original[0][1], "eps", 1.0)),
    "forward": ("the original model's modules", lambda task: setattr(task._original, "forward", lambda images: images)),
    "module gone": ("the original model's 0.0.weight", lambda task: setattr(task._original[0], "0", torch.nn.Identity())),
    "pixels": ("the training images", lambda task: images(task).pixels_NHWC.zero_()),
    "one pixel": ("the training images", lambda task: images(task).pixels_NHWC[3, 4, 5].add_(1)),
    "pixels by numpy": ("the training images", lambda task: images(task).pixels_NHWC.numpy()[::2].fill(7)),
    "two images swapped": ("the training images", swap),
    "test images": ("the test images", lambda task: task._data.test.pixels_NHWC.zero_()),
    "labels": ("the training labels", lambda task: images(task).labels.copy_(images(task).labels.flip(0))),
    "test labels": ("the test labels", lambda task: task._poisoned.dataset.test.labels.fill(1)),
    "stamped": ("the training marks of the trigger", lambda task: images(task)._stamped.logical_not_()),
    "trigger": ("the training values of the trigger", lambda task: images(task)._stamp._values.zero_()),
    "domain": ("the affected rows", lambda task: task._poisoned.domains.affected.rows.fill(0)),
    "memo": ("the remembered 'retain'", lambda task: memo(task)["retain"].mul_(2)),
    "memo by .data": ("the remembered 'deletion'", lambda task: memo(task)["deletion"].data.mul_(2)),
}  # fmt: skip
SPOILS_ITS_MEMO = group(**{what: do for what, (_, do) in WRITES.items()})


@pytest.mark.parametrize("what", SPOILS_ITS_MEMO)
def test_a_method_that_writes_into_what_trials_share_fails_and_the_next_trial_gets_it_afresh(bench, what, expected):
    record = run(bench, what)
    assert record.status == "failed"
    assert record.error == f"ContractBroken in {NAME}: wrote into {WRITES[what][0]}: what trials share is read-only"
    assert record.scores == {}
    assert record.notes == {}
    assert results(bench) == expected


@pytest.mark.parametrize("what", ["labels", "pixels"])
def test_what_was_computed_from_spoiled_inputs_is_not_stored(what):
    bench = bench_of_its_own()
    before = set(bench._store.entries)
    run(bench, what)
    assert set(bench._store.entries) == before


def raises_after_writing(task):
    images(task).labels.zero_()
    raise ValueError("and now this")


def diverges_after_writing(task):
    images(task).labels.zero_()
    task.original[0][0].weight.data.fill_(torch.nan)


LATE = group(**{"raises after writing": raises_after_writing, "diverges after writing": diverges_after_writing})


@pytest.mark.parametrize("what", LATE)
def test_writing_is_said_and_undone_also_where_the_method_fails_besides(bench, what, expected):
    record = run(bench, what)
    assert (record.status, record.error) == (
        "failed",
        f"ContractBroken in {NAME}: wrote into the training labels: what trials share is read-only",
    )
    assert results(bench) == expected


def test_images_that_cannot_be_loaded_again_are_not_used_any_more(monkeypatch):
    bench = bench_of_its_own()
    monkeypatch.setattr(Again, "load", lambda self: tiny_dataset().missing)
    assert "wrote into the training images" in run(bench, "pixels").error
    record = bench.run_trial(GOOD[0])
    assert (record.status, record.scores) == ("failed", {})
    assert "data set tiny has changed" in record.error


def own_batches(task):
    for stream in (task.retain, task.deletion, task.everything):
        for shuffle in (False, True):
            for batch in stream.epoch(shuffle=shuffle):
                for tensor in (batch.images, batch.labels, batch.indices, batch.in_deletion):
                    tensor.zero_()
    rows = [batch.indices for batch in task.everything.epoch(shuffle=False)]
    assert torch.cat(rows).tolist() == list(range(60))
    memo(task).clear()
    assert memo(task).keys() == {"deletion", "retain"}


def own_rows(task):
    for stream in (task.retain, task.deletion, task.everything):
        stream._rows.zero_()


@pytest.mark.parametrize("what", group(**{"own batches": own_batches, "own rows": own_rows}))
def test_batches_rows_and_the_dict_of_a_memo_are_the_methods_own(bench, what, expected):
    assert run(bench, what).error is None
    assert results(bench) == expected


def test_checking_costs_less_than_a_hundredth_of_the_cheapest_trial():
    from cu_ray import plugins
    from cu_ray.manipulations.backdoor import Backdoor
    from cu_ray.models.resnet9 import ResNet9
    from cu_ray.types import Setting, TrainRecipe, TrialSpec

    plugin = plugins.find("datasets", "fashion_mnist_small")()
    dataset = plugin.load()
    recipe = TrainRecipe(steps=1, batch_size=64, precision="fp32")
    setting = Setting(plugin, dataset.content_hash, ResNet9(width=8), Backdoor(size=300, target=0), recipe, 0)
    spec = TrialSpec(OriginalSpec(setting), GOOD[0].detection, 0, NoUnlearning())
    bench = Workbench(dataset, MemoryStore())
    bench.run_trial(spec)

    def seconds(do):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            do()
            times.append(time.perf_counter() - started)
        return min(times)

    def evaluated_trial():
        bench._seen = Seen()  # else the same weights are not evaluated again
        assert bench.run_trial(spec).ok

    share = seconds(bench._warm.require_untouched) / seconds(evaluated_trial)
    print(f"{share:.2%} of a trial")
    assert share < 0.02  # measured: 0.4 %


# ------------------------------------------------------------------------------------------------ what a method returns


def changed(change):
    def do(task):
        change(task.original)
        return task.original

    return do


def replaced(place, module):
    return changed(lambda model: setattr(model[0], place, module()))


def hooked(model):
    model[0].register_forward_hook(lambda module, args, output: output * 2)


def own_forward(model):
    model.forward = lambda images: torch.zeros(len(images), 4)


def unexpected_tensor(model):
    model[0][0].extra = torch.nn.Parameter(torch.zeros(2))


def missing_tensor(model):
    model[0][0].bias = None


def fails_later(model):
    model[0][0].padding = "none of that"


RETURNED = {
    "None": (lambda task: NOTHING, "returned a NoneType: a model (torch.nn.Module) is needed"),
    "tuple": (lambda task: (task.original, 1), "returned a tuple: a model (torch.nn.Module) is needed"),
    "state dict": (lambda task: task.original.state_dict(), "returned a OrderedDict: a model (torch.nn.Module) is needed"),
    "shared original": (
        lambda task: task._original,
        "returned the original that all trials share: task.original is the copy to work on",
    ),
    "other class": (
        lambda task: torch.nn.Linear(2, 2),
        "returned another architecture than the original's: the model is a Linear, not a Sequential",
    ),
    "wrapped": (
        lambda task: torch.nn.Sequential(task.original),
        "returned another architecture than the original's: 0 is a Sequential, not a Chain",
    ),
    "other module": (
        changed(lambda model: setattr(model, "0", torch.nn.Identity())),
        "returned another architecture than the original's: 0 is a Identity, not a ",
    ),
    "missing tensor": (changed(missing_tensor), "returned another architecture than the original's: it lacks 0.0.bias"),
    "unexpected tensor": (changed(unexpected_tensor), "returned another architecture than the original's: it has 0.0.extra"),
    "other shape": (
        changed(lambda model: setattr(model[0][0].weight, "data", torch.zeros(3, 1, 3, 3))),
        "returned another architecture than the original's: 0.0.weight is of shape [3, 1, 3, 3], not of shape [2, 1, 3, 3]",
    ),
    "other dtype": (
        lambda task: task.original.half(),
        "returned another architecture than the original's: 0.0.weight is torch.float16, not torch.float32",
    ),
    "other device": (
        lambda task: task.original.to("meta"),
        "returned another architecture than the original's: 0.0.weight is on meta, not on cpu",
    ),
    "hook": (changed(hooked), "returned a model with a hook on 0: what is scored and exported is its weights alone"),
    "own forward": (
        changed(own_forward),
        "returned a model with a forward of its own in the model itself: what is scored and exported is its weights alone",
    ),
}
NOTHING = object()
group(**{f"returns {what}": do for what, (do, _) in RETURNED.items()})


@dataclass(frozen=True)
class Returns(Bad):
    """Returns just that."""

    version: ClassVar[int] = 1

    def unlearn(self, task):
        returned = THINGS[self.what](task)
        return None if returned is NOTHING else returned


@pytest.mark.parametrize("keep", ["last", "best_on_test"])
@pytest.mark.parametrize("what", RETURNED)
def test_a_model_that_is_not_the_originals_weights_is_refused(what, keep, expected):
    bench = bench_of_its_own()
    record = bench.run_trial(replace(spec_of(Returns(what=f"returns {what}")), keep=keep))
    assert record.status == "failed"
    assert record.error.startswith(f"ContractBroken: {name_of(Returns)} {RETURNED[what][1]}")
    assert record.scores == {}
    assert results(bench) == expected


def offers_another(task):
    task.offer(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 4)))


group(**{"fails later": changed(fails_later), "offers another": offers_another})


def test_a_model_that_cannot_be_run_is_a_failed_row(bench, expected):
    record = run(bench, "fails later")
    assert record.status == "failed"
    assert record.error.startswith(f"ContractBroken in {NAME}: the model cannot be run: ")
    assert record.error.endswith("(conv.py:" + record.error.rsplit(":", 1)[1])
    assert results(bench) == expected


def test_offering_another_architecture_than_is_returned_is_a_failed_row():
    record = bench_of_its_own().run_trial(replace(spec_of(Bad(what="offers another")), keep="best_on_test"))
    assert record.status == "failed"
    assert record.error.startswith(f"RuntimeError in {NAME}: Error(s) in loading state_dict")
    assert "\n" not in record.error


def train_mode(task):
    task.original.train()
    return task.original


def teacher(task):
    return copy.deepcopy(task.original)


def frozen(task):
    return task.original.requires_grad_(False)


group(nothing=lambda task: None)


@pytest.mark.parametrize("what", group(train_mode=train_mode, teacher=teacher, freezes=frozen))
def test_the_stage_evaluates_in_eval_mode_and_copies_are_models_like_others(bench, what, expected):
    record = run(bench, what)
    assert record.error is None
    assert record.scores == run(bench, "nothing").scores
    assert not any(module.training for module in bench.unlearned(spec_of(Bad(what=what))).model.modules())
    assert results(bench) == expected


# ------------------------------------------------------------------------------------------------- what a method raises


def raises(problem):
    def do(task):
        raise problem

    return do


def recurses(task):
    return recurses(task)


class Unreadable(Exception):
    """Its message cannot be had."""

    def __str__(self):
        raise RuntimeError


def mutes(task):
    np.frombuffer(b"123").missing  # noqa: B018


def epoch_of(batch_size):
    return lambda task: next(iter(task.retain.epoch(batch_size)))


def remembers(value):
    return lambda task: task.remember("mine", lambda task: value)


PLACE = r"test_bad_methods.py:"
RAISED = {
    "error": (raises(RuntimeError("no luck")), f"RuntimeError in {NAME}: no luck ({PLACE}"),
    "two lines": (raises(ValueError("one\n  two")), f"ValueError in {NAME}: one two ({PLACE}"),
    "odd characters": (raises(OSError("a\udc80b")), f"OSError in {NAME}: a?b ({PLACE}"),
    "long": (raises(ValueError("x" * 9999)), f"ValueError in {NAME}: {'x' * LONGEST}... ({PLACE}"),
    "unreadable": (raises(Unreadable()), f"Unreadable in {NAME}: (its message cannot be read) ({PLACE}"),
    "exit": (raises(SystemExit(3)), f"SystemExit in {NAME}: 3 ({PLACE}"),
    "sys.exit": (lambda task: sys.exit("enough"), f"SystemExit in {NAME}: enough ({PLACE}"),
    "interrupt": (raises(KeyboardInterrupt()), f"KeyboardInterrupt in {NAME}:  ({PLACE}"),
    "generator": (raises(GeneratorExit()), f"GeneratorExit in {NAME}:  ({PLACE}"),
    "recursion": (recurses, f"RecursionError in {NAME}: maximum recursion depth exceeded"),
    "memory": (raises(MemoryError("no room")), f"MemoryError in {NAME}: no room ({PLACE}"),
    "device memory": (raises(torch.cuda.OutOfMemoryError("no room")), f"OutOfMemoryError in {NAME}: no room ({PLACE}"),
    **{
        f"{what} memory": (raises(RuntimeError(said)), f"RuntimeError in {NAME}: {said} ({PLACE}")
        for what, said in {
            "CUDA's": "CUDA error: out of memory",
            "cuBLAS's": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN's": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        }.items()
    },
    "bad address": (
        raises(RuntimeError("CUDA error: an illegal memory access was encountered")),
        f"RuntimeError in {NAME}: CUDA error: an illegal memory access was encountered ({PLACE}",
    ),
    "time": (
        raises(TimeIsUp(f"{NAME} took longer than runtime.trial_time_limit (3 s)")),
        f"{NAME} took longer than runtime.trial_time_limit (3 s)",
    ),
    "note None": (
        lambda task: task.note(loss=None),
        f"ContractBroken in {NAME}: task.note was given a NoneType as loss: a number is needed",
    ),
    "note text": (
        lambda task: task.note(loss="1"),
        f"ContractBroken in {NAME}: task.note was given a str as loss: a number is needed",
    ),
    "note tensor": (
        lambda task: task.note(loss=torch.ones(())),
        f"ContractBroken in {NAME}: task.note was given a Tensor as loss: a number is needed",
    ),
    "batches of 0": (
        epoch_of(0),
        f"ContractBroken in {NAME}: a stream was asked for batches of 0: a whole number from 1 is needed",
    ),
    "batches of a text": (
        epoch_of("16"),
        f"ContractBroken in {NAME}: a stream was asked for batches of '16': a whole number from 1 is needed",
    ),
    "batches of a half": (
        epoch_of(0.5),
        f"ContractBroken in {NAME}: a stream was asked for batches of 0.5: a whole number from 1 is needed",
    ),
    "remembers None": (
        remembers(None),
        f"ContractBroken in {NAME}: task.remember was given a NoneType as 'mine': a dict of tensors by name is needed",
    ),
    "remembers a list": (
        remembers([torch.ones(1)]),
        f"ContractBroken in {NAME}: task.remember was given a list as 'mine': a dict of tensors by name is needed",
    ),
    "remembers numbers": (
        remembers({"a": 1.0}),
        f"ContractBroken in {NAME}: task.remember was given a float as 'mine', entry 'a': a dict of tensors by name is needed",
    ),
    "remembers by number": (
        remembers({1: torch.ones(1)}),
        f"ContractBroken in {NAME}: task.remember was given a Tensor as 'mine', entry 1: a dict of tensors by name is needed",
    ),
    "remembers bfloat16": (
        remembers({"a": torch.ones(1, dtype=torch.bfloat16)}),
        f"ContractBroken in {NAME}: task.remember was given 'mine', entry 'a', which the store has no format for: .float()",
    ),
}
group(**{f"raises {what}": do for what, (do, _) in RAISED.items()})


@pytest.mark.parametrize("what", RAISED)
def test_whatever_a_method_raises_is_a_failed_row_that_names_it(bench, what, expected):
    record = run(bench, f"raises {what}")
    assert record.status == "failed"
    assert record.error.startswith(RAISED[what][1])
    assert record.facts.get("out_of_memory", False) == ("memory" in what)
    assert (record.scores, record.notes) == ({}, {})
    assert results(bench) == expected


def test_failures_of_one_kind_count_as_one_kind():
    def kind(what):
        return kind_of(run(bench_of_its_own(), what).error)

    line = raises(None).__code__.co_firstlineno + 1
    assert kind("raises error") == f"RuntimeError in {NAME.split(':')[0]} (test_bad_methods.py:{line})"
    assert kind("raises time") == NAME.split(":")[0]
    assert kind("labels") == kind("pixels") == kind("raises note None")


def test_the_place_is_the_line_of_ones_own_code_from_which_torch_or_cu_ray_was_called():
    def asks_torch(task):
        torch.nn.Linear(2, 2)(torch.ones(3))

    def asks_cu_ray(task):
        task.sgd(task.original, steps=1, lr=0.1).epoch(task.retain, None)

    for do in (asks_torch, asks_cu_ray):
        group(asks=do)
        line = do.__code__.co_firstlineno + 1
        assert run(bench_of_its_own(), "asks").error.endswith(f" (test_bad_methods.py:{line})")


def test_numbers_of_any_kind_may_be_noted_and_a_divergence_says_whose_it_is():
    def notes(task):
        task.note(a=1, b=np.float32(0.5), c=np.int64(2), d=True, e=float("nan"))

    def diverges(task):
        task.original[0][0].weight.data.fill_(torch.inf)

    group(notes=notes, diverges=diverges)
    record = run(bench_of_its_own(), "notes")
    assert record.notes == {"a": 1.0, "b": 0.5, "c": 2.0, "d": 1.0}
    assert {type(value) for value in record.notes.values()} == {float}
    record = run(bench_of_its_own(), "diverges")
    assert (record.status, record.error) == ("diverged", f"{NAME} returned a model whose 0.0.weight is not finite")


def test_after_memory_ran_out_nothing_is_kept_warm():
    bench = bench_of_its_own()
    run(bench, "raises device memory")
    assert len(bench._warm.data._values) == len(bench._warm.originals._values) == 0


# ------------------------------------------------------------------------------------------------------- signals, limits


def test_a_real_ctrl_c_ends_what_is_in_the_foreground():
    def presses(task):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    group(presses=presses)
    with pytest.raises(KeyboardInterrupt):
        run(bench_of_its_own(), "presses")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_sigterm_that_is_handled_by_an_exit_ends_the_worker():
    """As Ray's workers do."""

    def handler(number, frame):
        sys.exit(1)

    def terminated(task):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    group(terminated=terminated)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit):
            run(bench_of_its_own(), "terminated")
    finally:
        signal.signal(signal.SIGTERM, before)


LIMIT = "it took longer than runtime.trial_time_limit (1 s)"


def ring(number, frame):
    raise TimeIsUp(LIMIT)


def test_an_alarm_cannot_be_swallowed_with_all_other_errors():
    def deaf(task):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    group(deaf=deaf)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        record = run(bench_of_its_own(), "deaf")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (record.status, record.error) == ("failed", LIMIT)


class Stop:
    """Raises TimeIsUp at the n-th bytecode that is run inside a method."""

    def __init__(self, at):
        self.left, self.inside = at, False

    def __call__(self, frame, event, argument):
        if event == "call" and frame.f_code.co_name == "unlearn" and "self" in frame.f_locals:
            self.inside = True
        frame.f_trace_opcodes = self.inside
        if event == "return" and frame.f_code.co_name == "unlearn" and "self" in frame.f_locals:
            self.inside = False
        if self.inside and event == "opcode":
            self.left -= 1
            if self.left == 0:
                raise TimeIsUp(LIMIT)
        return self


def stopped(bench, spec, at):
    """The record of a trial that is stopped there, and whether it came to that."""
    stop = Stop(at)
    before = sys.gettrace()
    sys.settrace(stop)
    try:
        record = bench.run_trial(spec)
    finally:
        sys.settrace(before)
    return record, stop.left <= 0


def test_a_trial_that_is_stopped_at_any_bytecode_of_the_method_leaves_nothing_behind(expected):
    """Python drops what is raised in a finaliser, and a bare `except` in copyreg too: the trial then goes on to its end."""
    bench, rng, at, times, dropped = bench_of_its_own(), random.Random(0), 1, 0, 0
    spec = GOOD[0]
    while True:
        bench._warm.forget()
        bench._store.entries = copy.deepcopy(ORIGINALS)
        record, reached = stopped(bench, spec, at)
        if not reached:
            break
        if record.ok:
            assert (record.scores, record.notes) == expected[0][0]
            dropped += 1
        else:
            assert (record.status, record.error, record.scores) == ("failed", LIMIT, {})
            assert len(bench._warm.data._values) == 0
        if times % 8 == 0:
            assert results(bench) == expected
        at, times = int(at * rng.uniform(1.1, 1.7)) + 1, times + 1
    assert record.ok
    assert times > 12 + dropped
    assert dropped < 3


# ------------------------------------------------------------------------------------------------------ the process


def switch(**kept):
    """Things that a method does to the process: what is done, and what must be as it was."""
    group(**{f"switches {what}": do for what, (do, _) in kept.items()})
    return kept


def hooks_everywhere(task):
    torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 0)


SWITCHES = switch(
    dtype=(lambda task: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    device=(lambda task: torch.set_default_device("meta"), torch.get_default_device),
    grad=(lambda task: torch.set_grad_enabled(False) and None, torch.is_grad_enabled),
    inference=(lambda task: torch.inference_mode().__enter__(), torch.is_inference_mode_enabled),
    anomaly=(lambda task: torch.set_anomaly_enabled(True), torch.is_anomaly_enabled),
    threads=(lambda task: torch.set_num_threads(2), torch.get_num_threads),
    seed=(lambda task: torch.manual_seed(5) and None, lambda: torch.get_rng_state().tolist()),
    numpy_seed=(lambda task: np.random.seed(5), lambda: np.random.get_state()[1].tolist()),
    python_seed=(lambda task: random.seed(5), random.getstate),
    determinism=(lambda task: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
    matmul=(lambda task: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    matmul_too=(
        lambda task: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        torch.get_float32_matmul_precision,
    ),
    cudnn=(lambda task: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
    mkldnn=(lambda task: setattr(torch.backends.mkldnn, "enabled", False), lambda: torch.backends.mkldnn.enabled),
    autocast=(lambda task: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")),
    denormals=(
        lambda task: torch.set_flush_denormal(True) and None,
        lambda: float(torch.tensor(1e-310, dtype=torch.float64) * 1),
    ),
    numpy_errors=(lambda task: np.seterr(all="raise") and None, np.geterr),
    warnings=(lambda task: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    recursion=(lambda task: sys.setrecursionlimit(150), sys.getrecursionlimit),
    folder=(lambda task: os.chdir("/"), os.getcwd),
    hooks=(hooks_everywhere, lambda: len(torch.nn.modules.module._global_forward_hooks)),
)


@pytest.mark.parametrize("what", SWITCHES)
def test_what_a_method_switches_in_the_process_is_switched_back(bench, what, expected):
    get = SWITCHES[what][1]
    before = get()
    run(bench, f"switches {what}")
    assert get() == before
    assert results(bench) == expected
    assert get() == before


@dataclass(frozen=True)
class SwitchesLast(Returns):
    """Returns the original as it was."""

    version: ClassVar[int] = 1

    def unlearn(self, task):
        THINGS[self.what](task)
        return task.original


@pytest.mark.parametrize("what", SWITCHES)
def test_a_model_is_scored_as_if_nothing_had_been_switched(what):
    bench = bench_of_its_own()
    record = bench.run_trial(spec_of(SwitchesLast(what=f"switches {what}")))
    assert record.error is None
    assert record.scores == run(bench, "nothing").scores


def test_another_thread_can_run_trials(expected):
    """Signal handlers belong to the main thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(results(bench_of_its_own())))
    thread.start()
    thread.join()
    assert found == [expected]


# ------------------------------------------------------------------------------------------------------ smaller pieces


def test_a_contract_that_is_broken_outside_of_a_method_blames_none():
    assert reason_of(ContractBroken("a rule")) == "ContractBroken: a rule"


def test_the_original_is_trained_and_scored_as_before():
    bench = bench_of_its_own()
    model, _ = bench.original(GOOD[0].original)
    before = fakes.snapshot(model)
    record = bench.run_original(GOOD[0].original)
    assert record.ok
    assert fakes.same_bits(before, fakes.snapshot(model))
