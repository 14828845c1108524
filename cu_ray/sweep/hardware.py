"""What `auto` comes to on a Ray that is joined: decided from its nodes, since the driver's own machine may have no GPU.

The device and the precision are part of what a trial is: they have to be known before anything has a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cu_ray.config import Sweep
from cu_ray.errors import UserError
from cu_ray.learning.precision import local_cpu_flags, resolve
from cu_ray.sweep.growth import UNKNOWN, growth

WISHES = ("auto", "published")  # precisions that depend on the hardware
ANSWERS_IN = 20.0  # seconds; a node that takes longer is not heard


def is_open(sweep: Sweep) -> bool:
    """Whether the sweep file leaves to the hardware what trials run on."""
    return sweep.runtime.device == "auto" or any(train.precision in WISHES for train in sweep.trains)


def settled(sweep: Sweep) -> Sweep:
    """The sweep with device and precisions said, by the nodes of the Ray that this process is at. Raises UserError."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    wish = sweep.runtime.device
    device = device_of([node["Resources"] for node in nodes], growth()) if wish == "auto" else wish
    depends = device == "cpu" and any(train.precision in WISHES for train in sweep.trains)
    flags = common([node["NodeID"] for node in nodes if node["Resources"].get("CPU", 0)]) if depends else frozenset()
    trains = tuple(replace(train, precision=resolve(train.precision, device, flags)) for train in sweep.trains)
    return replace(sweep, trains=trains, runtime=replace(sweep.runtime, device=device))


def device_of(nodes: list[Mapping[str, float]], grown: Mapping[str, float] | None) -> str:
    """'cuda' where a node has a GPU or one that is still to come will, else 'cpu'.

    nodes: the resources of each; grown: those of all when the autoscaler has brought what it may. Raises UserError where no node
    for trials is there and nothing says what those to come will have.
    """
    to_come = grown or {}
    if any(node.get("GPU", 0) for node in nodes) or 0 < to_come.get("GPU", 0) < UNKNOWN:
        return "cuda"
    if to_come.get("GPU") == UNKNOWN and not any(node.get("CPU", 0) for node in nodes):
        raise UserError(
            "runtime.device: no node for trials has joined yet, and what those to come will have is not known here: "
            "give cuda or cpu instead of auto"
        )
    return "cpu"


def common(nodes: list[str]) -> frozenset[str]:
    """The capabilities that the processors of all these nodes have; those of this machine where none of them answers."""
    found = _flags_of(nodes)
    return frozenset.intersection(*found) if found else local_cpu_flags()


def _flags_of(nodes: list[str]) -> list[frozenset[str]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = [
        ray.remote(local_cpu_flags)
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node in nodes
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWERS_IN) if asked else ([], [])
    found = []
    for answer in answered:
        try:
            found.append(ray.get(answer))
        except ray.exceptions.RayError:  # it died while it was asked
            continue
    return found
