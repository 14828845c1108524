"""A cluster of two nodes on this machine in a process of its own; a second node that dies is replaced.

Writes where it is, the processes of its raylets, and who the second node is, into the file that it is given. It ends when the
head ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster


def say(path: Path, cluster: Cluster, second: object) -> None:
    nodes = {"head": cluster.head_node, "node": second}
    raylets = {name: node.all_processes["raylet"][0].process.pid for name, node in nodes.items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"address": cluster.address, "node_id": second.node_id, **raylets}))
    os.replace(temporary, path)


def main(path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    say(path, cluster, second)
    while cluster.head_node.remaining_processes_alive():
        if not second.remaining_processes_alive():
            cluster.remove_node(second, allow_graceful=False)
            second = cluster.add_node(num_cpus=1)
            say(path, cluster, second)
        time.sleep(0.2)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    os._exit(0)  # Ray's own end would wait for the head


if __name__ == "__main__":
    main(Path(sys.argv[1]))
