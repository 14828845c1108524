"""The results of benchmarks/cell.py: seconds of each side, how many times as fast, the ladder, where time goes, the machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import figures
from alone import Cell

SIDES = ("cu-ray", "processes", "two", "resident", "warm", "shared")
LADDER = ("processes", "resident", "warm", "shared", "cu-ray")
GOALS = {"processes": 5.0, "two": 3.0}
Round = dict[str, Any]


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
    """What each rung that was measured brings."""
    found = {name: [this["seconds"] for this in rounds if this["side"] == name] for name in LADDER}
    medians = {name: statistics.median(values) for name, values in found.items() if values}
    if len(medians) < 2:
        return ""
    lines = ["| rung | s | faster than the one before | than the first |", "|---|---|---|---|"]
    first = before = next(iter(medians.values()))
    for name, seconds in medians.items():
        lines.append(f"| {name} | {seconds:.0f} | {before / seconds:.2f} | {first / seconds:.2f} |")
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


def machine(rounds: list[Round]) -> str:
    """How busy the machine was as each round began, or went on, and how much of its CPU time other machines of its host took."""
    lines = ["| side | repeat | load average at the start | CPU time stolen |", "|---|---|---|---|"]
    for this in rounds:
        loads, stolen = ([each[what] for each in this.get("machine", ())] for what in ("load", "stolen"))
        shown = (", ".join(f"{each:.2f}" for each in loads), ", ".join("?" if each is None else f"{each:.1%}" for each in stolen))
        lines.append(f"| {this['side']} | {this['repeat']} | {' | '.join(shown)} |")
    return "\n".join(lines) if rounds else ""
