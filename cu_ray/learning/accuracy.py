"""How often a model gives training samples the labels that they were given."""

from __future__ import annotations

from cu_ray.lazy import torch
from cu_ray.types import Stream


def accuracy_as_given(model: torch.nn.Module, samples: Stream, *, augment: bool = True) -> float:
    """The share of the samples predicted as labelled, in one pass, in float32; the model is left in eval mode."""
    model.eval()
    with torch.no_grad():
        hits = sum((model(batch.images).argmax(dim=1) == batch.labels).sum() for batch in samples.epoch(augment=augment))
    return float(hits) / len(samples)
