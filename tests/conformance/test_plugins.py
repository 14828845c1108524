"""Every plug-in of the package passes its kind's suite, so does one from outside; the suites catch what is against the rules."""

from __future__ import annotations

import ast
import copy
import importlib.metadata
import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pytest
import torch

from cu_ray import plugins, testing
from cu_ray.detections.uniform import Uniform
from cu_ray.errors import ContractBroken, UserError
from cu_ray.manipulations.backdoor import Backdoor
from cu_ray.manipulations.random_label_swap import RandomLabelSwap
from cu_ray.methods import Method
from cu_ray.methods.no_unlearning import NoUnlearning
from cu_ray.methods.ssd import Ssd
from cu_ray.metrics.acc_corr import AccCorr
from cu_ray.models.resnet9 import ResNet9
from cu_ray.plugins import Bound, Search
from cu_ray.types import Corruption, Cost, OriginalSpec
from tests.datasets import own

SUITES = {
    "methods": testing.MethodConformance,
    "manipulations": testing.ManipulationConformance,
    "detections": testing.DetectionConformance,
    "datasets": testing.DatasetConformance,
    "models": testing.ModelConformance,
    "metrics": testing.MetricConformance,
}
DATA = Path(__file__).parent.parent / "data"
VARIANTS = {  # besides the defaults
    "class_by_class": [{}, {"by": "given"}],
    "false_positives": [{}, {"rate": 0.0}, {"rate": 1.0}],
    "loss_ranking": [{}, {"suspect": "lowest"}],
    "exact_unlearning": [{}, {"k": 1}, {"k": 4}],
    "catastrophic_forgetting": [{}, {"k": 2}],
    "scrub": [{"msteps": 3}, {"msteps": 6, "steps": 9}, {"msteps": 7, "steps": 9}],  # a pass over both sets takes 6 steps
    "fine_pruning": [{}, {"share": 1.0}],
    "lfssd": [{}, {"selection_share": None, "selection_weight": 2.0}],
    "potion": [{}, {"remaining": 0.0}],  # sought in vain, so that every try is made
    "rem": [{}, {"steps": 13, "beta": 3.0, "lr": 0.5}],  # a pass over the training set takes 5 steps
    "rem_etd": [{}, {"steps": 13, "beta": 3.0, "lr": 0.5}],
    "salun": [{}, {"share": 0.1, "steps": 9}],
    "sap": [{}, {"trusted": 7}],
    "ssd": [{}, {"selection_share": None, "selection_weight": 2.0, "importance_batch_size": 7}],
    "backdoor": [{}, {"position": "top_left", "value": 0.5, "patch": 2}, {"clean_label": True, "target": 1}],
    "blended_backdoor": [{}, {"clean_label": True, "blend": 1.0}],
    "interclass_confusion": [{"classes": (1, 3)}],
    ("manipulations", "from_file"): [
        {"file": str(DATA / "incident.csv")},
        {"file": str(DATA / "incident.csv"), "affected_classes": ("north", 2), "target": "west"},
        {"file": str(DATA / "identified.csv")},
    ],
    ("detections", "from_file"): [{"file": str(DATA / "incident.csv")}, {"file": str(DATA / "identified.csv")}],
    "image_folder": [{"folder": "own/pictures"}, {"folder": "own/pictures", "side": 4, "grey": True, "flip": True}],
    "npz": [{"file": "own/images.npz"}, {"file": "own/images.npz", "crop_padding": 2}],
    "parquet": [{"file": "own/images.parquet"}],
    "resnet9": [{"width": 2}, {"width": 3}],
    "wide_resnet": [{"depth": 10, "width": 1}],
    "cifar_resnet": [{"width": 2}, {"depth": 8, "width": 3}],
    "resnet18": [{"width": 2}],
    "vit": [{"depth": 2, "width": 8, "heads": 2}, {"patch": 4, "depth": 1, "width": 6, "heads": 3, "mlp_ratio": 1}],
}
EMBEDDED = ("fashion_mnist_small", "image_folder", "npz", "parquet")


@pytest.fixture(autouse=True)
def own_images(tmp_path, monkeypatch):
    """The files that the data sets of one's own read."""
    own.write_all(tmp_path / "own")
    monkeypatch.chdir(tmp_path)


