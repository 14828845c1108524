"""One run as the published procedure makes it: a process of its own, torchvision's transforms on PIL images, all computed anew.

    python benchmarks/published.py CELL.json RUN OUT.json --seed 0 --threads 2 --workers 2 --spawned SECONDS

Started by benchmarks/cell.py, to be measured beside cu-ray. Written from the definitions (docs/protocol.md), in PyTorch as one
writes it: images are decoded, cropped, flipped, normalised and patched one by one in DataLoaders, SSD computes its importances
in each run, every model is evaluated on the whole training and test sets. In its favour: loaders keep their workers,
teachers run without gradients, no model is evaluated before the end of its run.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from cu_ray.datasets._torchvision import torchvision_datasets
from cu_ray.models._blocks import Chain
from cu_ray.models.resnet9 import ResNet9

torchvision_datasets()  # which gets torchvision itself imported
from torchvision import transforms  # noqa: E402

IMPORTED = time.time()
LAST_BLOCKS = {2: 2, 4: 3}  # of ResNet-9, from the output: how many have k convolution and linear layers
IMPORTANCE_BATCH = 512
Loader = torch.utils.data.DataLoader[Any]


@dataclass
class Sets:
    """What a run is given: images, labels as given, which carry the patch, which were found; the recipe."""

    train_pixels: np.ndarray
    labels: np.ndarray
    stamped: np.ndarray
    deletion: np.ndarray
    retain: np.ndarray
    manipulated: np.ndarray
    test_pixels: np.ndarray
    test_labels: np.ndarray
    mean: list[float]
    std: list[float]
    padding: int
    patch: int
    value: float
    target: int

    @classmethod
    def read(cls, file: Path) -> Sets:
        """Those of an .npz file."""
        with np.load(file, allow_pickle=False) as arrays:
            plain = {name for name in arrays if arrays[name].ndim == 0 or name in ("mean", "std")}
            return cls(**{name: arrays[name].tolist() if name in plain else arrays[name] for name in arrays})


class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int, bool]]):
    """Images as tensors [C, H, W], each with its label and whether it is in the deletion set."""

    def __init__(
        self, sets: Sets, rows: np.ndarray, *, augmented: bool = False, test: bool = False, patched: bool = False
    ) -> None:
        self._pixels = sets.test_pixels if test else sets.train_pixels
        self._labels = sets.test_labels if test else sets.labels
        self._stamped = np.full(len(self._pixels), patched) if test else sets.stamped
        self._rows, self._sets, self._found = rows, sets, set() if test else set(sets.deletion.tolist())
        height, width = self._pixels.shape[1:3]
        moved = [transforms.RandomCrop((height, width), padding=sets.padding), transforms.RandomHorizontalFlip()]
        normal = [transforms.ToTensor(), transforms.Normalize(sets.mean, sets.std)]
        self._transform = transforms.Compose([*(moved if augmented else []), *normal])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int, bool]:
        row = int(self._rows[number])
        pixels = self._pixels[row]
        image = self._transform(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
        if self._stamped[row]:
            image[:, -self._sets.patch :, -self._sets.patch :] = self._sets.value
        return image, int(self._labels[row]), row in self._found


@dataclass
class Run:
    """One run: its method and hyperparameters, the data and the model that it starts from; what it has sent through models."""

    method: str
    given: dict[str, Any]
    sets: Sets
    recipe: dict[str, Any]
    model: torch.nn.Module
    workers: int = 0
    augmented: bool = True
    forward: int = 0
    backward: int = 0
    steps: int = 0

    def loader(self, rows: np.ndarray, batch_size: int, *, shuffle: bool = True, **kind: bool) -> Loader:
        """Batches of these rows."""
        pictures = Pictures(self.sets, rows, **kind)
        return torch.utils.data.DataLoader(
            pictures, batch_size=batch_size, shuffle=shuffle, num_workers=self.workers, persistent_workers=self.workers > 0
        )

    def training_loader(self, rows: np.ndarray) -> Loader:
        """Augmented batches of the recipe's size."""
        return self.loader(rows, self.recipe["batch_size"], augmented=self.augmented)

    def make(self) -> torch.nn.Module:
        """The unlearned model."""
        model: torch.nn.Module = getattr(self, self.method)()
        return model

    # ------------------------------------------------------------------------------------------------------------ the methods

    def exact_unlearning(self) -> torch.nn.Module:
        """New weights for the last k layers, the others frozen; training on the retain set."""
        last = self._last(self.given["k"])
        for module in last:
            new_weights(module)
        return self._descend_on_retain(last)

    def catastrophic_forgetting(self) -> torch.nn.Module:
        """The last k layers trained further on the retain set."""
        return self._descend_on_retain(self._last(self.given["k"]))

    def scrub(self) -> torch.nn.Module:
        """Ascent on the deletion set before each pass over the retain set while fewer than msteps steps are made."""
        student, teacher, temperature = self.model.train(), copy.deepcopy(self.model).eval(), 4.0
        optimiser = self._optimiser(student, self.given["lr"])
        found, rest = self.training_loader(self.sets.deletion), self.training_loader(self.sets.retain)

        def one_pass(loader: Loader, sign: float) -> None:
            for images, labels, _ in loader:
                if self.steps >= self.given["steps"]:
                    return
                with torch.no_grad():
                    theirs = torch.log_softmax(teacher(images) / temperature, dim=1)
                logits = student(images)
                own = torch.log_softmax(logits / temperature, dim=1)
                divergence = torch.nn.functional.kl_div(own, theirs, reduction="batchmean", log_target=True)
                loss = torch.nn.functional.cross_entropy(logits, labels)
                loss = loss + self.given["alpha"] * temperature**2 * divergence
                self._step(optimiser, sign * loss, self.given["lr"], forward=2 * len(labels), backward=len(labels))

        while self.steps < self.given["steps"]:
            if self.steps < self.given["msteps"]:
                one_pass(found, -1.0)
            one_pass(rest, 1.0)
        return student

    def bad_teaching(self) -> torch.nn.Module:
        """A random teacher's predictions on the deletion set, the original's elsewhere."""
        student, good = self.model.train(), copy.deepcopy(self.model).eval()
        bad = copy.deepcopy(self.model).eval()
        new_weights(bad)
        rate = self.recipe["lr"]
        optimiser, everything = self._optimiser(student, rate), np.arange(len(self.sets.labels))
        for images, _, found in self._batches(self.training_loader(everything)):
            with torch.no_grad():
                target = torch.where(found[:, None], bad(images), good(images)).softmax(dim=1)
            loss = torch.nn.functional.kl_div(torch.log_softmax(student(images), dim=1), target, reduction="none").mean()
            self._step(optimiser, loss, rate, forward=3 * len(images), backward=len(images))
        return student

    def ssd(self) -> torch.nn.Module:
        """Parameters dampened that matter more to the deletion set than to the retain set."""
        model = self.model.eval()
        importances = [self.importances(model, rows, IMPORTANCE_BATCH) for rows in (self.sets.deletion, self.sets.retain)]
        return dampened(model, *importances, self.given["selection_weight"], self.given["relative_dampening"])

    # ---------------------------------------------------------------------------------------------------------- their pieces

    def importances(self, model: torch.nn.Module, rows: np.ndarray, batch_size: int) -> list[torch.Tensor]:
        """By parameter: the mean over batches of the squared gradient of the mean cross-entropy."""
        loader = self.loader(rows, batch_size, augmented=self.augmented)
        sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for images, labels, _ in loader:
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            for total, parameter in zip(sums, model.parameters(), strict=True):
                total += parameter.grad**2
            self.forward, self.backward = self.forward + len(labels), self.backward + len(labels)
        return [total / len(loader) for total in sums]

    def _last(self, k: int | None) -> list[torch.nn.Module]:
        blocks = list(self.model.children())
        return blocks if k is None else blocks[-LAST_BLOCKS[k] :]

    def _descend_on_retain(self, last: list[torch.nn.Module]) -> torch.nn.Module:
        self.model.eval().requires_grad_(False)
        for module in last:
            module.train().requires_grad_(True)
        rate = self.recipe["lr"]
        optimiser = self._optimiser(self.model, rate)
        for images, labels, _ in self._batches(self.training_loader(self.sets.retain)):
            loss = torch.nn.functional.cross_entropy(self.model(images), labels)
            self._step(optimiser, loss, rate, forward=len(labels), backward=len(labels))
        return self.model

    def _batches(self, loader: Loader) -> Iterator[Any]:
        """Pass after pass while steps are left."""
        while True:
            for batch in loader:
                if self.steps >= self.given["steps"]:
                    return
                yield batch

    def _optimiser(self, model: torch.nn.Module, rate: float) -> torch.optim.SGD:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=5e-4)

    def _step(self, optimiser: torch.optim.SGD, loss: torch.Tensor, rate: float, *, forward: int, backward: int) -> None:
        """A short rise of the rate, then a line down to a fifth of it."""
        steps = self.given["steps"]
        rise = steps // 100
        factor = (self.steps + 1) / (rise + 1) if self.steps < rise else 1 - (self.steps - rise) / (1.25 * steps)
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        self.steps, self.forward, self.backward = self.steps + 1, self.forward + forward, self.backward + backward

    # ------------------------------------------------------------------------------------------------------------- evaluation

    def scores(self, model: torch.nn.Module) -> dict[str, float]:
        """Accuracies on test images with and without the patch, and on the training sets whole."""
        model.eval()
        tested = np.arange(len(self.sets.test_labels))
        truth = torch.from_numpy(self.sets.test_labels)
        clean, patched = (self._predicted(model, tested, test=True, patched=each) for each in (False, True))
        others = truth != self.sets.target
        training = {"deletion": self.sets.deletion, "manipulated": self.sets.manipulated, "retain": self.sets.retain}
        return {
            "acc_corr": float((patched == truth).float().mean()),
            "acc_retain": float((clean == truth).float().mean()),
            "asr": float((patched[others] == self.sets.target).float().mean()),
            **{
                f"{name}_given": float((self._predicted(model, rows) == torch.from_numpy(self.sets.labels[rows])).float().mean())
                for name, rows in training.items()
            },
        }

    @torch.no_grad()
    def _predicted(self, model: torch.nn.Module, rows: np.ndarray, **kind: bool) -> torch.Tensor:
        batches = self.loader(rows, IMPORTANCE_BATCH, shuffle=False, **kind)
        return torch.cat([model(images).argmax(dim=1) for images, _, _ in batches])


