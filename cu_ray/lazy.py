"""torch, imported when it is first used.

`plan`, `list`, `status` and `table` read plug-in files for their names, fields and ranges; starting torch for that costs
seconds. So modules that are read for such facts write `from cu_ray.lazy import torch` and use it inside functions only.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cu_ray import collector


class _Deferred(ModuleType):
    """A module that is imported at its first attribute access."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # what the import system and inspections ask of any module
            raise AttributeError(name)
        with collector.at_rest():
            module = importlib.import_module(self.__name__)
        value = getattr(module, name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import torch as torch
else:
    torch = _Deferred("torch")