def suites_of_the_folders():
    for kind, suite in SUITES.items():
        for name in plugins.names(kind):
            cls = plugins.find(kind, name)
            for number, variant in enumerate(VARIANTS.get(name) or VARIANTS.get((kind, name), [{}]), start=1):
                few_steps = {"steps": 5} if kind == "methods" and "steps" in plugins.facts(cls) else {}
                members = {"plugin": cls, "settings": suite.settings | few_steps | variant, "__module__": __name__}
                if kind == "datasets":
                    members["needs_download"] = name not in EMBEDDED
                yield type(f"Test_{kind}_{name}_{number}", (suite,), members)


globals().update({suite.__name__: suite for suite in suites_of_the_folders()})


# ------------------------------------------------------------------------------------------- a plug-in from outside


@dataclass(frozen=True)
class Fancy(Method):
    """Shrinks all weights a little."""

    version: ClassVar[int] = 3
    summary: ClassVar[str] = "shrink all weights"
    shrink: Annotated[float, Search(0.5, 0.9), Bound(low=0, high=1)] = 0.9

    def unlearn(self, task):
        with torch.no_grad():
            for parameter in task.original.parameters():
                parameter.mul_(self.shrink)
        return task.original

    def cost(self, sizes):
        return Cost()


class TestFancy(testing.MethodConformance):
    plugin = Fancy
    settings: ClassVar = {"shrink": 0.5}


class TestTinyImages(testing.DatasetConformance):
    plugin = testing.TinyImages


def test_a_class_from_outside_is_named_by_its_dotted_path():
    path = f"{__name__}:Fancy"
    assert plugins.find("methods", path) is Fancy
    assert plugins.name_of(Fancy) == plugins.name_of(Fancy()) == path
    assert plugins.describe(Fancy(0.5)) == {"name": path, "version": 3, "shrink": 0.5}


def test_a_plugin_of_the_package_is_named_by_its_file():
    assert plugins.name_of(NoUnlearning()) == "no_unlearning"
    assert plugins.find("methods", "no_unlearning") is NoUnlearning


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """A package outside cu_ray: what a module of it holds is given by the test."""
    (tmp_path / "my_lab").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(module, text):
        (tmp_path / "my_lab" / f"{module}.py").write_text(text)

    return write


def message_of(kind, name):
    with pytest.raises(UserError) as caught:
        plugins.find(kind, name)
    return str(caught.value)


def test_a_file_outside_the_package_is_a_plugin(my_lab):
    my_lab(
        "good",
        "from dataclasses import dataclass\n"
        "from cu_ray.methods import Method\n"
        "@dataclass(frozen=True)\n"
        "class Good(Method):\n"
        "    strength: float = 0.5\n",
    )
    cls = plugins.find("methods", "my_lab.good:Good")
    assert plugins.build("methods", plugins.describe(cls(strength=2))) == cls(strength=2.0)


def test_an_entry_point_is_a_plugin(monkeypatch):
    entry = importlib.metadata.EntryPoint("fancy", f"{__name__}:Fancy", "cu_ray.methods")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    plugins._entry_points.cache_clear()
    try:
        assert plugins.find("methods", "fancy") is Fancy
        assert "fancy" in plugins.names("methods")
        assert "fancy" not in plugins.names("models")
    finally:
        plugins._entry_points.cache_clear()


def test_a_wrong_name_gets_the_nearest_one():
    allowed = ", ".join(plugins.names("methods"))
    assert message_of("methods", "scrubb") == (f"'scrubb' is not among the methods. Allowed: {allowed}. Did you mean 'scrub'?")


def test_a_name_like_no_other_gets_the_list_only():
    message = message_of("detections", "qqqqqqqq")
    assert f"Allowed: {', '.join(plugins.names('detections'))}." in message
    assert "Did you mean" not in message


def test_a_name_of_another_kind_is_no_plugin_of_this_kind():
    assert "'scrub' is not among the models" in message_of("models", "scrub")


