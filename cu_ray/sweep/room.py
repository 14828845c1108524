"""The shape of a worker, and how many of it fit into the Ray that this process is at."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping

from cu_ray.errors import UserError
from cu_ray.sweep.shares import trials_in

ASK_EVERY = 5.0  # seconds between looks at what the cluster has
ANSWERS_IN = 1.0  # seconds that it is waited for


def shape(share: float | None) -> dict[str, float]:
    """The one resource shape of all workers: a CPU, and this share of a GPU."""
    return {"cpu": 1.0} if share is None else {"cpu": 1.0, "gpu": share}


class Room:
    """How many workers fit into the cluster, asked anew every few seconds: nodes come and go.

    growth: what the cluster has when its autoscaler has let it grow, which it does for those who wait for room; wanted: how many
    are of use then; gone: is told, by another thread, of each node that is no more, again and again.
    """

    def __init__(
        self,
        shape: Mapping[str, float],
        limit: int | None,
        growth: Mapping[str, float] | None = None,
        wanted: Callable[[], int] = lambda: 1,
        gone: Callable[[str], object] = lambda node: None,
    ) -> None:
        self._shape, self._limit, self._growth, self._wanted, self._gone = shape, limit, growth, wanted, gone
        self._asked, self._fit = -math.inf, 0

    def __call__(self) -> int:
        """How many fit, and not more than the limit; as many as before where a gcs that has ended does not answer."""
        if time.monotonic() - self._asked > ASK_EVERY:
            self._asked = time.monotonic()
            asker = threading.Thread(target=self._ask, name="room", daemon=True)
            asker.start()
            asker.join(ANSWERS_IN if self._fit else None)
        room: float = self._fit
        if self._growth is not None:
            room = min(max(room, self._fitting(self._growth)), self._wanted())
        return int(room if self._limit is None else min(room, self._limit))

    def _ask(self) -> None:
        self._fit = self._count()
        self._look_for_the_gone()

    def _look_for_the_gone(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # Ray may have ended by now; the next look will tell
            for node in ray.nodes():
                if not node["Alive"]:
                    self._gone(node["NodeID"])

    def _count(self) -> int:
        import ray

        return int(self._fitting(ray.cluster_resources()))

    def _fitting(self, resources: Mapping[str, float]) -> float:
        cpus, gpus = resources.get("CPU", 0) // 1, resources.get("GPU", 0) // 1
        share = self._shape.get("gpu")
        if share is None:
            return cpus
        return min(cpus, gpus * trials_in(share))  # a worker is on one GPU: what is left over of two does not make a third


def require(room: Room, shape: Mapping[str, float]) -> None:
    """Raise UserError where not one worker of that shape fits."""
    import ray

    if room() < 1:
        gpus = ray.cluster_resources().get("GPU", 0)
        needed = f"{shape['gpu']:g} of a GPU" if "gpu" in shape else "1 CPU"
        raise UserError(f"not one worker fits: it needs {needed}, Ray has {gpus:g} GPUs (runtime.device, runtime.gpus_per_trial)")
