"""Kills processes of real sweeps at random moments, or presses Ctrl-C twice, and gives the command again.

Nothing is lost, nothing comes twice, the tables are the same.

python tests/faults/soak.py --minutes 10 --seed 0 [--nodes 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from cu_ray.sweep import ledger
from cu_ray.sweep.ledger.lines import scan
from tests import sweeps
from tests.faults.counted import EXECUTIONS
from tests.faults.driver import Driver, left_of, member

HERE = Path(__file__).parent
VICTIMS = {"worker": "ray::StageTrain", "raylet": "raylet", "gcs": "gcs_server"}  # and the names of their processes
SURVIVED = ("worker", "node")  # by the driver
TWICE = "Ctrl-C twice"
MOST_SECONDS = 100.0  # that a driver may take to end whose Ray was killed while it started
ORPHANS_END_IN = 90.0  # seconds
AT_THE_START = 0.2  # of the moments


class Cluster:
    """Two nodes in a process of their own, which a sweep joins."""

    def __init__(self, folder: Path) -> None:
        self._facts = folder / "cluster.json"
        self._facts.unlink(missing_ok=True)
        with open(folder / "cluster.log", "a", encoding="utf-8") as log:
            command = [sys.executable, str(HERE / "two_nodes.py"), str(self._facts)]
            self._host = psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while not self._facts.exists():
            assert self.lives and time.monotonic() < deadline, (folder / "cluster.log").read_text()
            time.sleep(0.1)

    @property
    def lives(self) -> bool:
        """Whether its head does."""
        return self._host.poll() is None

    @property
    def facts(self) -> dict:
        """Its address, and the raylets of the head and of the other node."""
        return json.loads(self._facts.read_text())

    def member(self, victim: str) -> psutil.Process | None:
        """The process of that victim, if it is there."""
        with suppress(psutil.Error):
            if victim in ("raylet", "node"):
                return psutil.Process(self.facts["head" if victim == "raylet" else "node"])
            return member(self._host, VICTIMS[victim])
        return None

    def close(self) -> None:
        """End it."""
        if self.lives:
            for process in (*self._host.children(recursive=True), self._host):
                with suppress(psutil.Error):
                    process.kill()
        self._host.wait()


class Soak:
    """One sweep that is killed and given again until it is done."""

    def __init__(
        self, folder: Path, file: Path, rng: random.Random, *, kills: float = math.inf, until: float = math.inf, nodes: int = 1
    ) -> None:
        self.folder, self._file, self._rng, self._most_kills, self._until = folder, file, rng, kills, until
        self._cluster = Cluster(folder) if nodes > 1 else None
        self._victims = in_turns(rng, ["worker", "driver", "raylet", "gcs", TWICE, *(["node"] if nodes > 1 else [])])
        self.kills: list[str] = []
        self.ends: list[float] = []  # of drivers
        self.hits: dict[int, float] = {}  # workers that a kill took with it whose driver lived on, and when it was
        self._finished: dict = {}
        self._orphans: list[psutil.Process] = []  # whose driver was killed: two agents of Ray live on for a minute

    def run(self) -> None:
        """Do that, and check what it came to."""
        try:
            while not self._once():
                pass
            assert not left_of(self._orphans, ORPHANS_END_IN), "processes of Ray are left"
        finally:
            if self._cluster is not None:
                self._cluster.close()

    def _once(self) -> bool:
        """Give the command and kill something of it, more than once where it survives; whether all is done."""
        if self._cluster is not None and not self._cluster.lives:
            self._cluster.close()
            self._cluster = Cluster(self.folder)
        joined = [] if self._cluster is None else ["--address", self._cluster.facts["address"]]
        driver = Driver(self.folder, str(self._file), *joined)
        try:
            victim, family = "worker", []
            while victim in SURVIVED and len(self.kills) < self._most_kills and time.time() < self._until and driver.runs:
                victim, family = self._kill_one(driver)
            return self._ended(driver, victim, family)
        finally:
            driver.process.kill()
            driver.process.wait()

    def _kill_one(self, driver: Driver) -> tuple[str, list[psutil.Process]]:
        """What was killed at a random moment, and the processes that the driver had started then."""
        victim = next(self._victims)
        # a cluster that dies while it is joined holds the driver up for minutes: docs/reliability.md
        if self._rng.random() < AT_THE_START and (self._cluster is None or victim in ("driver", TWICE)):
            wait(driver, self._rng.uniform(0, 6))
        else:
            goal = driver.num_trials() + self._rng.randint(1, 3)
            while driver.runs and driver.num_trials() < goal:
                time.sleep(0.05)
            wait(driver, self._rng.uniform(0, 0.5))
        process, family = None, []
        while driver.runs and process is None:
            process, family = self._process(driver, victim), driver.family()
            wait(driver, 0.02)
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                hit: list[psutil.Process] = []
                if victim == TWICE:
                    process.send_signal(signal.SIGINT)
                    wait(driver, self._rng.uniform(0, 1))
                    driver.process.send_signal(signal.SIGINT)  # does nothing where it has ended
                else:
                    process.suspend()  # it starts no other worker while they are listed
                    hit += [process, *process.children(recursive=True)] if victim in SURVIVED else []
                    process.kill()
                self.kills.append(victim)
                self.hits.update({each.pid: time.time() for each in hit})
                print(f"kill {len(self.kills)}: {victim}, {driver.num_trials()} trials done", flush=True)
        return victim, family

    def _process(self, driver: Driver, victim: str) -> psutil.Process | None:
        if victim in ("driver", TWICE):
            return psutil.Process(driver.process.pid)
        return driver.member(VICTIMS[victim]) if self._cluster is None else self._cluster.member(victim)

    def _ended(self, driver: Driver, victim: str, family: list[psutil.Process]) -> bool:
        """Whether all is done, once the driver has ended."""
        began = time.monotonic()
        code = driver.process.wait(timeout=600 if victim in SURVIVED else MOST_SECONDS)
        self.ends.append(time.time())
        known = ledger.read(driver.ledger).trials
        assert {key: known.get(key) for key in self._finished} == self._finished, "a finished trial is lost or another one"
        self._finished = dict(known)
        if code:
            print(f"  the driver ended with {code} after {time.monotonic() - began:.1f} s: {driver.last_line}", flush=True)
            assert victim not in SURVIVED, driver.said
            if self._cluster is not None and victim not in ("driver", TWICE):
                self._cluster.close()  # the head is gone
            if victim == "driver":
                self._orphans += family
            else:
                assert not left_of(family, 10), "processes of Ray are left"
        return code == 0


def in_turns(rng: random.Random, victims: list[str]) -> Iterator[str]:
    """Each once, in random order, again and again."""
    while True:
        yield from rng.sample(victims, len(victims))


def wait(driver: Driver, seconds: float) -> None:
    """Wait so long, or until the driver has ended."""
    with suppress(subprocess.TimeoutExpired):
        driver.process.wait(timeout=seconds)


def check(soak: Soak, undisturbed: Path) -> str:
    """What the killed sweep came to, in a line. Raises AssertionError where anything is lost, was done twice or differs."""
    results = soak.folder / "results" / "small"
    sweeps.assert_same_tables(undisturbed / "results" / "small", results)
    payloads = [json.loads(each) for path in (results / "ledger").glob("*.log") for each in scan(path.read_bytes()).payloads]
    times = Counter(each["key"] for each in payloads if each["is"] == "trial")
    assert set(times.values()) == {1}, "a trial was finished twice"
    specs = [record.spec for record in ledger.read(results / "ledger").trials.values()]
    counted = sum(spec["method"]["name"] == "counted:Counted" for spec in specs)
    begun = executions(soak.folder)
    assert len(begun) == counted
    again = [pair for each in begun.values() for pair in itertools.pairwise(sorted(each))]
    late = 0
    for (first, worker), (second, _) in again:
        ended = any(first <= at <= second for at in soak.ends)
        # a worker lives on for some seconds after its node, and may begin a trial in them
        hit = soak.hits.get(worker, math.inf) <= second
        assert ended or hit, f"a trial was run again that no kill had hit: begun at {first} by {worker}, then at {second}"
        late += not ended and soak.hits[worker] < first
    assert len(again) <= 2 * len(soak.kills), "two workers have two trials in flight"
    killed = ", ".join(f"{victim} {number}" for victim, number in sorted(Counter(soak.kills).items()))
    return (
        f"{len(soak.kills)} kills ({killed}); {len(times)} trials, none lost, none finished twice; of {counted} that count "
        f"themselves {len(again)} in flight at a kill were run again ({late} begun by a node that had been killed); "
        "tables equal to those of an undisturbed run"
    )


def executions(folder: Path) -> dict[str, list[tuple[float, int]]]:
    """When each trial of the counting method was begun, and by which process."""
    begun: dict[str, list[tuple[float, int]]] = {}
    for line in (folder / EXECUTIONS).read_text().splitlines():
        trial, at, process = line.split()
        begun.setdefault(trial, []).append((float(at), int(process)))
    return begun


def sweep_in(folder: Path, points: int) -> Path:
    """The small sweep, and a method that counts, in a new folder."""
    folder.mkdir()
    shutil.copy(HERE / "counted.py", folder)
    return sweeps.small(folder, trials=points, more=f"counted:Counted: {{steps: 4, trials: {points}}}")


def undisturbed_in(folder: Path, points: int) -> Path:
    """The folder of such a sweep that was run to its end."""
    done = sweeps.command(folder, "sweep", str(sweep_in(folder, points)))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def soak(folder: Path, undisturbed: Path, points: int, seed: str, **limits) -> Soak:
    """A sweep in the folder that was killed at random within these limits of a Soak, and is done and checked."""
    made = Soak(folder, sweep_in(folder, points), random.Random(seed), **limits)
    made.run()
    print(check(made, undisturbed), flush=True)
    return made


def main() -> None:
    """Sweeps for so many minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=1, help="2: join a cluster of two nodes, one CPU each")
    parser.add_argument("--points", type=int, default=6, help="of each search: how long one sweep is")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # as in the tests: sums in the same order
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    until = time.time() + 60 * given.minutes
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        undisturbed = undisturbed_in(Path(place) / "undisturbed", given.points)
        for number in itertools.count(1):
            print(f"sweep {number}", flush=True)
            seed = f"{given.seed}-{number}"
            made = soak(Path(place) / str(number), undisturbed, given.points, seed, until=until, nodes=given.nodes)
            total.update(made.kills)
            if time.time() > until:
                break
    print(f"{number} sweeps, {total.total()} kills {dict(sorted(total.items()))}, seed {given.seed}: nothing lost, nothing twice")


if __name__ == "__main__":
    main()
