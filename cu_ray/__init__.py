"""cu-ray: distributed sweeps for corrective machine unlearning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cu_ray.api import Interrupted, Results, Sweep
    from cu_ray.errors import RayStopped, UserError

__all__ = ["Interrupted", "RayStopped", "Results", "Sweep", "UserError"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is public, imported when it is first used: plug-ins and workers import this package too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("cu_ray.errors" if name in ("RayStopped", "UserError") else "cu_ray.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
