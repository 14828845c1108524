"""The sweep that a command asks for: some of its methods, fractions and seeds, a shard of it, other settings of its runtime."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import yaml

from cu_ray import plugins
from cu_ray.config.sweep import MOST_SEED, SEEDS, RuntimeSection, Sweep
from cu_ray.config.values import Values
from cu_ray.errors import Faults, UserError, did_you_mean
from cu_ray.places import at
from cu_ray.types import CONTROLS
from cu_ray.yaml_file import YamlFile


def with_runtime(sweep: Sweep, **settings: Any) -> Sweep:
    """The sweep with these settings of its runtime, where they are not None, instead of the file's. Raises Faults."""
    given = {name: value for name, value in settings.items() if value is not None}
    reader = Values(YamlFile(sweep.source, {"runtime": asdict(sweep.runtime) | given}))
    runtime = reader.section(RuntimeSection, "runtime")
    if reader.faults:
        raise Faults(sweep.source, reader.faults)
    return replace(sweep, runtime=runtime)


def sharded(sweep: Sweep, given: str) -> Sweep:
    """A part of the sweep, like `3/16`, with results in an output folder of its own. Raises UserError for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", given)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--shard {given}: which part and of how many are needed, like 3/16 (1/16 to 16/16)")
    part = f"shard-{number}-of-{count}"
    uri = "://" in sweep.runtime.output  # in which a '?' may follow the path
    output = str(at(sweep.runtime.output) / part) if uri else f"{sweep.runtime.output.rstrip('/')}/{part}"
    return replace(with_runtime(sweep, output=output), shard=(number, count))


def restricted(sweep: Sweep, only: Sequence[str], seeds: Iterable[int]) -> Sweep:
    """The sweep with only the named methods, fractions and seeds, and with further seeds."""
    further = [as_seed(seed) for seed in seeds]
    named: dict[str, dict[str, Any]] = {
        "method": {plugins.name_of(plan.cls): plan for plan in sweep.methods},
        "fraction": {f"{fraction:g}": fraction for fraction in sweep.fractions},
        "seed": {str(seed): seed for seed in (*sweep.seeds, *further)},
    }
    chosen: dict[str, list[Any]] = {}
    for wish in (part for each in only for part in each.split(",")):
        what, _, given = wish.partition("=")
        if what not in named:
            raise UserError(f"--only {wish}: {what!r} cannot be restricted. {did_you_mean(what, named)}")
        given = f"{float(given):g}" if what == "fraction" and _is_number(given) else given
        if given not in named[what]:
            raise UserError(f"--only {wish}: {given!r} is no {what} of {sweep.source}. {did_you_mean(given, named[what])}")
        chosen.setdefault(what, []).append(named[what][given])
    search = sweep.search
    if "fraction" in chosen and (search.scope == "across_fractions" or search.warm_start == "neighbour"):
        setting = "scope: across_fractions" if search.scope == "across_fractions" else "warm_start: neighbour"
        raise UserError(f"--only fraction: with search.{setting} a fraction's search depends on the others")
    if "seed" in chosen and search.seeds == "first" and sweep.seeds[0] not in chosen["seed"]:
        raise UserError(f"--only seed: with search.seeds: first the search is on seed {sweep.seeds[0]}, which must be among them")
    asked = replace(
        sweep,
        controls=replace(sweep.controls, never_manipulated=False, trigger_only=False) if "method" in chosen else sweep.controls,
        methods=tuple(chosen.get("method", sweep.methods)),
        fractions=tuple(dict.fromkeys(chosen.get("fraction", sweep.fractions))),
        seeds=tuple(dict.fromkeys([*chosen.get("seed", sweep.seeds), *further])),
    )
    return replace(asked, text=_text_of(asked, sweep)) if asked != sweep else sweep


def _text_of(asked: Sweep, whole: Sweep) -> str:
    """The text of the sweep that was asked for, part of a whole one and perhaps with further seeds."""
    top = yaml.safe_load(whole.text)
    if asked.methods != whole.methods:
        given = list(zip(whole.methods, top["methods"].items(), strict=True))
        top["methods"] = dict(item for plan in asked.methods for each, item in given if each is plan)
    if asked.controls != whole.controls:
        top["controls"] = {name: value for name, value in top["controls"].items() if name not in CONTROLS}
    for name, numbers, before in (("deletion_fractions", asked.fractions, whole.fractions), ("seeds", asked.seeds, whole.seeds)):
        if numbers != before:
            top[name] = list(numbers)
    return yaml.safe_dump(top, sort_keys=False, allow_unicode=True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_seed(given: Any, option: str = "--seeds") -> int:
    """The seed that an option gives. Raises UserError for anything else."""
    try:
        seed = operator.index(given)
    except TypeError:
        seed = -1
    if not 0 <= seed <= MOST_SEED:
        raise UserError(f"{option} {given} is not allowed. Allowed: {SEEDS}.")
    return seed
