"""A data set lies in memory once a machine: mapped from its file in the driver, in Ray's shared memory for all workers."""

from __future__ import annotations

import numpy as np
import pytest

from cu_ray import plugins

LIMIT = 20 << 20  # bytes that a further worker may need for the data
NUM_TRAIN, NUM_TEST = 50_000, 10_000  # of 32 x 32 x 3: 154 MB + 31 MB


def private_bytes(*kinds: str) -> int:
    """Memory of this process that it shares with no other. Clean: could be dropped and read again from a mapped file."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(kinds or ("Private_Clean", "Private_Dirty")))


class Worker:
    """Does with a data set what a trial's worker does."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.kept = None

    def warm_up(self) -> None:
        """The same with a few images, so that code and libraries do not count."""
        from cu_ray.testing import TinyImages

        self._use(TinyImages().load())

    def use(self, references: list) -> tuple[int, int, str]:
        """How much private memory it took, whether the arrays can be written to, and the data set's content hash."""
        import ray

        before = private_bytes()
        dataset = ray.get(references[0])
        self._use(dataset)
        return private_bytes() - before, dataset.train.pixels.flags.writeable, dataset.content_hash

    def _use(self, dataset) -> None:
        import torch

        from cu_ray.manipulations.backdoor import Backdoor
        from cu_ray.stages.poison import poison, upload

        poisoned = poison(dataset, Backdoor(size=20, target=0), seed=0)
        data = upload(poisoned, torch.device("cpu"))
        for start in range(3):
            data.train.load(torch.arange(start, 60, 3), generator=torch.Generator())
            data.test.load(torch.arange(start, 30, 3), stamp_all=True)
        self.kept = poisoned, data


@pytest.fixture
def ray_of_its_own():
    import ray

    ray.init(
        "local",
        num_cpus=3,
        object_store_memory=400 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


def write(folder) -> str:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        arrays[f"{part}_pixels"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 10
    np.savez(folder / "large.npz", **arrays)
    return str(folder / "large.npz")


def test_a_further_worker_needs_hardly_any_memory_for_the_data(tmp_path, ray_of_its_own):
    ray, file = ray_of_its_own, write(tmp_path)
    data = plugins.find("datasets", "npz")(file)
    data.load()
    before = private_bytes("Private_Dirty")
    dataset = data.load()
    expected = dataset.content_hash
    hashed = private_bytes("Private_Dirty") - before
    reference = ray.put(dataset)
    remote = ray.remote(num_cpus=1)(Worker)
    used = []
    for worker in [remote.remote() for _ in range(3)]:
        ray.get(worker.warm_up.remote())
        private, writeable, content_hash = ray.get(worker.use.remote([reference]))
        used.append(private)
        assert not writeable
        assert content_hash == expected
    print(f"private MB: driver (dirty) {hashed / 1e6:.1f}; workers {[round(each / 1e6, 1) for each in used]}")
    assert hashed < LIMIT
    assert max(used) < LIMIT
