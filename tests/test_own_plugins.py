"""What is wrong with a user's own plug-in is one message before any worker starts: which plug-in, its file, what is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cu_ray import config
from cu_ray.errors import ContractBroken, Faults, UserError
from cu_ray.stages.poison import poison
from cu_ray.stages.reasons import reason_of
from cu_ray.sweep.runner import load_datasets, make_plan

LAB = """
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch

from cu_ray.datasets import Dataset
from cu_ray.manipulations import Manipulation
from cu_ray.methods import Method
from cu_ray.models import Model
from cu_ray.plugins import Bound, Choices, Search
from cu_ray.types import Augmentation, Corruption, Cost, DatasetFacts, Domains, Images, Normalisation, Stamp, View
from cu_ray.types import Dataset as Loaded


@dataclass(frozen=True)
class Noise(Dataset):
    version: ClassVar[int] = 1

    def facts(self):
        return DatasetFacts(60, 30, (8, 6, 1), ("a", "b", "c"))

    def load(self):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (90, 8, 6, 1), dtype=np.uint8)
        labels = np.arange(90) % 3
        mean, std = (0.5,), (0.25,)
        train, test = Images(pixels[:60], labels[:60]), Images(pixels[60:], labels[60:])
        return Loaded("noise", ("a", "b", "c"), Normalisation(mean, std), Augmentation(), train, test)


@dataclass(frozen=True)
class Swap(Manipulation):
    version: ClassVar[int] = 1

    def corrupt(self, images, normalisation, rng):
        indices = np.sort(rng.choice(len(images), self.size, replace=False))
        labels = images.labels[indices]
        return Corruption(indices, (labels + 1) % 3)

    def test_domains(self, test):
        rows = np.arange(len(test))
        return Domains(View(rows), View(rows))


@dataclass(frozen=True)
class Net(Model):
    version: ClassVar[int] = 1

    def build(self, image_shape, num_classes):
        height, width, channels = image_shape
        layers = torch.nn.Linear(height * width * channels, 4), torch.nn.Linear(4, num_classes)
        return torch.nn.Sequential(torch.nn.Flatten(), *layers)

    def blocks(self, model):
        return list(model)[1:]

    def layers_per_block(self):
        return (1, 1)


@dataclass(frozen=True)
class Fancy(Method):
    version: ClassVar[int] = 1
    rate: Annotated[float, Search(0.1, 1, log=True), Bound(low=0)] = 0.5

    def unlearn(self, task):
        return task.original

    def cost(self, sizes):
        return Cost(sizes.retain, 0)
"""

SWEEP = """
name: own
dataset: "lab:Noise"
model: "lab:Net"
manipulation: {name: "lab:Swap", size: 12}
train: {steps: 2, batch_size: 8, precision: fp32}
deletion_fractions: [0.5]
methods: {"lab:Fancy": {trials: 2}}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A function that checks a sweep file of the user's own plug-ins as a run does, with these pieces of their file changed."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)

    def check(*changes, sweep=SWEEP):
        text = LAB
        for before, after in changes:
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        (tmp_path / "lab.py").write_text(text)
        (tmp_path / "own.yaml").write_text(sweep)
        monkeypatch.delitem(sys.modules, "lab", raising=False)
        loaded = config.load("own.yaml")
        return make_plan(loaded, load_datasets(loaded))

    yield check
    sys.modules.pop("lab", None)


def refused(lab, *changes, **options):
    """The one message of an error that names the sweep file."""
    with pytest.raises(UserError) as caught:
        lab(*changes, **options)
    message = str(caught.value)
    assert message.startswith("own.yaml: ")
    assert not isinstance(caught.value, Faults) or message.startswith("own.yaml: 1 fault\n"), message
    return message


def test_plugins_as_they_have_to_be_pass(lab):
    assert len(lab().originals()) == 1


