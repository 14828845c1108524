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

from cu_ray.learning.precision import autocast
from cu_ray.models import _blocks

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


def three_channels() -> Change:
    """The first convolution gets no further channels."""
    return patched(_blocks, "_with_whole_eights", lambda *given: given)


def kernels_with(**tile: int) -> Callable[[], Change]:
    """BatchNorm and CELU by tiles of this size, and so many warps."""

    def change() -> Change:
        from cu_ray.models import _norm_celu

        return patched(_norm_celu, "TILE", _norm_celu.TILE | tile)

    return change


def two_layers() -> Change:
    """BatchNorm and CELU by PyTorch's kernels."""
    return patched(_blocks, "_can_be_one", lambda *given: False)


def plain_pooling() -> Change:
    """Max pooling by PyTorch's kernels."""
    return patched(_blocks, "_max_of_windows", lambda *given: None)


def as_many_pieces(number: int) -> Callable[[], Change]:
    """Sums over so many pieces of a table at most."""

    def change() -> Change:
        from cu_ray.models import _norm_celu

        return patched(_norm_celu, "MOST_PIECES", number)

    return change


CHANGES: dict[str, Callable[[], Change]] = {
    "as it is": nothing,
    "cuDNN chooses by timing": cudnn_chooses_by_timing,
    "three channels": three_channels,
    "tiles of 64 rows": kernels_with(ROWS=64),
    "tiles of 16 rows": kernels_with(ROWS=16),
    "8 warps": kernels_with(num_warps=8),
    "1,024 pieces": as_many_pieces(1024),
    "BatchNorm and CELU apart": two_layers,
    "max pooling by PyTorch": plain_pooling,
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
            rates.setdefault(what, []).append(steps * bench.sizes.batches[name] / seconds)
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
