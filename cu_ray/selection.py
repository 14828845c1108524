"""Named rules that turn a trial's scores into the number to maximise, and say on which test images to report.

The test images are split once into a selection half (`val_`) and a report half (`report_`). All rules but `published`
report on the report half, so that gaps between them are of selection and not of sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cu_ray.types import Scores

REM_PROXY_FLOOR = 0.2
POTION_REMAINING = 0.2
LEAST_HELD_OUT_OF = 23  # samples found: a fifth of fewer is not held out (`num_held_out_of`)

Parts = tuple[float, float]


@dataclass(frozen=True)
class Rule:
    """A rule's name, the two parts of its score (of a trial's scores and the number of classes), and how it reports."""

    name: str
    summary: str
    parts: Callable[[Scores, int], Parts | None]  # correction and utility, both to be maximised; None where unknown
    combine: Callable[[Parts], float]
    reports: str = "report_"  # prefix of the columns that it reports
    uses_test_labels: bool = True
    peeks: bool = False  # chooses by the test images that it reports
    held_out: bool = False  # scores the trial in which a part of the deletion set was kept back from the method
    needs_truth: bool = False  # the true labels of what was manipulated
    least_found: int = 0  # samples in the deletion set

    def lacks(self, num_found: int, truth_known: bool) -> str | None:
        """What it needs and has not where so many samples are found; None where it can be computed."""
        if self.needs_truth and not truth_known:
            return "true labels"
        if num_found < self.least_found:
            return f"at least {self.least_found} sample{'s' * (self.least_found > 1)} found"
        return None

    def score(self, scores: Scores, num_classes: int) -> float | None:
        """The number to maximise; None where the rule has none."""
        parts = self.parts(scores, num_classes)
        return None if parts is None else self.combine(parts)


def _mean(parts: Parts) -> float:
    return (parts[0] + parts[1]) / 2


def _product(parts: Parts) -> float:
    return parts[1] * parts[0]


def _accuracies(prefix: str) -> Callable[[Scores, int], Parts | None]:
    def parts(scores: Scores, num_classes: int) -> Parts | None:
        corr, retain = scores.get(f"{prefix}acc_corr"), scores.get(f"{prefix}acc_retain")
        return None if corr is None or retain is None else (corr, retain)

    return parts


def _defender(scores: Scores, num_classes: int) -> Parts | None:
    validation, held_out = scores.get("validation_given"), scores.get("held_out_given")
    return None if validation is None or held_out is None else (1 - max(held_out, 1 / num_classes), validation)


def _rem_proxy(scores: Scores, num_classes: int) -> Parts | None:
    retain, deletion = scores.get("retain_given"), scores.get("deletion_given")
    return None if retain is None or deletion is None else (1 - max(deletion, REM_PROXY_FLOOR), retain)


def _potion_stop(scores: Scores, num_classes: int) -> Parts | None:
    """What is lacking to forgotten, at most 0, and what is kept."""
    before, deletion, retain = (scores.get(name) for name in ("deletion_given_before", "deletion_given", "retain_given"))
    if before is None or deletion is None or retain is None:
        return None
    return min(0.0, round(POTION_REMAINING * before - deletion, 12)), retain  # a fifth of .7 is .14, not a bit more


def _utility_once_corrected(parts: Parts) -> float:
    return parts[0] or parts[1]


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "published",
            "mean of acc_corr and acc_retain on the whole test set, reported on the same",
            _accuracies(""),
            _mean,
            "",
            peeks=True,
            needs_truth=True,
        ),
        Rule(
            "oracle",
            "mean of acc_corr and acc_retain, chosen and reported on the report half: an upper bound",
            _accuracies("report_"),
            _mean,
            peeks=True,
            needs_truth=True,
        ),
        Rule(
            "oracle_validation",
            "mean of acc_corr and acc_retain on the selection half, reported on the report half",
            _accuracies("val_"),
            _mean,
            needs_truth=True,
        ),
        Rule(
            "defender",
            "only what the owner has: validation accuracy x (1 - max(accuracy on a held-out fifth of the deletion set, chance))",
            _defender,
            _product,
            uses_test_labels=False,
            held_out=True,
            least_found=LEAST_HELD_OUT_OF,
        ),
        Rule(
            "rem_proxy",
            "acc(retain set) x (1 - max(acc(deletion set), 0.2)), labels as given (arXiv 2505.17730)",
            _rem_proxy,
            _product,
            uses_test_labels=False,
            least_found=1,
        ),
        Rule(
            "potion_stop",
            "best acc(retain set) where acc(deletion set), labels as given, is a fifth of the original's at most (2406.09173)",
            _potion_stop,
            _utility_once_corrected,
            uses_test_labels=False,
            least_found=1,
        ),
    )
}
