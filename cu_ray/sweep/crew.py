"""The workers of a sweep on a running Ray: what they share, how they get their jobs, and the Tune run that they are."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import ray
from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cu_ray.config import Sweep
from cu_ray.places import lasting
from cu_ray.sweep.desk import Desk
from cu_ray.sweep.dispatch import Dispatch
from cu_ray.sweep.ready import Job
from cu_ray.sweep.room import Room, require, shape
from cu_ray.sweep.searcher import Faults, NowAndThen, WhenOver, WorkerSearcher
from cu_ray.sweep.trainable import StageTrainable, pack
from cu_ray.sweep.vigil import RayIsGone
from cu_ray.types import Dataset

MOST_AT_DESK = 100_000  # workers that wait there: of an actor's calls Ray lets 1,000 wait, and none other in then
DEATHS = (OutOfMemoryError, NodeDiedError, ObjectLostError, WorkerCrashedError)  # of a worker, that are no RayActorError


class Crew:
    """Workers for one sweep. Data sets are put into the object store once; the desk is an actor beside the driver."""

    def __init__(self, sweep: Sweep, datasets: Iterable[Dataset], device: str, own_code: Mapping[str, tuple[str, str]]) -> None:
        """own_code: the files and fingerprints of the user's own plug-ins, by module:Class, which workers are to have."""
        self._sweep = sweep
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._handed: Any = None  # what the desk says of the last job that it was given
        # the desk alone has them: what a trainable is given Ray holds as long as it lives, also one that outlives the sweep
        shared = {each.content_hash: ray.put(each) for each in datasets}
        desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=MOST_AT_DESK, scheduling_strategy=here)
        self._desk = desk.remote(shared)
        self._trainable = tune.with_parameters(
            StageTrainable,
            desk=self._desk,
            storage=lasting(sweep.runtime.storage),
            device=device,
            trial_seconds=sweep.runtime.trial_seconds,
            import_path=[str(folder) for folder in sweep.import_path],
            own_code=dict(own_code),
            keeps_evidence=sweep.evidence,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the desk, and with it what is in the object store of a Ray that stays."""
        if kind is None or not issubclass(kind, RayIsGone):
            ray.kill(self._desk)

    def hand(self, worker: str, job: Job | None) -> None:
        """Give a worker its next job, or dismiss it."""
        self._handed = self._desk.put.remote(worker, None if job is None else pack(job))

    def _look_after_the_desk(self, dispatch: Dispatch) -> None:
        """Give up where it has ended: nobody gets a job any more."""
        if self._handed is None or not ray.wait([self._handed], timeout=0)[0]:
            return
        try:
            ray.get(self._handed)
        except ray.exceptions.RayError as error:
            print(error)  # into the log
            ray.kill(self._desk)  # or cannot be reached: then nobody is to wait there
            dispatch.give_up("the desk at which workers wait for their jobs ended", type(error).__name__)
        self._handed = None

    def work(
        self,
        dispatch: Dispatch,
        share: float | None,
        growth: Mapping[str, float] | None,
        now_and_then: Iterable[Callable[[], object]],
    ) -> None:
        """Run one Tuner until the dispatch is over. All workers have one shape; another one needs another run.

        growth: what the cluster has when it is fully grown; None where it does not grow.
        Raises UserError where not one worker fits into the cluster, and what the dispatch raised at what it was told.
        """
        worker = shape(share)
        room = Room(worker, self._sweep.runtime.workers, growth, lambda: dispatch.num_wanted, dispatch.node_gone)
        require(room, worker)
        scratch, faults = self._sweep.scratch / ".tune", Faults()
        tuner = tune.Tuner(
            tune.with_resources(self._trainable, worker),
            tune_config=tune.TuneConfig(
                search_alg=WorkerSearcher(dispatch, room, faults),
                num_samples=-1,
                reuse_actors=False,
                trial_name_creator=lambda trial: str(trial.trial_id),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(scratch.resolve()),
                verbose=0,
                progress_reporter=tune.CLIReporter(),  # else Tune clears a notebook's cell for its own display
                stop=WhenOver(dispatch),
                callbacks=[
                    NowAndThen(dispatch, faults, dispatch.go_on, lambda: self._look_after_the_desk(dispatch), *now_and_then)
                ],
            ),
        )
        try:
            with _deaths_of_all_kinds():
                tuner.fit()
        except tune.TuneError:
            traceback.print_exc()  # into the log; what is not done is said at the end
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if faults.first is not None:
            raise faults.first


@contextlib.contextmanager
def _deaths_of_all_kinds() -> Iterator[None]:
    """A context in which a worker has died, too, where Ray ended it for want of memory or its result went with its node.

    Such errors are none of an actor for Ray, and Tune (2.60) ends the whole run for them.
    """
    tunes_own = RayActorManager._actor_task_failed

    def failed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, DEATHS):
            exception = RayActorError(error_msg=str(exception))
        tunes_own(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = tunes_own
