"""What differs between two results: facts of how they were made, and scores beyond the noise of seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cu_ray import yaml_file
from cu_ray.errors import UserError
from cu_ray.report.cells import cell_names, chosen
from cu_ray.report.comparison import LEVEL, holm, paired_t
from cu_ray.report.contents import runs, trainings
from cu_ray.report.results import Results

if TYPE_CHECKING:
    import pandas as pd

PLACE = ["cell", "method", "fraction"]
METRICS = ("acc_corr", "acc_retain")
VOLATILE = ("run",)
NOT_ASKED = ("name", "runtime")  # sections of a sweep file that no trial depends on


def facts(one: Results, other: Results, codes: Sequence[Mapping[str, Any]] = ({}, {})) -> dict[str, tuple[str, str]]:
    """What is said of how each was made, by name, where the two differ: what was run, sweep files, versions and code.

    Sweep files where both are there, path by path; versions and code of what both used. codes: what the ledger of each says
    of the code of its plug-ins.
    """
    both = [{**runs(each), "training": "; ".join(trainings(each))} for each in (one, other)]
    asked = [_asked(each) for each in (one, other)]
    used = [_versions(each) | _fingerprints(code) for each, code in zip((one, other), codes, strict=True)]
    shared = [{name: each[name] for name in used[0] if name in used[1]} for each in used]
    found = _differing(*both) | (_differing(*asked) if all(asked) else {}) | _differing(*shared)
    return {name: pair for name, pair in found.items() if name not in VOLATILE}


def scores(one: Results, other: Results, rule: str) -> list[Mapping[str, Any]]:
    """A row for each cell, method, fraction and metric of which a seed that both have differs.

    `difference`: mean over these seeds of the other's less the one's. `alone`: p of the paired t test over seeds; None where
    there is one seed, or where all differ by the same. `p`: corrected by Holm for all rows. `beyond` noise: this is below 0.05.
    """
    names = [*PLACE, "seed"]
    parts = [part[[*names, *METRICS]] for part in _chosen(one, other, rule)]
    joined = parts[0].merge(parts[1], on=names, suffixes=("", "_other"))
    rows: list[dict[str, Any]] = []
    for place, own in joined.groupby(PLACE, sort=False):
        for metric in METRICS:
            differences = (own[f"{metric}_other"] - own[metric]).dropna()
            if (differences != 0).any():
                row = dict(zip(PLACE, place if isinstance(place, tuple) else (place,), strict=True))
                row |= {"metric": metric, "n": len(differences), "difference": float(differences.mean())}
                rows.append({**row, "alone": paired_t(list(differences))})
    corrected = holm([row["alone"] for row in rows])
    return [{**row, "p": p, "beyond": p is not None and p < LEVEL} for row, p in zip(rows, corrected, strict=True)]


def num_shared(one: Results, other: Results, rule: str) -> int:
    """How many rows of cell, method, fraction and seed both have. Raises UserError where that is none, saying what each has."""
    names, parts = [*PLACE, "seed"], _chosen(one, other, rule)
    count = len(parts[0][names].merge(parts[1][names], on=names))
    if not count:
        there = [f"{each.label} has {_extent(each, part)}" for each, part in zip((one, other), parts, strict=True)]
        raise UserError("\n  ".join([f"under {rule} no cell, method, fraction and seed is in both", *there]))
    return count


def alone(one: Results, other: Results, rule: str) -> dict[str, list[str]]:
    """The cells that only one of the two has, by its label."""
    here, there = ([str(cell) for cell in dict.fromkeys(part["cell"])] for part in _chosen(one, other, rule))
    found = {one.label: [cell for cell in here if cell not in there], other.label: [cell for cell in there if cell not in here]}
    return {label: cells for label, cells in found.items() if cells}


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    pairs = {name: (one.get(name, "-"), other.get(name, "-")) for name in dict.fromkeys([*one, *other])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _asked(results: Results) -> dict[str, str]:
    """What the sweep file in the folder asks for, by YAML path; nothing where there is none."""
    if not results.folder.has("sweep.yaml"):
        return {}
    text = results.folder.read("sweep.yaml").decode(errors="replace")
    value = yaml_file.parse(text, str(results.folder / "sweep.yaml")).value
    sections = {name: each for name, each in value.items() if name not in NOT_ASKED} if isinstance(value, dict) else value
    return {f"sweep.yaml {path}": text for path, text in _flat(sections, "").items()}


def _flat(value: Any, path: str) -> dict[str, str]:
    """The values in nested mappings, and in lists of these, by their YAML path."""
    if isinstance(value, dict) and value:
        inner = {f"{path}.{name}".removeprefix("."): each for name, each in value.items()}
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        inner = {f"{path}[{index}]": each for index, each in enumerate(value)}
    else:
        return {path: value if isinstance(value, str) else json.dumps(value, default=str)}
    return {place: text for name, each in inner.items() for place, text in _flat(each, name).items()}


def _versions(results: Results) -> dict[str, str]:
    known = results.trials.dropna(subset=["method_version"]).groupby("method", sort=False)["method_version"]
    return {f"version of {method}": ", ".join(f"{version:g}" for version in sorted(own.unique())) for method, own in known}


def _fingerprints(code: Mapping[str, Any]) -> dict[str, str]:
    return {f"code of {name}": f"version {said.get('version')}, {said.get('fingerprint')}" for name, said in code.items()}


def _chosen(one: Results, other: Results, rule: str) -> list[pd.DataFrame]:
    """The trials of each that the rule chose; a cell has the same name in both."""
    names = cell_names([one, other])
    return [chosen([each], rule, names) for each in (one, other)]


def _extent(results: Results, part: pd.DataFrame) -> str:
    """The cells, methods, fractions and seeds of these rows, in words; where there are none, the rules that have chosen some."""
    if part.empty:
        rules = dict.fromkeys(results.best.loc[results.best["n"] > 0, "rule"])
        return f"nothing under it, but under {', '.join(rules)}" if rules else "no scores at all"
    columns = {f"{name}s": part[name] for name in (*PLACE, "seed")} | {"fractions": part["fraction"].map("{:g}".format)}
    return "; ".join(f"{name} {', '.join(map(str, dict.fromkeys(column)))}" for name, column in columns.items())
