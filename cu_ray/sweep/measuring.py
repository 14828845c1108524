"""The share of a GPU for a run, from canaries that run on a GPU of the cluster before it; what was measured once is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cu_ray.errors import RayStopped
from cu_ray.places import Folder
from cu_ray.stages.canary import CudaProbe, Measure, Probe, measure
from cu_ray.sweep.canaries import Spec, canaries, canary_key, setting_of
from cu_ray.sweep.plan import Plan
from cu_ray.sweep.shares import Share, share_of
from cu_ray.types import Dataset

ANSWERS_WITHIN = 60.0  # seconds that a node has to say whether MPS is on
Kept = dict[str, dict[str, Any]]  # measures as JSON, by the key of their canary


def measured_share(
    plan: Plan, datasets: Sequence[Dataset], file: Path, seconds: float | None = None, make_probe: Callable[[], Probe] = CudaProbe
) -> Share:
    """The share that the plan's canaries come to. file: where measures are kept from one run to the next.

    seconds: how long they may take. Raises RayStopped where that is not enough, or no process on a GPU comes to its end.
    """
    kept = kept_in(file)
    specs = canaries(plan)
    shared = {dataset.content_hash: ray.put(dataset) for dataset in datasets}
    measures: list[tuple[str, dict[str, Any]]] = []
    while len(measures) < len(specs):
        task = ray.remote(num_gpus=1, max_calls=1, max_retries=0)(_measure).remote(
            specs[len(measures) :], shared, kept, make_probe
        )
        try:
            measures += ray.get(task, timeout=seconds)
        except BaseException as error:
            ray.cancel(task, force=True)  # else it kept its GPU in a Ray that stays
            if not isinstance(error, ray.exceptions.RayError):
                raise
            reason = str(error).strip().splitlines()[-1]
            told = f"measuring on a GPU failed: {reason}. A number as runtime.gpus_per_trial measures nothing."
            raise RayStopped(told) from error
    # without the measures of those that lost the GPU: a fault may pass
    kept |= {key: values for key, values in measures if values["peak_bytes"]}
    Folder(file.parent).write(file.name, json.dumps(kept).encode())
    measured = [(spec, Measure(**values)) for spec, (_, values) in zip(specs, measures, strict=True)]
    return share_of(plan, measured, mps=_mps_is_on_everywhere())


def kept_in(file: Path) -> Kept:
    """The measures that were kept in a file; none where it holds anything else, so that all are taken again."""
    try:
        kept: Kept = json.loads(file.read_bytes())
        for values in kept.values():
            Measure(**values)
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}
    return kept


def _measure(
    specs: Sequence[Spec], shared: Mapping[str, Any], kept: Kept, make_probe: Callable[[], Probe]
) -> list[tuple[str, dict[str, Any]]]:
    """Each canary's key on this GPU, and its measure, up to the first that loses the GPU; in a process that ends afterwards."""
    probe, measures = make_probe(), []
    for spec in specs:
        key = canary_key(spec, probe.name)
        measures.append((key, kept.get(key) or measure(spec, ray.get(shared[setting_of(spec).content_hash]), probe).to_json()))
        if probe.lost():
            break
    return measures


def _mps_is_on_everywhere() -> bool:
    """Whether it is on all nodes that have a GPU."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0)]
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    asked = [ray.remote(num_cpus=0, scheduling_strategy=each)(mps_is_on).remote() for each in there]
    try:
        return all(ray.get(asked, timeout=ANSWERS_WITHIN))
    except ray.exceptions.RayError:  # a node that left meanwhile, or does not answer
        return False


def mps_is_on() -> bool:
    """Whether NVIDIA's Multi-Process Service runs on this machine, where CUDA looks for it."""
    place = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))  # noqa: S108 (CUDA's own)
    try:
        return bool(psutil.pid_exists(int((place / "nvidia-cuda-mps-control.pid").read_text())))
    except (OSError, ValueError):
        return False
