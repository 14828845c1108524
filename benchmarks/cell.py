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

What is done is kept in --folder, run by run, so that the benchmark can be cut into calls. It ends with an error where the sides
do not do the same: images forward and backward of each run; SSD without augmentation; scores within the noise of seeds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
import numpy as np
from alone import Cell, facts, setting_of
from safetensors.numpy import save_file

from cu_ray import plugins
from cu_ray.detections.uniform import Uniform
from cu_ray.identity import key_of
from cu_ray.lazy import torch
from cu_ray.stages.pipeline import Workbench, arrays_of
from cu_ray.stages.poison import detect
from cu_ray.store import LocalStore
from cu_ray.sweep import ledger
from cu_ray.types import Augmentation, DeletionSplit, OriginalSpec, PoisonedDataset, TrialSpec

HERE = Path(__file__).parent
SIDES = ("cu-ray", "processes", "two", "resident", "warm", "shared")
LADDER = ("processes", "resident", "warm", "shared", "cu-ray")
GOALS = {"processes": 5.0, "two": 3.0}
CORES = os.cpu_count() or 1
DEVIATIONS = 4.0  # standard deviations that scores may be apart
LEAST_DEVIATION = 0.01  # of a score: what a thousand images can tell apart
SCORES = ("acc_corr", "acc_retain", "asr")
Round = dict[str, Any]  # side, repeat, runs by number (with the seconds of each), seconds of the whole where it is one piece


# --------------------------------------------------------------------------------------------------------------- the cell


