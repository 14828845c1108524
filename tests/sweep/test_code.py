"""A changed plug-in under an old version is warned of as long as trials that other code of it made count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cu_ray.sweep import code
from cu_ray.sweep.ledger import Known
from tests.sweep.simulator import fails, plan, record_of, run

METHODS = {"no_unlearning": {}, "catastrophic_forgetting": {"steps": 2}}


def warned(made, known, **fingerprints):
    """What is warned of where these plug-ins have such fingerprints now."""
    in_use = code.of(made)
    names = {name.split()[-1]: name for name in in_use}
    return code.warnings(
        made, known, in_use | {names[name]: in_use[names[name]] | {"fingerprint": each} for name, each in fingerprints.items()}
    )


def made_under(made, known=None, outcome=record_of, **versions):
    """What is known after a run in which the code was the plan's, but for these versions and fingerprints."""
    known = known or Known()
    in_use = code.of(made)
    known.use({name: facts | versions.get(name.split()[-1], {}) for name, facts in in_use.items()})
    after, _ = run(made, known, outcome=outcome)
    made_by = {key: known.made_by.get(key, known.code) for key in (*after.originals, *after.trials)}
    return replace(after, code=known.code, made_by=made_by)


def test_nothing_is_said_of_the_same_code():
    made = plan(METHODS)
    assert warned(made, made_under(made)) == []
    assert warned(made, Known(), catastrophic_forgetting="other") == []


def test_trials_of_other_code_are_counted_run_after_run_beside_those_of_the_code_as_it_is():
    few, more = plan(METHODS), plan(METHODS, deletion_fractions=[0.5, 1.0])
    old = {"catastrophic_forgetting": {"fingerprint": "old"}}
    known = made_under(few, **old)
    said = [
        "Warning: the code of the method catastrophic_forgetting changed since results here were made, its version (1) did not. "
        "Trials made by other code: 1. They are kept, and count beside those of the code as it is now; raise its version to "
        "have them run again."
    ]
    assert warned(few, known) == said
    known = made_under(more, known)
    assert len(known.trials) == 3
    assert warned(more, known) == said
    assert warned(few, known, catastrophic_forgetting="old") == []  # the only one that counts is of the code that is back
    assert warned(more, known, catastrophic_forgetting="old") == said  # and here one is of the code in between


@pytest.mark.parametrize("kind", ["model resnet9", "manipulation backdoor", "data set fashion_mnist_small", "detection uniform"])
def test_whatever_makes_a_trial_counts(kind):
    made = plan(METHODS)
    (said,) = warned(made, made_under(made, **{kind.split()[-1]: {"fingerprint": "old"}}))
    assert f"the code of the {kind} changed" in said and "other code: 2." in said


def test_trials_count_by_the_code_of_their_original():
    few, more = plan({"no_unlearning": {}}), plan(METHODS)
    known = made_under(more, made_under(few, resnet9={"fingerprint": "old"}))
    (said,) = warned(more, known)
    assert "the code of the model resnet9 changed" in said and "other code: 2." in said


def test_other_versions_and_failed_trials_do_not_count():
    made = plan(METHODS)
    assert warned(made, made_under(made, catastrophic_forgetting={"version": 0, "fingerprint": "old"})) == []
    known = made_under(
        made,
        outcome=lambda job: record_of(job) if job.kind == "original" else fails(job),
        catastrophic_forgetting={"fingerprint": "old"},
    )
    assert warned(made, known) == []