DATASETS = {
    "float pixels": (("dtype=np.uint8)", "dtype=np.uint8) / 255"), "train.pixels are float64 [60, 8, 6, 1]: uint8 is needed"),
    "channels first": (("(90, 8, 6, 1)", "(90, 1, 8, 6)"), "train.pixels are of shape (60, 1, 8, 6): facts() says (60, 8, 6, 1)"),
    "no channels": (("(90, 8, 6, 1)", "(90, 8, 6)"), "facts() says (60, 8, 6, 1), which is [N, H, W, C]"),
    "fewer than said": (("facts(60, 30".replace("facts", "Facts"), "Facts(90, 30"), "facts() says (90, 8, 6, 1)"),
    "labels of int32": (("arange(90) % 3", "arange(90, dtype=np.int32) % 3"), "train.labels are int32 [60]: an array of int64"),
    "labels in a list": (("labels[:60])", "[0] * 60)"), "train.labels are a value of type list"),
    "a label too many": (
        ("labels[:60])", "labels[:59])"),
        "train.labels are of shape (59,): one for each image is needed",
    ),
    "a class too many": (("arange(90) % 3", "arange(90) % 4"), "train.labels go from 0 to 3: 0 to 2 are needed, for 3 classes"),
    "a negative class": (("labels[60:])", "labels[60:] - 1)"), "test.labels go from -1 to 1"),
    "a deviation of 0": (
        ("(0.25,)", "(0.0,)"),
        "normalisation.std is (0.0,): a number for each of 1 channels",
    ),
    "three means": (("(0.5,)", "(0.5, 0.5, 0.5)"), "normalisation.mean is (0.5, 0.5, 0.5): a number for each of 1"),
    "other classes": (('("noise", ("a", "b", "c")', '("noise", ("a", "b")'), "the class names ('a', 'b'), facts() says"),
    "nothing loaded": (("        return Loaded", "        Loaded"), "load() gave None: a cu_ray.types.Dataset is needed"),
    "no file": (("rng = np", "open('gone.npz'); rng = np"), "raised FileNotFoundError in line 27: No such file or directory"),
    "no facts": (("        return DatasetFacts", "        DatasetFacts"), "facts() gave None: a DatasetFacts is needed"),
    "facts that fail": (("return DatasetFacts(", "return 1 / 0, ("), "raised ZeroDivisionError in line 24: division by zero"),
    "a shape of two": (("(8, 6, 1), (", "(8, 6), ("), "facts().image_shape is (8, 6): height, width and channels are needed"),
}


@pytest.mark.parametrize("wrong", DATASETS)
def test_a_data_set_that_is_not_as_it_has_to_be(lab, tmp_path, wrong):
    change, expected = DATASETS[wrong]
    message = refused(lab, change)
    assert f"lab:Noise ({tmp_path}/lab.py)" in message
    assert expected in message
    assert "dataset" in message


MANIPULATIONS = {
    "nothing": (("        return Corruption", "        Corruption"), "corrupt() gave None: a Corruption is needed"),
    "fewer labels": (("labels = images.labels[indices]", "labels = images.labels[:5]"), "int64 [5] labels for 12 indices"),
    "unsorted": (("np.sort(rng", "np.flip(rng"), "corrupt() gave indices that are not sorted"),
    "twice": (("np.sort(rng.choice(len(images), self.size, replace=False))", "np.zeros(12, int)"), "in which a row is twice"),
    "too few": (("self.size, replace", "self.size - 1, replace"), "corrupt() gave 11 indices: its size says 12"),
    "before the first row": (("Corruption(indices", "Corruption(indices - 60"), "rows of the images are needed, 0 to 59"),
    "beyond the last class": (("(labels + 1) % 3", "labels + 1"), "labels that go from 1 to 3: 0 to 2 are needed, for 3 classes"),
    "floats": (("(labels + 1) % 3", "(labels + 1) % 3.0"), "corrupt() gave labels that are float64 [12]: an array of int64"),
    "raises": (("np.sort(rng", "np.sort(range"), "raised AttributeError in line 40: type object 'range'"),
    "draws elsewhere": (
        ("np.sort(rng", "np.sort(np.random"),
        "draw from the generator that it is given (rng)",
    ),
    "a trigger drawn elsewhere": (
        ("(labels + 1) % 3)", "labels, Stamp(np.ones((8, 6), bool), np.random.rand(1).astype(np.float32)))"),
        "two results for one seed",
    ),
    "a trigger of another size": (
        ("(labels + 1) % 3)", "labels, Stamp(np.ones((6, 8), bool), np.zeros(1, np.float32)))"),
        "a stamp whose mask is bool [6, 8]: bool [8, 6] is needed",
    ),
    "no domains": (("        return Domains", "        Domains"), "test_domains() gave None: Domains are needed"),
}


