"""Named rules that turn a trial's scores into the number to maximise, and say on which test images to report.

The test images are split once into a selection half (`val_`) and a report half (`report_`). All rules but `published`
report on the report half, so that gaps between them are of selection and not of sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cu_ray.types import Scores

REM_PROXY_FLOOR = 0.2

Score = Callable[[Scores, int], float | None]


@dataclass(frozen=True)
class Rule:
    """A rule's name, its score of (a trial's scores, number of classes), and how it reports."""

    name: str
    summary: str
    score: Score
    reports: str = "report_"  # prefix of the columns that it reports
    uses_test_labels: bool = True
    held_out: bool = False  # scores the trial in which a part of the deletion set was kept back from the method


def _mean_of(prefix: str) -> Score:
    def score(scores: Scores, num_classes: int) -> float | None:
        corr, retain = scores.get(f"{prefix}acc_corr"), scores.get(f"{prefix}acc_retain")
        return None if corr is None or retain is None else (corr + retain) / 2

    return score


def _defender(scores: Scores, num_classes: int) -> float | None:
    validation, held_out = scores.get("validation_given"), scores.get("held_out_given")
    return None if validation is None or held_out is None else validation * (1 - max(held_out, 1 / num_classes))


def _rem_proxy(scores: Scores, num_classes: int) -> float | None:
    retain, deletion = scores.get("retain_given"), scores.get("deletion_given")
    return None if retain is None or deletion is None else retain * (1 - max(deletion, REM_PROXY_FLOOR))


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "published", "mean of acc_corr and acc_retain on the whole test set, reported on the same", _mean_of(""), reports=""
        ),
        Rule("oracle", "the same, chosen and reported on the report half: an upper bound", _mean_of("report_")),
        Rule("oracle_validation", "the same, chosen on the selection half, reported on the report half", _mean_of("val_")),
        Rule(
            "defender",
            "only what the owner has: validation accuracy x (1 - accuracy on a held-out fifth of the deletion set)",
            _defender,
            uses_test_labels=False,
            held_out=True,
        ),
        Rule(
            "rem_proxy",
            "acc(retain set) x (1 - max(acc(deletion set), 0.2)), labels as given (arXiv 2505.17730)",
            _rem_proxy,
            uses_test_labels=False,
        ),
    )
}
