"""`original: {weights: ...}`: a model that was trained elsewhere is checked, named by its content and used as it is."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from cu_ray import config
from cu_ray.cli import main
from cu_ray.datasets.fashion_mnist_small import FashionMnistSmall
from cu_ray.errors import Faults, UserError
from cu_ray.models.resnet9 import ResNet9
from cu_ray.stages import pipeline
from cu_ray.stages.pipeline import Workbench
from cu_ray.store import LocalStore
from cu_ray.sweep import runner, weights
from cu_ray.sweep.agenda import Agenda
from cu_ray.sweep.estimate import ReadOnlyJournal, estimate
from cu_ray.sweep.ledger import Known
from tests import sweeps

SWEEP = """
name: given
dataset: fashion_mnist_small
model: {{name: resnet9, width: {width}}}
manipulation: {{name: backdoor, size: 300}}
original: {{weights: {weights}}}
train: {{steps: 20, lr: 0.05, batch_size: 64, precision: fp32}}
deletion_fractions: [1.0]
seeds: {seeds}
methods:
  no_unlearning: {{}}
  catastrophic_forgetting: {{steps: 2}}
runtime: {{storage: store}}
"""


@pytest.fixture(scope="module")
def dataset():
    """The images inside the package."""
    return FashionMnistSmall().load()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(seed=0, width=2) -> dict[str, torch.Tensor]:
    """The state dict of a model that has seen nothing."""
    torch.manual_seed(seed)
    model = ResNet9(width=width).build((28, 28, 1), 10)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def written(tensors, path="model.safetensors") -> str:
    """The path of the file."""
    Path(path).parent.mkdir(exist_ok=True, parents=True)
    save_file(tensors, path)
    return path


def sweep(path="model.safetensors", *, seeds="[0]", width=2, text=SWEEP):
    """The sweep that starts from these weights."""
    return config.parse(text.format(weights=path, seeds=seeds, width=width))


def planned(given, dataset):
    """Its plan."""
    return runner.make_plan(given, dict.fromkeys(given.datasets, dataset))


def keys(given, dataset) -> list[str]:
    """The keys of its originals."""
    return [spec.key for spec in planned(given, dataset).originals()]


# ------------------------------------------------------------------------------------------------------------ identity


def test_other_weights_are_other_originals_and_their_place_is_no_matter(folder, dataset):
    one = keys(sweep(written(state())), dataset)
    assert keys(sweep(written(state(), "elsewhere/copy.bin")), dataset) == one
    other = state()
    other["0.0.bias" if "0.0.bias" in other else next(iter(other))].view(-1)[0] += 1e-3
    trained = sweep(text="\n".join(line for line in SWEEP.splitlines() if not line.startswith("original")))
    assert len({*one, *keys(sweep(written(other, "other.safetensors")), dataset), *keys(trained, dataset)}) == 3


def test_several_seeds_have_one_original_each_of_the_same_weights(folder, dataset):
    made = planned(sweep(written(state()), seeds="[0, 1, 2]"), dataset)
    store = LocalStore("store")
    weights.deposit(weights.read(Path("model.safetensors")), made, store)
    assert len({spec.key for spec in made.originals()}) == 3
    for spec in made.originals():
        tensors, _ = store.load("originals", spec.key)
        assert tensors.keys() == state().keys()
        for name, tensor in state().items():
            assert tensors[name].dtype == tensor.numpy().dtype
            assert np.array_equal(tensors[name], tensor.numpy())


def test_controls_beside_given_weights_are_trained_here(folder, dataset):
    made = planned(sweep(written(state()), text=SWEEP + "controls: {{never_manipulated: true}}\n"), dataset)
    assert [(spec.setting.control, spec.setting.weights is not None) for spec in made.originals()] == [
        ("never_manipulated", False),
        (None, True),
    ]


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_other_number_types_become_those_of_the_model(folder, dataset, kind):
    tensors = {name: tensor.to(kind) if tensor.is_floating_point() else tensor.int() for name, tensor in state().items()}
    made = planned(sweep(written(tensors)), dataset)
    weights.deposit(weights.read(Path("model.safetensors")), made, LocalStore("store"))
    kept, _ = LocalStore("store").load("originals", made.originals()[0].key)
    for name, tensor in state().items():
        assert kept[name].dtype == tensor.numpy().dtype
        np.testing.assert_allclose(kept[name], tensor.numpy(), rtol=1e-3 if kind == torch.float16 else 0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- used as given


def test_the_given_model_is_the_original_and_nothing_is_trained(folder, dataset, monkeypatch):
    def never(*arguments):
        raise AssertionError("an original was trained")

    monkeypatch.setattr(pipeline, "train", never)
    given = sweep(written(state(3)))
    made = planned(given, dataset)
    store = LocalStore("store")
    weights.deposit(weights.read(Path("model.safetensors")), made, store)
    bench = Workbench(dataset, store)
    model, trained = bench.original(made.originals()[0])
    assert not trained
    assert not model.training
    expected = ResNet9(width=2).build((28, 28, 1), 10).eval()
    expected.load_state_dict(load_file("model.safetensors"))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    images = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(model(images), expected(images))
    record = bench.run_original(made.originals()[0])
    assert record.ok
    assert record.facts["train_seconds"] is None
    by_method = {}
    for study in made.studies:
        (spec,) = study.trials(study.method.fixed, study.settings)
        by_method[study.method.cls.__name__] = bench.run_trial(spec)
    assert {each.status for each in by_method.values()} == {"ok"}
    assert by_method["NoUnlearning"].scores["acc_corr"] == record.scores["acc_corr"]


def test_given_weights_cost_no_training_in_the_plan(folder, dataset):
    for text, trained in ((SWEEP, 0), ("\n".join(line for line in SWEEP.splitlines() if "original" not in line), 20 * 64)):
        made = planned(sweep(written(state()), text=text), dataset)
        agenda = Agenda(made, ReadOnlyJournal(Known()), original_cached=lambda key: False)
        unlearning = 2 * 64
        counts = estimate(made, agenda, Known())
        assert counts.images_backward == trained + unlearning


def test_a_worker_without_the_weights_fails_clearly_and_trains_nothing(folder, dataset, monkeypatch):
    monkeypatch.setattr(pipeline, "train", lambda *arguments: pytest.fail("trained"))
    made = planned(sweep(written(state())), dataset)
    for record in (
        Workbench(dataset, LocalStore("empty")).run_original(made.originals()[0]),
        Workbench(dataset, LocalStore("empty")).run_trial(made.studies[0].trials({}, made.studies[0].settings)[0]),
    ):
        assert record.status == "failed"
        assert "the original's weights are not in the store" in record.error
        assert "runtime.storage" in record.error


def test_a_damaged_or_emptied_store_is_filled_again(folder, dataset):
    made = planned(sweep(written(state())), dataset)
    store, given = LocalStore("store"), weights.read(Path("model.safetensors"))
    weights.deposit(given, made, store)
    (path,) = Path("store/originals").iterdir()
    for harm in (path.unlink, lambda: path.write_bytes(b"damaged")):
        harm()
        assert store.load("originals", made.originals()[0].key) is None
        weights.deposit(given, made, store)
        assert store.load("originals", made.originals()[0].key) is not None


# ---------------------------------------------------------------------------------------------------------- complaints


def plan_says(path: str, **more) -> str:
    """What `cu-ray plan` says, having refused."""
    Path("given.yaml").write_text(SWEEP.format(**{"weights": path, "seeds": "[0]", "width": 2, **more}))
    result = CliRunner().invoke(main, ["plan", "given.yaml"])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert "original.weights" in result.output
    assert not Path("store").exists()
    assert not Path("results").exists()
    return result.output


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return Path("exploded").touch, ()


def test_a_pickled_file_is_refused_and_never_unpickled(folder):
    torch.save(state(), "model.pt")
    Path("bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), "zipped.pt")
    for path in ("model.pt", "bomb.pt", "zipped.pt"):
        said = plan_says(path)
        assert "cannot be read as safetensors" in said
        assert f"{Path(path).stem}.safetensors" in said
    assert not Path("exploded").exists()
    with pytest.raises(UserError):
        weights.read(Path("bomb.pt"))
    assert not Path("exploded").exists()


def test_a_missing_file_is_said_with_its_line(folder):
    said = plan_says("nowhere.safetensors")
    assert "original.weights (line 6): there is no file 'nowhere.safetensors'" in said


def test_bf16_is_said_how_to_save_otherwise(folder):
    said = plan_says(written({name: tensor.bfloat16() for name, tensor in state().items() if tensor.is_floating_point()}))
    assert "bfloat16" in said
    assert "model.float()" in said


def test_weights_of_another_model_are_refused_with_what_is_missing_unknown_or_misshapen(folder):
    wider = plan_says(written(state(width=3)))
    assert "has the shape" in wider
    first = next(iter(state()))
    missing = plan_says(written({name: tensor for name, tensor in state().items() if name != first}))
    assert f"1 of its tensors are missing, like '{first}'" in missing
    renamed = plan_says(written({name.replace("weight", "weigth"): tensor for name, tensor in state().items()}))
    assert "are missing, like" in renamed
    assert "are not its own, like" in renamed
    assert "Did you mean" in renamed
    unknown = plan_says(written({**state(), "more.weight": torch.ones(2)}))
    assert "1 are not its own, like 'more.weight'" in unknown
    assert "missing" not in unknown


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("dataset", "[fashion_mnist_small, cifar10]"),
        ("model", "{{name: resnet9, width: [2, 4]}}"),
        ("manipulation", "{{name: backdoor, size: [100, 300]}}"),
        ("train", "{{steps: [20, 30], batch_size: 64}}"),
    ],
)
def test_one_models_weights_do_not_stand_for_several_originals(folder, section, given):
    written(state())
    lines = [f"{section}: {given}" if line.startswith(f"{section}:") else line for line in SWEEP.splitlines()]
    with pytest.raises(Faults) as caught:
        sweep(text="\n".join(lines))
    assert any(
        fault == f"original.weights (line 6): these are one original's weights, but the file gives 2 under {section!r}"
        for fault in caught.value.faults
    )


@pytest.mark.parametrize(("given", "expected"), [("3", "a text"), ("[a, b]", "a text"), ("{{}}", "a text")])
def test_weights_are_given_by_one_path(folder, given, expected):
    with pytest.raises(Faults, match=r"original\.weights") as caught:
        sweep(text=SWEEP.replace("weights: {weights}", f"weights: {given}"))
    assert expected in str(caught.value)


def test_home_is_understood_in_a_path(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    written(state())
    assert sweep("~/model.safetensors").original.path == folder / "model.safetensors"


# -------------------------------------------------------------------------------------------------------- through Ray


def test_a_sweep_from_given_weights_runs_and_the_same_command_refills_an_emptied_store(folder):
    written(state())
    file = folder / "given.yaml"
    file.write_text(SWEEP.format(weights="model.safetensors", seeds="[0]", width=2))
    done = sweeps.command(folder, "sweep", str(file), "--only", "method=no_unlearning")
    assert done.returncode == 0, done.stdout + done.stderr
    results = folder / "results" / "given"
    (original,) = sweeps.table(results, "originals").to_dict("records")
    assert original["status"] == "ok"
    for path in (folder / "store" / "originals").iterdir():
        path.unlink()
    trial = sweeps.table(results, "trials")["trial_key"][0]
    replayed = sweeps.command(folder, "replay", "results/given", trial)
    assert replayed.returncode == 1
    exported = sweeps.command(folder, "export", "results/given", trial)
    assert exported.returncode == 2
    for said in (replayed.stdout, exported.stderr):
        assert "the original's weights are not in the store" in " ".join(said.split())
        assert "Traceback" not in said
    again = sweeps.command(folder, "sweep", str(file))
    assert again.returncode == 0, again.stdout + again.stderr
    trials = sweeps.table(results, "trials")
    assert set(trials["status"]) == {"ok"}
    assert set(trials["method"]) == {"no_unlearning", "catastrophic_forgetting"}


def test_a_method_that_trains_an_original_of_its_own_cannot_start_from_given_weights(folder):
    save_file(state(), "mine.safetensors")
    text = SWEEP.format(width=2, weights="mine.safetensors", seeds="[0]").replace("  no_unlearning: {}", "  rem_etd: {}")
    with pytest.raises(
        Faults, match=r"methods\.rem_etd.*trained otherwise \(example_tied_dropout\), so it cannot be original\.weights"
    ):
        config.parse(text)
