"""What a GPU does with cu-ray's learning, beside what it could do: needs torch, NumPy and this folder's repository, nothing else.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json      # about four minutes on an H200; a table beside the JSON
    python benchmarks/gpu.py --device cpu --quick                   # the same code at toy size

Images are random and lie on the device as uint8, as a data set's do. Floors are measured in the same run: the rate of a large
matrix product and of memory copies. FLOPs are counted by torch. Variants are interleaved; figures are median (least to most).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from cu_ray.detections.uniform import Uniform  # noqa: E402
from cu_ray.learning.batches import RowStream  # noqa: E402
from cu_ray.learning.graphs import WARM_UPS, CudaRecorder, Graphs  # noqa: E402
from cu_ray.learning.importance import squared_gradient_importance  # noqa: E402
from cu_ray.learning.precision import autocast  # noqa: E402
from cu_ray.learning.sgd import Sgd, cross_entropy  # noqa: E402
from cu_ray.manipulations.backdoor import Backdoor  # noqa: E402
from cu_ray.methods.ssd import Ssd  # noqa: E402
from cu_ray.models import _blocks  # noqa: E402
from cu_ray.models.resnet9 import ResNet9  # noqa: E402
from cu_ray.models.wide_resnet import WideResNet  # noqa: E402
from cu_ray.stages import evaluate as evaluation  # noqa: E402
from cu_ray.stages.evaluate import evaluate, predict  # noqa: E402
from cu_ray.stages.pipeline import Workbench  # noqa: E402
from cu_ray.stages.poison import detect, poison, upload  # noqa: E402
from cu_ray.stages.train import build_model, train  # noqa: E402
from cu_ray.types import (  # noqa: E402
    Augmentation,
    Dataset,
    Images,
    Normalisation,
    OriginalSpec,
    Setting,
    TrainRecipe,
    TrialSpec,
)
from tests.protocol.tiny import MemoryStore, Tiny  # noqa: E402


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    side: int = 32
    train: int = 50_000
    test: int = 10_000
    manipulated: int = 500
    deleted: int = 250
    product: int = 8192
    copied: int = 1 << 30
    models: dict[str, Any] = field(
        default_factory=lambda: {"ResNet-9": ResNet9(), "WRN-28-10": WideResNet(), "ResNet-9 of width 8": ResNet9(width=8)}
    )
    batches: dict[str, int] = field(default_factory=lambda: {"ResNet-9": 512, "WRN-28-10": 512, "ResNet-9 of width 8": 64})
    steps: dict[str, int] = field(default_factory=lambda: {"ResNet-9": 97, "WRN-28-10": 12})
    repeats: int = 5
    original: tuple[int, int] = (400, 4000)
    points: int = 50
    packed: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"ResNet-9": (1, 4), "ResNet-9 of width 8": (1, 4, 8, 14)})
    packed_seconds: float = 2.0
    backend: str = "inductor"


TOY = Sizes(
    side=12,
    train=96,
    test=40,
    manipulated=20,
    deleted=10,
    product=128,
    copied=1 << 20,
    models={
        "ResNet-9": ResNet9(width=2),
        "WRN-28-10": WideResNet(depth=10, width=1),
        "ResNet-9 of width 8": ResNet9(width=2),
    },
    batches=dict.fromkeys(("ResNet-9", "WRN-28-10", "ResNet-9 of width 8"), 16),
    steps={"ResNet-9": 6, "WRN-28-10": 2},
    repeats=2,
    original=(4, 8),
    points=3,
    packed={"ResNet-9": (1, 2), "ResNet-9 of width 8": (2,)},
    packed_seconds=0.2,
    backend="eager",
)


class Bench:
    """The data, the device and the floors that all parts share."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, torch.device(device)
        self.precision = "bf16" if self.device.type == "cuda" else "fp32"
        self.dataset = random_images(sizes)
        spec = self.spec("ResNet-9")
        self.poisoned = poison(self.dataset, spec.setting.manipulation, seed=0)
        self.data = upload(self.poisoned, self.device)
        self.product_rate: float | None = None  # FLOP/s

    def spec(self, model: str, **recipe: Any) -> OriginalSpec:
        """An original of that model on the random images."""
        given = TrainRecipe(**{"batch_size": self.sizes.batches[model], "precision": self.precision} | recipe)
        manipulation = Backdoor(size=self.sizes.manipulated)
        return OriginalSpec(Setting(Tiny(), self.dataset.content_hash, self.sizes.models[model], manipulation, given, 0))

    def model(self, name: str) -> torch.nn.Module:
        """That model, untrained."""
        return build_model(self.sizes.models[name], self.poisoned, self.device, 0)

    def seconds(self, work: Callable[[], Any]) -> float:
        """How long the device takes to do the work, or the host to order it, whichever is longer."""
        self.synchronise()
        began = time.perf_counter()
        work()
        self.synchronise()
        return time.perf_counter() - began

    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def fraction(self, flops_per_second: float) -> float | None:
        """Of the rate of a large matrix product."""
        return flops_per_second / self.product_rate if self.product_rate else None

    def flops(self, name: str, *, backward: bool) -> float:
        """Of one image through that model in training, counted by torch: forward, or forward and backward."""
        from torch.utils.flop_counter import FlopCounterMode

        model, rows = self.model(name).train(), torch.arange(4, device=self.device)
        unpadded = mock.patch.object(_blocks, "_with_whole_eights", lambda *given: given)  # channels of nothing do not count
        with unpadded, FlopCounterMode(display=False) as counter, autocast(self.precision, self.device):
            loss = model(self.data.train.load(rows)).float().sum()
            if backward:
                loss.backward()
        return counter.get_total_flops() / len(rows)


