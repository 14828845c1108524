"""One whole cell of the published grid, 65 runs, by cu-ray and as the published procedure makes it, in turns.

    python benchmarks/cell.py --minutes 6 --out benchmarks/results/cell.json      # again and again until it says that all is done
    python benchmarks/cell.py --minutes 6 --out benchmarks/results/cell.json --repeats 1 --sides resident warm shared
    python benchmarks/cell.py --small

3 EU, 3 CF, 8 SCRUB, 1 bad teaching and 50 SSD on embedded images, with a narrow ResNet-9 and fewer steps: one manipulation, one
deletion set, one original model, whose weights are trained before and given to all. The sides:

    cu-ray      `cu-ray sweep` as a process, from its start to its end: Ray, two workers, tables
    processes   a process for each run, one after the other, with all cores (benchmarks/published.py)
    two         the same, two at once with a thread each; its time is half of both together, as if neither ever waited
    resident    a ladder from `processes`: a process for each run, but the package's stages: images on the device, what is
                reported evaluated
    warm        ... in one process
    shared      ... SSD's importances computed once; cu-ray then has two workers, and Ray

What is done is kept in --folder, run by run, so that the benchmark can be cut into calls; SIGTERM ends what it started, too. It
ends with an error where the sides do not do the same: images forward and backward of each run; SSD without augmentation; scores
within the noise of seeds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import figures
from alone import Cell, facts
from cell_checks import DEVIATIONS, difference_of_ssd, out_of_noise, require_same_work
from cell_given import describe, prepare
from cell_tables import SIDES, ladder, machine, parts, rows

from cu_ray.identity import key_of
from cu_ray.sweep import ledger

HERE = Path(__file__).parent
UNCUT = ("cu-ray", "warm", "shared")  # one process each: begun in the first quarter of the minutes
CORES = os.cpu_count() or 1
Round = dict[str, Any]  # side, repeat, runs by number (with the seconds of each), seconds of the whole, what the machine did


# -------------------------------------------------------------------------------------------------------------- the sides


class Children:
    """The processes that this one waits for: SIGTERM ends them, too."""

    def __init__(self) -> None:
        self._running, self._ended = set[subprocess.Popen[str]](), False

    def run(self, command: list[str], **given: Any) -> tuple[int, str]:
        """Its exit status, and what it said."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **given) as child:
            self._running.add(child)
            if self._ended:  # while it was started
                child.terminate()
            said, _ = child.communicate()
            self._running.remove(child)
        return child.returncode, said

    def end(self, number: int, frame: Any) -> None:
        """A handler of signals."""
        self._ended = True
        for child in list(self._running):
            child.terminate()
        raise SystemExit(128 + number)


CHILDREN = Children()


