"""Adaptive selective synaptic dampening (ASSD): SSD whose threshold follows from the size of the deletion set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cu_ray.lazy import torch
from cu_ray.methods._dampening import BatchSize, Dampening, dampen, finite_ratios, percentile_threshold
from cu_ray.types import UnlearningTask


@dataclass(frozen=True)
class Assd(Dampening):
    """SSD with lambda = 1 and alpha the percentile 100 - ln(1 + 100 |S_f| / |D|) of I_f / I_r (Schoepf et al. 2402.10098)."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SSD with a threshold that follows from the deletion set's share of the training set"
    importance_batch_size: BatchSize = 512

    def apply(self, task: UnlearningTask, deletion_P: torch.Tensor, retain_P: torch.Tensor) -> None:
        """Once, by the percentile of the deletion set's share."""
        alpha = percentile_threshold(finite_ratios(deletion_P, retain_P), len(task.deletion) / len(task.everything))
        selected = dampen(task.original, deletion_P, retain_P, alpha, 1.0)
        task.note(selection_weight=alpha, selected_share=selected)