@pytest.mark.parametrize("wrong", MANIPULATIONS)
def test_a_manipulation_that_is_not_as_it_has_to_be(lab, tmp_path, wrong):
    change, expected = MANIPULATIONS[wrong]
    message = refused(lab, change)
    assert message.startswith(f"own.yaml: manipulation: lab:Swap ({tmp_path}/lab.py)")
    assert expected in message


def test_a_worker_says_the_same_of_a_manipulation_and_names_it(lab):
    """Other seeds than the first are drawn by workers alone."""
    lab()
    import lab as module

    dataset, manipulation = module.Noise().load(), module.Swap(12)
    with pytest.MonkeyPatch.context() as changed, pytest.raises(ContractBroken) as caught:
        changed.setattr(module.Swap, "corrupt", lambda *_: None)
        poison(dataset, manipulation, seed=0)
    assert reason_of(caught.value) == "ContractBroken in lab:Swap: corrupt() gave None: a Corruption is needed"


MODELS = {
    "seven outputs": (("(4, num_classes)", "(4, 7)"), "its model gave [2, 7] for two images: logits [2, 3] are needed"),
    "nothing built": (("        return torch", "        torch"), "build() gave None: a torch.nn.Module is needed"),
    "another input": (("Linear(height * width *", "Linear(height *"), "raised RuntimeError: mat1 and mat2 shapes"),
    "blocks without a layer": (("list(model)[1:]", "list(model)[2:]"), "blocks() leaves out 1.weight and 1 more"),
    "a block twice": (("list(model)[1:]", "[*model, *model]"), "blocks() holds a parameter in two blocks"),
    "a block too many": (("return (1, 1)", "return (1, 1, 1)"), "layers_per_block() gave (1, 1, 1): its blocks have (1, 1)"),
    "no layers": (("        return (1, 1)", "        (1, 1)"), "layers_per_block() gave None: a tuple of integers is needed"),
}


@pytest.mark.parametrize("wrong", MODELS)
def test_a_model_that_is_not_as_it_has_to_be(lab, tmp_path, wrong):
    change, expected = MODELS[wrong]
    message = refused(lab, change)
    assert f"lab:Net ({tmp_path}/lab.py)" in message
    assert expected in message


RATE = "rate: Annotated[float, Search(0.1, 1, log=True), Bound(low=0)] = 0.5"
METHOD = "(Method):\n    version: ClassVar[int] = 1"
FROZEN = "@dataclass(frozen=True)\nclass Fancy"
CLASSES = {
    "a word that Bound has not": (
        (RATE, "rate: Annotated[float, Bound(above=0)] = 1"),
        "the annotation of rate cannot be read",
    ),
    "a name that is not there": ((RATE, "rate: Flaot = 1"), "the annotation of rate cannot be read: NameError: name 'Flaot'"),
    "a range reversed": (("Search(0.1, 1,", "Search(1e-1, 1e-3,"), "rate: the search range from 0.1 to 0.001 is empty"),
    "a logarithm of 0": (("Search(0.1, 1,", "Search(0, 1,"), "logarithmic range, which must start above 0"),
    "a range out of bounds": (("Bound(low=0)", "Bound(low=0.5)"), "rate: the search range from 0.1 to 1 leaves what is allowed"),
    "a default out of bounds": (("= 0.5\n", "= -0.5\n"), "rate: the default -0.5 is not allowed. Allowed: a number, at least 0."),
    "a function by default": (("= 0.5\n", "= max\n"), "rate: the default <built-in function max> is not allowed"),
    "a default that is no number": (("= 0.5\n", "= float('nan')\n"), "rate: the default nan is not allowed"),
    "no choice": (
        (RATE, "how: Annotated[str, Choices(('a', 'b'))] = 'c'"),
        "how: the default 'c' is not allowed. Allowed: one of",
    ),
    "a type of no file": (
        (RATE, "rate: np.ndarray | None = None"),
        "rate: its type numpy.ndarray | None cannot stand in",
    ),
    "a bound of text": ((RATE, "rate: Annotated[float, Bound(low='0')] = 1.0"), "raised TypeError: "),
    "a factory": ((RATE, "rate: tuple[int, ...] = field(default_factory=tuple)"), "rate: sweep files see no default_factory"),
    "a name that is taken": ((RATE, "keep: int = 1"), "keep: the name has a meaning of its own in sweep files"),
    "not frozen": ((FROZEN, "@dataclass\nclass Fancy"), "is not frozen: @dataclass(frozen=True) is needed"),
    "no version": ((METHOD, "(Method):"), "has no version: `version: ClassVar[int] = 1` is needed"),
    "a version in words": (
        (METHOD, "(Method):\n    version: ClassVar[str] = '1.0'"),
        "has the version '1.0'",
    ),
    "nothing unlearned": (("def unlearn(", "def unlearns("), "has no `unlearn`: def unlearn(self, task) is needed"),
    "no cost": (("def cost(", "def costs("), "has no `cost`: def cost(self, sizes) is needed"),
    "a cost that fails": (
        ("Cost(sizes.retain", "Cost(sizes.kept"),
        "raised AttributeError in line 74: 'Sizes' object has",
    ),
    "a cost in numbers": (("Cost(sizes.retain, 0)", "sizes.retain"), "cost() gave a value of type int: a Cost is needed"),
}


