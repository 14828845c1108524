"""Example-tied dropout: half of a network's channels are a memory, of which each training sample sees a part that stays its own.

What is peculiar to few samples settles in the memory, and goes with it (Maini et al., arXiv 2307.09542).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cu_ray.errors import AssumptionFailed, ContractBroken
from cu_ray.identity import seed_for
from cu_ray.lazy import torch
from cu_ray.types import Batch, Stream

VARIANT = "example_tied_dropout"  # in a method's `original_variant`, with the share of the memory that a sample sees
Taker = Any  # a layer that takes channels in: a convolution, or the linear layer at the end


def share_of(variant: Mapping[str, Any]) -> float:
    """The share of the memory that a sample sees, as an `original_variant` says it. Raises ContractBroken for anything else."""
    (name, share), *others = variant.items()
    if others or name != VARIANT:
        raise ContractBroken(f"original_variant has {', '.join(map(repr, variant))}, known is {VARIANT!r} alone")
    if not (isinstance(share, (int, float)) and 0 < share <= 1):
        raise ContractBroken(f"original_variant: {VARIANT} is {share!r}; a share is above 0 and at most 1")
    return float(share)


def takers(model: torch.nn.Module, head: torch.nn.Linear) -> list[Taker]:
    """The layers that can take a memory in: all convolutions but that of the image, and the head.

    Raises AssumptionFailed where the model has a layer with weights of another kind.
    """
    of_image = next((module for module in model.modules() if isinstance(module, torch.nn.Conv2d)), None)
    found = []
    for name, module in model.named_modules():
        if module is head or (isinstance(module, torch.nn.Conv2d) and module.groups == 1):
            found += [] if module is of_image else [module]
        elif not isinstance(module, torch.nn.BatchNorm2d) and [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            kind = type(module).__name__
            raise AssumptionFailed(f"a memory is made of convolutions and BatchNorm, but {name or 'the model'} is a {kind}")
    return found


def channels_in(layer: Taker) -> int:
    """How many channels (or features) a layer takes in."""
    return int(layer.in_features if isinstance(layer, torch.nn.Linear) else layer.in_channels)


def own_channels(layer: Taker) -> int:
    """How many of the channels that a layer takes in are no memory, where half of them are: the first."""
    return -(-channels_in(layer) // 2)


def draw(num_rows: int, width: int, share: float, device: torch.device) -> torch.Tensor:
    """Which of so many memory channels each row of the training set sees [rows, width]: by its number alone, on every device."""
    return _drawn(num_rows, width, share).to(device)


@functools.lru_cache(maxsize=8)
def _drawn(num_rows: int, width: int, share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed_for(VARIANT, width))
    return torch.rand(num_rows, width, generator=generator) < share


class TiedDropout:
    """Hooks before layers: the first channels that each takes in pass, of the others a sample sees what is drawn for its row.

    layers: each with the number of channels that pass. drawn: by the number of the others, what each row sees of them. Layers
    with equally many share it, as sums of branches ask for. unseen: what the others are multiplied by while there are no rows.
    """

    def __init__(self, layers: Sequence[tuple[Taker, int]], drawn: Mapping[int, torch.Tensor], *, unseen: float = 0.0) -> None:
        self.rows_B: torch.Tensor | None = None
        self._layers, self.drawn, self._unseen = layers, drawn, unseen
        self._handles = [layer.register_forward_pre_hook(self._hook(own)) for layer, own in layers]

    @classmethod
    def half_of(cls, layers: Sequence[Taker], share: float, num_rows: int, device: torch.device) -> TiedDropout:
        """Half of each layer's channels as a memory, as an original is trained with it; evaluated with its mean."""
        owns = [(layer, own_channels(layer)) for layer in layers]
        widths = {channels_in(layer) - own for layer, own in owns}
        return cls(owns, {width: draw(num_rows, width, share, device) for width in widths}, unseen=share)

    def following(self, batches: Stream) -> Stream:
        """The same batches, each with its rows set while it is in use."""
        return _Following(self, batches)

    def settle(self) -> None:
        """Let the model alone compute what it did without rows: the hooks go, and weights take their place."""
        for handle in self._handles:
            handle.remove()
        for layer, own in self._layers:
            layer.weight.data[:, own:] *= self._unseen

    def _hook(self, own: int) -> Any:
        def see(_: torch.nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
            passing, memory = args[0][:, :own], args[0][:, own:]
            if self.rows_B is None:
                return torch.cat([passing, memory * self._unseen if self._unseen else torch.zeros_like(memory)], dim=1)
            seen = self.drawn[memory.shape[1]][self.rows_B].view(*memory.shape[:2], *[1] * (memory.dim() - 2))
            return torch.cat([passing, memory * seen], dim=1)

        return see  # a plain function: copies of the model see the same memory


class _Following:
    def __init__(self, tied: TiedDropout, batches: Stream) -> None:
        self._tied, self._batches = tied, batches

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, batch_size: int | None = None, *, shuffle: bool = True, augment: bool = True) -> Iterator[Batch]:
        """One pass over the batches."""
        try:
            for batch in self._batches.epoch(batch_size, shuffle=shuffle, augment=augment):
                self._tied.rows_B = batch.indices
                yield batch
        finally:
            self._tied.rows_B = None
