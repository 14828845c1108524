"""A sweep on a head without CPUs: its demand brings nodes up, their idleness lets them go. By Ray's fake provider of nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import ray
import yaml

from tests import sweeps

FAKE = Path(ray.__file__).parent / "autoscaler" / "_private" / "fake_multi_node"
HEAD = "f" * 51 + "00000"  # as the fake provider calls the head
CONFIG = {
    "cluster_name": "fake",
    "max_workers": 2,
    "upscaling_speed": 100,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "fake_multinode",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1, "object_store_memory": 200_000_000}, "node_config": {}, "min_workers": 0},
    },
    "head_node_type": "ray.head.default",
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")},
}
# In namespaces of its own: the fake provider knows only the usual port, and needs a file that Ray's wheel lacks.
SCRIPT = r"""
ip link set lo up
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount --bind {folder}/fake {fake}
export RAY_enable_autoscaler_v2=1 AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_FAKE_CLUSTER=1
RAY_CLOUD_INSTANCE_ID={head} RAY_OVERRIDE_NODE_ID_FOR_TESTING={head} {ray} start --head --port=6379 --num-cpus=0 \
  --autoscaling-config={folder}/config.yaml --include-dashboard=false --disable-usage-stats
nodes() {{ {python} -c '
import ray
ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="ERROR")
print("nodes:", sum(node["Alive"] for node in ray.nodes()))'; }}
nodes
timeout 120 {python} -m cu_ray.cli sweep small.yaml --address 127.0.0.1:6379
echo code: $?
for i in $(seq 20); do nodes | tee last; grep -q 'nodes: 1$' last && break; sleep 1; done
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("ip") is None, reason="unshare and ip are needed")
def test_demand_brings_nodes_up_and_idleness_lets_them_go(tmp_path):
    sweeps.small(tmp_path, storage=tmp_path / "store", seeds="[0]")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    shutil.copytree(FAKE, tmp_path / "fake")
    (tmp_path / "fake" / "example.yaml").write_text(yaml.safe_dump(CONFIG))
    facts = {"folder": tmp_path, "fake": FAKE, "head": HEAD, "python": sys.executable}
    facts["ray"] = Path(sys.executable).with_name("ray")
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_AUTH_MODE": "token"}
    command = [*namespaces, "bash", "-c", SCRIPT.format(**facts)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert "code: 0" in done.stdout, done.stdout + done.stderr
    counts = [line for line in done.stdout.splitlines() if line.startswith("nodes: ")]
    assert (counts[0], counts[-1]) == ("nodes: 1", "nodes: 1"), counts
    assert "nodes: 3" in counts, counts
    trials = pd.read_parquet(tmp_path / "results/small/tables/trials.parquet")
    assert set(trials["status"]) == {"ok"}
