"""What training and unlearning learn with: the whole data and all steps. A canary brings tools that cut both short."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cu_ray.learning.batches import RowStream
from cu_ray.learning.meter import Meter
from cu_ray.learning.sgd import Sgd
from cu_ray.stages.evaluate import Keeper


@dataclass(frozen=True)
class Tools:
    """What makes the streams, optimisations, keeper, meters and attempts of one training or one trial."""

    stream: Callable[..., RowStream] = RowStream
    sgd: Callable[..., Sgd] = Sgd
    keeper: Callable[..., Keeper] = Keeper
    meter: Callable[[], Meter] = Meter
    attempts: Callable[[int], Iterable[int]] = range


WHOLE = Tools()