def test_private_files_are_no_plugins():
    assert not [name for kind in SUITES for name in plugins.names(kind) if name.startswith("_")]
    assert "is not among the methods" in message_of("methods", "_last_layers")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("no_such_module_anywhere:Fancy", "No module named 'no_such_module_anywhere'"),
        ("my_lab.missing:Fancy", "No module named 'my_lab"),
        (f"{__name__}:Fansy", "has no class 'Fansy'. Allowed: Careless, Factory, Fancy, "),
        (f"{__name__}:Fansy", "Did you mean 'Fancy'?"),
        (f"{__name__}:", "has no class ''"),
        (":Fancy", "cannot be imported"),
        ("..relative:Fancy", "cannot be imported"),
        (f"{__name__}:SUITES", "is not a dataclass derived from Method"),
        ("cu_ray.models.resnet9:ResNet9", "is not a dataclass derived from Method"),
    ],
)
def test_what_cannot_be_imported_or_is_no_method_is_refused(path, expected):
    message = message_of("methods", path)
    assert message.startswith(repr(path))
    assert expected in message


def test_a_class_that_is_no_dataclass_is_refused(my_lab):
    my_lab("plain", "from cu_ray.plugins import Plugin\nfrom cu_ray.metrics import Metric\nclass Plain(Metric): pass\n")
    assert "is not a dataclass derived from Metric" in message_of("metrics", "my_lab.plain:Plain")


@pytest.mark.parametrize("text", ["def oops(:\n", "raise RuntimeError('no GPU here')\n", "import no_such_module_anywhere\n"])
def test_a_file_that_fails_on_import_is_a_users_mistake(my_lab, text):
    my_lab("broken", text)
    assert "'my_lab.broken:Broken' cannot be imported" in message_of("methods", "my_lab.broken:Broken")


# ------------------------------------------------------------------------------ suites catch what is against the rules


def caught(suite, cls, test, **settings):
    """The message with which a test of a suite refuses a plug-in."""
    checked = type("Checked", (suite,), {"plugin": cls, "settings": suite.settings | settings})()
    with pytest.raises((AssertionError, ContractBroken)) as error:
        getattr(checked, test)()
    assert str(error.value), "it does not say what is wrong"
    return str(error.value)


def test_every_rule_says_what_is_wrong():
    """Where a user's pytest runs the suites, it does not rewrite their asserts: without a message there is none at all."""
    asserts = [node for node in ast.walk(ast.parse(inspect.getsource(testing))) if isinstance(node, ast.Assert)]
    assert len(asserts) > 40  # further ones are rules of checks.py and declared.py, which have a message each
    assert [node.lineno for node in asserts if node.msg is None] == []