def timed(*command: str) -> float:
    """How long a process takes, from before its start to after its end."""
    paths = os.pathsep.join([str(figures.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.perf_counter()
    status, said = CHILDREN.run([sys.executable, *command], env={**os.environ, "PYTHONPATH": paths}, cwd=figures.ROOT)
    seconds = time.perf_counter() - began
    if status != 0:
        raise RuntimeError(f"{' '.join(command)}: {said[-4000:]}")
    return seconds


def published(folder: Path, number: int, *, seed: int, threads: int, workers: int) -> dict[str, Any]:
    """What came of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run.json"
        options = ("--seed", str(seed), "--threads", str(threads), "--workers", str(workers), "--spawned", str(time.time()))
        seconds = timed(str(HERE / "published.py"), str(folder / "cell.json"), str(number), str(out), *options)
        return {**json.loads(out.read_text()), "seconds": seconds}


def alone(folder: Path, *options: str) -> tuple[dict[str, Any], float]:
    """What came of runs by the package's stages in one process, and its seconds."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "runs.json"
        command = (str(HERE / "alone.py"), str(folder / "cell.json"), str(out), "--threads", str(CORES), *options)
        seconds = timed(*command)
        return json.loads(out.read_text()), seconds


def swept(folder: Path, cell: Cell) -> tuple[dict[str, Any], float]:
    """What came of the sweep, and its seconds: everything is made anew."""
    with tempfile.TemporaryDirectory(prefix="cu-ray-cell-") as place:
        file = Path(place) / "cell.yaml"
        sweep = json.loads((folder / "cell.yaml").read_text())
        sweep["runtime"] |= {"storage": f"{place}/storage", "output": f"{place}/results"}
        file.write_text(json.dumps(sweep))
        seconds = timed("-m", "cu_ray.cli", "sweep", str(file), "--local")
        known = ledger.read(Path(place) / "results" / "cell" / "ledger").trials.values()
        found = {}
        for number, (name, given) in enumerate(cell["runs"]):
            wanted = {"name": name, **given}.items()
            (record,) = [each for each in known if wanted <= each.spec["method"].items()]
            found[str(number)] = facts(record)
        return found, seconds


def one_by_one(make: Callable[[int], dict[str, Any]], lanes: int) -> Callable[[Round, Cell, float, Callable[[], None]], None]:
    """A side made of a process for each run, so many at once: goes on with a round until its end or the deadline."""

    def work(this: Round, cell: Cell, deadline: float, save: Callable[[], None]) -> None:
        left = iter([number for number in range(len(cell["runs"])) if str(number) not in this["runs"]])

        def lane() -> None:
            for number in left:
                this["runs"][str(number)] = make(number)
                save()
                if time.monotonic() > deadline:
                    return

        with concurrent.futures.ThreadPoolExecutor(lanes) as pool:
            for each in [pool.submit(lane) for _ in range(lanes)]:
                each.result()
        if len(this["runs"]) == len(cell["runs"]):
            this["seconds"] = sum(each["seconds"] for each in this["runs"].values()) / lanes

    return work


def as_one(make: Callable[[], tuple[dict[str, Any], float]]) -> Callable[[Round, Cell, float, Callable[[], None]], None]:
    """A side that is one process."""

    def work(this: Round, cell: Cell, deadline: float, save: Callable[[], None]) -> None:
        this["runs"], this["seconds"] = make()

    return work


def side(name: str, folder: Path, cell: Cell, repeat: int) -> Callable[[Round, Cell, float, Callable[[], None]], None]:
    """What goes on with a round of that side."""

    def resident(number: int) -> dict[str, Any]:
        found, seconds = alone(folder, "--only", str(number))
        return {**found[str(number)], "seconds": seconds}

    sides = {
        "cu-ray": as_one(lambda: swept(folder, cell)),
        "processes": one_by_one(lambda n: published(folder, n, seed=repeat, threads=CORES, workers=CORES), 1),
        "two": one_by_one(lambda n: published(folder, n, seed=100 + repeat, threads=1, workers=0), 2),
        "resident": one_by_one(resident, 1),
        "warm": as_one(lambda: alone(folder, "--anew")),
        "shared": as_one(lambda: alone(folder)),
    }
    return sides[name]


# --------------------------------------------------------------------------------------------------------------- the whole


@contextlib.contextmanager
def watched(this: Round) -> Iterator[None]:
    """Notes in a round the load average now, and the share of all CPU time that other machines of the host take from here on."""
    noted = {"load": round(os.getloadavg()[0], 2), "stolen": None}
    this.setdefault("machine", []).append(noted)
    stolen, whole = cpu_ticks()
    yield
    now_stolen, now_whole = cpu_ticks()
    noted["stolen"] = (now_stolen - stolen) / max(1, now_whole - whole)


def cpu_ticks() -> tuple[int, int]:
    """Those stolen since the machine started, and all."""
    ticks = [int(each) for each in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def code() -> str:
    """A hash of all that is measured: one result is of one state of the code, whatever is committed meanwhile."""
    files = sorted([*(figures.ROOT / "cu_ray").rglob("*.py"), *HERE.glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class State:
    """What is done, in a file."""

    def __init__(self, file: Path, identity: str) -> None:
        self._file, self._lock = file, threading.Lock()
        kept = json.loads(file.read_text()) if file.exists() else {"identity": identity, "rounds": [], "facts": None}
        if kept["identity"] != identity:
            raise SystemExit(f"{file.parent} holds another cell, or what other code did: give another --folder, or empty it")
        self._kept, self.rounds = kept, kept["rounds"]
        self._kept["facts"] = kept["facts"] or figures.environment("torch", "torchvision", "pillow", "ray")
        self.facts: dict[str, Any] = kept["facts"]

    def round(self, name: str, repeat: int) -> Round:
        """That round, begun or not."""
        for this in self.rounds:
            if (this["side"], this["repeat"]) == (name, repeat):
                return this
        self.rounds.append({"side": name, "repeat": repeat, "runs": {}, "seconds": None})
        return self.rounds[-1]

    def save(self) -> None:
        """Keep it."""
        with self._lock:
            temporary = self._file.with_suffix(".part")
            temporary.write_text(json.dumps(self._kept))
            temporary.replace(self._file)


def main() -> None:
    """Go on with what is not done; write what is."""
    parser = figures.arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=2400, help="of the original's training; 3840 sees each image as often as published"
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES[:3], metavar="SIDE")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="begin no run later than this, of a side that is one process in the first quarter",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "cu-ray-cell", help="where what is done is kept"
    )
    signal.signal(signal.SIGTERM, CHILDREN.end)
    run(parser.parse_args())


def run(given: argparse.Namespace) -> None:
    """The benchmark with these options."""
    began = time.monotonic()
    deadline, early = began + 60 * given.minutes, began + 15 * given.minutes
    steps, width, repeats = (8, 2, 1) if given.small else (given.steps, given.width, given.repeats)
    given.folder.mkdir(parents=True, exist_ok=True)
    cell = describe(steps, width, given.folder, small=given.small)
    state = State(given.folder / "state.json", key_of([cell, code()]))
    if not (given.folder / "cell.yaml").exists():
        prepare(cell, given.folder)
    cell = json.loads((given.folder / "cell.json").read_text())
    for this in [state.round(name, repeat) for repeat in range(repeats) for name in given.sides]:
        if this["seconds"] is not None:
            continue
        if time.monotonic() >= (early if this["side"] in UNCUT else deadline):
            break
        with watched(this):
            side(this["side"], given.folder, cell, this["repeat"])(this, cell, deadline, state.save)
        state.save()
    whole = [this for this in state.rounds if this["seconds"] is not None]
    left = len(state.rounds) - len(whole)
    require_same_work(whole)
    report(given, cell, state, whole)
    print(f"rounds left: {left}. The same command goes on." if left else "all rounds are done")


def report(given: argparse.Namespace, cell: Cell, state: State, whole: list[Round]) -> None:
    """Write what is done; check, once all sides are there, that they did the same."""
    sides = [this["side"] for this in whole]
    text, checks = [each for each in (ladder(whole), parts(cell, whole), machine(whole)) if each], {}
    if "cu-ray" in sides and sum(name in ("processes", "two") for name in sides) > 1:
        apart = difference_of_ssd(cell)
        too_far, furthest = out_of_noise(cell, whole)
        checks = {"ssd": apart, "furthest_score_in_deviations": furthest, "out_of_noise": too_far}
        text.append(
            f"Same images forward and backward in each run. SSD without augmentation: 999 of 1,000 weights at most "
            f"{apart['weights']:.1e} apart, scores {apart['scores']:.1e} where no parameter crosses the threshold, importances "
            f"{apart['importances']:.1e}; all weights {apart['dampened']:.1e} by the same importances. The score furthest from "
            f"the mean over the published procedure's seeds is {furthest:.1f} deviations away (allowed: {DEVIATIONS:g})."
        )
    found = list(rows(whole))
    recipe = f"{len(cell['runs'])} runs, ResNet-9 of width {cell['width']}, {cell['recipe']['steps']} steps, batches of 64, fp32"
    figures.write(given.out, state.facts, found, "\n\n".join([recipe, *text]), cell=cell, rounds=whole, checks=checks)
    if checks:
        most = {"weights": 1e-4, "dampened": 1e-6, "scores": 1e-3, "importances": 1e-3}
        assert all(checks["ssd"][name] <= bound for name, bound in most.items()), checks
        assert given.small or not checks["out_of_noise"], checks["out_of_noise"]


if __name__ == "__main__":
    main()