@pytest.mark.parametrize("wrong", CLASSES)
def test_a_class_that_is_not_declared_as_it_has_to_be(lab, tmp_path, wrong):
    change, expected = CLASSES[wrong]
    message = refused(lab, change)
    assert "methods.lab:Fancy (line 8): lab:Fancy" in message
    assert f"({tmp_path}/lab.py)" in message
    assert expected in message


@pytest.mark.parametrize(
    ("function", "needed"),
    [
        ("corrupt", "def corrupt(self, images, normalisation, rng) is needed"),
        ("load", "def load(self) is needed"),
        ("layers_per_block", "def layers_per_block(self) is needed"),
    ],
)
def test_every_kind_must_define_what_it_does(lab, function, needed):
    assert f"has no `{function}`: {needed}" in refused(lab, (f"def {function}(", f"def {function}_("))


def test_a_misspelt_name_runs_no_script_that_has_it(lab, tmp_path):
    (tmp_path / "labs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(lab, sweep=SWEEP.replace("lab:Fancy", "labs"))
    assert not (tmp_path / "ran").exists()


def test_a_class_with_settings_must_be_a_dataclass_itself(lab):
    change = ("@dataclass(frozen=True)\nclass Swap(Manipulation):\n", "class Swap(Manipulation):\n    rate: float = 0.1\n")
    said = "lab.py) is no dataclass itself, so rate is no setting of it: @dataclass(frozen=True) is needed above the class"
    assert said in refused(lab, change)


def test_what_a_class_raises_at_its_settings_is_its_own(lab):
    change = ("    def facts(self):", "    def __post_init__(self):\n        int('x')\n\n    def facts(self):")
    assert "lab.py) raised ValueError in line 24: invalid literal for int()" in refused(lab, change)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"lab:Fanzy": {}}', "'lab:Fanzy': lab has no class 'Fanzy'. Allowed: Fancy. Did you mean 'Fancy'?"),
        ('{"labb:Fancy": {}}', "No module named 'labb'. Did you mean 'lab' ("),
        ('{"lab.py:Fancy": {}}', "Did you mean 'lab' ("),
        ("{lab: {}}", "One of your own is named by module:Class, here lab:Fancy."),
    ],
)
def test_a_wrong_name_gets_the_nearest_of_the_users_own(lab, given, expected):
    assert expected in refused(lab, sweep=SWEEP.replace('{"lab:Fancy": {trials: 2}}', given))


def test_a_plan_tries_no_model_and_imports_no_torch(lab, tmp_path):
    lab()
    (tmp_path / "lab.py").write_text(LAB.replace("import torch\n", "from cu_ray.lazy import torch\n"))
    run = "import sys; from cu_ray.cli import main; main(['plan', 'own.yaml'], standalone_mode=False)"
    code = f"{run}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
