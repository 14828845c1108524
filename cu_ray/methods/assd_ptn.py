"""ASSD with the search of Potion: SSD's importances, dampened until the deletion set's labels are forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.methods._dampening import SearchedThreshold


@dataclass(frozen=True)
class AssdPtn(SearchedThreshold):
    """What Potion's published code calls ASSD: squared cross-entropy importances with its search (Schoepf et al. 2406.09173)."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SSD's importances, dampened until the deletion set's labels are forgotten"
