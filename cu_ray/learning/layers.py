"""A model's layers: their initialisation, the last k of them, and freezing the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cu_ray.errors import ContractBroken
from cu_ray.lazy import torch


def initialise(modules: Sequence[torch.nn.Module], seed: int) -> None:
    """Give the modules new weights: each layer's PyTorch default, with bias 0 for convolution and linear layers.

    Drawn on the CPU from the seed alone: the same on every device, and the global generator is left as it was.
    Raises ContractBroken where a parameter gets no new values: no layer's `reset_parameters` knows of it.
    """
    _erase(modules)  # so that what no layer draws is noticed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in (layer for module in modules for layer in module.modules()):
            reset: Any = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if reset is None:
                continue
            device = next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
            layer.to("cpu")
            reset()
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
            layer.to(device)
    _require_drawn(modules)


def _erase(modules: Sequence[torch.nn.Module]) -> None:
    with torch.no_grad():
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            parameter.fill_(torch.nan)


def _require_drawn(modules: Sequence[torch.nn.Module]) -> None:
    for module in modules:
        for name, parameter in module.named_parameters():
            if bool(parameter.isnan().any()):
                raise ContractBroken(f"the parameter {name} gets no new weights: its module needs `reset_parameters`")


def num_weight_layers(module: torch.nn.Module) -> int:
    """How many convolution and linear layers a module has, shortcuts left out: what k counts in EU-k and CF-k."""
    if getattr(module, "is_shortcut", False):
        return 0
    itself = isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    return itself + sum(map(num_weight_layers, module.children()))


def last_layers(blocks: Sequence[torch.nn.Module], k: int | None) -> list[torch.nn.Module]:
    """The last whole blocks that together have k convolution and linear layers; all blocks for None.

    Raises ValueError where no number of whole blocks has k layers.
    """
    if k is None:
        return list(blocks)
    for start in range(len(blocks) - 1, -1, -1):
        if sum(map(num_weight_layers, blocks[start:])) == k:
            return list(blocks[start:])
    raise ValueError(f"no whole blocks have {k} layers")


def train_only(model: torch.nn.Module, trained: Sequence[torch.nn.Module]) -> None:
    """Freeze all but these modules: no gradients, and eval mode, so that BatchNorm statistics stay as they are.

    Where these hold all parameters nothing is frozen: what lies between them, dropout for one, is in train mode too.
    """
    model.eval().requires_grad_(False)
    for module in trained:
        module.train().requires_grad_(True)
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.train()
