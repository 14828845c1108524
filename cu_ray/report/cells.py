"""What is compared with what: a cell is all that methods share but the seed and the deletion fraction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cu_ray.report.results import SETTING, Results
from cu_ray.report.terminal import metrics_in

if TYPE_CHECKING:
    import pandas as pd

ALWAYS = ("acc_corr", "acc_retain", "asr", "confusion_rate")  # metrics of every table


def cell_names(results: Sequence[Results], *, without: str = "") -> dict[tuple[Any, ...], str]:
    """The name of each cell by its setting: manipulation and size, and what else differs between cells of these results.

    without: a fact that names leave out, 'detection' for instance; cells that differ in nothing else have the same name.
    """
    found = {setting for each in results for setting in _settings(each.best) | _settings(each.trials)}
    known = sorted(found, key=lambda setting: (*map(str, setting[:3]), setting[3], *map(str, setting[4:])))
    facts = [_facts(setting) for setting in known]
    varied = [name for name in dict.fromkeys(name for each in facts for name in each) if _varies(name, facts)]
    names = {}
    for setting, own in zip(known, facts, strict=True):
        more = [f"{name.partition('.')[2] or name}={own[name]}" for name in varied if name in own and name != without]
        names[setting] = " ".join([str(setting[2]), str(setting[3]), *more])
    return names


def chosen(results: Sequence[Results], rule: str, names: dict[tuple[Any, ...], str] | None = None) -> pd.DataFrame:
    """A row for each trial that the rule chose to be reported: sweep, cell, method, fraction, seed, scores and costs.

    A method that does not look at the deletion set has the same trial at each fraction. Controls are left out. Where there
    are several results, a method's name says which it is of.
    names: of cells, where these are held against other results.
    """
    import pandas as pd

    names = names or cell_names(results)
    parts = [_chosen(each, rule, names) for each in results]
    if len(results) > 1:
        parts = [part.assign(method=part["method"] + f" ({each.label})") for part, each in zip(parts, results, strict=True)]
    return pd.concat(parts, ignore_index=True)


def baselines(results: Sequence[Results], rule: str) -> pd.DataFrame:
    """A row for each sweep, cell and seed: acc_corr and acc_retain without unlearning, and acc_corr of retraining.

    `num_affected` is the number of test images behind acc_corr, null in tables that do not say it. Retraining is exact
    unlearning of all layers at fraction 1; of several the one of the most steps.
    """
    import pandas as pd

    names = cell_names(results)
    return pd.concat([_baselines(each, prefix_of(rule), names) for each in results], ignore_index=True)


def with_cells(frame: pd.DataFrame, names: dict[tuple[Any, ...], str]) -> pd.DataFrame:
    """The rows with their cell's name."""
    import pandas as pd

    keys = list(frame[list(SETTING)].itertuples(index=False, name=None))
    return frame.assign(cell=pd.Series([names[key] for key in keys], index=frame.index, dtype=str))


def prefix_of(rule: str) -> str:
    """The prefix of the score columns that a rule reports."""
    from cu_ray.selection import RULES

    return RULES[rule].reports


def measured(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that count as results: finished, on the whole deletion set, not repetitions, of manipulated originals."""
    return trials[(trials["status"] == "ok") & ~trials["held_out"] & (trials["unlearning_seed"] == 0) & trials["control"].isna()]


def _chosen(results: Results, rule: str, names: dict[tuple[Any, ...], str]) -> pd.DataFrame:
    best = results.best[(results.best["rule"] == rule) & results.best["control"].isna()]
    picked = with_cells(best, names)[["cell", "method", "deletion_fraction", "trial_keys"]].explode("trial_keys").dropna()
    prefix = prefix_of(rule)
    columns = {"trial_key": "trial_key", "original_key": "original_key", "seed": "seed"}
    metrics = dict.fromkeys((*ALWAYS, *metrics_in(results.trials.columns)))
    columns |= {prefix + metric: metric for metric in metrics if prefix + metric in results.trials}
    kept = ("hyperparameters", "detection_precision", "unlearn_seconds", "images_forward", "images_backward")
    columns |= {name: name for name in kept}
    scores = results.trials[list(columns)].rename(columns=columns)
    rows = picked.merge(scores, left_on="trial_keys", right_on="trial_key").drop(columns="trial_keys")
    return rows.rename(columns={"deletion_fraction": "fraction"}).assign(sweep=results.label)


def _baselines(results: Results, prefix: str, names: dict[tuple[Any, ...], str]) -> pd.DataFrame:
    corr, retain, by = f"{prefix}acc_corr", f"{prefix}acc_retain", ["cell", "seed"]
    trials = with_cells(measured(results.trials), names)
    none = trials[trials["method"] == "no_unlearning"].drop_duplicates(by)
    retrained = trials[(trials["method"] == "exact_unlearning") & (trials["deletion_size"] == trials["manipulation_size"])]
    if "hp_k" in retrained:
        retrained = retrained[retrained["hp_k"].isna()].sort_values("hp_steps", ascending=False).drop_duplicates(by)
    rows = none[[*by, "original_key", corr, retain]].rename(columns={corr: "none", retain: "none_retain"})
    rows = rows.merge(retrained[[*by, corr]].rename(columns={corr: "retrained"}), on=by, how="left")
    images = results.originals.reindex(columns=["original_key", "num_affected"]).drop_duplicates("original_key")
    return rows.merge(images, on="original_key", how="left").assign(sweep=results.label)


def _settings(frame: pd.DataFrame) -> set[tuple[Any, ...]]:
    return set(frame[list(SETTING)].drop_duplicates().itertuples(index=False, name=None))


def _facts(setting: tuple[Any, ...]) -> dict[str, Any]:
    """What can differ between cells of one manipulation and size."""
    own = dict(zip(SETTING, setting, strict=True))
    facts = {name: own[name] for name in ("dataset", "model", "detection")}
    facts |= {f"{own['manipulation']}.{name}": value for name, value in json.loads(own["manipulation_settings"]).items()}
    return facts | {f"train.{name}": value for name, value in json.loads(own["train"]).items()}


def _varies(name: str, facts: list[dict[str, Any]]) -> bool:
    return len({str(each[name]) for each in facts if name in each}) > 1