def runs(steps: int) -> list[tuple[str, dict[str, Any]]]:
    """The 65 of the published grid; `steps`: of the original's training and of retraining, a quarter for all others."""
    short = {"steps": max(1, steps // 4)}
    alphas, weights = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0), (0.1, 1.0, 10.0, 50.0, 100.0, 500.0, 1e3, 1e4, 1e5, 1e6)
    scrub = {**short, "lr": 0.005, "msteps": max(1, short["steps"] // 10)}
    return [
        ("exact_unlearning", {"k": None, "steps": steps}),
        *(("exact_unlearning", {"k": k, **short}) for k in (2, 4)),
        *(("catastrophic_forgetting", {"k": k, **short}) for k in (None, 2, 4)),
        *(("scrub", {"alpha": alpha, **scrub}) for alpha in alphas),
        ("bad_teaching", short),
        *(
            ("ssd", {"selection_share": None, "selection_weight": alpha, "relative_dampening": relative})
            for alpha in weights
            for relative in (0.1, 0.5, 1.0, 5.0, 10.0)
        ),
    ]


def describe(steps: int, width: int, folder: Path, *, small: bool) -> Cell:
    """The cell as plain JSON values. small: a run of each method on few images."""
    chosen, dataset = runs(steps), {"name": "fashion_mnist_small"}
    if small:
        chosen = [chosen[number] for number in (1, 3, 8, 14, 20, 36)]
        dataset = {"name": "npz", "file": str(few_images(folder))}
    return {
        "runs": chosen,
        "dataset": dataset,
        "width": width,
        "manipulated": 12 if small else 300,
        "deleted": 6 if small else 150,
        "fraction": 0.5,
        "target": 0,
        "recipe": {"steps": steps, "lr": 0.05, "batch_size": 64},
        "sets": str(folder / "sets.npz"),
        "weights": str(folder / "original.safetensors"),
    }


def few_images(folder: Path) -> Path:
    """A file of some of the embedded images."""
    whole, file = plugins.build("datasets", {"name": "fashion_mnist_small"}).load(), folder / "few.npz"
    if not file.exists():
        parts = {"train": whole.train, "test": whole.test}
        pixels = {f"{name}_pixels": images.pixels[::25] for name, images in parts.items()}
        np.savez(file, **pixels, **{f"{name}_labels": images.labels[::25] for name, images in parts.items()})
    return file


def prepare(cell: Cell, folder: Path) -> None:
    """Train the original that all sides start from, and write what the published procedure is given."""
    dataset = plugins.build("datasets", cell["dataset"]).load()
    cell["num_classes"] = dataset.num_classes
    spec = OriginalSpec(setting_of(cell, dataset.content_hash, given=False))
    bench = Workbench(dataset, LocalStore(folder / "original"))
    model, _ = bench.original(spec)
    save_file(arrays_of(model), cell["weights"])
    poisoned, _ = bench.poisoned(spec.setting)
    np.savez(cell["sets"], **sets_of(poisoned, detect(poisoned, Uniform(), cell["deleted"], None)))
    (folder / "cell.json").write_text(json.dumps(cell))
    (folder / "cell.yaml").write_text(json.dumps(sweep_file(cell)))


def sets_of(poisoned: PoisonedDataset, split: DeletionSplit) -> dict[str, Any]:
    """The fields of `published.Sets`."""
    dataset, stamp = poisoned.dataset, poisoned.corruption.stamp
    return {
        "train_pixels": dataset.train.pixels,
        "labels": poisoned.labels,
        "stamped": poisoned.stamped,
        "deletion": split.deletion,
        "retain": split.retain,
        "manipulated": poisoned.corruption.indices,
        "test_pixels": dataset.test.pixels,
        "test_labels": dataset.test.labels,
        "mean": dataset.normalisation.mean,
        "std": dataset.normalisation.std,
        "padding": dataset.augmentation.crop_padding,
        "patch": round(math.sqrt(stamp.mask.sum())),
        "value": stamp.values[0],
        "target": poisoned.domains.target,
    }


def sweep_file(cell: Cell) -> dict[str, Any]:
    """The sweep file: YAML takes JSON."""
    methods: dict[str, dict[str, Any]] = {}
    for name, given in cell["runs"]:
        methods.setdefault(name, {"points": []})["points"].append(given)
    return {
        "name": "cell",
        "dataset": cell["dataset"],
        "model": {"name": "resnet9", "width": cell["width"]},
        "manipulation": {"name": "backdoor", "size": cell["manipulated"], "target": cell["target"]},
        "train": {**cell["recipe"], "precision": "fp32"},
        "original": {"weights": cell["weights"]},
        "deletion_fractions": [cell["fraction"]],
        "methods": methods,
        "search": {"objective": "published"},
        "runtime": {"device": "cpu"},
    }


# -------------------------------------------------------------------------------------------------------------- the sides


def timed(*command: str) -> float:
    """How long a process takes, from before its start to after its end."""
    paths = os.pathsep.join([str(figures.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=figures.ROOT
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
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


# ------------------------------------------------------------------------------------------------------------- the checks


def require_same_work(rounds: list[Round]) -> None:
    """Raise where two sides sent different numbers of images through models in a run."""
    counts = [{number: (each["forward"], each["backward"]) for number, each in this["runs"].items()} for this in rounds]
    for this, found in zip(rounds, counts, strict=True):
        for number, count in found.items():
            if count != counts[0][number]:
                raise AssertionError(f"run {number}: {this['side']} has {count} images, {rounds[0]['side']} {counts[0][number]}")


def difference_of_ssd(cell: Cell) -> dict[str, float]:
    """How far SSD's models are apart where nothing is drawn: no augmentation, importances from one batch.

    weights: the largest distance of a point's parameters, relative to their norm. scores: the largest of five points.
    """
    from published import Run, Sets, dampened

    dataset = replace(plugins.build("datasets", cell["dataset"]).load(), augmentation=Augmentation())
    spec = OriginalSpec(setting_of(cell, dataset.content_hash))
    points = [given for name, given in cell["runs"] if name == "ssd"]
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        store.save("originals", spec.key, _weights(cell), {})
        bench = Workbench(dataset, store)
        poisoned, _ = bench.poisoned(spec.setting)
        original, _ = bench.original(spec)
        sets = Sets(**sets_of(poisoned, detect(poisoned, Uniform(), cell["deleted"], None)))
        run = Run("ssd", {}, sets, cell["recipe"], copy.deepcopy(original).eval(), augmented=False)
        importances = [run.importances(run.model, rows, len(sets.labels)) for rows in (sets.deletion, sets.retain)]
        weights, scores = [], []
        for number, point in enumerate(points):
            method = plugins.build("methods", {"name": "ssd", **point, "importance_batch_size": len(sets.labels)})
            given = TrialSpec(spec, Uniform(), cell["deleted"], method)
            own = bench.unlearned(given).model
            other = dampened(copy.deepcopy(original), *importances, point["selection_weight"], point["relative_dampening"])
            apart, norm = _distance(own, other), _distance(other, None)
            weights.append(apart / norm)
            if number % max(1, len(points) // 5) == 0:
                both = [bench.scores(given, model) for model in (own, other)]
                scores.append(max(abs(both[0][name] - both[1][name]) for name in SCORES))
    return {"weights": max(weights), "scores": max(scores)}


def _weights(cell: Cell) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(cell["weights"])


def _distance(model: torch.nn.Module, other: torch.nn.Module | None) -> float:
    origin = [torch.zeros(())] * len(list(model.parameters())) if other is None else list(other.parameters())
    pairs = zip(model.parameters(), origin, strict=True)
    return math.sqrt(sum(float(((own - their) ** 2).sum()) for own, their in pairs))


def out_of_noise(cell: Cell, rounds: list[Round]) -> tuple[list[str], float]:
    """Scores of cu-ray further from those of the published procedure than its own seeds are, and the furthest of all.

    The deviation of a method's score: over seeds, pooled over its runs, at least 0.01. A score is too far where it is more than
    four deviations of a difference to a mean of n, sqrt(1 + 1 / n), from the mean.
    """
    others = [this for this in rounds if this["side"] in ("processes", "two")]
    own = next(this for this in rounds if this["side"] == "cu-ray")
    factor = math.sqrt(1 + 1 / len(others))
    too_far, furthest = [], 0.0
    for method in dict.fromkeys(name for name, _ in cell["runs"]):
        numbers = [str(number) for number, (name, _) in enumerate(cell["runs"]) if name == method]
        for score in SCORES:
            drawn = {number: [this["runs"][number]["scores"][score] for this in others] for number in numbers}
            pooled = math.sqrt(statistics.mean(statistics.variance(values) for values in drawn.values()))
            for number, values in drawn.items():
                apart = own["runs"][number]["scores"][score] - statistics.mean(values)
                far = abs(apart) / (factor * max(pooled, LEAST_DEVIATION))
                furthest = max(furthest, far)
                if far > DEVIATIONS:
                    too_far.append(f"{method} {cell['runs'][int(number)][1]}: {score} is {apart:+.3f} away, {far:.1f} deviations")
    return too_far, furthest


# ------------------------------------------------------------------------------------------------------------- the results


def rows(rounds: list[Round]) -> Iterator[figures.Row]:
    """Seconds of each side; how many times as fast cu-ray is, repeat by repeat; the share of start-up."""
    done: dict[str, dict[int, Round]] = {}
    for this in rounds:
        done.setdefault(this["side"], {})[this["repeat"]] = this
    for name in (name for name in SIDES if name in done):
        yield figures.row(f"{name}: all runs", "s", [this["seconds"] for this in done[name].values()])
    for name, goal in GOALS.items():
        pairs = [
            (done[name][repeat], done["cu-ray"][repeat]) for repeat in done.get(name, ()) if repeat in done.get("cu-ray", ())
        ]
        if pairs:
            factors = [other["seconds"] / own["seconds"] for other, own in pairs]
            yield figures.row(f"cu-ray over {name} (goal {goal:g})", "times", factors)
    if "processes" in done:
        shares = [startup_share(this) for this in done["processes"].values()]
        yield figures.row("processes: share of start-up, to be 0.2 at most", "of the time", shares)


def startup_share(this: Round) -> float:
    """The part of a round's time from the start of a process to the end of its imports."""
    return sum(each["startup"] for each in this["runs"].values()) / this["seconds"]


def ladder(rounds: list[Round]) -> str:
    """What each rung brings."""
    found = {name: [this["seconds"] for this in rounds if this["side"] == name] for name in LADDER}
    medians = {name: statistics.median(values) for name, values in found.items() if values}
    if not {"processes", "resident"} <= medians.keys():
        return ""
    lines, before = ["| rung | s | faster than the one before | than the first |", "|---|---|---|---|"], medians["processes"]
    for name, seconds in medians.items():
        lines.append(f"| {name} | {seconds:.0f} | {before / seconds:.2f} | {medians['processes'] / seconds:.2f} |")
        before = seconds
    return "\n".join(lines)


def parts(cell: Cell, rounds: list[Round]) -> str:
    """Seconds by method: of whole processes in `processes`; of unlearning and evaluation, summed over workers, in `cu-ray`."""
    first = {name: next((this for this in rounds if this["side"] == name), None) for name in ("processes", "cu-ray")}
    if None in first.values():
        return ""
    lines = ["| method | runs | processes, s | cu-ray: unlearning, s | cu-ray: evaluation, s |", "|---|---|---|---|---|"]
    for method in dict.fromkeys(name for name, _ in cell["runs"]):
        numbers = [str(number) for number, (name, _) in enumerate(cell["runs"]) if name == method]

        def total(side_name: str, fact: str, numbers: list[str] = numbers) -> float:
            return sum(first[side_name]["runs"][number][fact] for number in numbers)

        figures_of = (total("processes", "seconds"), total("cu-ray", "unlearn_seconds_spent"), total("cu-ray", "eval_seconds"))
        lines.append(f"| {method} | {len(numbers)} | {' | '.join(f'{each:.1f}' for each in figures_of)} |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------- the whole


class State:
    """What is done, in a file."""

    def __init__(self, file: Path, identity: str) -> None:
        self._file = file
        kept = json.loads(file.read_text()) if file.exists() else {"identity": identity, "rounds": [], "facts": None}
        if kept["identity"] != identity:
            raise SystemExit(f"{file.parent} holds another cell or another commit's: give another --folder, or empty it")
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
        temporary = self._file.with_suffix(f".{time.monotonic_ns()}")
        temporary.write_text(json.dumps(self._kept))
        temporary.replace(self._file)


def main() -> None:
    """Go on with what is not done; write what is."""
    parser = figures.arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=1600, help="of the original's training; 3840 sees each image as often as published"
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES[:3], metavar="SIDE")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run later than this")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "cu-ray-cell", help="where what is done is kept"
    )
    run(parser.parse_args())


def run(given: argparse.Namespace) -> None:
    """The benchmark with these options."""
    deadline = time.monotonic() + 60 * given.minutes
    steps, width, repeats = (8, 2, 1) if given.small else (given.steps, given.width, given.repeats)
    given.folder.mkdir(parents=True, exist_ok=True)
    cell = describe(steps, width, given.folder, small=given.small)
    state = State(given.folder / "state.json", key_of([cell, figures.environment()["commit"]]))
    if not (given.folder / "cell.yaml").exists():
        prepare(cell, given.folder)
    cell = json.loads((given.folder / "cell.json").read_text())
    for repeat in range(repeats):
        for name in given.sides:
            this = state.round(name, repeat)
            if this["seconds"] is None and time.monotonic() < deadline:
                side(name, given.folder, cell, repeat)(this, cell, deadline, state.save)
                state.save()
    whole = [this for this in state.rounds if this["seconds"] is not None]
    left = len(state.rounds) - len(whole)
    require_same_work(whole)
    report(given, cell, state, whole)
    print(f"{left} rounds are left: the same command again" if left else "all rounds are done")


def report(given: argparse.Namespace, cell: Cell, state: State, whole: list[Round]) -> None:
    """Write what is done; check, once all sides are there, that they did the same."""
    sides = [this["side"] for this in whole]
    text, checks = [each for each in (ladder(whole), parts(cell, whole)) if each], {}
    if "cu-ray" in sides and sum(name in ("processes", "two") for name in sides) > 1:
        apart = difference_of_ssd(cell)
        too_far, furthest = out_of_noise(cell, whole)
        checks = {"ssd": apart, "furthest_score_in_deviations": furthest, "out_of_noise": too_far}
        text.append(
            f"Same images forward and backward in each run. SSD without augmentation: weights at most {apart['weights']:.1e} apart "
            f"(relative), scores {apart['scores']:.1e}. The furthest score from the published procedure's mean over its seeds is "
            f"{furthest:.1f} deviations away (allowed: {DEVIATIONS:g})."
        )
    found = list(rows(whole))
    recipe = f"{len(cell['runs'])} runs, ResNet-9 of width {cell['width']}, {cell['recipe']['steps']} steps, batches of 64, fp32"
    figures.write(given.out, state.facts, found, "\n\n".join([recipe, *text]), cell=cell, rounds=whole, checks=checks)
    if checks:
        assert checks["ssd"]["weights"] <= 1e-4, checks
        assert checks["ssd"]["scores"] <= 1e-4, checks
        assert given.small or not checks["out_of_noise"], checks["out_of_noise"]


if __name__ == "__main__":
    main()
