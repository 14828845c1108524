"""Which worker does which job, without Ray: workers arrive, take jobs, end them or die at them, and are dismissed in the end.

The ledger has a record before anything hears of it. At a URI that takes a while: the workers do other jobs meanwhile.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from cu_ray.stages.warm import KEPT
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.canaries import kind_of
from cu_ray.sweep.deaths import Death, Deaths
from cu_ray.sweep.ledger import evidence
from cu_ray.sweep.losses import Health, Losses, Verdict
from cu_ray.sweep.ready import Job
from cu_ray.sweep.shares import next_share, share_for
from cu_ray.sweep.starts import START_AGAIN_AFTER, Starts
from cu_ray.types import Record

LEAVES_WITHIN = 60.0  # seconds that a worker which was dismissed is waited for
MOST_STORE_FAILURES = 2  # of a job, before it is clear that original models cannot be kept


@dataclass
class Worker:
    """A worker as the driver knows it: the job it is at, and what it has warm, the last used first."""

    name: str
    node: str | None = None
    job: Job | None = None
    since: float = 0.0  # it is at it, or has none
    dismissed: bool = False
    memos: list[str] = field(default_factory=list)
    originals: list[str] = field(default_factory=list)

    def take(self, job: Job) -> None:
        """Be at a job from now on."""
        memo, original = job.uses()
        self.job, self.since = job, time.monotonic()
        self.originals = [original, *(key for key in self.originals if key != original)][: KEPT["originals"]]
        if memo is not None:
            self.memos = [memo, *(key for key in self.memos if key != memo)][: KEPT["memos"]]


class Dispatch:
    """Hands the agenda's jobs to workers.

    hand: gives a worker its next job, or None to dismiss it; heard: is told of each job that ends;
    deadline: after it nothing more is handed out; trial_seconds: a worker that dies so long into a job did not crash;
    spare_seconds: a worker without a job for so long, where there are more workers than jobs, is dismissed: its node may go;
    start_seconds: how long those who are starting are waited for where others die at it;
    share: of a GPU, for each worker (None: no GPU). What does not fit beside others is `set_aside` for a larger share, and so is
    what keeps losing its device beside others, who may be to blame; all of its kind with it. ran_out: how often each job ran out
    of memory; health: what was seen of the GPUs at smaller shares.
    """

    def __init__(
        self,
        agenda: Agenda,
        hand: Callable[[str, Job | None], None],
        heard: Callable[[Job, Record], None],
        *,
        deadline: float = math.inf,
        trial_seconds: float = math.inf,
        spare_seconds: float = math.inf,
        start_seconds: float = START_AGAIN_AFTER,
        share: float | None = None,
        ran_out: Counter[str] | None = None,
        health: Health | None = None,
    ) -> None:
        self._agenda, self._hand, self._heard = agenda, hand, heard
        self._deadline, self._spare_seconds, self._share = deadline, spare_seconds, share
        self._ran_out = Counter[str]() if ran_out is None else ran_out
        self._workers: dict[str, Worker] = {}
        self._starts, self._deaths = Starts(start_seconds), Deaths(trial_seconds)
        self._health = health or Health()
        self._losses = Losses(self._health, alone=self._alone)
        self._written: deque[tuple[Job, Record, Future[None]]] = deque()  # on their way into the ledger, in order
        self.set_aside: list[Job] = []
        self._store_failures: Counter[str] = Counter()  # by the key of the job
        self._given_up: tuple[str, str] | None = None  # what keeps all jobs from beginning, and why
        self.last_death: str | None = None  # why the last worker died, where that is known
        self.remarks: deque[str] = deque()  # what a user is to hear
        self._kinds_set_aside: set[str] = set()

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing more is to be handed out: what is left waits for what is set aside."""
        if self._written or any(worker.job for worker in self._workers.values()):
            return False
        return time.monotonic() > self._deadline or self.hopeless is not None or not self._agenda.has_ready

    @property
    def hopeless(self) -> str | None:
        """What keeps happening to workers, so that no more come; None where there is hope."""
        if self._starts.exhausted and not self._num_staying:
            return "no worker comes up, they die while they start"
        if self._given_up is not None:
            return self._given_up[0]
        return "workers lose their GPU, whatever they do" if self._losses.everywhere else None

    def give_up(self, what: str, why: str) -> None:
        """Let no more jobs begin: what keeps them from it, and the reason."""
        self._given_up = self._given_up or (what, why)

    @property
    def reason(self) -> str:
        """Why there is no hope, as far as is known."""
        return (self._given_up and self._given_up[1]) or self.last_death or "reason unknown"

    @property
    def _alone(self) -> bool:
        """Whether no other worker is on a worker's device."""
        return self._share is None or next_share(self._share) is None

    @property
    def share_for_set_aside(self) -> float | None:
        """That of what is set aside: the next larger one, or a whole GPU where all of it lost its device. None: nothing is."""
        if self._share is None or not self.set_aside:
            return None
        lost = all(map(self._losses.is_known_for_it, self.set_aside))
        return share_for(1) if lost else next_share(self._share)

    @property
    def num_wanted(self) -> int:
        """How many workers have something to do, as far as is known."""
        return self._agenda.num_open - len(self.set_aside)

    @property
    def takes_workers(self) -> bool:
        """Whether a further worker may start; where one after another dies at its start, one at a time and ever more rarely."""
        return self._starts.takes_workers

    def running(self) -> list[tuple[Job, float]]:
        """The jobs that workers are at, and for how many seconds. Also for other threads."""
        now = time.monotonic()
        return [(job, now - worker.since) for worker in list(self._workers.values()) if (job := worker.job) is not None]

    @property
    def num_awaited(self) -> int:
        """How many workers are here and are to end by themselves: not one that was dismissed long ago and hangs."""
        now = time.monotonic()
        return sum(not worker.dismissed or now < worker.since + LEAVES_WITHIN for worker in self._workers.values())

    @property
    def num_workers(self) -> int:
        """How many workers are here."""
        return len(self._workers)

    def asked_for(self, name: str) -> None:
        """A worker is going to start."""
        self._starts.asked_for(name)

    def node_gone(self, node: str) -> None:
        """A node is no more. Also for other threads."""
        self._deaths.gone.setdefault(node, time.monotonic())

    def arrived(self, name: str, node: str | None = None) -> None:
        """A worker is ready for its first job."""
        if name in self._workers:  # it was started once more without a word
            self.left(name)
        self._starts.came(name)
        self._workers[name] = Worker(name, node, since=time.monotonic())
        self.go_on()

    def ended(self, name: str, record: Record, file: evidence.File | None = None) -> None:
        """A worker ended its job with this record and its evidence. A record of another job is not believed."""
        worker = self._workers[name]
        job, began, worker.job, worker.since = worker.job, worker.since, None, time.monotonic()
        assert job is not None
        if record.key != job.key:
            reason = f"its worker runs another version of cu-ray or of a plug-in ({record.facts.get('host', 'host unknown')})"
            record, file = failed(job, reason), None
        self._ran_out[job.key] += bool(record.facts.get("out_of_memory"))
        if record.facts.get("device_lost") or (record.facts.get("store_failed") and not record.ok):
            self._dismiss(worker)
        if record.ok:
            self._losses.ended_well(job)
        if record.facts.get("device_lost") and not record.ok:
            self._without_device(job, record, began)
        elif record.facts.get("store_failed") and not record.ok:
            self._without_store(job, record)
        elif record.facts.get("out_of_memory") and not self._alone:
            self._set_aside(job)
        else:
            self._complete(job, record, file)
        self.go_on()

    def _without_store(self, job: Job, record: Record) -> None:
        """A job whose original could not be kept or read: another worker may be able to, and it is no result."""
        self._store_failures[job.key] += 1
        self._agenda.give_back(job)
        if self._store_failures[job.key] >= MOST_STORE_FAILURES:
            self.give_up("original models cannot be kept or read", f"{record.error}, on {record.facts.get('host', 'some host')}")

    def _without_device(self, job: Job, record: Record, began: float) -> None:
        """A job lost its device: its own fault, that of the GPU, or of a neighbour there, for under MPS all go down together."""
        self.last_death = record.error
        if self._losses.is_first(job, began) and not self._alone:
            for worker in self._workers.values():
                if worker.job is None and not worker.dismissed:
                    self._dismiss(worker)  # it is down too, without knowing
        match self._losses.verdict(job):
            case Verdict.ASIDE:
                self._set_aside(job)
            case Verdict.FAILED:
                self._complete(job, record)
            case Verdict.AGAIN:
                self._agenda.give_back(job)

    def _set_aside(self, job: Job) -> None:
        self.set_aside.append(job)
        self._kinds_set_aside.add(kind_of(job.spec))

    def left(self, name: str, death: Death | None = None) -> None:
        """A worker is gone, dismissed or dead: the job that it was at is handed out again, but not for ever."""
        began = self._starts.began(name)
        worker, death = self._workers.pop(name, None), death or Death()
        self.last_death = death.why or self.last_death
        if death.of_memory and not (worker and worker.dismissed) and not self._note_shortage(worker, death, began):
            death = replace(death, of_memory=False)
        if worker is None:
            self._starts.failed(excused=death.with_node or death.of_memory)
        elif worker.job is not None:
            self._lost(worker, worker.job, death)
        if worker is not None and not worker.dismissed and not self._num_staying:
            self._starts.may_again()
        self.go_on()

    def go_on(self) -> None:
        """Take in what the ledger has by now, hand jobs to the workers that have none, dismiss all when nothing is left."""
        self._take_in()
        stopping = time.monotonic() > self._deadline or self.hopeless is not None
        for worker in [worker for worker in self._workers.values() if worker.job is None and not worker.dismissed]:
            job = None if stopping or not self._may_work_on(worker.node) else self._next(worker)
            if job is not None:
                worker.take(job)
                self._hand(worker.name, job)
            elif time.monotonic() - worker.since > self._spare_seconds and self._num_staying > self.num_wanted:
                self._dismiss(worker)
        if self.over:
            for worker in self._workers.values():
                if not worker.dismissed:
                    self._dismiss(worker)

    @property
    def _num_staying(self) -> int:
        return sum(not worker.dismissed for worker in self._workers.values())

    def _dismiss(self, worker: Worker) -> None:
        worker.dismissed, worker.since = True, time.monotonic()
        if not self._num_staying:
            self._starts.may_again()
        self._hand(worker.name, None)

    def settle(self) -> None:
        """Return when all records are in the ledger and taken in, also after an interruption."""
        while self._written:
            self._written[0][2].result()
            self._take_in()

    def _next(self, worker: Worker) -> Job | None:
        while (job := self._agenda.next((*worker.memos, *worker.originals))) is not None:
            if not self._kinds_set_aside or kind_of(job.spec) not in self._kinds_set_aside:
                return job
            self.set_aside.append(job)
        return None

    @property
    def num_missing(self) -> int:
        """How many workers fewer than there is room for are to be up, as the memory of nodes did not suffice for them."""
        staying = Counter(worker.node for worker in self._workers.values() if not worker.dismissed)
        return self._health.shortages.missing(staying, self._deaths.gone)

    def _may_work_on(self, node: str | None) -> bool:
        at_work = sum(each.node == node and each.job is not None for each in self._workers.values())
        return self._health.shortages.allows(node, at_work)

    def _note_shortage(self, worker: Worker | None, death: Death, began: float) -> bool:
        """Note that a node lacked memory, and has fewer workers now if others were there or ended too. Whether they were."""
        node, began = (worker.node, worker.since) if worker else (death.node, began)
        left = sum(each.node == node and not each.dismissed for each in self._workers.values())
        others, together = self._health.shortages.note(node, began, left)
        if not together:
            self.remarks.append(f"Ray: {death.why}. What was lost is done again{', by fewer workers for now' if left else ''}.")
        return others

    def _lost(self, worker: Worker, job: Job, death: Death) -> None:
        """Hand its job out again, or take it for the reason."""
        reason = self._deaths.reason(job, death, worker.node, time.monotonic() - worker.since)
        if reason is None:
            self._agenda.give_back(job)
        else:
            self._complete(job, failed(job, reason))

    def _complete(self, job: Job, record: Record, file: evidence.File | None = None) -> None:
        facts = {"gpu_share": self._share, "num_out_of_memory": self._ran_out[job.key]}
        record = replace(record, facts=record.facts | facts)
        self._written.append((job, record, self._agenda.write(record, file)))

    def _take_in(self) -> None:
        """Have the agenda and the display hear of the records that are in the ledger. Raises what went wrong with one."""
        while self._written and self._written[0][2].done():
            self._written[0][2].result()
            job, record, _ = self._written.popleft()
            for ended, its_record in [(job, record), *self._agenda.complete(record)]:
                self._heard(ended, its_record)


def failed(job: Job, reason: str) -> Record:
    """The record of a job that no worker could make one for."""
    return Record(job.kind, job.key, job.spec.describe(), "failed", reason)
