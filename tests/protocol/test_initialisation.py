"""New weights reach every parameter; one that nothing draws is an error."""

from __future__ import annotations

import pytest
import torch

from cu_ray.errors import ContractBroken
from cu_ray.learning.layers import initialise, num_weight_layers
from cu_ray.models._blocks import shortcut
from cu_ray.models.vit import Vit
from tests.protocol import fakes


class OwnParameter(torch.nn.Module):
    """Has a parameter, and says how it starts where told to."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(3))


class Resettable(OwnParameter):
    """Says how its parameter starts."""

    def reset_parameters(self):
        torch.nn.init.normal_(self.scale)


def same_after(make, seeds, global_seeds=(0, 1)):
    """Whether two models drawn from these seeds are the same to the bit."""
    states = []
    for seed, global_seed in zip(seeds, global_seeds, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            model = make()
        initialise([model], seed)
        states.append(fakes.snapshot(model))
    return fakes.same_bits(*states)


MODULES = {
    "parameters of its own": Resettable,
    "attention": lambda: torch.nn.MultiheadAttention(8, 2),
    "encoder layer": lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "embedding": lambda: torch.nn.Embedding(4, 3, padding_idx=0),
    "vit": lambda: Vit(4, 1, 8, 2).build((8, 8, 1), 3),
}


@pytest.mark.parametrize("kind", MODULES)
def test_the_seed_alone_determines_every_parameter(kind):
    assert same_after(MODULES[kind], (1, 1))
    assert not same_after(MODULES[kind], (1, 2))


def test_biases_of_attention_start_at_0():
    model = torch.nn.MultiheadAttention(8, 2)
    initialise([model], 0)
    assert torch.count_nonzero(model.in_proj_bias) == torch.count_nonzero(model.out_proj.bias) == 0


def attached():
    """A layer that draws its own weights and knows nothing of one more."""
    layer = torch.nn.Linear(2, 2)
    layer.loose = torch.nn.Parameter(torch.rand(1))
    return layer


def parametrised():
    """A layer whose `reset_parameters` draws a weight that is computed from others."""
    return torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("make", "name"), [(OwnParameter, "scale"), (attached, "loose"), (parametrised, "parametrizations.weight.original")]
)
def test_a_parameter_that_nothing_draws_is_against_the_contract(make, name):
    with pytest.raises(ContractBroken, match=f"the parameter 1.{name}.* gets no new weights"):
        initialise([torch.nn.Sequential(torch.nn.Linear(2, 2), make())], 0)


def test_shortcuts_are_not_counted():
    beside = shortcut(2, 4, stride=2)
    assert num_weight_layers(beside) == 0
    assert num_weight_layers(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), beside, torch.nn.Linear(1, 1))) == 2
    assert shortcut(4, 4, stride=1) is None
    assert None not in (shortcut(4, 4, stride=2), shortcut(2, 4, stride=1))
