"""The code of the plug-ins that a sweep uses: as it is now, and of how many of its trials it was other code."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cu_ray import plugins
from cu_ray.sweep.ledger import Known
from cu_ray.sweep.plan import Plan, StudySpec
from cu_ray.sweep.tables import trial_keys

Code = dict[str, dict[str, Any]]  # version and fingerprint by kind and name, like "method own:Mine"


def of(plan: Plan) -> Code:
    """The version of each plug-in that a plan uses, and the fingerprint of its code now."""
    classes = {name: cls for study in plan.studies for part in _used(study) for name, cls in part.items()}
    return {name: {"version": cls.version, "fingerprint": plugins.fingerprint(cls)} for name, cls in classes.items()}


def own(in_use: Code) -> dict[str, tuple[str, str]]:
    """Of those plug-ins that are the user's own the files and fingerprints, by module:Class."""
    names = {name.rpartition(" ")[2]: facts["fingerprint"] for name, facts in in_use.items() if ":" in name}
    return {name: (str(sys.modules[name.partition(":")[0]].__file__), fingerprint) for name, fingerprint in names.items()}


def warnings(plan: Plan, known: Known, in_use: Code) -> list[str]:
    """A line for each plug-in that has made trials of a plan by other code than now in use, under the same version."""
    num_made = Counter(name for study in plan.studies for name in _changed(study, known, in_use))
    return [
        f"Warning: the code of the {name} changed since results here were made, its version ({in_use[name]['version']}) did not. "
        f"Trials made by other code: {count}. They are kept, and count beside those of the code as it is now; "
        "raise its version to have them run again."
        for name, count in sorted(num_made.items())
    ]


def _used(study: StudySpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The classes of the plug-ins that a study's trials use by kind and name; apart, those that its originals use as well."""
    setting = study.settings[0]
    of_originals = {"data set": setting.dataset, "model": setting.model, "manipulation": setting.manipulation}
    return (
        _named({"method": study.method.cls, "detection": type(study.detection)}),
        _named({kind: type(plugin) for kind, plugin in of_originals.items()}),
    )


def _named(classes: dict[str, Any]) -> dict[str, Any]:
    return {f"{kind} {plugins.name_of(cls)}": cls for kind, cls in classes.items()}


def _changed(study: StudySpec, known: Known, in_use: Code) -> Iterable[str]:
    """For each finished trial of a study: what of it, or of its original, was made by other code of the version in use."""
    of_trials, of_originals = _used(study)
    for key in trial_keys(study, known) & known.trials.keys():
        trial = known.trials[key]
        if trial.status == "failed":  # it has no scores
            continue
        made_by, original_made_by = (known.made_by.get(each, {}) for each in (key, trial.spec["original_key"]))
        yield from (name for name in of_trials if _is_other(made_by, in_use, name))
        yield from (name for name in of_originals if any(_is_other(each, in_use, name) for each in (made_by, original_made_by)))


def _is_other(made_by: Code, in_use: Code, name: str) -> bool:
    """Whether it was other code under the version that is in use."""
    was, now = made_by.get(name, in_use[name]), in_use[name]
    return bool(was.get("version") == now["version"] and was.get("fingerprint") != now["fingerprint"])
