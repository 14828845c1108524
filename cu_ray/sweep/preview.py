"""What a sweep comes to and how long it takes, before it runs: `cu-ray plan`."""

from __future__ import annotations

import contextlib
import glob
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cu_ray import checks, plugins
from cu_ray.config import Sweep
from cu_ray.errors import UserError
from cu_ray.lazy import torch
from cu_ray.stages.canary import CpuProbe, CudaProbe, Measure, Probe, measure
from cu_ray.stages.process import state_kept
from cu_ray.sweep import cluster, hardware, ledger, remarks, status
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.canaries import Spec, canaries, setting_of
from cu_ray.sweep.estimate import Estimate, ReadOnlyJournal, estimate, pace_of_others
from cu_ray.sweep.pace import Pace
from cu_ray.sweep.runner import cached_in, make_plan, without_evidence
from cu_ray.types import Dataset, OriginalSpec

MEASURED_FOR = 10.0  # seconds of learning, by a kind of trial whose steps are long


@dataclass(frozen=True)
class Preview:
    """What a sweep comes to and what of it is done."""

    estimate: Estimate
    absent: list[str]  # the data sets that are not on this machine
    device: str
    precisions: list[str]
    elsewhere: str | None  # the host on which it last ran, where that decides what is left to the hardware, and unlike this one
    lanes: float | None  # how many workers, or GPUs, this machine has for it; None where it runs on others
    unmeasured: tuple[str, ...] = ()  # what was to be measured and could not be, and why
    without_choice: tuple[str, ...] = ()  # where rules of the search have no choice, and what they lack

    @property
    def wall_seconds(self) -> float | None:
        """From the first job to the last; None where the pace or the number of workers is not known."""
        counts = self.estimate
        return counts.pace.wall_seconds(counts.work, self.lanes, counts.chain_seconds) if self.lanes else None

    def remarks(self, command: str) -> list[str]:
        """What a reader has to know of it. command: what would run the sweep."""
        said = [f"{name} is not on this machine: counted from its known sizes. {command} downloads it." for name in self.absent]
        if self.elsewhere:
            where = f"as it last ran, from {self.elsewhere}; this machine would decide otherwise"
            said.append(f"Counted for {self.device} in {', '.join(self.precisions)}, {where}.")
        said += [f"Note: {each}." for each in self.without_choice]
        return said + [f"Not measured, so that others stand for it: {each}." for each in self.unmeasured]


def preview(sweep: Sweep, measuring: Callable[[int], object] | None = None) -> Preview:
    """What the sweep comes to and what of it is done. Starts and downloads nothing.

    What is left to the hardware is what it was for the sweep in the folder, if there is one, else as this machine decides.
    measuring: where a little of each kind of trial is to be run here first that is left and of which nothing is known: is told
    how many there are.
    """
    here = hardware.here(sweep).settle(sweep)
    sweep, host = _as_before(sweep) or (here, None)
    datasets = {dataset: checks.loaded(dataset, f"{sweep.source}: dataset") for dataset in sweep.datasets if dataset.is_here()}
    made = make_plan(sweep, datasets)
    known = ledger.read(sweep.folder / "ledger")
    journal = ReadOnlyJournal(known)
    absent = [plugins.name_of(dataset) for dataset in sweep.datasets if not dataset.is_here()]
    agenda = Agenda(made, journal, original_cached=cached_in(sweep), lacking=without_evidence(sweep, journal.known))
    precisions = list(dict.fromkeys(train.precision for train in sweep.trains))
    elsewhere = host if sweep != here else None
    behind, unmeasured = pace_of_others(agenda, journal.known), list[str]()
    counts = estimate(made, agenda, journal.known, behind)
    left = {kind for likeness in counts.work for kind in likeness[:-2]}
    specs = [spec for spec in canaries(made) if left & set(counts.pace.likeness(spec)[:-2]) and not counts.pace.knows(spec)]
    if measuring is not None and specs:
        measures, behind = _measured(specs, datasets, sweep.runtime.device, measuring), Pace(behind)
        for spec, each in measures:
            behind.measured(spec, each)
        unmeasured = [f"{_name(spec)} ({each.stopped})" for spec, each in measures if each.stopped]
        unmeasured += [_name(spec) for spec in specs[len(measures) :]]
        counts = estimate(made, agenda, journal.known, behind)
    lanes = None if elsewhere else _lanes(sweep)
    said = tuple(remarks.without_choice(made))
    return Preview(counts, absent, sweep.runtime.device, precisions, elsewhere, lanes, tuple(dict.fromkeys(unmeasured)), said)


def _measured(
    specs: Sequence[Spec], datasets: Mapping[Any, Dataset], device: str, measuring: Callable[[int], object]
) -> list[tuple[Spec, Measure]]:
    """The measures of canaries by one thread, as a worker has, up to the first that loses the GPU.

    Raises UserError where an image of theirs is not here, or no GPU that they need.
    """
    images = {dataset.content_hash: dataset for dataset in datasets.values()}
    lacking = [plugins.name_of(setting_of(spec).dataset) for spec in specs if setting_of(spec).content_hash not in images]
    if lacking:
        raise UserError(f"nothing can be measured without images, and {lacking[0]} is not on this machine: a sweep fetches it")
    probe = _probe(device)
    measuring(len(specs))
    threads, measures = torch.get_num_threads(), list[tuple[Spec, Measure]]()
    torch.set_num_threads(1)
    try:
        for spec in specs:
            with state_kept():
                measures.append((spec, measure(spec, images[setting_of(spec).content_hash], probe, MEASURED_FOR)))
            if probe.lost():
                break
    finally:
        torch.set_num_threads(threads)
        if not probe.lost():
            probe.begin()  # gives back what the last one left
    return measures


def _probe(device: str) -> Probe:
    if device != "cuda":
        return CpuProbe()
    try:
        return CudaProbe()
    except (RuntimeError, AssertionError) as error:  # none, or none that has room
        raise UserError(f"trials of this sweep run on GPUs, and there is none here to measure them on: {error}") from error


def _name(spec: Spec) -> str:
    return "original models" if isinstance(spec, OriginalSpec) else plugins.name_of(spec.method)


def _lanes(sweep: Sweep) -> float | None:
    """How many GPUs this machine has for its workers, or on CPUs how many workers; None where it joins a Ray."""
    if cluster.is_joined(sweep.runtime):
        return None
    if sweep.runtime.device != "cuda":
        return sweep.runtime.workers or _num_cpus()
    visible, wish = os.environ.get("CUDA_VISIBLE_DEVICES"), sweep.runtime.gpus_per_trial
    gpus = glob.glob("/dev/nvidia[0-9]*") if visible is None else [each for each in visible.split(",") if each.strip()]
    most = min(sweep.runtime.workers or math.inf, _num_cpus())  # each worker has a CPU
    return min(len(gpus), most * (1.0 if isinstance(wish, str) else wish))


def _num_cpus() -> int:
    """How many CPUs this process may use: in a container its share of the machine's, rounded down as Ray does."""
    count = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))  # quota "max": there is no limit
    return count


def _as_before(sweep: Sweep) -> tuple[Sweep, str] | None:
    """The sweep on what it last ran on, and the host it ran from; None where that is not known."""
    try:
        facts = status.read(sweep.folder)
    except UserError:  # nothing has run there
        return None
    found = hardware.as_before(sweep, facts)
    return None if found is None else (found.settle(sweep), facts["host"])
