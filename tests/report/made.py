"""Folders of results whose numbers are known beforehand: simulated sweeps, with the scores that a test gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cu_ray.plugins import name_of
from cu_ray.sweep import tables
from cu_ray.types import OriginalSpec, TrialSpec
from tests.sweep.simulator import SCRUB, plan, record_of, run

FRACTIONS = [0.1, 0.5, 1.0]
NUM_AFFECTED = 1000
METHODS = {
    "no_unlearning": {},
    "exact_unlearning": {"steps": 20},
    "scrub": {**SCRUB, "trials": 4, "sampler": "random"},
    "ssd": {"selection_share": {"low": 0.002, "high": 0.1, "log": True, "num": 4}, "relative_dampening": 1, "sampler": "grid"},
}

Accuracies = Callable[[TrialSpec, int], tuple[float, float]]  # acc_corr and acc_retain of a trial with this seed


def smooth(spec: TrialSpec, seed: int) -> tuple[float, float]:
    """Nothing without unlearning, all by retraining at fraction 1, SSD well everywhere; seeds differ a little."""
    share = spec.deletion_size / spec.original.setting.manipulation.size
    method, shift = name_of(spec.method), 0.01 * seed
    corr = {"no_unlearning": 0.1, "exact_unlearning": 0.1 + 0.7 * share**4, "scrub": 0.1 + 0.5 * share**2}.get(method, 0.7)
    retain = {"ssd": 0.75, "scrub": 0.8}.get(method, 0.83)
    if method in ("scrub", "ssd"):
        corr -= 0.05 * (len(str(spec.method)) % 3)  # points differ
    return corr + shift, retain + shift / 2


def folder(
    where: Path,
    accuracies: Accuracies = smooth,
    *,
    methods: dict[str, Any] | None = None,
    outcome: Any = None,
    luck: Callable[[TrialSpec], float] = lambda spec: 0.0,
    **sections: Any,
) -> Path:
    """The folder of a finished sweep in which each trial has these accuracies, on all test images and on both halves.

    luck: what a trial's acc_corr has more on the report half, and so half of it on all.
    """
    made = plan(
        methods or METHODS, **{"seeds": [0, 1, 2], "deletion_fractions": FRACTIONS, "search": {"seeds": "each"}, **sections}
    )

    def scored(job: Any) -> Any:
        record = (outcome or record_of)(job)
        if not record.ok:
            return record
        if isinstance(job.spec, OriginalSpec):
            return replace(record, facts={**record.facts, "num_affected": NUM_AFFECTED})
        corr, retain = accuracies(job.spec, job.spec.original.setting.seed)
        given = {
            f"{half}{name}": value
            for half in ("", "val_", "report_")
            for name, value in (("acc_corr", corr), ("acc_retain", retain))
        }
        given["report_acc_corr"] += luck(job.spec)
        given["acc_corr"] += luck(job.spec) / 2
        return replace(record, scores={**record.scores, **given})

    known, _ = run(made, workers=2, outcome=scored)
    where.mkdir(parents=True, exist_ok=True)
    tables.write(where / "tables", made, known)
    done, failed = len(known.trials), sum(not record.ok for record in known.trials.values())
    status = {"trials": done, "trials_done": done, "trials_failed": failed, "originals": len(known.originals)}
    (where / "status.json").write_text(json.dumps(status))
    return where
