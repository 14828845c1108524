"""How far the autoscaler of a Ray may let it grow: what the head's processes tell. From elsewhere it is not known."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

KUBERAY = "KUBERAY_GEN_RAY_START_CMD"  # how KubeRay starts Ray in this pod: without a monitor where its own autoscaler is
UNKNOWN = 1_000_000.0  # more than a cluster has


def growth() -> Mapping[str, float] | None:
    """The CPUs and GPUs of this process's Ray when it is fully grown; None where it does not grow, as far as is known here."""
    import ray

    if "--no-monitor" in os.environ.get(KUBERAY, ""):
        return {"CPU": UNKNOWN, "GPU": UNKNOWN}
    config = _config_of(ray.get_runtime_context().gcs_address)
    return None if config is None else most_of(config)


def most_of(config: Mapping[str, Any]) -> Mapping[str, float] | None:
    """CPUs and GPUs when all nodes of a configuration for `ray up` are there; None where it does not say what nodes have."""
    most = Counter[str]()
    for name, kind in (config.get("available_node_types") or {}).items():
        all_workers = config.get("max_workers", 0)
        count = 1 if name == config.get("head_node_type") else min(kind.get("max_workers", all_workers), all_workers)
        for resource in ("CPU", "GPU"):
            most[resource] += count * kind.get("resources", {}).get(resource, 0)
    return most if any(most.values()) else None


def _config_of(gcs_address: str) -> dict[str, Any] | None:
    """What the monitor beside this gcs was started with; None where none runs on this machine, or it lets nothing grow."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        files = [each.partition("=")[2] for each in command if each.startswith("--autoscaling-config=")]
        if files and f"--gcs-address={gcs_address}" in command:
            try:
                value = yaml.safe_load(Path(files[0]).expanduser().read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                return None
            return value if isinstance(value, dict) else None
    return None
