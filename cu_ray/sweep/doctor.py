"""Looks at every node of a Ray at once: what is there, what differs from node to node, and what mends it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

import cu_ray
from cu_ray.datasets._cache import CACHE, checksums
from cu_ray.errors import UserError
from cu_ray.places import at, lasting

PACKAGES = ("cu-ray", "ray", "torch", "numpy", "optuna")
CODE = "cu-ray's code"
MOST_SECONDS = 60.0  # for all nodes to answer
QUICK = 20.0  # seconds, likewise before a sweep
NO_ANSWER = "did not answer in time: its GPUs are in use, or it is cut off"
GONE = "died while it was asked"
MISSING = "`ray monitor cluster.yaml` shows what becomes of the others; `ray up` again restarts Ray and ends sweeps that run"
DAMAGED = f"one is damaged, and is made again where it is deleted: {CACHE}"
MOST_SKEW = 5.0  # seconds
LEAST_FREE = {"/tmp": 5 << 30, "/dev/shm": 1 << 30}  # bytes  # noqa: S108


@dataclass
class Node:
    """What a node says of itself; faults: what is wrong with it."""

    host: str
    address: str
    versions: dict[str, str] = field(default_factory=dict)
    num_cpus: float = 0
    gpus: list[str] = field(default_factory=list)  # name and memory of each that ran a kernel
    free: dict[str, int] = field(default_factory=dict)  # bytes, by folder
    data: dict[str, str] = field(default_factory=dict)  # a checksum of each data set that lies there, by its folder
    clock_off: float = 0.0  # seconds, at least, from the clock of the one who asks
    faults: list[str] = field(default_factory=list)


def examine(storage: str, expected: int | None = None, named: Sequence[str] = ()) -> tuple[list[Node], list[str]]:
    """All nodes of the Ray that this process is at, with their faults; the faults of the whole, each with its mend.

    storage: the folder or URI that all nodes are to see; expected: how many nodes there should be; named: their addresses, as
    far as they are known. Raises UserError where this process cannot write to the storage.
    """
    nodes = _asked(storage, thorough=True, seconds=MOST_SECONDS)
    compare(nodes)
    _compare_data(nodes)
    for node in nodes:
        _look_at_room_and_clock(node)
    missing = max(0, (expected or 0) - len(nodes))
    absent = [address for address in named if address not in {node.address for node in nodes}]
    which = f", not {', '.join(absent)}" if len(absent) == missing else ""  # else the names are others than Ray's
    return nodes, [f"{len(nodes)} of {expected} nodes have joined{which}: {MISSING}"] if missing else []


def require_alike(storage: str) -> None:
    """Raise UserError where nodes cannot do one sweep: versions that differ, a storage that not all of them see.

    Quick, without GPUs and data sets: a node that does not answer now is passed over.
    """
    nodes = [node for node in _asked(storage, thorough=False, seconds=QUICK) if not {NO_ANSWER, GONE} & {*node.faults}]
    compare(nodes)
    faults = [f"{node.host} ({node.address}) {fault}" for node in nodes for fault in node.faults]
    if faults:
        raise UserError("\n  ".join(["the nodes of this Ray cannot do one sweep (see also `cu-ray doctor`):", *faults]))


def _asked(storage: str, *, thorough: bool, seconds: float) -> list[Node]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place, probe = at(lasting(storage)), f"probe-{uuid.uuid4().hex}"
    try:
        place.write(probe, platform.node().encode())
    except OSError as error:
        raise UserError(
            f"{place} cannot be written to: {error.strerror or error}. Give another place as runtime.storage"
        ) from error
    try:
        asked = {}
        for node in (node for node in ray.nodes() if node["Alive"]):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            gpus = node["Resources"].get("GPU", 0) if thorough else 0
            task = ray.remote(look).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=where, max_retries=0)
            asked[task.remote(str(place), probe, gpus, thorough)] = node
        since = time.time()
        ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
        return [_answer(reference, node, since) for reference, node in asked.items()]
    finally:
        place.delete(probe)


def versions() -> dict[str, str]:
    """The versions of Python and of what a sweep needs most, on this machine, and a checksum of the code of cu-ray."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found | {CODE: code_of(Path(cu_ray.__file__).parent)}