def random_images(sizes: Sizes) -> Dataset:
    """Noise of ten classes."""
    rng = np.random.default_rng(0)

    def some(count: int) -> Images:
        pixels = rng.integers(0, 256, (count, sizes.side, sizes.side, 3), dtype=np.uint8)
        return Images(pixels, rng.permutation(np.arange(count, dtype=np.int64) % 10))

    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    names = tuple(f"class {number}" for number in range(10))
    return Dataset("noise", names, normalisation, Augmentation(4, True), some(sizes.train), some(sizes.test))


class Training:
    """A training that goes on for as many steps as are asked for.

    how: plain, graphs (as the package does), the two in fp16 with a scaled loss, compiled, or compiled and recorded (compiled
    code in a graph).
    """

    def __init__(self, bench: Bench, name: str, how: str) -> None:
        precision = "fp16" if how.startswith("fp16") else bench.precision
        self._bench, self._how, recipe = bench, how, bench.spec(name, steps=10_000_000, precision=precision).setting.train
        self.model = bench.model(name).train()
        run: Any = torch.compile(self.model, backend=bench.sizes.backend) if how.startswith("compiled") else self.model
        self.sgd = Sgd(run, recipe, bench.device)
        self.batches = self._all_batches(recipe.batch_size)

    def start(self) -> None:
        """The first steps, in which compilers compile and graphs are recorded."""
        graphs, self.sgd._graphs = self.sgd._graphs, None
        self.run(2)
        if self._how.endswith("graphs"):
            self.sgd._graphs = graphs
        elif self._how == "compiled and recorded" and self._bench.device.type == "cuda":
            self.sgd._graphs = Graphs(self.model, CudaRecorder(self._bench.device))
        self.run(WARM_UPS + 2)

    @property
    def recorded(self) -> bool:
        """Whether its steps are replayed."""
        return self.sgd._graphs is not None and bool(self.sgd._graphs._recorded)

    def run(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            self.sgd.step(next(self.batches), cross_entropy)

    def _all_batches(self, batch_size: int) -> Iterator[Any]:
        data, sizes, device = self._bench.data, self._bench.sizes, self._bench.device
        rows = np.arange(sizes.train // batch_size * batch_size)  # whole batches only
        nothing = torch.zeros(sizes.train, dtype=torch.bool, device=device)
        stream = RowStream(data.train, rows, nothing, batch_size, torch.Generator(device).manual_seed(0))
        while True:
            yield from stream.epoch()


Row = dict[str, Any]


def row(what: str, unit: str, values: list[float], **more: Any) -> Row:
    """A figure: median, least and most of the values."""
    return {"what": what, "unit": unit, "median": statistics.median(values), "least": min(values), "most": max(values), **more}


# ------------------------------------------------------------------------------------------------------------------ the parts


def floors(bench: Bench) -> list[Row]:
    """The rate of a large matrix product in the precision of training, and of copies."""
    side, kind = bench.sizes.product, torch.bfloat16 if bench.precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=bench.device).to(kind) for _ in range(2))
    source = torch.zeros(bench.sizes.copied, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    for _ in range(5):
        left @ right
        target.copy_(source)
    rates, speeds = [], []
    for _ in range(2 * bench.sizes.repeats):
        rates.append(10 * 2 * side**3 / bench.seconds(lambda: [left @ right for _ in range(10)]))
        speeds.append(10 * 2 * source.nbytes / bench.seconds(lambda: [target.copy_(source) for _ in range(10)]))
    bench.product_rate = statistics.median(rates)
    return [
        row(f"{side}^3 matrix product, {bench.precision}", "TFLOP/s", [rate / 1e12 for rate in rates]),
        row("copies, read and written", "GB/s", [speed / 1e9 for speed in speeds]),
    ]


def training(bench: Bench, name: str, variants: tuple[str, ...] = ("plain", "graphs")) -> list[Row]:
    """Training images a second."""
    flops, steps, batch = bench.flops(name, backward=True), bench.sizes.steps[name], bench.sizes.batches[name]
    runs = {how: Training(bench, name, how) for how in variants}
    started = {how: bench.seconds(run.start) for how, run in runs.items()}
    rates: dict[str, list[float]] = {how: [] for how in variants}
    for _ in range(bench.sizes.repeats):
        for how, run in runs.items():
            rates[how].append(steps * batch / bench.seconds(lambda run=run: run.run(steps)))
    found = []
    for how in variants:
        fraction = bench.fraction(statistics.median(rates[how]) * flops)
        found.append(
            row(
                f"{name} training, batches of {batch}, {how}",
                "images/s",
                rates[how],
                fraction=fraction,
                gflop_an_image=flops / 1e9,
                recorded=runs[how].recorded,
                seconds_of_first_steps=started[how],
            )
        )
    if any(how.startswith("compiled") for how in variants):
        found += [row(f"{name}, first steps, {how}", "s", [started[how]]) for how in variants]
    return found


def breakdown(bench: Bench, name: str) -> list[Row]:
    """Milliseconds of a step's pieces, each by itself: the host's orders or the device's work, whichever takes longer."""
    runs, steps = {how: Training(bench, name, how) for how in ("plain", "graphs")}, bench.sizes.steps[name]
    for run in runs.values():
        run.start()
    batch = next(runs["plain"].batches)

    def passes() -> torch.Tensor:
        with autocast(bench.precision, bench.device):
            return cross_entropy(runs["plain"].model(batch.images).float(), batch)

    pieces: dict[str, Callable[[], Any]] = {
        "making a batch": lambda: next(runs["plain"].batches),
        "forward": passes,
        "forward and backward": lambda: (passes().backward(), runs["plain"].sgd._optimiser.zero_grad()),
        "a step on a made batch, plain": lambda: runs["plain"].sgd.step(batch, cross_entropy),
        "a step on a made batch, graphs": lambda: runs["graphs"].sgd.step(batch, cross_entropy),
    }
    taken: dict[str, list[float]] = {piece: [] for piece in pieces}
    for number in range(bench.sizes.repeats + 1):
        for piece, work in pieces.items():
            seconds = bench.seconds(lambda work=work: [work() for _ in range(steps)])
            taken[piece] += [1000 * seconds / steps] if number else []
    return [row(f"{name}: {piece}", "ms", values) for piece, values in taken.items()]


def original(bench: Bench) -> list[Row]:
    """The whole stage that trains an original, from new weights to finite ones, at few steps and once at all of them."""
    few, all_steps = bench.sizes.original
    batch = bench.sizes.batches["ResNet-9"]

    def whole(steps: int) -> float:
        return bench.seconds(lambda: train(bench.spec("ResNet-9", steps=steps), bench.poisoned, bench.data))

    whole(few // 4)
    return [
        row(f"ResNet-9 original, {few} steps of {batch}", "s", [whole(few) for _ in range(3)]),
        row(f"ResNet-9 original, {all_steps} steps of {batch}", "s", [whole(all_steps)]),
    ]


def evaluating(bench: Bench, name: str, sizes: tuple[int, ...] = (500, 1000, 2000)) -> list[Row]:
    """Images a second that are predicted, in the package's batches and in larger ones."""
    model, rows = bench.model(name).eval(), torch.arange(bench.sizes.test, device=bench.device)
    flops = bench.flops(name, backward=False)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    kept = evaluation.BATCH_SIZES[bench.device.type]
    try:
        for number in range(bench.sizes.repeats + 1):
            for size in sizes:
                evaluation.BATCH_SIZES[bench.device.type] = size
                rate = len(rows) / bench.seconds(lambda: predict(model, bench.data.test, rows, bench.precision))
                rates[size] += [rate] if number else []
    finally:
        evaluation.BATCH_SIZES[bench.device.type] = kept
    return [
        row(
            f"{name} evaluation, batches of {size}",
            "images/s",
            rates[size],
            fraction=bench.fraction(statistics.median(rates[size]) * flops),
        )
        for size in sizes
    ]


def ssd_cell(bench: Bench) -> list[Row]:
    """Many points of SSD on one deletion set, beside their floor: importances once and an evaluation a point."""
    spec, points = bench.spec("ResNet-9", steps=bench.sizes.original[0]), bench.sizes.points
    store = MemoryStore()
    Workbench(bench.dataset, store, str(bench.device)).run_original(spec)
    shares = np.geomspace(0.002, 0.1, points).tolist()
    trials = [TrialSpec(spec, Uniform(), bench.sizes.deleted, Ssd(selection_share=share)) for share in shares]
    cells, floor_, importances, evaluations = [], [], [], []
    for number in range(3):
        fresh = MemoryStore()
        fresh.entries = {key: value for key, value in store.entries.items() if key[0] == "originals"}
        workbench = Workbench(bench.dataset, fresh, str(bench.device))
        model, _ = workbench.original(spec)
        poisoned, data = workbench.poisoned(spec.setting)
        split = detect(poisoned, Uniform(), bench.sizes.deleted, None)
        records: list[Any] = []
        cell = bench.seconds(lambda w=workbench, r=records: r.extend(w.run_trial(trial) for trial in trials))
        failed = [record.error for record in records if not record.ok]
        if failed:
            raise RuntimeError(failed[0])
        generator = torch.Generator(bench.device).manual_seed(0)
        nothing = torch.zeros(len(poisoned.labels), dtype=torch.bool, device=bench.device)

        def passes(model=model, data=data, split=split, nothing=nothing, generator=generator) -> None:  # noqa: ANN001
            for rows in (split.deletion, split.retain):
                squared_gradient_importance(model, RowStream(data.train, rows, nothing, 512, generator), 512)

        def evaluate_all(model=model, poisoned=poisoned, data=data, split=split) -> None:  # noqa: ANN001
            for _ in range(points):
                evaluate(model, poisoned, data, split, bench.precision)

        importance, evaluated = bench.seconds(passes), bench.seconds(evaluate_all)
        if number:  # the first warms up
            cells.append(cell)
            importances.append(importance)
            evaluations.append(evaluated)
            floor_.append(importance + evaluated)
    ratios = [cell / least for cell, least in zip(cells, floor_, strict=True)]
    return [
        row(f"SSD, {points} points on one deletion set", "s", cells),
        row("its importances, computed once", "s", importances),
        row(f"its {points} evaluations", "s", evaluations),
        row("SSD over its floor", "ratio", ratios),
    ]


def packing(bench: Bench, more: str = "") -> list[Row]:
    """Trainings side by side in processes of their own: images a second of all together."""
    rates: dict[tuple[str, int], list[float]] = {}
    with side_by_side(bench) as pipes:
        for name, count in [(each, count) for each, counts in bench.sizes.packed.items() for count in counts] * 2:
            for pipe in pipes[:count]:
                pipe.send((name, bench.sizes.packed_seconds))
            rates.setdefault((name, count), []).append(sum(answered(pipe, 30) for pipe in pipes[:count]))
    return [row(f"{name} training in {count} processes{more}", "images/s in all", each) for (name, count), each in rates.items()]


def packing_with_mps(bench: Bench) -> list[Row]:
    """The same under NVIDIA's Multi-Process Service, by which kernels of several processes run at the same time."""
    with tempfile.TemporaryDirectory(prefix="mps-") as place:
        told = {"CUDA_MPS_PIPE_DIRECTORY": place, "CUDA_MPS_LOG_DIRECTORY": place}
        with mock.patch.dict(os.environ, told), subprocess.Popen(["nvidia-cuda-mps-control", "-f"]) as daemon:
            try:
                return packing(bench, ", MPS")
            finally:
                daemon.terminate()


@contextlib.contextmanager
def side_by_side(bench: Bench) -> Iterator[list[Any]]:
    """Pipes to as many processes as are needed at most, each ready to train. The first compiles what the others then find."""
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    try:
        for number in range(max(max(counts) for counts in bench.sizes.packed.values())):
            here, there = context.Pipe()
            process = context.Process(target=packed, args=(there, bench.sizes, str(bench.device)), daemon=True)
            process.start()
            there.close()  # so that its end is seen
            pipes.append(here)
            processes.append(process)
            if number == 0:
                answered(here, 60)
        for pipe in pipes[1:]:
            answered(pipe, 60)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()  # which ends them
        for process in processes:
            process.join(10)
            process.kill()
            process.join()


def answered(pipe: Any, seconds: float) -> Any:
    """What a process sends."""
    if not pipe.poll(seconds):
        raise TimeoutError(f"a process did not answer in {seconds} s")
    return pipe.recv()


def packed(pipe: Any, sizes: Sizes, device: str) -> None:
    """One of the processes: trains what it is told to, for as long as it is told, and tells its rate."""
    torch.set_num_threads(1)
    bench = Bench(replace(sizes, train=min(sizes.train, 10_000)), device)
    runs = {name: Training(bench, name, "graphs") for name in sizes.packed}
    for run in runs.values():
        run.start()
    bench.synchronise()
    pipe.send("ready")
    while True:
        try:
            name, seconds = pipe.recv()
        except EOFError:
            return
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            runs[name].run(5)
            bench.synchronise()
            steps += 5
        pipe.send(steps * sizes.batches[name] / (time.perf_counter() - began))


# ------------------------------------------------------------------------------------------------------------------ the whole


def parts(bench: Bench) -> Iterator[tuple[str, float, Callable[[], list[Row]]]]:
    """Name, seconds that it may need, and what measures it; those that matter most first."""
    ways = ("graphs", "compiled", "compiled and recorded")
    yield "floors", 5, lambda: floors(bench)
    half = ("fp16 plain", "fp16 graphs") if bench.device.type == "cuda" else ()
    yield "training ResNet-9", 20, lambda: training(bench, "ResNet-9", ("plain", "graphs", *half))
    yield "breakdown ResNet-9", 15, lambda: breakdown(bench, "ResNet-9")
    yield "original", 30, lambda: original(bench)
    yield "evaluation ResNet-9", 5, lambda: evaluating(bench, "ResNet-9")
    yield "training WRN-28-10", 15, lambda: training(bench, "WRN-28-10")
    yield "evaluation WRN-28-10", 8, lambda: evaluating(bench, "WRN-28-10", (500,))
    yield "SSD", 40, lambda: ssd_cell(bench)
    yield "compiling ResNet-9", 45, lambda: training(bench, "ResNet-9", ways)
    yield "packing", 70, lambda: packing(bench)
    if bench.device.type == "cuda" and shutil.which("nvidia-cuda-mps-control"):
        yield "packing with MPS", 70, lambda: packing_with_mps(bench)
    yield "compiling WRN-28-10", 80, lambda: training(bench, "WRN-28-10", ways)


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
    }
    if device.type == "cuda":
        facts |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            facts["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    return facts


def measure(sizes: Sizes, device: str, minutes: float, only: list[str], show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All parts (or `only` these) that fit into the time, each shown as soon as it is there; a part that fails is a line."""
    began = time.monotonic()
    result: dict[str, Any] = {"machine": machine(torch.device(device)), "parts": {}}
    bench = Bench(sizes, device)
    for name, needed, run in parts(bench):
        started = time.monotonic()
        left = 60 * minutes - (started - began)
        if only and name not in ("floors", *only):
            continue
        if needed > left:
            result["parts"][name] = {"left_out": f"{left:.0f} s were left, it may need {needed:.0f}"}
            continue
        try:
            result["parts"][name] = {"rows": run()}
        except Exception as problem:
            result["parts"][name] = {"error": f"{type(problem).__name__}: {problem}", "trace": traceback.format_exc()}
        result["parts"][name]["seconds"] = time.monotonic() - started
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        show(result)
    show(result)
    return result


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items() if name != "command")
    lines = [f"`{result['machine']['command']}`: {facts}", "", "| what | median | least | most | unit | of the product's rate |"]
    lines.append("|---|---|---|---|---|---|")
    for name, part in result["parts"].items():
        for each in part.get("rows", ()):
            figures = " | ".join(f"{each[which]:.4g}" if each[which] < 1e5 else f"{each[which]:,.0f}" for which in ORDER)
            share = f"{100 * each['fraction']:.1f} %" if each.get("fraction") else ""
            lines.append(f"| {each['what']} | {figures} | {each['unit']} | {share} |")
        missing = part.get("error") or part.get("left_out")
        lines += [f"| {name}: not measured: {' '.join(missing.split())[:300]} | | | | | |"] if missing else []
    return "\n".join(lines) + "\n"


ORDER = ("median", "least", "most")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--minutes", type=float, default=4.0, help="what does not fit is left out, from the end of the list")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="PART", help="these parts and the floors, 'original' for instance"
    )
    parser.add_argument("--out", type=Path, help="a JSON file; the table goes beside it")
    options = parser.parse_args()

    def show(result: dict[str, Any]) -> None:
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(table(result))

    print(table(measure(TOY if options.quick else Sizes(), options.device, options.minutes, options.only, show)))


if __name__ == "__main__":
    main()
