"""Which number format a run computes in, decided from what the hardware says it has, never from timing.

Precision is part of a trial's identity, so the same machine must always decide the same.
"""

from __future__ import annotations

import contextlib
import glob
from pathlib import Path

from cu_ray.errors import UserError
from cu_ray.lazy import torch

CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def local_device_kind() -> str:
    """'cuda' where this machine has an NVIDIA GPU, else 'cpu'. Does not import torch."""
    return "cuda" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def resolve(precision: str, device_kind: str, cpu_flags: frozenset[str] | None = None) -> str:
    """'fp32', 'bf16' or 'fp16' for a wish of those, of 'auto' or of 'published'.

    auto: bf16 on GPUs and on processors that have it, else fp32. published: fp16 on GPUs, as auto elsewhere.
    """
    if precision == "published" and device_kind == "cuda":
        return "fp16"
    if precision not in ("auto", "published"):
        return precision
    if device_kind == "cuda":
        return "bf16"
    return "bf16" if CPU_BF16_FLAGS & (local_cpu_flags() if cpu_flags is None else cpu_flags) else "fp32"


def local_cpu_flags() -> frozenset[str]:
    """The capability flags that Linux reports of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), ()))


def require(precision: str, device: torch.device) -> None:
    """Raise UserError where this worker cannot compute in a precision that the driver resolved."""
    lacking = device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported()
    if lacking or (device.type == "cpu" and precision == "fp16"):
        raise UserError(f"precision {precision} was chosen, which this worker's {device.type} lacks: set train.precision")


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which forward passes run: nothing for fp32, torch's autocast otherwise."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
