"""Where a trial comes from: its original, its sets, what it cost, who chose it, and the command that makes it again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cu_ray.errors import UserError
from cu_ray.report.cells import ALWAYS
from cu_ray.report.page import short

if TYPE_CHECKING:
    import pandas as pd

    from cu_ray.report.results import Results


def explain(results: Results, key: str) -> dict[str, str]:
    """What the tables say of one trial, in words, by name. key: its first digits. Raises UserError where that is not one."""
    import pandas as pd

    found = results.trials[results.trials["trial_key"].str.startswith(key)]
    if len(found) != 1:
        which = "no trial" if not len(found) else f"{len(found)} trials"
        raise UserError(
            f"{key!r}: {which} of {results.folder} begin like this; the column trial_key of trials.parquet has them all"
        )
    trial: dict[str, Any] = {str(name): None if pd.isna(value) else value for name, value in found.iloc[0].items()}
    original = results.originals[results.originals["original_key"] == trial["original_key"]].to_dict("records")
    source = trial.get("source")
    half, which = ("", "whole test set") if source else ("report_", "report half")
    known = {
        "trial": trial["trial_key"],
        "status": trial["status"] if trial["error"] is None else f"{trial['status']}: {trial['error']}",
        "method": f"{trial['method']} (version {trial['method_version'] or 'not known'}) with {trial['hyperparameters']}",
        "original": f"{trial['original_key']}: {trial['model']} on {trial['dataset']}, seed {trial['seed']}, {trial['train']}",
        "original's scores": _scores(original[0], half) if original else "not in the tables",
        "manipulated": f"{trial['manipulation']} of {trial['manipulation_size']} samples, {trial['manipulation_settings']}",
        "given to the method": _given(trial),
        **({"repetition": f"unlearning seed {trial['unlearning_seed']}, all else the same"} if trial["unlearning_seed"] else {}),
        **_row_numbers(trial, results),
        f"scores, {which}": _scores(trial, half),
        "cost": _cost(trial),
        "chosen by": _rules(results, lambda row: _chose(row, trial)),
        "reported by": _rules(results, lambda row: trial["trial_key"] in list(row["trial_keys"])),
    }
    known |= {"imported from": f"{source}, logs of the published code"} if source else _made_here(trial, results)
    return {name: str(text) for name, text in known.items()}


def _made_here(trial: dict[str, Any], results: Results) -> dict[str, str]:
    known = {
        "run": f"{trial['started_at']} to {trial['finished_at']} on {trial['device']} of {trial['host']}",
        "with": f"cu-ray {trial['cu_ray_version']}, torch {trial['torch_version']}, {trial['precision']}",
    }
    if not results.can_be_replayed:
        return known
    which = f"{results.folder} {trial['trial_key'][:16]}"
    return {**known, "again": f"cu-ray replay {which}", "its weights": f"cu-ray export {which}"}


def _given(trial: dict[str, Any]) -> str:
    if not trial["deletion_size"]:
        return "nothing: it does not look at the deletion set"
    size, precision = trial["deletion_size"], trial["detection_precision"]
    right = "" if precision is None else f", {'all' if precision == 1 else round(precision * size)} of them manipulated"
    held_out = "; a fifth of them was held out for the defender" if trial["held_out"] else ""
    return f"{size} samples{right}, found by {trial['detection']}{held_out}"


def _row_numbers(trial: dict[str, Any], results: Results) -> dict[str, str]:
    """Where it says which samples these were: in a bundle, or in the one that can be made of the sweep."""
    there = results.folder.has("sets.parquet")
    if not trial["deletion_size"] or not (there or results.can_be_replayed):
        return {}
    where = results.folder / "sets.parquet" if there else f"sets.parquet, which `cu-ray bundle {results.folder}` writes"
    return {"row numbers": f"of this original's deletion set of {trial['deletion_size']} samples: in {where}"}


def _scores(row: dict[str, Any], half: str) -> str:
    values = {name: row[f"{half}{name}"] for name in ALWAYS}
    known = {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}
    return ", ".join(f"{name} {short(value)}" for name, value in known.items()) or "none"


def _cost(trial: dict[str, Any]) -> str:
    """What it takes alone, and what it really paid where it found a memo or made one."""
    if trial["unlearn_seconds"] is None:
        return "not known"
    alone, paid = ((trial[f"images_forward{end}"], trial[f"images_backward{end}"]) for end in ("", "_spent"))
    text = f"{short(trial['unlearn_seconds'])} s, {alone[0]:,.0f} images forward, {alone[1]:,.0f} backward"
    if paid == alone:
        return text
    return f"{text}; of these paid {paid[0]:,.0f} and {paid[1]:,.0f}: the rest is a memo that it shares with other trials"


def _chose(row: pd.Series, trial: dict[str, Any]) -> bool:
    """Whether the point of a trial is what a row of `best` reports on, be it by other seeds than the trial's."""
    if trial["trial_key"] in list(row["trial_keys"]):
        return True
    if len(studies := list(row["study_keys"])) != 1:  # each seed has its choice, and reports it
        return False
    of_study = studies[0] == trial["study_key"] and (not trial["deletion_size"] or row["deletion_size"] == trial["deletion_size"])
    own = json.loads(trial["hyperparameters"])
    chosen = [json.loads(point) for point in row["hyperparameters"]]
    return of_study and any(all(own.get(name) == value for name, value in point.items()) for point in chosen)


def _rules(results: Results, meets: Callable[[pd.Series], bool]) -> str:
    """The selection rules whose rows of `best` meet the condition, each with the fractions at which they do."""
    best = results.best.loc[[meets(row) for _, row in results.best.iterrows()]]
    rules = best.groupby("rule", sort=False)["deletion_fraction"].agg(list)
    which = [f"{rule} at {', '.join(f'{fraction:g}' for fraction in fractions)}" for rule, fractions in rules.items()]
    return ", ".join(which) or "no rule"
