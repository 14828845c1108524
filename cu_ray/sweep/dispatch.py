"""Which worker does which job, without Ray: workers arrive, take jobs, end them or die at them, and are dismissed in the end.

The ledger has a record before anything hears of it. At a URI that takes a while: the workers do other jobs meanwhile.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from cu_ray.plugins import name_of
from cu_ray.stages.warm import KEPT
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.canaries import kind_of
from cu_ray.sweep.ledger import evidence
from cu_ray.sweep.ready import Job
from cu_ray.sweep.shares import next_share, share_for
from cu_ray.sweep.watchdog import GRACE, took_too_long
from cu_ray.types import Record, TrialSpec

MAX_RETRIES = 3  # of a job whose worker died
MOST_LOST = 12  # workers that a job may lose with their nodes before it is to blame
SHORT_FOR = 600.0  # seconds until a node gets one more of the workers that its memory did not suffice for; then twice as long
AT_ONCE = 10.0  # seconds between the ends of workers that Ray ends together
NODE_MISSED_WITHIN = 90.0  # seconds from the end of a worker until Ray knows that its node had gone
MOST_FAILED_STARTS = 5  # of workers, one after another, before it is clear that none will come up now
START_AGAIN_AFTER = 60.0  # seconds until one more may try, then twice as long each time: a node may be broken, others not
NOTICED_WITHIN = 60.0  # seconds from the end of a worker by its time limit until it is heard of
LEAVES_WITHIN = 60.0  # seconds that a worker which was dismissed is waited for
MOST_LOSSES = 3  # of its device by a kind of job, one after another, before it is tried with fewer neighbours
MOST_STORE_FAILURES = 2  # of a job, before it is clear that original models cannot be kept
MOST_LOSERS = 3  # methods (or originals) that lost their device, one after another, before the device is to blame


@dataclass(frozen=True)
class Death:
    """How a worker ended that was not dismissed, as far as Ray says it."""

    why: str | None = None
    of_memory: bool = False  # Ray ended it as the memory of its node ran low
    with_node: bool = False
    node: str | None = None  # its identity, where Ray names it

    @classmethod
    def told(cls, text: str) -> Death:
        """What an error of Ray says."""
        lines = text.strip().splitlines()
        of_memory = next((line for line in lines if "running low on memory" in line), None)
        if of_memory is None:
            return cls(lines[-1] if lines else None, with_node="its node has died" in text)
        named = re.search(", ID: ([0-9a-f]+)", of_memory)
        return cls(of_memory.replace(named[0], "") if named else of_memory, of_memory=True, node=named and named[1])


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


@dataclass
class Shortage:
    """What memory leaves of a node's workers: so many may be at work, so many fewer than before; time gives back one by one."""

    allowed: int = 0
    lost: int = 0
    times: int = 0
    since: float = -math.inf
    last_end: float = -math.inf  # of a worker for it, also of one that was alone there

    @property
    def _given_back(self) -> int:
        pause = SHORT_FOR * 2 ** min(max(0, self.times - 1), 6)
        return int(min((time.monotonic() - self.since) / pause, self.lost))

    @property
    def missing(self) -> int:
        """How many fewer by now."""
        return self.lost - self._given_back

    @property
    def most(self) -> int:
        """How many may be at work by now."""
        return self.allowed + self._given_back

    def happened(self, left: int, *, together: bool) -> None:
        """One more ended, and so many are left there. together: with others, at once."""
        most = self.most if self.missing else left + 1  # of those left some may have had no job
        self.lost, self.allowed = self.missing + 1, max(1, min(left, most - 1))
        self.times, self.since = self.times + (not together), time.monotonic()


