"""Runs a sweep: starts or joins Ray, shares the data sets, runs one Tuner over the agenda, writes the tables."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from cu_ray import checks, collector, plugins
from cu_ray.config import Sweep
from cu_ray.errors import FieldFault, RayStopped, StoreFailed, UserError
from cu_ray.lease import LeaseLost
from cu_ray.places import Folder, Place, at, lasting, patiently
from cu_ray.stages.poison import poison
from cu_ray.store import PAUSES, LocalStore, checksum, open_store
from cu_ray.sweep import (
    cluster,
    code,
    doctor,
    frame,
    hardware,
    ledger,
    lost,
    plan,
    process,
    remarks,
    status,
    tables,
    trackers,
    weights,
)
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.dispatch import Dispatch
from cu_ray.sweep.estimate import Estimate, estimate, pace_of_others
from cu_ray.sweep.growth import growth
from cu_ray.sweep.losses import Health
from cu_ray.sweep.pace import Pace
from cu_ray.sweep.ready import Job
from cu_ray.sweep.room import Room, require, shape
from cu_ray.sweep.session import at_ray, log_of, say
from cu_ray.sweep.shard import part_of
from cu_ray.sweep.starts import START_AGAIN_AFTER
from cu_ray.sweep.tracking import Tracking
from cu_ray.sweep.vigil import Vigil
from cu_ray.types import Dataset, Record

NODE_STARTS_WITHIN = 600.0  # seconds, where a cluster grows
SPARE_SECONDS = 60.0  # that a worker without a job waits for one where its node could go
ESTIMATE_EVERY = 2.0  # seconds between estimates of what is left
TABLES_EVERY, MIRROR_EVERY = 30.0, 5.0  # seconds between writings of the tables and of the Optuna journal while the sweep runs


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    estimate: Estimate
    num_run: int
    num_failed: int  # of all trials and originals of the plan, also those from earlier runs
    interrupted: bool
    tables: Place
    time_is_up: bool
    remarks: list[str]
    set_aside: dict[str, str]


def load_datasets(sweep: Sweep) -> dict[Any, Dataset]:
    """The data sets of a sweep, downloaded where need be.

    Raises UserError where one is missing or not as it has to be, or where a model of the user's own does not work on it.
    """
    datasets = {dataset: checks.loaded(dataset, f"{sweep.source}: dataset") for dataset in sweep.datasets}
    for model in sweep.models:
        for loaded in datasets.values():
            checks.try_own_model(model, loaded.image_shape, loaded.num_classes, f"{sweep.source}: model")
    return datasets


def make_plan(sweep: Sweep, datasets: Mapping[Any, Dataset]) -> plan.Plan:
    """The sweep's plan. Of data sets that are not loaded it knows the sizes only: nothing of theirs counts as done.

    What the sweep leaves to the hardware this machine decides.

    Raises UserError where the images themselves do not allow a manipulation, where one is not as it has to be, or given
    weights are not those of the model.
    """
    for dataset, manipulation in sweep.manipulations:
        try:
            if dataset in datasets:
                with plugins.users_fault(manipulation, f"{sweep.source}: manipulation"):
                    poisoned = poison(datasets[dataset], manipulation, seed=sweep.seeds[0])
                    if plugins.is_own(manipulation):
                        again = poison(datasets[dataset], manipulation, seed=sweep.seeds[0])
                        checks.require(checks.of_repetition(poisoned, again))
        except FieldFault as error:
            raise UserError(f"{sweep.source}: manipulation.{error.field}: {error}") from error
    sources = {
        each: plan.Source.of(datasets[each]) if each in datasets else plan.Source.expected(each) for each in sweep.datasets
    }
    sweep = hardware.here(sweep).settle(sweep)
    if sweep.original.path is None:
        return part_of(plan.make(sweep, sources), *sweep.shard)
    given = weights.read(sweep.original.path)
    made = plan.make(sweep, sources, checksum(given, {}))
    weights.require_fit(given, made)
    return part_of(made, *sweep.shard)


def run(sweep: Sweep, console: Console, *, retry_failed: bool = False, seconds: float = math.inf) -> Outcome:
    """Run what of the sweep is not done yet; after so many seconds nothing more is started.

    Raises UserError before any worker starts where something is wrong; RayStopped where Ray ends or the disk is full.
    """
    try:
        with process.alone():
            return _run(sweep, console, retry_failed=retry_failed, deadline=time.monotonic() + seconds)
    except OSError as error:
        reason = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        message = f"stopped: {reason}. What is in {sweep.folder / 'ledger'} is kept; the same command goes on."
        raise RayStopped(message) from error


def _run(sweep: Sweep, console: Console, *, retry_failed: bool, deadline: float) -> Outcome:
    datasets = load_datasets(sweep)
    found = _hardware_of(sweep, console)
    _tell_what_is_otherwise(sweep, found or hardware.here(sweep), console)
    sweep = sweep if found is None else found.settle(sweep)
    made = make_plan(sweep, datasets)
    _require_writable("results", sweep.folder, "Give another place with --output.")
    _require_room_for_originals(sweep, made)
    if sweep.runtime.tracker is not None:
        trackers.require(sweep.runtime.tracker)
    if sweep.original.path is not None:
        weights.deposit(weights.read(sweep.original.path), made, open_store(sweep.runtime.storage))
    with ledger.Ledger(sweep.folder / "ledger") as journal:
        for place in (sweep.folder, sweep.folder / "tables"):
            if isinstance(place, Folder):
                place.delete_abandoned()
        sweep.folder.write("sweep.yaml", sweep.text.encode())
        if (told := lost.set_aside(sweep.folder, journal.known)) is not None:
            console.print(Text(told), soft_wrap=True)
        in_use = code.of(made)
        for warning in code.warnings(made, journal.known, in_use):
            console.print(Text(warning), soft_wrap=True)
        journal.note_code(in_use)
        agenda = Agenda(
            made,
            journal,
            original_cached=cached_in(sweep, PAUSES),
            retry_failed=retry_failed,
            max_failures=sweep.runtime.max_failures,
            lacking=without_evidence(sweep, journal.known),
        )
        work = _Work(sweep, found, made, datasets, agenda, journal, console, deadline, code.own(in_use))
        interrupted = False
        if agenda.done:
            counts = work.estimate()
            if counts.trials_done == counts.trials:
                console.print(f"Nothing to do: all {counts.trials} trials of {made.name} are done.")
        else:
            try:
                work.run()
            except KeyboardInterrupt:
                interrupted = True
            except LeaseLost:  # what is there now is another's
                raise
            except BaseException:
                with contextlib.suppress(OSError):  # a full disk: what went wrong is what is said
                    work.write(running=False)
                raise
        counts = work.write(running=False)
        time_is_up = not agenda.done and time.monotonic() > deadline
        if not (interrupted or agenda.done or time_is_up):
            raise RayStopped(f"Ray stopped before the sweep was done: see {log_of(sweep)}. The same command goes on.")
        originals = [journal.known.originals[spec.key] for spec in made.originals() if spec.key in journal.known.originals]
        num_failed = counts.trials_failed + sum(not record.ok for record in originals)
        said = remarks.remarks(made, journal.known) + remarks.without_choice(made)
        said += remarks.others(len(journal.known.trials) - counts.trials_done)
        said += remarks.left_out(journal.known)
        num_run, folder = sum(agenda.finished.values()), sweep.folder / "tables"
        return Outcome(counts, num_run, num_failed, interrupted, folder, time_is_up, said, agenda.set_aside)


@dataclass(frozen=True)
class _Work:
    """What is left of a sweep, and what it takes to do it."""

    sweep: Sweep
    hardware: hardware.Hardware | None  # None where the sweep says all itself
    plan: plan.Plan
    datasets: Mapping[Any, Dataset]
    agenda: Agenda
    journal: ledger.Ledger
    console: Console
    deadline: float
    own_code: Mapping[str, tuple[str, str]]

    def estimate(self) -> Estimate:
        """What the sweep comes to and what of it is done."""
        return estimate(self.plan, self.agenda, self.journal.known, self._others)

    @functools.cached_property
    def _others(self) -> Pace:
        return pace_of_others(self.agenda, self.journal.known)

    def write(self, *, running: bool) -> Estimate:
        """Write the tables and the status; gives the counts."""
        counts = self.estimate()
        tables.write(self.sweep.folder / "tables", self.plan, self.journal.known)
        self._write_status(counts, running=running)
        return counts

    def _write_meanwhile(self) -> None:
        """Write what others look at while the sweep runs; where that fails it is tried again at the next turn."""
        try:
            self.write(running=True)
        except OSError:  # the ledger has its own say
            traceback.print_exc()  # into the log

    def _write_status(self, counts: Estimate, *, running: bool) -> None:
        """What `cu-ray status`, `plan` and `replay` read."""
        facts = {
            "running": running,
            "process": os.getpid(),
            "host": platform.node(),
            "updated_at": time.time(),
            "storage": lasting(self.sweep.runtime.storage),
            "device": self.sweep.runtime.device,
            "import_path": list(dict.fromkeys(map(str, self.sweep.import_path))),
            "auto_precision": None if self.hardware is None else self.hardware.auto_precision,
            "in_ledger": status.in_ledger(self.journal.known),
            **counts.to_json(),
        }
        self.sweep.folder.write("status.json", json.dumps(facts).encode())

    def run(self) -> None:
        """Run the agenda to its end on Ray, with everything that Ray and Tune print in the log."""
        with at_ray(self.sweep, self.console, plugins.own_files(*self.sweep.import_path), self._last_words) as vigil:
            if cluster.num_nodes() > 1:
                doctor.require_alike(self.sweep.runtime.storage)
            self._run_phases(vigil)

    def _last_words(self, message: str) -> None:
        """What is left to do, by another thread, where this one hangs in a Ray that has ended."""
        self.console.show_cursor()
        say(message)
        tables.write(self.sweep.folder / "tables", self.plan, ledger.read(self.sweep.folder / "ledger"))

    def _run_phases(self, vigil: Vigil) -> None:
        """Run the agenda; what runs out of memory is run again on a larger share of a GPU, all the rest before."""
        with collector.at_rest():
            from cu_ray.sweep.crew import Crew
        from cu_ray.sweep.mirror import Mirror
        from cu_ray.sweep.progress import Progress

        before = self.estimate()
        self._write_status(before, running=True)
        share, ran_out, health, grown = self._share(), Counter[str](), Health(), growth()
        with (
            Progress(self.console, before, frame.file_in(self.sweep.scratch)) as progress,
            Mirror(self.sweep.scratch) as mirror,
            Tracking(self.plan.name, self._tracker(), lambda text: self.console.print(text, soft_wrap=True)) as tracking,
            Crew(self.sweep, self.datasets.values(), self.sweep.runtime.device, self.own_code) as crew,
        ):

            def heard(job: Job, record: Record) -> None:
                progress.heard(job, record)
                tracking.heard(record)

            now_and_then = (
                vigil.require,
                _at_most_every(ESTIMATE_EVERY, lambda: progress.take_in(self.estimate())),
                progress.tick,
                _at_most_every(TABLES_EVERY, self._write_meanwhile),
                _at_most_every(MIRROR_EVERY, lambda: mirror.take(self.agenda.studies)),
            )
            try:
                while True:
                    dispatch = Dispatch(
                        self.agenda,
                        crew.hand,
                        heard,
                        deadline=self.deadline,
                        trial_seconds=self.sweep.runtime.trial_seconds,
                        spare_seconds=math.inf if grown is None else SPARE_SECONDS,
                        start_seconds=START_AGAIN_AFTER if grown is None else NODE_STARTS_WITHIN,
                        share=share,
                        ran_out=ran_out,
                        health=health,
                    )
                    progress.follow(dispatch.running)
                    warned = _once(functools.partial(self._warned_of_failed_starts, dispatch))
                    try:
                        told = functools.partial(self._tell_remarks, dispatch)
                        crew.work(dispatch, share, grown, (*now_and_then, warned, told))
                    finally:
                        dispatch.settle()
                    if (what := dispatch.hopeless) is not None:
                        raise RayStopped(f"{what}: {dispatch.reason} (see {log_of(self.sweep)}). Nothing is lost.")
                    if (larger := dispatch.share_for_set_aside) is None or time.monotonic() > self.deadline:
                        break
                    share = larger
                    health.shortages.clear()  # there are fewer workers now
                    for job in dispatch.set_aside:
                        self.agenda.give_back(job)
            finally:
                mirror.take(self.agenda.studies)

    def _tell_remarks(self, dispatch: Dispatch) -> None:
        while dispatch.remarks:
            self.console.print(Text(dispatch.remarks.popleft()), soft_wrap=True)

    def _warned_of_failed_starts(self, dispatch: Dispatch) -> bool:
        """Say so where no more workers come up beside those that are at it; whether it was said."""
        if dispatch.takes_workers or dispatch.hopeless:
            return False
        at_it = f"workers that are up: {dispatch.num_workers}, which go on" if dispatch.num_workers else "others are starting"
        told = f"Workers die while they start ({dispatch.reason}); {at_it}. One more is tried now and then."
        self.console.print(Text(told), soft_wrap=True)
        return True

    def _tracker(self) -> Callable[[], trackers.Tracker] | None:
        name = self.sweep.runtime.tracker
        return None if name is None else functools.partial(trackers.make, name, self.plan.name, self.sweep.scratch / name)

    def _share(self) -> float | None:
        """The share of a GPU that workers begin with; None on CPUs."""
        from cu_ray.sweep.measuring import measured_share

        if self.sweep.runtime.device == "cpu":
            return None
        wish = self.sweep.runtime.gpus_per_trial
        if wish != "auto":
            return float(wish)
        require(Room(shape(1.0), None, growth()), shape(1.0))
        self.console.print("Measuring the memory of each method on a GPU (runtime.gpus_per_trial: a number measures nothing) ...")
        limit = self.sweep.runtime.trial_seconds
        seconds = None if math.isinf(limit) else limit
        share = measured_share(self.plan, list(self.datasets.values()), self.sweep.scratch / "canaries.json", seconds)
        self.console.print(str(share))
        return share.gpus


def _hardware_of(sweep: Sweep, console: Console) -> hardware.Hardware | None:
    """What trials run on: the nodes of the Ray that is joined, else this machine; None where nodes need not be asked."""
    if not cluster.is_joined(sweep.runtime):
        return hardware.here(sweep)
    if not hardware.is_open(sweep):
        return None
    _require_writable("results", sweep.folder, "Give another place with --output.")
    with at_ray(sweep, Console(quiet=True), {}, say):
        found = hardware.of_nodes(sweep)
    precisions = ", ".join(dict.fromkeys(train.precision for train in found.settle(sweep).trains))
    console.print(f"Trials run on {found.device} in {precisions}: so say the nodes of this Ray.")
    return found


def _tell_what_is_otherwise(sweep: Sweep, found: hardware.Hardware, console: Console) -> None:
    """Say so where what the file leaves to the machine came to something else when the sweep ran before."""
    try:
        facts = status.read(sweep.folder)
    except UserError:  # nothing has run there
        return
    before, storage = hardware.as_before(sweep, facts), lasting(sweep.runtime.storage)
    was, now = ([train.precision for train in each.settle(sweep).trains] for each in (before or found, found))
    for earlier, later in sorted({*zip(was, now, strict=True)}):
        if earlier != later:
            told = f"Before, from {facts['host']}, the precision came to {earlier} and now to {later}: no trial of then counts."
            console.print(Text(f"{told} `train: {{precision: {earlier}}}` goes on with them."), soft_wrap=True)
    if facts["storage"] not in ("", storage):
        told = f"Before, original models were kept in {facts['storage']} and now in {storage}: those needed are made again."
        console.print(Text(f"{told} runtime.storage or CU_RAY_STORAGE says where."), soft_wrap=True)


def _once(act: Callable[[], bool]) -> Callable[[], None]:
    """A function that acts when it is called, until that came to something."""
    done = False

    def until_done() -> None:
        nonlocal done
        done = done or act()

    return until_done


def _at_most_every(seconds: float, act: Callable[[], object]) -> Callable[[], None]:
    """A function that acts when it is called, but not more often than that, and not for more than a twentieth of the time."""
    due = time.monotonic() + seconds

    def now_and_then() -> None:
        nonlocal due
        if time.monotonic() > due:
            began = time.monotonic()
            act()
            due = time.monotonic() + max(seconds, 20 * (time.monotonic() - began))

    return now_and_then


def cached_in(sweep: Sweep, pauses: Iterable[float] = ()) -> Callable[[str], bool]:
    """Whether the store has the original of a key. pauses: after which a store that fails is asked again."""
    store = open_store(sweep.runtime.storage)
    return lambda key: patiently(lambda: store.has("originals", key), StoreFailed, pauses)


def without_evidence(sweep: Sweep, known: ledger.Known) -> set[str]:
    """The keys of the models that were made without the evidence that the sweep keeps."""
    if not sweep.evidence:
        return set()
    made = {key for key, record in {**known.originals, **known.trials}.items() if record.ok}
    return made - ledger.evidence.keys(sweep.folder / "ledger")


def _require_room_for_originals(sweep: Sweep, made: plan.Plan) -> None:
    """Complain of a storage that cannot be written, or of originals in it, which another user may have made, where some lack."""
    place, store = at(sweep.runtime.storage), open_store(sweep.runtime.storage)
    _require_writable("original models", place, "Give another place as runtime.storage.")
    if not isinstance(store, LocalStore) or not (store.folder / "originals").is_dir():
        return
    if not all(store.has("originals", spec.key) for spec in made.originals()):
        remedy = f"Give another place as runtime.storage, or share that one with a group: chmod -R g+ws {place}"
        _require_writable("original models", place / "originals", remedy)


def _require_writable(what: str, place: Place, remedy: str) -> None:
    probe = f".probe-{os.getpid()}"
    try:
        place.write(probe, b"")
        place.delete(probe)
    except OSError as error:
        raise UserError(f"{what} cannot be written to {place}: {error.strerror or error}. {remedy}") from error
