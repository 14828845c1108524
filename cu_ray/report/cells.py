"""What is compared with what: a cell is all that methods share but the seed and the deletion fraction.

Cells that differ in the detection alone have their originals, and so their chance, in common: together they are one `origin`.
"""

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


def chosen(
    results: Sequence[Results], rule: str, names: dict[tuple[Any, ...], str] | None = None, *, half: str | None = None
) -> pd.DataFrame:
    """A row for each trial that the rule chose to be reported: sweep, cell, origin, method, fraction, seed, scores and costs.

    `searched`: whether its hyperparameters were chosen. A method that does not look at the deletion set has the same trial at
    each fraction. Controls are left out. Where there are several results, a method's name says which it is of.
    names: of cells, where these are held against other results. half: the prefix of the scores, by default what the rule reports.
    """
    import pandas as pd

    prefix = prefix_of(rule) if half is None else half
    names, origins = names or cell_names(results), cell_names(results, without="detection")
    parts = [_chosen(each, rule, prefix, names, origins) for each in results]
    if len(results) > 1:
        parts = [part.assign(method=part["method"] + f" ({each.label})") for part, each in zip(parts, results, strict=True)]
    return pd.concat(parts, ignore_index=True)


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of chosen trials on those seeds of each sweep and cell that searched methods are reported on, if there are any.

    With `search.seeds: first` what needs no search is reported on the seed of the search too, where others may not be.
    """
    import pandas as pd

    by = ["sweep", "cell", "seed"]
    reported = pd.MultiIndex.from_frame(rows.loc[rows["searched"], by].drop_duplicates())
    searched_in = reported.droplevel("seed").unique()
    places = pd.MultiIndex.from_frame(rows[by])
    return rows[places.isin(reported) | ~places.droplevel("seed").isin(searched_in)]


def baselines(results: Sequence[Results], rule: str) -> pd.DataFrame:
    """A row for each sweep, cell and seed: acc_corr and acc_retain without unlearning, and acc_corr of retraining.

    `num_affected` is the number of test images behind acc_corr, null in tables that do not say it. Retraining is exact
    unlearning of all layers without the whole manipulated set and nothing else, by whatever detection; of several the one of
    the most steps.
    """
    import pandas as pd

    names, origins = cell_names(results), cell_names(results, without="detection")
    return pd.concat([_baselines(each, prefix_of(rule), names, origins) for each in results], ignore_index=True)


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


def _chosen(
    results: Results, rule: str, prefix: str, names: dict[tuple[Any, ...], str], origins: dict[tuple[Any, ...], str]
) -> pd.DataFrame:
    best = results.best[(results.best["rule"] == rule) & results.best["control"].isna()]
    best = with_cells(with_cells(best, origins).rename(columns={"cell": "origin"}), names)
    best = best.assign(searched=best["search_objective"].notna())
    picked = best[["cell", "origin", "searched", "method", "deletion_fraction", "trial_keys"]].explode("trial_keys").dropna()
    columns = {"trial_key": "trial_key", "original_key": "original_key", "seed": "seed"}
    metrics = dict.fromkeys((*ALWAYS, *metrics_in(results.trials.columns)))
    columns |= {prefix + metric: metric for metric in metrics if prefix + metric in results.trials}
    kept = ("hyperparameters", "detection_precision", "unlearn_seconds", "images_forward", "images_backward")
    columns |= {name: name for name in kept}
    scores = results.trials[list(columns)].rename(columns=columns)
    rows = picked.merge(scores, left_on="trial_keys", right_on="trial_key").drop(columns="trial_keys")
    return rows.rename(columns={"deletion_fraction": "fraction"}).assign(sweep=results.label)


def _baselines(
    results: Results, prefix: str, names: dict[tuple[Any, ...], str], origins: dict[tuple[Any, ...], str]
) -> pd.DataFrame:
    corr, retain, by = f"{prefix}acc_corr", f"{prefix}acc_retain", ["origin", "seed"]
    trials = with_cells(with_cells(measured(results.trials), origins).rename(columns={"cell": "origin"}), names)
    none = trials[trials["method"] == "no_unlearning"].drop_duplicates(["cell", "seed"])
    all_found = (trials["deletion_size"] == trials["manipulation_size"]) & (trials["detection_precision"].fillna(1) == 1)
    retrained = trials[(trials["method"] == "exact_unlearning") & all_found]
    if "hp_k" in retrained:
        retrained = retrained[retrained["hp_k"].isna()].sort_values("hp_steps", ascending=False)
    retrained = retrained.drop_duplicates(by)[[*by, corr]].rename(columns={corr: "retrained"})
    rows = none[["cell", *by, "original_key", corr, retain]].rename(columns={corr: "none", retain: "none_retain"})
    rows = rows.merge(retrained, on=by, how="left").drop(columns="origin")
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
