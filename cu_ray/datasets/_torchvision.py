"""torchvision, also where its compiled part does not fit the installed torch.

PyPI's torchvision wheel for Linux is the CUDA build; beside a CPU torch its import fails because its operators are not
registered. Data sets need none of them, so their schemas are declared and the import goes on.
"""

from __future__ import annotations

import glob
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

_keep_alive: list[Any] = []


def torchvision_datasets() -> ModuleType:
    """The module `torchvision.datasets`."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is not None and spec.origin is not None and not _keep_alive:
        _declare_operators(torch, Path(spec.origin).parent)
    import torchvision.datasets

    module: ModuleType = torchvision.datasets
    return module


def _declare_operators(torch: Any, folder: Path) -> None:
    for library in glob.glob(str(folder / "_C*.so")):
        try:
            torch.ops.load_library(library)
            return
        except (OSError, RuntimeError):
            continue
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    fragment.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    fragment.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep_alive.append(fragment)
