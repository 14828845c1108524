"""Means over seeds with their spread and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Number of values, mean, standard deviation (n - 1) and 95 % interval by Student's t; None where it has no meaning."""

    n: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None


def summarise(values: Sequence[float | None]) -> Summary:
    """The summary of the values that are there."""
    import scipy.special

    present = np.array([value for value in values if value is not None], dtype=float)
    n = len(present)
    if n < 2:
        return Summary(n, float(present[0]) if n else None, None, None, None)
    mean, std = float(present.mean()), float(present.std(ddof=1))
    reach = float(scipy.special.stdtrit(n - 1, 0.975)) * std / n**0.5
    return Summary(n, mean, std, mean - reach, mean + reach)