@dataclass(frozen=True)
class Careless(NoUnlearning):
    """Does one thing wrong."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "does one thing wrong"
    wrong: str = "nothing"

    def unlearn(self, task):
        if self.wrong == "draws globally":
            with torch.no_grad():
                next(task.original.parameters()).add_(torch.rand(()))
        elif self.wrong == "seeds":
            torch.manual_seed(0)
        elif self.wrong == "uncounted":
            task.original(next(task.retain.epoch()).images)
        elif self.wrong == "writes images":
            task.retain._images.pixels_NHWC[0, 0, 0] += 1
        elif self.wrong == "writes weights":
            next(task._original.parameters()).data.add_(1)
        elif self.wrong == "other architecture":
            return torch.nn.Linear(1, 1)
        return task.original


@pytest.mark.parametrize(
    ("wrong", "test"),
    [
        ("draws globally", "test_the_same_trial_gives_the_same_bits_whatever_the_global_generators_say"),
        ("draws globally", "test_it_leaves_the_global_generators_alone"),
        ("seeds", "test_it_leaves_the_global_generators_alone"),
        ("uncounted", "test_its_declared_cost_is_what_is_counted"),
        ("writes images", "test_it_writes_into_no_input"),
        ("writes weights", "test_it_writes_into_no_input"),
        ("other architecture", "test_it_returns_the_same_architecture_with_finite_weights"),
    ],
)
def test_the_suite_catches_a_careless_method(wrong, test):
    original = OriginalSpec(testing._tiny_setting(testing.MethodConformance.model))
    before, kept = torch.get_rng_state(), copy.deepcopy(testing._tiny_bench(original))
    said = caught(testing.MethodConformance, Careless, test, wrong=wrong)
    assert wrong != "uncounted" or "declared Cost(forward=0, backward=0), counted Cost(forward=16, backward=0)" in said
    torch.set_rng_state(before)
    spoiled = testing._tiny_bench(original)
    spoiled.original.load_state_dict(kept.original.state_dict())
    spoiled.data.train.pixels_NHWC.copy_(kept.data.train.pixels_NHWC)


@dataclass(frozen=True)
class SpoilsMemos(Ssd):
    """Changes what it remembered."""

    version: ClassVar[int] = 1

    def unlearn(self, task):
        task.remember("importances", self.importances, importance_batch_size=self.importance_batch_size)["retain"].mul_(2)
        return task.original


@dataclass(frozen=True)
class ForgetsMemoFields(Ssd):
    """Does not say what its memos depend on."""

    version: ClassVar[int] = 1
    memo_fields: ClassVar = None


def test_the_suite_catches_a_method_that_spoils_its_memos():
    for test in ("test_it_leaves_remembered_memos_as_they_were", "test_it_writes_into_no_input"):
        caught(testing.MethodConformance, SpoilsMemos, test)


def test_the_suite_catches_undeclared_memos():
    caught(testing.MethodConformance, ForgetsMemoFields, "test_it_declares_what_its_memos_depend_on")


@dataclass
class Melted(Method):
    """Not frozen, no version of its own, no summary, a default that is out of bounds or of another type."""

    low: Annotated[float, Bound(low=1)] = 0.0
    typed: int = 0.5  # type: ignore[assignment]
    searched: Annotated[float, Search(0, 1, log=True)] = 0.5
    factory: tuple[int, ...] = field(default_factory=tuple)
    points: int = 1


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("test_it_is_a_frozen_dataclass_that_derives_from_the_contract", "not frozen"),
        ("test_it_declares_its_version_and_a_summary", "inherited"),
        ("test_its_fields_have_defaults_of_their_types_and_within_their_bounds", "low: the default 0.0"),
        ("test_its_search_ranges_lie_within_their_bounds", "logarithmic range"),
        ("test_its_field_names_are_free", "points"),
    ],
)
def test_the_suite_catches_careless_declarations(test, message):
    assert message in caught(testing.MethodConformance, Melted, test)


@dataclass(frozen=True)
class Typed(Method):
    """A default of another type."""

    typed: int = 0.5  # type: ignore[assignment]


@dataclass(frozen=True)
class Factory(Method):
    """A default that no sweep file can see."""

    made: tuple[int, ...] = field(default_factory=tuple)


@pytest.mark.parametrize(("cls", "message"), [(Typed, "0.5 is not allowed. Allowed: an integer"), (Factory, "default_factory")])
def test_the_suite_catches_defaults_of_no_use(cls, message):
    test = "test_its_fields_have_defaults_of_their_types_and_within_their_bounds"
    assert message in caught(testing.MethodConformance, cls, test)


@dataclass(frozen=True)
class Paints(Backdoor):
    """Changes the images themselves."""

    def corrupt(self, images, normalisation, rng):
        images.pixels[0] ^= 1
        return super().corrupt(images, normalisation, rng)


@dataclass(frozen=True)
class Shuffles(RandomLabelSwap):
    """Gives its rows in any order, one label that no class has, and draws from the global generator."""

    def corrupt(self, images, normalisation, rng):
        chosen = np.random.permutation(len(images))[: self.size]
        return Corruption(chosen, np.full(self.size, 4))


@dataclass(frozen=True)
class Beyond(RandomLabelSwap):
    """Gives one label that no class has."""

    def corrupt(self, images, normalisation, rng):
        return Corruption(np.arange(self.size), np.full(self.size, 4))


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (Shuffles, "test_it_changes_as_many_samples_as_its_size_says"),
        (Beyond, "test_it_gives_rows_labels_and_a_stamp_that_fit_the_images"),
        (Shuffles, "test_the_same_generator_gives_the_same_corruption"),
        (Paints, "test_it_leaves_the_images_as_they_were"),
    ],
)
def test_the_suite_catches_a_careless_manipulation(cls, test):
    pixels = testing._tiny().train.pixels
    before = pixels.copy()
    caught(testing.ManipulationConformance, cls, test)
    pixels[:] = before


@dataclass(frozen=True)
class Fresh(Uniform):
    """Finds another set for each size."""

    def find(self, poisoned, size, rng, evidence):
        return poisoned.corruption.indices[:size] if size % 2 else poisoned.corruption.indices[-size:]


@dataclass(frozen=True)
class Twice(Uniform):
    """Finds a sample twice."""

    def find(self, poisoned, size, rng, evidence):
        return np.resize(poisoned.corruption.indices[:5], size)


def test_the_suite_catches_detections_that_are_not_nested_or_repeat_themselves():
    caught(testing.DetectionConformance, Fresh, "test_smaller_sets_are_part_of_larger_ones")
    caught(testing.DetectionConformance, Twice, "test_it_finds_as_many_different_samples_as_it_is_asked_for")


@dataclass(frozen=True)
class Backwards(ResNet9):
    """Lists its blocks from output to input."""

    def blocks(self, model):
        return list(model.children())[::-1]


@dataclass(frozen=True)
class Headless(ResNet9):
    """Leaves its head out."""

    def blocks(self, model):
        return list(model.children())[:-1]


@dataclass(frozen=True)
class SixLogits(ResNet9):
    """Has an output for six classes, whatever is asked."""

    def build(self, image_shape, num_classes):
        return super().build(image_shape, 6)


@dataclass(frozen=True)
class Unchecked(ResNet9):
    """Takes any image."""

    def check(self, image_shape):
        pass


@dataclass(frozen=True)
class LooseParameter(ResNet9):
    """Has a parameter that no seed determines."""

    def build(self, image_shape, num_classes):
        model = super().build(image_shape, num_classes)
        model[-1].loose = torch.nn.Parameter(torch.rand(3))
        return model


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (Backwards, "test_its_blocks_run_from_input_to_output"),
        (Headless, "test_it_knows_its_layers_without_being_built"),
        (SixLogits, "test_it_maps_images_to_logits"),
        (Headless, "test_its_blocks_hold_every_parameter_once"),
        (LooseParameter, "test_a_seed_determines_all_weights"),
    ],
)
def test_the_suite_catches_a_careless_model(cls, test):
    caught(testing.ModelConformance, cls, test, width=2)


def test_the_suite_catches_a_model_that_takes_images_it_cannot_run_on():
    checked = type("Checked", (testing.ModelConformance,), {"plugin": Unchecked, "settings": {"width": 2}})()
    with pytest.raises(RuntimeError):
        checked.test_it_runs_on_every_image_size_that_it_does_not_refuse()


@dataclass(frozen=True)
class Percent(AccCorr):
    """Counts to a hundred."""

    def measure(self, outcome):
        return 100 * float((outcome.affected_predicted == outcome.affected_true).sum())


def test_the_suite_catches_a_metric_in_percent_that_has_a_value_of_nothing():
    caught(testing.MetricConformance, Percent, "test_it_is_between_0_and_1_or_has_no_value")
    caught(testing.MetricConformance, Percent, "test_it_has_no_value_on_empty_domains")


@dataclass(frozen=True)
class Forgetful(testing.TinyImages):
    """Other images than it says, of another type, and others the next time."""

    def load(self):
        loaded = super().load()
        rng = np.random.default_rng()
        loaded.train.pixels[:] = rng.integers(0, 255, loaded.train.pixels.shape)
        return type(loaded)(
            loaded.name, (*loaded.class_names, "up"), loaded.normalisation, loaded.augmentation, loaded.train, loaded.test
        )


@pytest.mark.parametrize(
    "test",
    [
        "test_its_facts_are_what_it_loads",
        "test_every_class_is_in_both_sets",
        "test_loading_it_again_gives_the_same_content_hash",
    ],
)
def test_the_suite_catches_a_careless_data_set(test):
    caught(testing.DatasetConformance, Forgetful, test)


@dataclass(frozen=True)
class Floats(testing.TinyImages):
    """Pixels of another type."""

    def load(self):
        loaded = super().load()
        return replace(loaded, test=replace(loaded.test, pixels=loaded.test.pixels / np.float32(255)))


def test_the_type_of_pixels_is_said_as_it_is():
    said = caught(testing.DatasetConformance, Floats, "test_its_facts_are_what_it_loads")
    assert "pixels are float32 [40, 12, 12, 1]: uint8 is needed, from 0 to 255, not yet normalised" in said
