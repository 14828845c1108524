"""What Tune is told of a worker that Ray ended for another reason than a crash."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.air.execution._internal import RayActorManager
from ray.exceptions import ObjectLostError, OutOfDiskError, OutOfMemoryError, RayActorError

from cu_ray.sweep.crew import _deaths_of_all_kinds

OF_OTHER_KINDS = [OutOfMemoryError("running low on memory"), ObjectLostError("ab" * 28, None, "its node died")]


def heard(error: Exception) -> list[Exception]:
    """What Tune's callbacks hear of a call to an actor that ended so."""
    manager, errors = RayActorManager.__new__(RayActorManager), []
    manager._failed_actor_ids, manager._cleanup_actor = set(), lambda tracked_actor: None
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: errors.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda actor, error: errors.append(error))
    manager._actor_task_failed(tracked_actor_task=task, exception=error)  # as Ray calls it
    return errors


@pytest.mark.parametrize("error", OF_OTHER_KINDS, ids=lambda error: type(error).__name__)
def test_a_worker_that_ended_for_want_of_memory_or_with_its_node_has_died_as_others_do(error):
    with _deaths_of_all_kinds():
        errors = heard(error)
    assert [type(each) for each in errors] == [RayActorError] * 2, "of the actor, and of its call"
    assert {str(each) for each in errors} == {str(error)}
    with pytest.raises(RuntimeError, match="unexpected"):  # when this no longer raises, Tune has learned it
        heard(error)


def test_a_full_disk_of_the_driver_is_no_death_of_a_worker():
    with _deaths_of_all_kinds(), pytest.raises(RuntimeError, match="unexpected"):
        heard(OutOfDiskError("full"))


def test_what_tune_knows_is_left_as_it_is():
    error = RayActorError(error_msg="died")
    with _deaths_of_all_kinds():
        assert heard(error) == [error, error]
