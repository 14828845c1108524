"""What a sweep comes to and how long it takes, before it runs: `cu-ray plan`."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cu_ray import plugins
from cu_ray.config import Sweep
from cu_ray.errors import UserError
from cu_ray.lazy import torch
from cu_ray.stages.canary import CpuProbe, CudaProbe, Measure, Probe, measure
from cu_ray.sweep import cluster, hardware, ledger, status
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.canaries import Spec, canaries, setting_of
from cu_ray.sweep.estimate import Estimate, ReadOnlyJournal, estimate
from cu_ray.sweep.plan import Plan
from cu_ray.sweep.runner import cached_in, make_plan, without_evidence
from cu_ray.types import Dataset

MEASURED_FOR = 10.0  # seconds of learning, by a kind of trial whose steps are long


@dataclass(frozen=True)
class Preview:
    """What a sweep comes to and what of it is done."""

    estimate: Estimate
    absent: list[str]  # the data sets that are not on this machine
    device: str
    precisions: list[str]
    elsewhere: str | None  # the host on which it last ran, where that decides what is left to the hardware, and unlike this one
    lanes: int | None  # how many workers, or GPUs, it has; None where it runs on a Ray that is joined

    @property
    def wall_seconds(self) -> float | None:
        """From the first job to the last; None where the pace or the number of workers is not known."""
        return self.estimate.pace.wall_seconds(self.estimate.work, self.lanes) if self.lanes else None

    def remarks(self, command: str) -> list[str]:
        """What a reader has to know of it. command: what would run the sweep."""
        said = [f"{name} is not on this machine: counted from its known sizes. {command} downloads it." for name in self.absent]
        if self.elsewhere:
            where = f"as it last ran, from {self.elsewhere}; this machine would decide otherwise"
            said.append(f"Counted for {self.device} in {', '.join(self.precisions)}, {where}.")
        return said


def preview(sweep: Sweep, measuring: Callable[[int], object] | None = None) -> Preview:
    """What the sweep comes to and what of it is done. Starts and downloads nothing.

    What is left to the hardware is what it was for the sweep in the folder, if there is one, else as this machine decides.
    measuring: where a little of each kind of trial is to be run here first, to know its pace: is told how many there are.
    """
    here = hardware.here(sweep).settle(sweep)
    sweep, host = _as_before(sweep) or (here, None)
    datasets = {dataset: dataset.load() for dataset in sweep.datasets if dataset.is_here()}
    made = make_plan(sweep, datasets)
    known = ledger.read(sweep.folder / "ledger")
    journal = ReadOnlyJournal(known)
    absent = [plugins.name_of(dataset) for dataset in sweep.datasets if not dataset.is_here()]
    agenda = Agenda(made, journal, original_cached=cached_in(sweep), lacking=without_evidence(sweep, journal.known))
    precisions = list(dict.fromkeys(train.precision for train in sweep.trains))
    elsewhere = host if sweep != here else None
    measures = [] if measuring is None else _measured(made, datasets, sweep.runtime.device, measuring)
    counts = estimate(made, agenda, journal.known, measures)
    return Preview(counts, absent, sweep.runtime.device, precisions, elsewhere, _lanes(sweep))


def _measured(
    made: Plan, datasets: Mapping[Any, Dataset], device: str, measuring: Callable[[int], object]
) -> list[tuple[Spec, Measure]]:
    """The plan's canaries, as far as their images are here, by one thread as a worker has. Raises UserError without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("trials of this sweep run on GPUs, and there is none here to measure them on")
    probe: Probe = CudaProbe() if device == "cuda" else CpuProbe()
    images = {dataset.content_hash: dataset for dataset in datasets.values()}
    specs = [spec for spec in canaries(made) if setting_of(spec).content_hash in images]
    measuring(len(specs))
    threads, measures = torch.get_num_threads(), list[tuple[Spec, Measure]]()
    torch.set_num_threads(1)
    try:
        for spec in specs:
            measures.append((spec, measure(spec, images[setting_of(spec).content_hash], probe, MEASURED_FOR)))
            if probe.lost():
                break
    finally:
        torch.set_num_threads(threads)
    return measures


def _lanes(sweep: Sweep) -> int | None:
    """How many GPUs this machine has, or on CPUs how many workers the sweep has here; None where it joins a Ray."""
    if cluster.is_joined(sweep.runtime):
        return None
    if sweep.runtime.device == "cuda":
        return len(glob.glob("/dev/nvidia[0-9]*"))
    return sweep.runtime.workers or os.cpu_count()


def _as_before(sweep: Sweep) -> tuple[Sweep, str] | None:
    """The sweep on what it last ran on, and the host it ran from; None where that is not known."""
    try:
        facts = status.read(sweep.folder)
    except UserError:  # nothing has run there
        return None
    found = hardware.as_before(sweep, facts)
    return None if found is None else (found.settle(sweep), facts["host"])