@dataclass
class Health:
    """What a run has seen of its GPUs, and of the memory of its nodes."""

    works: bool = False  # a job has ended well
    losses: Counter[str] = field(default_factory=Counter)  # of its GPU by each kind, since one of it ended well
    shortages: dict[str | None, Shortage] = field(default_factory=dict)  # by node


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
        self._deadline, self._trial_seconds, self._share = deadline, trial_seconds, share
        self._spare_seconds, self._start_seconds = spare_seconds, start_seconds
        self._ran_out = Counter[str]() if ran_out is None else ran_out
        self._workers: dict[str, Worker] = {}
        self._starting: dict[str, float] = {}  # workers that are asked for and not here yet, and since when
        self._deaths: dict[str, list[tuple[Death, str | None, float]]] = {}  # by job: of workers, on which node, and when
        self._gone: dict[str, float] = {}  # nodes that are no more, and since when that is known
        self._written: deque[tuple[Job, Record, Future[None]]] = deque()  # on their way into the ledger, in order
        self.set_aside: list[Job] = []
        self._failed_starts, self._last_failed_start, self._tries = 0, -math.inf, 0
        self._starts_lost, self._last_start_lost = (
            0,
            -math.inf,
        )  # times that workers died at their start, since one came up
        self._store_failures: Counter[str] = Counter()  # by the key of the job
        self._given_up: tuple[str, str] | None = None  # what keeps all jobs from beginning, and why
        self.last_death: str | None = None  # why the last worker died, where that is known
        self.remarks: deque[str] = deque()  # what a user is to hear
        self._kinds_set_aside: set[str] = set()
        self._health = health or Health()
        self._lost_once: set[str] = set()  # jobs, by key, that another worker does once more
        self._last_loss = -math.inf  # when a device was lost by a job that began after the loss before it
        self._fallen: set[str] = set()  # kinds that were part of it
        self._num_losses = 0  # since a job ended well
        self._losers: set[str] = set()  # methods of the first jobs that reported them

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing more is to be handed out: what is left waits for what is set aside."""
        if self._written or any(worker.job for worker in self._workers.values()):
            return False
        return time.monotonic() > self._deadline or self.hopeless is not None or not self._agenda.has_ready

    @property
    def hopeless(self) -> str | None:
        """What keeps happening to workers, so that no more come; None where there is hope."""
        if self._failed_starts >= MOST_FAILED_STARTS and not self._num_staying and not self._may_come:
            return "no worker comes up, they die while they start"
        if self._given_up is not None:
            return self._given_up[0]
        most = 0 if self._alone else MOST_LOSSES * MOST_LOSERS  # who reports a loss first need not be to blame
        broken = len(self._losers) >= MOST_LOSERS and self._num_losses > most
        return "workers lose their GPU, whatever they do" if broken else None

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
        lost = all(self._health.losses[kind_of(job.spec)] >= MOST_LOSSES for job in self.set_aside)
        return share_for(1) if lost else next_share(self._share)

    @property
    def num_wanted(self) -> int:
        """How many workers have something to do, as far as is known."""
        return self._agenda.num_open - len(self.set_aside)

    @property
    def takes_workers(self) -> bool:
        """Whether a further worker may start; where one after another dies at its start, one at a time and ever more rarely."""
        pause = START_AGAIN_AFTER * 2 ** min(self._tries, 6)
        alone = not self._may_come and time.monotonic() > self._last_failed_start + pause
        return self._failed_starts < MOST_FAILED_STARTS or alone

    @property
    def _may_come(self) -> bool:
        """Whether workers are starting, on other nodes perhaps, that may come up yet."""
        now = time.monotonic()
        return any(now < max(since, self._last_failed_start) + self._start_seconds for since in self._starting.values())

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
        self._starting[name] = time.monotonic()
        self._tries += self._failed_starts >= MOST_FAILED_STARTS

    def node_gone(self, node: str) -> None:
        """A node is no more. Also for other threads."""
        self._gone.setdefault(node, time.monotonic())

    def arrived(self, name: str, node: str | None = None) -> None:
        """A worker is ready for its first job."""
        if name in self._workers:  # it was started once more without a word
            self.left(name)
        self._starting.pop(name, None)
        self._workers[name] = Worker(name, node, since=time.monotonic())
        self._failed_starts = self._tries = self._starts_lost = 0
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
            self._losers.clear()
            self._num_losses, self._health.works = 0, True
            del self._health.losses[kind_of(job.spec)]
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
        kind, losses, self.last_death = kind_of(job.spec), self._health.losses, record.error
        if began > self._last_loss:  # else it went down with the last
            self._last_loss, self._fallen = time.monotonic(), set()
            self._num_losses += 1
            if losses[kind] < MOST_LOSSES or not self._health.works:  # else it is the kind
                self._losers.add(name_of(job.spec.method) if isinstance(job.spec, TrialSpec) else "an original")
            for worker in self._workers.values():
                if worker.job is None and not worker.dismissed and not self._alone:
                    self._dismiss(worker)  # it is down too, without knowing
        if kind not in self._fallen:
            self._fallen.add(kind)
            losses[kind] += 1
        known = losses[kind] >= MOST_LOSSES
        if known and not self._alone:
            self._set_aside(job)
        elif self._alone and (known or job.key in self._lost_once):
            self._complete(job, record)
        else:
            self._lost_once.add(job.key)
            self._agenda.give_back(job)

    def _set_aside(self, job: Job) -> None:
        self.set_aside.append(job)
        self._kinds_set_aside.add(kind_of(job.spec))

    def left(self, name: str, death: Death | None = None) -> None:
        """A worker is gone, dismissed or dead: the job that it was at is handed out again, but not for ever."""
        began = self._starting.pop(name, time.monotonic())
        worker, death = self._workers.pop(name, None), death or Death()
        self.last_death = death.why or self.last_death
        if death.of_memory and not (worker and worker.dismissed) and not self._note_shortage(worker, death, began):
            death = replace(death, of_memory=False)
        if worker is None and (self._note_lost_start() or not (death.with_node or death.of_memory)):
            self._failed_starts, self._last_failed_start = self._failed_starts + 1, time.monotonic()
        elif worker is not None and worker.job is not None:
            self._lost(worker, worker.job, death)
        if worker is not None and not worker.dismissed and not self._num_staying:
            self._failed_starts = self._tries = 0  # where this one came up another may
        self.go_on()

    def _note_lost_start(self) -> bool:
        """Note that a worker died while it started, for whatever reason; whether too often, all at once being once."""
        now = time.monotonic()
        if now < self._last_start_lost + AT_ONCE:
            return False
        self._starts_lost, self._last_start_lost = self._starts_lost + 1, now
        return self._starts_lost > MOST_LOST

    def go_on(self) -> None:
        """Take in what the ledger has by now, hand jobs to the workers that have none, dismiss all when nothing is left."""
        self._take_in()
        stopping = time.monotonic() > self._deadline or self.hopeless is not None
        for worker in [worker for worker in self._workers.values() if worker.job is None and not worker.dismissed]:
            job = None if stopping or self._is_short(worker.node) else self._next(worker)
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
            self._failed_starts = self._tries = 0  # where this one came up another may
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
        return sum(self._missing_on(node) for node in self._health.shortages if node not in self._gone)

    def _missing_on(self, node: str | None) -> int:
        """How many a node lacks, where those that are there and may not work count as lacking."""
        shortage = self._health.shortages[node]
        return max(0, shortage.missing - max(0, self._num_staying_on(node) - shortage.most))

    def _num_staying_on(self, node: str | None) -> int:
        return sum(each.node == node and not each.dismissed for each in self._workers.values())

    def _is_short(self, node: str | None) -> bool:
        """Whether a node has as many workers at a job as its memory suffices for."""
        shortage = self._health.shortages.get(node)
        if shortage is None or not shortage.missing:
            return False
        return sum(each.node == node and each.job is not None for each in self._workers.values()) >= shortage.most

    def _note_shortage(self, worker: Worker | None, death: Death, began: float) -> bool:
        """Note that a node lacked memory, and has fewer workers now if others were there or ended too. Whether they were."""
        node, began = (worker.node, worker.since) if worker else (death.node, began)
        shortage = self._health.shortages.setdefault(node, Shortage())
        together = began <= shortage.last_end and time.monotonic() < shortage.last_end + AT_ONCE
        shortage.last_end = time.monotonic()
        left = self._num_staying_on(node)
        if not together:
            self.remarks.append(f"Ray: {death.why}. What was lost is done again{', by fewer workers for now' if left else ''}.")
        if left or together:
            shortage.happened(left, together=together)
        return bool(left) or together

    def _lost(self, worker: Worker, job: Job, death: Death) -> None:
        """Hand its job out again, or take it for the reason, which it need not be where a node went or its memory was short."""
        now = time.monotonic()
        seconds, deaths = now - worker.since, self._deaths.setdefault(job.key, [])
        deaths.append((death, worker.node, now))
        excused = self._is_excused(death, worker.node, now)
        its_own = sum((0.5 if each[0].of_memory else 1) for each in deaths if each[0].of_memory or not self._is_excused(*each))
        if self._trial_seconds < seconds < self._trial_seconds + GRACE + NOTICED_WITHIN and not excused:
            self._complete(job, failed(job, f"{took_too_long(job.spec, self._trial_seconds)}, and its worker had to be ended"))
        elif its_own > MAX_RETRIES or len(deaths) > MOST_LOST:
            what = f"out of memory, or a crash in native code{f': {death.why}' if death.why else ''}"
            reason = f"its worker died {len(deaths)} times ({what if its_own > MAX_RETRIES else 'each time with its node'})"
            self._complete(job, failed(job, reason))
        else:
            self._agenda.give_back(job)

    def _is_excused(self, death: Death, node: str | None, when: float) -> bool:
        """Whether a job need not have been the reason for the death of its worker."""
        return death.of_memory or death.with_node or self._gone.get(node or "", math.inf) < when + NODE_MISSED_WITHIN

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