@torch.no_grad()
def dampened(
    model: torch.nn.Module, deletion: list[torch.Tensor], retain: list[torch.Tensor], alpha: float, relative: float
) -> torch.nn.Module:
    """The model, its parameters times min(lambda I_r / I_f, 1) where I_f > alpha I_r."""
    for parameter, found, rest in zip(model.parameters(), deletion, retain, strict=True):
        scale = torch.clamp(relative * alpha * rest / found, max=1)
        parameter.copy_(torch.where(found > alpha * rest, parameter * scale, parameter))
    return model


def new_weights(module: torch.nn.Module) -> None:
    """Each layer's own initialisation, biases of convolutions and linear layers 0."""
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and layer.bias is not None:
            torch.nn.init.zeros_(layer.bias)


def with_plain_layers(model: torch.nn.Module) -> torch.nn.Module:
    """The model, whose layers now run one by one as PyTorch's do."""
    for name, child in model.named_children():
        with_plain_layers(child)
        if isinstance(child, Chain):
            model.add_module(name, torch.nn.Sequential(*child))
    return model


def run_of(cell: dict[str, Any], number: int, workers: int) -> Run:
    """The run with that number of a cell."""
    sets = Sets.read(Path(cell["sets"]))
    model = with_plain_layers(ResNet9(width=cell["width"]).build(sets.train_pixels.shape[1:], cell["num_classes"]))
    model.load_state_dict(load_file(cell["weights"]))
    method, given = cell["runs"][number]
    return Run(method, given, sets, cell["recipe"], model, workers)


def main() -> None:
    """Make the run; write its scores, counts and when its imports were done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cell", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--spawned", type=float, default=IMPORTED)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    run = run_of(json.loads(given.cell.read_text()), given.number, given.workers)
    scores = run.scores(run.make())
    found = {"scores": scores, "forward": run.forward, "backward": run.backward, "steps": run.steps}
    given.out.write_text(json.dumps({**found, "startup": IMPORTED - given.spawned}))


if __name__ == "__main__":
    main()
