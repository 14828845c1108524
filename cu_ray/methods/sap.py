"""Scaled activation projection (SAP): project the weights onto what trusted samples activate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from cu_ray.errors import AssumptionFailed
from cu_ray.lazy import torch
from cu_ray.learning.activations import inputs_of
from cu_ray.methods import Method
from cu_ray.plugins import Bound, Search
from cu_ray.types import Batch, Cost, NamedTensors, Sizes, UnlearningTask

Layer: TypeAlias = "torch.nn.Conv2d | torch.nn.Linear"  # a text: torch is not imported before it is used


@dataclass(frozen=True)
class Sap(Method):
    """W <- W U Lambda U^T in each convolution and linear layer (Kodge et al. 2403.08618).

    U and sigma are the left singular vectors and values of the layer's inputs (for a convolution: of the patches that its
    kernel sees) on trusted samples; Lambda = alpha s / ((alpha - 1) s + 1) with s = sigma^2 / sum of all sigma^2. Trusted:
    the `trusted` samples of the retain set with the lowest cross-entropy against given labels, in eval mode, without
    augmentation. `scaling` is alpha. Biases and BatchNorm stay.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "project each layer's weights onto what the best-fitted retained samples activate"
    memo_fields: ClassVar[tuple[str, ...]] = ("trusted",)
    scaling: Annotated[float, Search(1e2, 1e6, log=True), Bound(low=1)] = 1e4
    trusted: Annotated[int, Bound(low=1)] = 1000

    def unlearn(self, task: UnlearningTask) -> torch.nn.Module:
        """The original with its weights projected."""
        spectra = task.remember("spectra", self.spectra, trusted=self.trusted)
        for name, layer in weight_layers(task.original):
            if f"{name}.basis" not in spectra:
                continue  # such as that of an attention: its weights are used without it
            basis_DD, energy_D = spectra[f"{name}.basis"], spectra[f"{name}.energy"]
            kept_D = self.scaling * energy_D / ((self.scaling - 1) * energy_D + 1)
            with torch.no_grad():
                weight_OD = layer.weight.flatten(1)
                layer.weight.copy_((weight_OD @ basis_DD * kept_D @ basis_DD.T).view_as(layer.weight))
        return task.original

    def spectra(self, task: UnlearningTask) -> NamedTensors:
        """Of each layer the orthonormal basis U [D, D], a column a vector, and the share of each in the energy [D]."""
        model, rows = task.original, self.trusted_rows(task)
        correlations: dict[str, torch.Tensor] = {}
        layers = list(weight_layers(model))
        with ExitStack() as stack, torch.no_grad():
            seen = {name: stack.enter_context(inputs_of(layer)) for name, layer in layers}
            for batch in picked(task, rows):
                model(batch.images)
                for name, layer in layers:
                    while seen[name]:
                        patches_ND = input_rows(layer, seen[name].pop()).double()
                        correlations[name] = correlations.get(name, 0) + patches_ND.T @ patches_ND
        return {key: tensor for name, each in correlations.items() for key, tensor in spectrum(name, each, model).items()}

    def trusted_rows(self, task: UnlearningTask) -> torch.Tensor:
        """The rows of the retain set with the lowest loss."""
        losses, rows = [], []
        with torch.no_grad():
            for batch in task.retain.epoch(shuffle=False, augment=False):
                losses.append(torch.nn.functional.cross_entropy(task.original(batch.images), batch.labels, reduction="none"))
                rows.append(batch.indices)
        order = torch.cat(losses).argsort(stable=True)
        return torch.cat(rows)[order[: self.trusted]]

    def cost(self, sizes: Sizes) -> Cost:
        """The retain set forward, then the trusted samples forward."""
        return self.memo_cost(sizes)

    def memo_cost(self, sizes: Sizes) -> Cost:
        """All of it."""
        return Cost(sizes.retain + min(self.trusted, sizes.retain))


def weight_layers(model: torch.nn.Module) -> Iterator[tuple[str, Layer]]:
    """The convolution and linear layers by name. Raises AssumptionFailed for a convolution in groups."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
            raise AssumptionFailed(f"it projects whole convolutions, but {name} is one of {module.groups} groups")
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            yield name, module


def picked(task: UnlearningTask, rows: torch.Tensor) -> Iterator[Batch]:
    """Batches of those samples of the retain set that are among the rows."""
    for batch in task.retain.epoch(shuffle=False, augment=False):
        chosen = torch.isin(batch.indices, rows)
        if bool(chosen.any()):
            yield Batch(batch.images[chosen], batch.labels[chosen], batch.indices[chosen], batch.in_deletion[chosen])


def input_rows(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """What the layer multiplies its flattened weights with, a row each [N, D]."""
    if isinstance(layer, torch.nn.Linear):
        return inputs.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = torch.nn.functional.pad(inputs, layer._reversed_padding_repeated_twice, mode)
    patches_BDL = torch.nn.functional.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return patches_BDL.transpose(1, 2).flatten(0, 1)


def spectrum(name: str, correlation_DD: torch.Tensor, model: torch.nn.Module) -> NamedTensors:
    """The eigenvectors of a layer's correlations and their share in the sum of eigenvalues, in the weights' number format."""
    values_D, basis_DD = torch.linalg.eigh(correlation_DD)
    like = next(model.parameters())
    energy_D = values_D.clamp(min=0)
    return {f"{name}.basis": basis_DD.to(like.dtype), f"{name}.energy": (energy_D / energy_D.sum()).to(like.dtype)}
