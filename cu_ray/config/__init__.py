"""A sweep file as a `Sweep`: every complaint names file, YAML path, line, what was given, what is allowed, the nearest name.

All faults of a file are reported at once, before any worker starts. Fields and bounds come from the plug-ins' dataclasses;
pydantic checks the types.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cu_ray import yaml_file
from cu_ray.config.asked import as_seed, restricted, sharded, with_runtime
from cu_ray.config.declared import RESERVED
from cu_ray.config.methods import Methods
from cu_ray.config.reader import DEFAULTS, EVIDENCE, NAME, REQUIRED, SECTIONS, Reader
from cu_ray.config.sweep import (
    INDEPENDENT_SAMPLERS,
    MOST_SEED,
    SAMPLERS,
    STORAGE_VARIABLE,
    TRACKERS,
    ControlsSection,
    MethodPlan,
    Options,
    OriginalSection,
    RuntimeSection,
    SearchSection,
    Space,
    Span,
    Sweep,
    default_storage,
    scratch_of,
    seconds_of,
)
from cu_ray.config.values import MOST_COMBINATIONS
from cu_ray.errors import Faults

__all__ = [
    "DEFAULTS",
    "EVIDENCE",
    "INDEPENDENT_SAMPLERS",
    "MOST_COMBINATIONS",
    "MOST_SEED",
    "NAME",
    "REQUIRED",
    "RESERVED",
    "SAMPLERS",
    "SECTIONS",
    "STORAGE_VARIABLE",
    "TRACKERS",
    "ControlsSection",
    "MethodPlan",
    "Options",
    "OriginalSection",
    "RuntimeSection",
    "SearchSection",
    "Space",
    "Span",
    "Sweep",
    "as_seed",
    "default_storage",
    "load",
    "parse",
    "parse_methods",
    "scratch_of",
    "seconds_of",
    "sharded",
    "with_runtime",
]
MERGED = {"train": 1, "search": 1, "controls": 1, "runtime": 1, "methods": 2}  # in a file that extends another
OWN = ("name",)  # what a file does not take from one that it extends


def load(path: Path | str, *, only: Sequence[str] = (), seeds: Iterable[int] = ()) -> Sweep:
    """The sweep of a YAML file; plug-ins beside it can be imported from now on. Raises UserError (Faults: all in the file).

    only: restrictions like `method=ssd` or `fraction=0.1`; seeds: further seeds besides the file's.
    """
    beside = str(Path(path).resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    return restricted(Reader(yaml_file.read(path, merged=MERGED, own=OWN)).sweep(), only, seeds)


def parse(text: str, source: str = "sweep", *, only: Sequence[str] = (), seeds: Iterable[int] = ()) -> Sweep:
    """The sweep of a YAML text, which may extend a file by its path from the current folder. Otherwise as `load`."""
    file = yaml_file.extended(yaml_file.parse(text, source), Path(), merged=MERGED, own=OWN)
    return restricted(Reader(file).sweep(), only, seeds)


def parse_methods(text: str, source: str, sweep: Sweep) -> MethodPlan:
    """The one method of a YAML text, checked for the models of a sweep."""
    reader = Methods(yaml_file.parse(text, source))
    reader.file.value = {"methods": reader.file.value}
    plans = reader.plans(reader.file.value["methods"], sweep.search, list(sweep.models))
    if reader.faults or len(plans) != 1:
        raise Faults(source, reader.faults or ["a mapping is needed: one method with its hyperparameters"])
    return plans[0]
