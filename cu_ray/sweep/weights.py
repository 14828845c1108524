"""The weights of an original model that was trained elsewhere: read, held against the architecture, put into the store."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from cu_ray.errors import UserError, did_you_mean
from cu_ray.lazy import torch
from cu_ray.sweep.plan import Plan
from cu_ray.types import DatasetFacts, Store, Tensors


def read(path: Path) -> Tensors:
    """The arrays of a safetensors file. Raises UserError where it cannot be read."""
    try:
        tensors: Tensors = load_file(path)
    except (OSError, SafetensorError, TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"original.weights: {path} cannot be read as safetensors: {error}. "
            f"Write it with safetensors.torch.save_file(model.float().state_dict(), {path.with_suffix('.safetensors').name!r})."
        ) from error
    return tensors


def require_fit(tensors: Tensors, plan: Plan) -> None:
    """Raise UserError where the weights are not those of the plan's model."""
    for setting in {spec.setting.model: spec.setting for spec in plan.originals() if spec.setting.weights}.values():
        _fitting(tensors, setting.model, setting.dataset.facts())


def deposit(tensors: Tensors, plan: Plan, store: Store) -> None:
    """Put the weights into the store as the plan's original models. Raises UserError where they do not fit the model."""
    for spec in plan.originals():
        if spec.setting.weights and store.load("originals", spec.key) is None:
            store.save("originals", spec.key, _fitting(tensors, spec.setting.model, spec.setting.dataset.facts()), {})


def _fitting(tensors: Tensors, model_plugin: object, facts: DatasetFacts) -> Tensors:
    """The arrays in the model's own number types. Raises UserError for names and shapes that are not the model's."""
    with torch.device("meta"):
        expected = model_plugin.build(facts.image_shape, len(facts.class_names)).state_dict()  # type: ignore[attr-defined]
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        problems = [f"{len(missing)} of its tensors are missing, like {missing[0]!r}"] if missing else []
        problems += [f"{len(unknown)} are not its own, like {unknown[0]!r}"] if unknown else []
        hint = did_you_mean(unknown[0], missing).rpartition(". ")[2] if missing and unknown else ""
        raise UserError(f"original.weights: not those of this model: {'; '.join(problems)}. {hint}".rstrip())
    for name, tensor in expected.items():
        if tuple(tensor.shape) != tensors[name].shape:
            raise UserError(
                f"original.weights: {name} has the shape {tensors[name].shape}, not {tuple(tensor.shape)} as in this model"
            )
    return {name: tensors[name].astype(torch.empty(0, dtype=tensor.dtype).numpy().dtype) for name, tensor in expected.items()}
