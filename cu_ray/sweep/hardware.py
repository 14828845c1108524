"""What `auto` comes to: decided from the nodes of a Ray that is joined, since the driver's own machine may have no GPU.

The device and the precision are part of what a trial is: they have to be known before anything has a key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cu_ray.config import Sweep
from cu_ray.errors import UserError
from cu_ray.learning.precision import BF16_FLAGS, local_device_kind, local_flags, resolve
from cu_ray.sweep.growth import UNKNOWN, growth

WISHES = ("auto", "published")  # precisions that depend on the hardware
ANSWERS_IN = 60.0  # seconds that a node has to say what it has


@dataclass(frozen=True)
class Hardware:
    """What trials run on: 'cuda' or 'cpu', and the capabilities that the GPUs, or the processors, of all nodes have."""

    device: str
    flags: frozenset[str] | None  # None where no precision depends on them

    @property
    def auto_precision(self) -> str | None:
        """What `precision: auto` comes to; None where nobody asked for it."""
        return None if self.flags is None else resolve("auto", self.device, self.flags)

    def settle(self, sweep: Sweep) -> Sweep:
        """The sweep with device and precisions said."""
        trains = tuple(replace(train, precision=resolve(train.precision, self.device, self.flags)) for train in sweep.trains)
        return replace(sweep, trains=trains, runtime=replace(sweep.runtime, device=self.device))


def is_open(sweep: Sweep) -> bool:
    """Whether the sweep file leaves to the hardware what trials run on."""
    return sweep.runtime.device == "auto" or precision_is_open(sweep)


def here(sweep: Sweep) -> Hardware:
    """The hardware of this machine, but the device that the sweep names."""
    wish = sweep.runtime.device
    device = local_device_kind() if wish == "auto" else wish
    return Hardware(device, local_flags(device))


def of_nodes(sweep: Sweep) -> Hardware:
    """The hardware of the Ray that this process is at, but the device that the sweep names. Raises UserError."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    wish = sweep.runtime.device
    device = device_of([node["Resources"] for node in nodes], growth()) if wish == "auto" else wish
    workers = [node["NodeID"] for node in nodes if node["Resources"].get("GPU" if device == "cuda" else "CPU", 0)]
    if not precision_is_open(sweep):
        return Hardware(device, None)
    return Hardware(device, common(workers, device))


def as_before(sweep: Sweep, facts: Mapping[str, Any]) -> Hardware | None:
    """The hardware of an earlier run, by its status; None where that is not told or not what the sweep asks for."""
    device, precision = facts.get("device"), facts.get("auto_precision")
    if sweep.runtime.device not in ("auto", device) or (precision is None and precision_is_open(sweep)):
        return None
    return Hardware(str(device), None if precision is None else BF16_FLAGS if precision == "bf16" else frozenset())


def precision_is_open(sweep: Sweep) -> bool:
    """Whether the sweep file leaves a precision to the hardware."""
    return any(train.precision in WISHES for train in sweep.trains)


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


def common(nodes: list[str], device: str) -> frozenset[str]:
    """The capabilities that the devices of all these nodes have; those of this machine where there is no node.

    Raises UserError where one that is up does not answer: the precision is part of each key, and no matter of who is quick.
    """
    found, silent = _flags_of(nodes, device)
    if silent:
        raise UserError(
            f"train.precision: what it comes to all nodes decide, and {', '.join(silent)} did not answer within "
            f"{ANSWERS_IN:.0f} s. Give a precision (bf16, fp32), or the same command once `cu-ray doctor` hears of all nodes"
        )
    return frozenset.intersection(*found) if found else local_flags(device)


def _flags_of(nodes: list[str], device: str) -> tuple[list[frozenset[str]], list[str]]:
    """The capabilities of each node that answers, and the addresses of those that are up and do not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {
        ray.remote(local_flags)
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(device): node
        for node in nodes
    }
    answered, rest = ray.wait([*asked], num_returns=len(asked), timeout=ANSWERS_IN) if asked else ([], [])
    found, silent = [], {asked[each] for each in rest}
    for answer in answered:
        with contextlib.suppress(ray.exceptions.RayError):  # it died, or can do no sweep, as is told of it then
            found.append(ray.get(answer))
    return found, [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and node["NodeID"] in silent]
