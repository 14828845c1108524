"""Where a training step's time goes on a GPU, and what single changes would bring: needs torch, NumPy and this repository.

python benchmarks/gpu_profile.py --out profile.txt        # about a minute
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from gpu import TOY, Bench, Sizes, Training, machine
from torch import nn

from cu_ray.learning.precision import autocast

Change = contextlib.AbstractContextManager[object]


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    """As it is."""
    yield


@contextlib.contextmanager
def cudnn_chooses_by_timing() -> Iterator[None]:
    """Kernels of convolutions are timed once for each shape."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def no_biases() -> Change:
    """Convolutions leave out their bias (to see what it costs)."""
    return patched(nn.Conv2d, "forward", lambda self, inputs: self._conv_forward(inputs, self.weight, None))


def eight_channels() -> Change:
    """The first convolution gets eight channels, five of them nothing."""
    forward = nn.Conv2d.forward

    def padded(self: Any, inputs: torch.Tensor) -> torch.Tensor:
        if self.in_channels % 8 == 0:
            return forward(self, inputs)
        more = -self.in_channels % 8
        wide = nn.functional.pad(inputs, (0, 0, 0, 0, 0, more)).contiguous(memory_format=torch.channels_last)
        return self._conv_forward(wide, nn.functional.pad(self.weight, (0, 0, 0, 0, 0, more)), self.bias)

    return patched(nn.Conv2d, "forward", padded)


def in_place() -> Change:
    """CELU in place."""
    return patched(nn.CELU, "forward", lambda self, inputs: nn.functional.celu(inputs, self.alpha, inplace=True))


def plain_relu() -> Change:
    """ReLU in place of CELU (to see what CELU costs)."""
    return patched(nn.CELU, "forward", lambda self, inputs: nn.functional.relu(inputs))


def no_normalisation() -> Change:
    """No BatchNorm (to see what it costs)."""
    return patched(nn.BatchNorm2d, "forward", lambda self, inputs: inputs * self.weight[:, None, None].to(inputs.dtype))


def fused() -> Change:
    """BatchNorm and the activation after it compiled together, for each shape."""

    def pair(inputs: torch.Tensor, norm: Any, alpha: float | None) -> torch.Tensor:
        scale = (norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)
        normalised = nn.functional.batch_norm(inputs, norm.running_mean, norm.running_var, *scale)
        return nn.functional.relu(normalised) if alpha is None else nn.functional.celu(normalised, alpha)

    compiled = torch.compile(pair, dynamic=False)
    torch._dynamo.config.recompile_limit = 64
    forward = nn.Sequential.forward

    def own(self: Any, inputs: torch.Tensor) -> torch.Tensor:
        modules = list(self)
        if not any(isinstance(module, nn.BatchNorm2d) for module in modules):
            return forward(self, inputs)
        place = 0
        while place < len(modules):
            module, after = modules[place], modules[place + 1] if place + 1 < len(modules) else None
            if isinstance(module, nn.BatchNorm2d) and isinstance(after, nn.CELU | nn.ReLU):
                inputs = compiled(inputs, module, getattr(after, "alpha", None))
                place += 2
            else:
                inputs = module(inputs)
                place += 1
        return inputs

    return patched(nn.Sequential, "forward", own)


CHANGES: dict[str, Callable[[], Change]] = {
    "as it is": nothing,
    "cuDNN chooses by timing": cudnn_chooses_by_timing,
    "no biases": no_biases,
    "BatchNorm and activation compiled": fused,
    "eight channels": eight_channels,
    "CELU in place": in_place,
    "ReLU for CELU": plain_relu,
    "no BatchNorm": no_normalisation,
}


def profile(bench: Bench, name: str, *, backward: bool) -> str:
    """The kernels and the operations, longest first, of five steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    run, model = Training(bench, name, "plain"), bench.model(name).eval()
    rows = torch.arange(min(500, bench.sizes.test), device=bench.device)

    def evaluated(times: int) -> None:
        with torch.inference_mode(), autocast(bench.precision, bench.device):
            for _ in range(times):
                model(bench.data.test.load(rows)).argmax(dim=1)

    run.start()
    work = run.run if backward else evaluated
    work(5)
    bench.synchronise()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profiling(activities=activities, record_shapes=True) as found:
        work(5)
        bench.synchronise()
    key = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    wide = {"max_name_column_width": 90, "max_shapes_column_width": 90}
    kernels = found.key_averages().table(sort_by=key, row_limit=40, **wide)
    shapes = found.key_averages(group_by_input_shape=True).table(sort_by=key, row_limit=45, **wide)
    return f"{kernels}\n{shapes}"


def changes(bench: Bench, name: str, number: int = len(CHANGES)) -> str:
    """Images a second of training by graphs under each of the first changes; interleaved."""
    runs, rates, lines = {}, {}, []
    for what, change in list(CHANGES.items())[:number]:
        try:
            with change():
                runs[what] = Training(bench, name, "graphs")
                lines.append(
                    f"{what}: {bench.seconds(runs[what].start):.1f} s for the first steps; recorded {runs[what].recorded}"
                )
        except Exception as problem:
            lines.append(f"{what}: {type(problem).__name__}: {str(problem)[:300]}")
            runs.pop(what, None)
    steps = bench.sizes.steps[name]
    for _ in range(3):
        for what, run in runs.items():
            with nothing() if run.recorded else CHANGES[what]():  # a graph knows no more of Python
                seconds = bench.seconds(lambda run=run: run.run(steps))
            rates.setdefault(what, []).append(steps * bench.sizes.batch / seconds)
    lines += [
        f"{what}: {statistics.median(each):,.0f} images/s ({min(each):,.0f} to {max(each):,.0f})" for what, each in rates.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--out", type=Path, default=Path("profile.txt"))
    options = parser.parse_args()
    bench = Bench(TOY if options.quick else Sizes(), options.device)
    text = [str(machine(bench.device))]
    for what, work in (
        ("changes, ResNet-9", lambda: changes(bench, "ResNet-9")),
        ("training, ResNet-9", lambda: profile(bench, "ResNet-9", backward=True)),
        ("evaluation, ResNet-9", lambda: profile(bench, "ResNet-9", backward=False)),
        ("changes, WRN-28-10", lambda: changes(bench, "WRN-28-10", 4)),
        ("training, WRN-28-10", lambda: profile(bench, "WRN-28-10", backward=True)),
    ):
        try:
            found = work()
        except Exception:
            found = traceback.format_exc()
        text.append(f"==== {what}\n{found}")
        options.out.write_text("\n".join(text) + "\n")
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    print("\n".join(text)[:6000])


if __name__ == "__main__":
    main()
