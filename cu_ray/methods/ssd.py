"""Selective synaptic dampening (SSD): shrink the parameters that matter more to the deletion set than to the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.methods._dampening import GivenThreshold


@dataclass(frozen=True)
class Ssd(GivenThreshold):
    """Where I_f > alpha I_r, multiply a parameter by min(lambda I_r / I_f, 1) (Foster et al. 2308.07707).

    I_f and I_r are the squared-gradient importances on the deletion and the retain set. alpha is given either as such
    (`selection_weight`) or as the share of parameters to select (`selection_share`; alpha is then the (1 - share) quantile
    of I_f / I_r, and recorded): alpha has no scale that carries from one model to another. `relative_dampening` is
    lambda / alpha; above 1 it would repeat other points (r alpha, 1). Every parameter, BatchNorm's included; no buffers.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "dampen the parameters that matter more to the deletion set than to the retain set"
