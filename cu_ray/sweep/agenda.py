"""Which job comes next, and what a finished one makes possible: the sweep's logic, without Ray.

Jobs are original models and trials. A trial waits for its original; the trials that share a method's memos wait for the
first of them; a study's next point waits for the results that its sampler may know; confirmations wait for their study.
Nothing else waits: there is no barrier between stages. Each trial key is run once, whoever asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

from cu_ray.plugins import name_of
from cu_ray.selection import RULES
from cu_ray.sweep import sampling
from cu_ray.sweep.breaker import ORIGINAL_FAILED, Breaker
from cu_ray.sweep.judging import best_point, point_parts, point_score
from cu_ray.sweep.ledger import Known, PointRecord, evidence, finished
from cu_ray.sweep.plan import Hyperparameters, Plan, StudySpec, memo_cost, memo_group, trial_cost
from cu_ray.sweep.ready import COMPUTES_MEMO, ORIGINAL, OTHER, Job, Ready
from cu_ray.types import OriginalSpec, Record, TrialSpec


class Journal(Protocol):
    """Where records go before anything else hears of them: the ledger."""

    known: Known

    def append(self, record: Record | PointRecord) -> None:
        """Write a record durably."""

    def write(self, record: Record | PointRecord, file: evidence.File | None = None) -> Future[None]:
        """Write a record behind all earlier ones; the future is done when it lasts, and its evidence with it."""


@dataclass
class StudyState:
    """A study as far as it has come."""

    spec: StudySpec
    points: list[Hyperparameters] = field(default_factory=list)
    trial_keys: list[tuple[str, ...]] = field(default_factory=list)
    results: list[sampling.Result] = field(default_factory=list)  # of the first points, in order; None: failed
    confirmed: bool = False
    num_jobs: int = 0  # wanted so far
    memory: sampling.Memory = field(default_factory=sampling.Memory)


class Agenda:
    """The jobs of a plan, given what the journal already holds.

    lacking: the keys of records without the evidence that is to be kept: these are made again.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        *,
        original_cached: Callable[[str], bool],
        retry_failed: bool = False,
        max_failures: int = 10,
        lacking: Collection[str] = (),
    ) -> None:
        self.plan, self._journal, self._original_cached = plan, journal, original_cached
        versions = {name_of(study.method.cls): study.method.cls.version for study in plan.studies}
        self._breaker = Breaker(
            max_failures,
            (
                record
                for record in journal.known.trials.values()
                if versions.get(record.spec["method"]["name"]) == record.spec["method"]["version"]
                and (record.ok or not retry_failed)
            ),
        )
        self._retry_failed, self._lacking = retry_failed, set(lacking)
        self._ready = Ready(lambda job: job.key in self._wanted and job.key not in self._running)
        self._stored: dict[str, bool] = {}  # whether the store has an original, as far as it was asked
        self._waiting: dict[str, list[Job]] = {}  # by the key of the original or the memo group they wait for
        self._wanted: dict[str, Job] = {}  # not done yet, by key
        self._running: dict[str, Job] = {}
        self._listeners: dict[str, list[StudyState]] = {}
        self._leaders: dict[str, str] = {}  # key of the trial that computes a memo -> its memo group
        self._led: set[str] = set()  # memo groups that are being computed
        self._warm: set[str] = set()  # memo groups that are there
        self._remembered: set[str] = set()  # memo groups of which a trial ended well
        self._failures: list[tuple[Job, Record]] = []  # of trials whose original failed, to be taken in next
        self._retried: set[str] = set()
        self.finished: Counter[str] = Counter()  # statuses of what was run here
        self.studies = [StudyState(spec) for spec in plan.studies]
        self._states = {study.spec.key: study for study in self.studies}
        self._rounds_behind = _rounds_behind(plan.studies)
        for study in self.studies:
            self._advance(study)
        for original in plan.originals():
            if original.key in self._lacking:
                self._want_original(original)
        self._take_in_failures()

    @property
    def done(self) -> bool:
        """Whether nothing is left to be run."""
        return not self._wanted

    @property
    def has_ready(self) -> bool:
        """Whether there is a job to run now."""
        return self._ready.choose() is not None

    @property
    def set_aside(self) -> dict[str, str]:
        """The methods that are not run any more because they keep failing, and why."""
        return self._breaker.reasons

    @property
    def remembered(self) -> Collection[str]:
        """The memo groups of which a trial ended well: its memos are there, unless a full store gave them up."""
        return self._remembered

    @property
    def num_open(self) -> int:
        """How many jobs are known to be left, those running included; a search may add more."""
        return len(self._wanted)

    def wants(self, key: str) -> bool:
        """Whether an original or trial is still to be made."""
        return key in self._wanted

    def trains(self, key: str) -> bool:
        """Whether an original is still to be trained, and not only looked at: the store may have it from another sweep."""
        return self.wants(key) and not self._is_stored(key)

    def rounds(self, study: StudyState, index: int) -> int:
        """How many rounds of trials must follow one another from that point of a study on, with those of its followers."""
        spec = study.spec
        own = sampling.rounds(spec, index) if index < spec.method.budget else 0
        return own + self._rounds_behind[spec.key]

    def confirmed_points(self, study: StudyState) -> list[Hyperparameters]:
        """The points of a fully searched study that are run on the confirming seeds: the best of every rule, each once."""
        if not (study.confirmed and study.spec.confirm_settings):
            return []
        trials = self._journal.known.trials
        best = (best_point(study.spec, study.points, trials, rule) for rule in RULES)
        return [study.points[index] for index in dict.fromkeys(index for index in best if index is not None)]

    def repetitions(self, study: StudyState) -> list[TrialSpec]:
        """The trials of a fully searched study's best point under further unlearning seeds."""
        if not study.confirmed:
            return []
        best = best_point(study.spec, study.points, self._journal.known.trials, study.spec.search.objective)
        return [] if best is None else study.spec.repetitions(study.points[best])

    def next(self, held: Collection[str] = ()) -> Job | None:
        """A job to run now, or None where all that is left waits for what is running.

        held: the memo groups and originals that the worker has warm, the last used first.
        """
        job = self._ready.choose(held)
        if job is not None:
            self._running[job.key] = job
        return job

    def give_back(self, job: Job) -> None:
        """Take back a job whose worker died, to be handed out again."""
        self._running.pop(job.key, None)
        self._push(job)

    def write(self, record: Record, file: evidence.File | None = None) -> Future[None]:
        """Put the record of a job into the journal, unless an earlier one stands; when that is done the job is completed."""
        return self._journal.write(record, file) if self._standing(record) is record else finished()

    def complete(self, record: Record) -> list[tuple[Job, Record]]:
        """Take in the record of a job, which the journal has: the studies that wait for it go on.

        Gives the trials that failed with it, as their original did, and their records.
        """
        self._take_in(self._standing(record))
        return self._take_in_failures()

    def _take_in_failures(self) -> list[tuple[Job, Record]]:
        taken = []
        while self._failures:
            job, failure = self._failures.pop()
            self.write(failure)
            self._take_in(self._standing(failure))
            taken.append((job, failure))
        return taken

    def _standing(self, record: Record) -> Record:
        """The record that counts: the earlier one of a model that was made again for its evidence alone, and failed now."""
        if record.ok or record.key not in self._lacking:
            return record
        known = self._journal.known
        return (known.originals if record.kind == "original" else known.trials)[record.key]

    def _take_in(self, record: Record) -> None:
        self._journal.known.add(record)
        self.finished[record.status] += 1
        self._running.pop(record.key, None)
        job = self._wanted.pop(record.key, None)
        self._lacking.discard(record.key)
        if record.kind == "original":
            self._stored[record.key] = record.ok
            if not record.ok:
                self._fail_dependents(record)
        for job in self._waiting.pop(record.key, []):
            if job.key in self._wanted:
                self._offer(job)
        if record.kind == "trial":
            if job is not None:
                self._remember(job.spec, record)
            if self._breaker.hear(record):
                self._drop(record.spec["method"]["name"])
            self._release_memo(record.key)
            for study in self._listeners.pop(record.key, []):
                self._advance(study)

    # ---------------------------------------------------------------------------------------------------------- studies

    def _advance(self, study: StudyState) -> None:
        """Take in the study's results, make the points that these allow, then confirm the best."""
        spec = study.spec
        if name_of(spec.method.cls) in self.set_aside or (spec.neighbour and not self._states[spec.neighbour.key].confirmed):
            return
        self._collect(study)
        while len(study.points) < spec.method.budget and len(study.results) >= sampling.results_needed(spec, len(study.points)):
            self._add_point(study)
            self._collect(study)
        if len(study.results) == spec.method.budget and not study.confirmed:
            study.confirmed = True
            for hyperparameters in self.confirmed_points(study):
                for trial in spec.trials(hyperparameters, spec.confirm_settings):
                    self._want_trial(trial, study)
            for trial in self.repetitions(study):
                self._want_trial(trial, study)
            for follower in self.studies:
                if follower.spec.neighbour and follower.spec.neighbour.key == spec.key:
                    self._advance(follower)

    def _add_point(self, study: StudyState) -> None:
        spec, index = study.spec, len(study.points)
        written = self._journal.known.points.get(spec.key, {}).get(index)
        if written is not None:
            hyperparameters: Hyperparameters = written.values
        else:
            known = study.results[: sampling.results_needed(spec, index)]
            warm = self._warm_start(study) if index == 0 else None
            hyperparameters = warm or sampling.point(spec, index, study.points, known, study.memory)
        trials = spec.trials(hyperparameters, spec.search_settings)
        keys = tuple(trial.key for trial in trials)
        if written is None:
            self._journal.append(PointRecord(spec.key, index, dict(hyperparameters), keys))
        study.points.append(hyperparameters)
        study.trial_keys.append(keys)
        for trial in trials:
            self._want_trial(trial, study, self.rounds(study, index))

    def _warm_start(self, study: StudyState) -> Hyperparameters | None:
        """The best point of the study's neighbour; None where it has none."""
        if study.spec.neighbour is None:
            return None
        neighbour = self._states[study.spec.neighbour.key]
        best = best_point(neighbour.spec, neighbour.points, self._journal.known.trials, neighbour.spec.search.objective)
        return None if best is None else neighbour.points[best]

    def _collect(self, study: StudyState) -> None:
        """Score further points, in index order, as far as their trials are done."""
        while len(study.results) < len(study.points):
            index = len(study.results)
            if any(key in self._wanted for key in study.trial_keys[index]):
                return
            rule = study.spec.search.objective
            judge = point_parts if study.spec.num_objectives == 2 else point_score
            study.results.append(judge(study.spec, study.points[index], self._journal.known.trials, rule))

    # ------------------------------------------------------------------------------------------------------------- jobs

    def _want_trial(self, spec: TrialSpec, study: StudyState, rounds: int = 1) -> None:
        """Have the trial run. rounds: how many trials as long as it must follow one another from it to the study's end."""
        if spec.key in self._wanted:
            self._listeners[spec.key].append(study)
            return
        known = self._journal.known.trials.get(spec.key)
        if known is not None and not self._is_redone(known):
            self._remember(spec, known)
            return
        self._listeners[spec.key] = [study]
        self._retried.add(spec.key)
        num_train, num_test = self.plan.num_images[spec.original.setting.content_hash]
        alone = trial_cost(spec, num_train) - memo_cost(spec, num_train)
        images, evaluated = alone.passes, num_test * (2 if spec.original.setting.manipulation.has_trigger else 1)
        job = Job("trial", spec, images, (images + evaluated) * rounds, study.num_jobs)
        study.num_jobs += 1
        self._wanted[spec.key] = job
        self._want_original(spec.original)
        self._offer(job)

    def _want_original(self, spec: OriginalSpec) -> None:
        """Have the original made unless it is there; an original of which only the record is there is made again."""
        known = self._journal.known.originals.get(spec.key)
        if known is not None and not self._is_redone(known) and (not known.ok or self._is_stored(spec.key)):
            return
        if spec.key not in self._wanted:
            images = 0 if self._is_stored(spec.key) else 3 * spec.images
            self._wanted[spec.key] = Job("original", spec, images, images)
            self._push(self._wanted[spec.key])

    def _is_stored(self, key: str) -> bool:
        """Whether the store has an original; it is asked once, as it may be far away."""
        if key not in self._stored:
            self._stored[key] = self._original_cached(key)
        return self._stored[key]

    def _is_redone(self, record: Record) -> bool:
        """Whether a record that is there is to be made again: it lacks evidence, or failed and is tried once more."""
        if record.ok:
            return record.key in self._lacking
        return self._retry_failed and record.key not in self._retried

    def _offer(self, job: Job) -> None:
        """Make a trial ready, or let it wait for its original or for the memo that another trial is computing."""
        spec = job.spec
        assert isinstance(spec, TrialSpec)
        if spec.original.key in self._wanted:
            self._waiting.setdefault(spec.original.key, []).append(job)
            return
        original = self._journal.known.originals.get(spec.original.key)
        if original is not None and not original.ok:
            self._fail(job, original)
            return
        group = memo_group(spec)
        if group is None or group in self._warm:
            self._push(job)
        elif group in self._led:
            self._waiting.setdefault(group, []).append(job)
        else:
            self._led.add(group)
            self._leaders[spec.key] = group
            memo = memo_cost(spec, self.plan.num_images[spec.original.setting.content_hash][0])
            job = self._wanted[spec.key] = replace(job, images=job.images + memo.passes, length=job.length + memo.passes)
            self._push(job)

    def _push(self, job: Job) -> None:
        self._ready.push(job, ORIGINAL if job.kind == "original" else COMPUTES_MEMO if job.key in self._leaders else OTHER)

    def _remember(self, spec: OriginalSpec | TrialSpec, record: Record) -> None:
        if record.ok and isinstance(spec, TrialSpec) and (group := memo_group(spec)) is not None:
            self._remembered.add(group)

    def _release_memo(self, key: str) -> None:
        group = self._leaders.pop(key, None)
        if group is not None:
            self._led.discard(group)
            self._warm.add(group)
            for job in self._waiting.pop(group, []):  # those set aside are passed over when they come up
                self._push(job)

    def _drop(self, method: str) -> None:
        """Want nothing more of a method, nor the originals that nothing else waits for."""
        for job in [job for key, job in self._wanted.items() if key not in self._running]:
            if isinstance(job.spec, TrialSpec) and name_of(job.spec.method) == method:
                del self._wanted[job.key]
        needed = {job.spec.original.key for job in self._wanted.values() if isinstance(job.spec, TrialSpec)} | self._lacking
        for key in [key for key, job in self._wanted.items() if job.kind == "original"]:
            if key not in needed and key not in self._running:
                del self._wanted[key]

    def _fail_dependents(self, original: Record) -> None:
        self._retried.add(original.key)
        for job in self._waiting.pop(original.key, []):
            self._fail(job, original)

    def _fail(self, job: Job, original: Record) -> None:
        reason = f"its original model {original.status}: {original.error}"
        facts = {ORIGINAL_FAILED: True}
        self._failures.append((job, Record("trial", job.key, job.spec.describe(), "failed", reason, facts=facts)))


def _rounds_behind(studies: Sequence[StudySpec]) -> dict[str, int]:
    """How many rounds of trials must follow a study's last: confirmations, repetitions, or studies that begin from its best."""
    behind = {}
    for study in studies:
        repeated = study.repeatable and study.unlearning_seeds > 1
        behind[study.key] = int(repeated or bool(study.confirm_settings))
    for study in sorted(studies, key=lambda study: study.fractions):  # those that begin from others before these
        if study.neighbour is not None:
            after = sampling.rounds(study, 0) + behind[study.key]
            behind[study.neighbour.key] = max(behind[study.neighbour.key], after)
    return behind
