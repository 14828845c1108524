"""The metrics of a model's predictions on the test images: a plain function of these, of true labels and of the test views."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cu_ray import plugins
from cu_ray.metrics import Metric, Outcome
from cu_ray.types import Domains, Indices, Mask, Predictions, Scores


def metrics() -> dict[str, Metric]:
    """Every metric by its name."""
    return {name: plugins.find("metrics", name)() for name in plugins.names("metrics")}


def halves(selection_half: Mask) -> dict[str, Mask]:
    """The test images that count, by what a score's name begins with: all of them, the selection and the report half."""
    return {"": np.ones(len(selection_half), dtype=bool), "val_": selection_half, "report_": ~selection_half}


def measure(wanted: Mapping[str, Metric], predictions: Predictions, domains: Domains, labels: Indices, counted: Mask) -> Scores:
    """The wanted metrics over those test images that are counted; labels: the true ones of all."""
    outcome = outcome_of(predictions, domains, labels, counted)
    return {name: metric.measure(outcome) for name, metric in wanted.items()}


def outcome_of(predictions: Predictions, domains: Domains, labels: Indices, counted: Mask) -> Outcome:
    """What a metric is given: the predictions on either domain, and what is true there."""
    affected, retain = (view.rows[counted[view.rows]] for view in (domains.affected, domains.retain))
    return Outcome(
        predictions.seen(domains.affected.stamped)[affected],
        labels[affected],
        predictions.seen(domains.retain.stamped)[retain],
        labels[retain],
        domains.target,
        domains.confused,
    )
