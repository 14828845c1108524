"""The values that flow through the stages, and the protocols by which the layers see each other.

Arrays are NumPy on the driver's side and torch on the device's. Shapes: N images, H x W pixels, C channels, B images of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt

from cu_ray.identity import canonical_json, key_of, mapping_of
from cu_ray.lazy import torch
from cu_ray.plugins import Bound, Choices, build, describe

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Tensors = dict[str, npt.NDArray[np.float32]]


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images: pixels uint8 [N, H, W, C], labels int64 [N]."""

    pixels: Pixels
    labels: Indices

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Normalisation:
    """What maps a pixel to (pixel / 255 - mean) / std, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The normalised values of pixels [..., C] between 0 and 255."""
        normalised = (np.asarray(pixels) / 255 - np.asarray(self.mean)) / np.asarray(self.std)
        return np.asarray(normalised, dtype=np.float32)

    def maximum(self, pixels: Pixels) -> float:
        """The largest normalised value among the pixels [N, H, W, C]."""
        peaks_C = pixels.reshape(-1, pixels.shape[-1]).max(axis=0) / 255
        return float(((peaks_C - np.asarray(self.mean)) / np.asarray(self.std)).max())


@dataclass(frozen=True)
class Augmentation:
    """A random crop after padding with zeros (before normalisation), then a random horizontal flip."""

    crop_padding: int = 0
    flip: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set and a test set with true labels, and how they are augmented and normalised."""

    name: str
    class_names: tuple[str, ...]
    normalisation: Normalisation
    augmentation: Augmentation
    train: Images
    test: Images

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.train.pixels.shape[1:]
        return height, width, channels

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 over pixels, labels, class names, normalisation and augmentation: the data set's identity."""
        digest = hashlib.sha256(canonical_json([self.class_names, self.normalisation, self.augmentation]).encode())
        for images in (self.train, self.test):
            digest.update(repr(images.pixels.shape).encode())
            digest.update(np.ascontiguousarray(images.pixels).data)
            digest.update(np.ascontiguousarray(images.labels).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set without loading it."""

    num_train: int
    num_test: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    def class_index(self, given: str | int) -> int:
        """The index of a class given by its name or its index; raises LookupError where there is no such class."""
        classes: Sequence[str | int] = range(len(self.class_names)) if isinstance(given, int) else self.class_names
        if given not in classes:
            raise LookupError(given)
        return classes.index(given)


# -------------------------------------------------------------------------------------------------------- manipulation


@dataclass(frozen=True, eq=False)
class Stamp:
    """A trigger, applied on the device after crop, flip and normalisation: mask [H, W], blend in (0, 1].

    values, normalised: [C] for one colour, or [H, W, C] for a picture.
    """

    mask: Mask
    values: npt.NDArray[np.float32]
    blend: float = 1.0


@dataclass(frozen=True, eq=False)
class Corruption:
    """What a manipulation changed: which samples (sorted), the labels they were given, and the trigger they carry.

    truth_known: False where the data set's own labels are the ones given, so that nothing can be held against true labels.
    """

    indices: Indices
    labels: Indices
    stamp: Stamp | None = None
    truth_known: bool = True


@dataclass(frozen=True, eq=False)
class View:
    """Test images seen in one way: which rows, and whether they carry the trigger. Labels are always the true ones."""

    rows: Indices
    stamped: bool = False


@dataclass(frozen=True, eq=False)
class Domains:
    """The test views of a manipulation; the target class of a trigger; the two classes of a confusion."""

    affected: View
    retain: View
    target: int | None = None
    confused: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Validation:
    """What the owner of the model has besides: unseen samples, manipulated at the training rate, labels as given."""

    rows: Indices  # of the test set's selection half
    labels: Indices
    stamped: Mask


@dataclass(frozen=True, eq=False)
class PoisonedDataset:
    """A data set as the model's owner got it: some training samples are manipulated."""

    dataset: Dataset
    corruption: Corruption
    labels: Indices  # of all training samples, as given
    stamped: Mask  # over the training samples: which carry the trigger
    domains: Domains
    selection_half: Mask  # over the test images; the others are the report half
    validation: Validation
    key: str

    @property
    def effective_size(self) -> int | None:
        """How many manipulated samples were given a label that is not their true one; None where that is not known."""
        return int((self.labels != self.dataset.train.labels).sum()) if self.corruption.truth_known else None

    @property
    def num_affected(self) -> int:
        """How many test images of the report half are of the affected domain: what `report_acc_corr` rests on."""
        return int((~self.selection_half)[self.domains.affected.rows].sum())


class Evidence(Protocol):
    """What the original model makes of the training samples as given, without augmentation: for detections that look at it."""

    def losses(self) -> npt.NDArray[np.float64]:
        """The cross-entropy of each training sample [N] against its given label."""

    def features(self) -> npt.NDArray[np.float32]:
        """What the model's last linear layer gets for each training sample [N, F]; AssumptionFailed where it has none."""


@dataclass(frozen=True, eq=False)
class DeletionSplit:
    """What detection found. The retain set still contains the manipulated samples nobody identified.

    `held_out` is the part of the deletion set that the defender keeps back to judge by; the method sees neither it nor
    uses it for retaining. Empty but for trials of the `defender` rule.
    """

    deletion: Indices
    retain: Indices
    held_out: Indices
    precision: float | None
    recall: float | None  # None where the manipulated set is not known


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented, normalised and stamped images [B, C, H, W]; labels as given [B]; row numbers [B]; in_deletion [B]."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    in_deletion: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


# ------------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class TrainRecipe:
    """How an original model is trained (SGD with momentum, the published schedule); methods inherit it from there."""

    steps: Annotated[int, Bound(low=1)] = 4000
    lr: Annotated[float, Bound(low=0, open_low=True)] = 0.025
    batch_size: Annotated[int, Bound(low=2)] = 512
    momentum: Annotated[float, Bound(low=0, high=1)] = 0.9
    weight_decay: Annotated[float, Bound(low=0)] = 5e-4
    keep: Annotated[str, Choices(("last", "best_on_test"))] = "last"
    precision: Annotated[str, Choices(("auto", "published", "fp32", "bf16", "fp16"))] = "auto"


CONTROLS = ("never_manipulated", "trigger_only")


@dataclass(frozen=True)
class Setting:
    """What determines one original model: data set, model, manipulation, training recipe and seed.

    control: None, or what is left of the manipulation in the training data: nothing, or the trigger without relabelling.
    weights: None, or the checksum of the weights of an original model that was trained elsewhere.
    """

    dataset: Any  # the data set plug-in
    content_hash: str
    model: Any
    manipulation: Any
    train: TrainRecipe
    seed: int
    control: str | None = None
    weights: str | None = None

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the original model, as plain JSON values."""
        return {
            "dataset": self.content_hash,
            "model": describe(self.model, locations=False),
            "manipulation": describe(self.manipulation, locations=False),
            "train": mapping_of(self.train),
            "seed": self.seed,
            "learning": LEARNING_VERSION,
            **({"control": self.control} if self.control else {}),
            **({"weights": self.weights} if self.weights else {}),
        }

    @functools.cached_property
    def poison_identity(self) -> dict[str, Any]:
        """What determines the manipulated data: not the model, not its training."""
        return {name: self.identity[name] for name in ("dataset", "manipulation", "seed", "control") if name in self.identity}

    def describe(self) -> dict[str, Any]:
        """The setting as plain JSON values; `Setting.build` undoes it."""
        plugins = {name: describe(getattr(self, name)) for name in ("dataset", "model", "manipulation")}
        return {**self.identity, **plugins, "content_hash": self.content_hash}

    @classmethod
    def build(cls, described: Mapping[str, Any]) -> Setting:
        """The setting that `describe` described."""
        return cls(
            build("datasets", described["dataset"]),
            described["content_hash"],
            build("models", described["model"]),
            build("manipulations", described["manipulation"]),
            TrainRecipe(**described["train"]),
            described["seed"],
            described.get("control"),
            described.get("weights"),
        )


LEARNING_VERSION = 1  # of the optimisation loop, batches, importances and stages: raise it when more than rounding changes


@dataclass(frozen=True)
class OriginalSpec:
    """One original model to train: a setting, and what a method demands of the original (nothing for most)."""

    setting: Setting
    variant: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def for_method(cls, setting: Setting, method: Any) -> OriginalSpec:
        """The original that an unlearning method, or its class, starts from on a setting."""
        return cls(setting, tuple(sorted(method.original_variant.items())))

    @functools.cached_property
    def key(self) -> str:
        """The key of the original model."""
        return key_of({**self.setting.identity, **({"variant": dict(self.variant)} if self.variant else {})})

    def describe(self) -> dict[str, Any]:
        """The spec as plain JSON values; `build` undoes it."""
        return {"setting": self.setting.describe(), "variant": dict(self.variant)}

    @property
    def images(self) -> int:
        """How many images its training sends forward and backward; none where its weights are given."""
        return 0 if self.setting.weights else self.setting.train.steps * self.setting.train.batch_size

    @classmethod
    def build(cls, described: Mapping[str, Any]) -> OriginalSpec:
        """The spec that `describe` described."""
        return cls(Setting.build(described["setting"]), tuple(sorted(described["variant"].items())))


@dataclass(frozen=True)
class TrialSpec:
    """One unlearned model to make: original, detection, how many samples it found, method, and whether a part is held out.

    A method that does not look at the deletion set has `deletion_size` 0: one trial stands for all deletion fractions.
    `unlearning_seed` tells repetitions of a trial apart, which differ in the method's own random choices only.
    """

    original: OriginalSpec
    detection: Any
    deletion_size: int
    method: Any
    keep: str = "last"
    held_out: bool = False
    unlearning_seed: int = 0

    @functools.cached_property
    def deletion_identity(self) -> dict[str, Any]:
        """What determines the deletion set that the method is given."""
        return {
            **self.original.setting.poison_identity,
            "detection": describe(self.detection, locations=False),
            "deletion_size": self.deletion_size,
            **({"held_out": True} if self.held_out else {}),
        }

    @property
    def repetition(self) -> dict[str, Any]:
        """What tells this repetition from the first: part of keys."""
        return {"unlearning_seed": self.unlearning_seed} if self.unlearning_seed else {}

    @functools.cached_property
    def key(self) -> str:
        """The trial key."""
        identity = {
            "original": self.original.key,
            "deletion": self.deletion_identity,
            "method": describe(self.method, locations=False),
            **({"keep": self.keep} if self.keep != "last" else {}),
            **self.repetition,
        }
        return key_of(identity)

    def describe(self) -> dict[str, Any]:
        """The spec as plain JSON values; `build` undoes it."""
        return {
            "original": self.original.describe(),
            "original_key": self.original.key,
            "detection": describe(self.detection),
            "deletion_size": self.deletion_size,
            "method": describe(self.method),
            "keep": self.keep,
            "held_out": self.held_out,
            "unlearning_seed": self.unlearning_seed,
        }

    @classmethod
    def build(cls, described: Mapping[str, Any]) -> TrialSpec:
        """The spec that `describe` described."""
        return cls(
            OriginalSpec.build(described["original"]),
            build("detections", described["detection"]),
            described["deletion_size"],
            build("methods", described["method"]),
            described["keep"],
            described["held_out"],
            described.get("unlearning_seed", 0),
        )


# ------------------------------------------------------------------------------------------------------------- results

Scores = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predicted classes of all test images [N]: as they are, and with the trigger where the manipulation has one."""

    plain: Indices
    triggered: Indices | None

    def seen(self, stamped: bool) -> Indices:
        """Those with the trigger or without; a manipulation that has none changes no test image."""
        return self.triggered if stamped and self.triggered is not None else self.plain


@dataclass(frozen=True)
class Cost:
    """Images that went forward and backward through a whole model."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.forward - other.forward, self.backward - other.backward)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.forward * times, self.backward * times)

    @property
    def passes(self) -> int:
        """In units of a forward pass: a backward pass counts two."""
        return self.forward + 2 * self.backward


@dataclass(frozen=True)
class Sizes:
    """The set sizes on which a method's cost depends."""

    deletion: int
    retain: int
    batch_size: int
    train_steps: int


@dataclass(frozen=True)
class Record:
    """What became of one original model or one trial: a row of a table."""

    kind: str  # "original" or "trial"
    key: str
    spec: dict[str, Any]
    status: str  # "ok", "failed" or "diverged"
    error: str | None = None
    scores: Scores = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # further columns: sizes, costs, seconds, device
    notes: dict[str, float] = dataclasses.field(default_factory=dict)  # what the method wished to have recorded
    predictions: Predictions | None = dataclasses.field(default=None, compare=False, repr=False)  # for the evidence; no JSON

    @property
    def ok(self) -> bool:
        """Whether there are scores."""
        return self.status == "ok"

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; `Record(**values)` undoes it, but for the predictions."""
        values = dataclasses.asdict(dataclasses.replace(self, predictions=None))
        del values["predictions"]
        return values


# ----------------------------------------------------------------------------------------------------------- protocols


class Store(Protocol):
    """Where stages keep original models and memos; entries appear finished or not at all."""

    def load(self, kind: str, key: str) -> tuple[Tensors, dict[str, str]] | None:
        """The arrays of an entry and its metadata, or None where there is no intact entry."""

    def claimed(self, kind: str, key: str) -> AbstractContextManager[None]:
        """A context that others who claim the entry wait for: what is costly is made once."""

    def save(self, kind: str, key: str, tensors: Tensors, metadata: dict[str, str]) -> None:
        """Keep an entry."""


class Stream(Protocol):
    """A set of training samples as batches on the device, labels as given."""

    def __len__(self) -> int:
        """How many samples there are."""

    def epoch(self, batch_size: int | None = None, *, shuffle: bool = True, augment: bool = True) -> Iterator[Batch]:
        """One pass over the samples; the last batch may be smaller. `batch_size`: the training recipe's by default."""


class Optimisation(Protocol):
    """The one optimisation loop: SGD with momentum, the published schedule, so many steps."""

    num_steps: int

    @property
    def done(self) -> bool:
        """Whether all steps are made."""

    def epoch(self, batches: Stream, loss: Loss) -> None:
        """One pass over the batches, or less where the steps end before."""

    def step(self, batch: Batch, loss: Loss) -> None:
        """One optimiser step on one batch."""


Loss = Callable[["torch.Tensor", Batch], "torch.Tensor"]


class UnlearningTask(Protocol):
    """What a method is given. It carries no manipulated set, no test set, no true labels.

    Its own, to write to: models and the tensors of batches. What `remember` gives is for all trials, and read-only.
    """

    original: torch.nn.Module  # a private copy, in eval mode
    retain: Stream
    deletion: Stream
    everything: Stream  # retain and deletion together; `Batch.in_deletion` tells which
    num_classes: int
    generator: torch.Generator  # the trial's own, on the device
    device: torch.device
    train: TrainRecipe

    def fresh(self) -> torch.nn.Module:
        """A model of the same architecture with new random weights (drawn for this trial), in eval mode."""

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The model's blocks from input to output."""

    def reinitialise(self, modules: list[torch.nn.Module]) -> None:
        """Give the modules new random weights, drawn for this trial."""

    def sgd(self, model: torch.nn.Module, *, steps: int | None, lr: float | None) -> Optimisation:
        """An optimisation of the model's trainable parameters; None means as the original was trained."""

    def attempts(self, most: int) -> Iterable[int]:
        """0, 1, ... below `most`, for a search that ends when it has found something; a canary makes a few of them."""

    def remember(self, name: str, compute: Callable[[UnlearningTask], NamedTensors], **depends_on: Any) -> NamedTensors:
        """What `compute` gives, computed once for all trials that share the original, the deletion set and `depends_on`.

        `compute` gets a task of its own whose generator is seeded from the memo's key, so who computes first changes nothing.
        """

    def offer(self, model: torch.nn.Module) -> None:
        """Show the model at the end of an epoch; the stage keeps the last or the best, the method never sees a score."""

    def note(self, **values: float) -> None:
        """Numbers to be recorded with the trial."""


NamedTensors = dict[str, "torch.Tensor"]
