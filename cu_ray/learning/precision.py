"""Which number format a run computes in, decided from what the hardware says it has, never from timing.

Precision is part of a trial's identity, so the same machine must always decide the same.
"""

from __future__ import annotations

import contextlib
import glob
import re
from pathlib import Path

from cu_ray.errors import UserError
from cu_ray.lazy import torch

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "sm_80"})  # of processors and of GPUs
GPUS, PCI_DEVICES, DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/sys/bus/pci/devices"), Path("/dev")
# PCI device numbers rise with NVIDIA's generations, but for the last chips of the one before Ampere, the first that has bf16
AMPERE, LAST_OF_TURING = 0x2080, range(0x2180, 0x2200)


def local_device_kind() -> str:
    """'cuda' where this machine has an NVIDIA GPU, else 'cpu'. Does not import torch."""
    return "cuda" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def resolve(precision: str, device_kind: str, flags: frozenset[str] | None = None) -> str:
    """'fp32', 'bf16' or 'fp16' for a wish of those, of 'auto' or of 'published'; flags: this machine's `local_flags` if None.

    auto: bf16 on GPUs and processors that have it, else fp32. published: fp16 on GPUs, as auto elsewhere.
    """
    if precision == "published" and device_kind == "cuda":
        return "fp16"
    if precision not in ("auto", "published"):
        return precision
    return "bf16" if BF16_FLAGS & (local_flags(device_kind) if flags is None else flags) else "fp32"


def local_flags(device_kind: str) -> frozenset[str]:
    """The capabilities of this machine's devices of that kind."""
    return local_gpu_flags() if device_kind == "cuda" else local_cpu_flags()


def local_gpu_flags() -> frozenset[str]:
    """'sm_80', compute capability 8.0 and above, unless Linux reports an older GPU that may be used. Does not import torch.

    A GPU that is not reported, or not here, is taken to have it: `require` looks again where trials run.
    """
    numbers = []
    for gpu in GPUS.glob("*"):
        with contextlib.suppress(OSError):
            if _is_given(gpu):
                numbers.append(int((PCI_DEVICES / gpu.name / "device").read_text(encoding="utf-8"), 16))
    return frozenset({"sm_80"} if all(each >= AMPERE and each not in LAST_OF_TURING for each in numbers) else ())


def _is_given(gpu: Path) -> bool:
    """Whether a GPU that Linux reports has a device file here: a container has those of its own GPUs alone."""
    try:
        said = (gpu / "information").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    minor = re.search(r"Device Minor:\s*(\d+)", said)
    return minor is None or (DEVICES / f"nvidia{minor[1]}").exists()


def local_cpu_flags() -> frozenset[str]:
    """The capability flags that Linux reports of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), ()))


def require(precision: str, device: torch.device) -> None:
    """Raise UserError where this worker cannot compute in a precision that the driver resolved."""
    lacking = device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if lacking or (device.type == "cpu" and precision == "fp16"):
        raise UserError(f"precision {precision} was chosen, which this worker's {device.type} lacks: set train.precision")


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which forward passes run: nothing for fp32, torch's autocast otherwise."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