@functools.cache
def code_of(package: Path) -> str:
    """A checksum of the Python files of a package's folder, wherever that lies."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("[!.]*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package)} {len(content)}\n".encode(errors="surrogateescape") + content)
    return digest.hexdigest()[:12]


def look(storage: str, probe: str, num_gpus: float, with_data: bool = False) -> dict[str, Any]:
    """What the node that this runs on says of itself, as the fields of Node, and its time. probe: a file in the storage."""
    found: dict[str, Any] = {"host": platform.node(), "versions": versions(), "faults": []}
    found["free"] = {folder: shutil.disk_usage(folder).free for folder in LEAST_FREE if Path(folder).is_dir()}
    found["now"] = time.time()
    place, own = at(storage), f"{probe}.{os.getpid()}"
    try:
        if place.has(probe):
            place.write(own, b"")
            place.delete(own)
        else:
            found["faults"].append(
                f"does not see what another node wrote to {storage}: mount the same folder there on all nodes, "
                "or give one that they share as runtime.storage"
            )
    except OSError as error:
        found["faults"].append(f"cannot use {storage}: {error.strerror or error}")
    if with_data:
        try:
            found["data"] = checksums()
        except OSError as error:
            found["faults"].append(f"cannot read {error.filename or CACHE}: {error.strerror or error}")
    found["gpus"] = []
    if num_gpus:
        try:
            found["gpus"] = _gpus()
        except Exception as error:  # whatever a driver or a build without CUDA raises
            found["faults"].append(
                f"Ray counts {num_gpus:g} GPUs, but torch cannot use them ({type(error).__name__}: {error}): install the CUDA "
                "build of torch and a driver that fits it"
            )
    return found


def _gpus() -> list[str]:
    """Name and memory of each GPU, after a product of matrices on it."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        if float((ones @ ones).sum()) != 64.0**3:
            raise RuntimeError(f"GPU {index} multiplies wrongly")
        facts = torch.cuda.get_device_properties(index)
        found.append(f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if not found:
        raise RuntimeError("torch sees none")
    return found


def _answer(reference: Any, node: Mapping[str, Any], since: float) -> Node:
    import ray

    asked = Node(node["NodeManagerHostname"], node["NodeManagerAddress"], num_cpus=node["Resources"].get("CPU", 0))
    try:
        answer = ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        asked.faults.append(NO_ANSWER)
    except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
        asked.faults.append(GONE)
    except Exception as error:  # its Python is another one
        asked.faults.append(f"cannot run a task: {str(error).strip().splitlines()[-1]}")
    else:
        now = answer.pop("now")
        for name, value in answer.items():
            setattr(asked, name, value)
        asked.clock_off = max(since - now, now - time.time(), 0.0)
    return asked


def compare(nodes: Sequence[Node]) -> None:
    """Add to the faults of each node the versions in which it differs from most, and code of cu-ray that this process has not."""
    answered = [node for node in nodes if node.versions]
    here = versions()[CODE]
    for node in answered:
        if (code := node.versions.get(CODE, "unknown")) != here:
            node.faults.append(f"runs other code of cu-ray ({code}) than this process ({here}): install the same everywhere")
    for package in ("python", *PACKAGES):
        counts = Counter(node.versions[package] for node in answered)
        for node in answered:
            usual = counts.most_common(1)[0][0]
            if node.versions[package] != usual:
                node.faults.append(f"has {package} {node.versions[package]}, others {usual}: install the same everywhere")


def _compare_data(nodes: Sequence[Node]) -> None:
    """Add to the faults of each node the data sets that lie there as nowhere, or almost nowhere, else."""
    for name in sorted({name for node in nodes for name in node.data}):
        counts = Counter(node.data[name] for node in nodes if name in node.data)
        usual, times = counts.most_common(1)[0]
        for node in nodes:
            if node.data.get(name, usual) != usual:
                others = "others" if times > 1 else "another"
                node.faults.append(f"has {name} with the checksum {node.data[name]}, {others} with {usual}: {DAMAGED}/{name}")


def _look_at_room_and_clock(node: Node) -> None:
    if node.clock_off > MOST_SKEW:
        node.faults.append(f"has a clock that is {node.clock_off:.0f} s off: have it set by NTP")
    for folder, least in LEAST_FREE.items():
        if node.free.get(folder, least) < least:
            free = f"{node.free[folder] / 2**30:.1f} GiB"
            node.faults.append(f"has {free} free in {folder}, {least >> 30} are needed: make room")


def table_of(nodes: Sequence[Node]) -> Table:
    """The nodes, a row each; below it the versions that the first one has."""
    first = next((node.versions for node in nodes if node.versions), {})
    table = Table("node", "address", "CPUs", "GPUs", *LEAST_FREE, "faults", caption=", ".join(map(" ".join, first.items())))
    for node in nodes:
        free = [f"{node.free[folder] / 2**30:.0f} GiB free" if folder in node.free else "-" for folder in LEAST_FREE]
        table.add_row(node.host, node.address, f"{node.num_cpus:g}", "; ".join(node.gpus) or "-", *free, str(len(node.faults)))
    return table
