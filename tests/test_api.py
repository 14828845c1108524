"""Sweeps from Python, in this process: results as DataFrames, and nothing of the process changed afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cu_ray
from cu_ray.sweep import process
from cu_ray.sweep.agenda import Agenda
from tests import sweeps

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own, which come up in this process
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def load(folder, **options):
    return cu_ray.Sweep.load(sweeps.small(folder, seeds="[0]"), output=folder / "results", storage=folder / "store", **options)


def one_trial(folder):
    """A sweep of one original and one trial."""
    return load(folder, only=["method=no_unlearning", "fraction=1"])


def of_this_process():
    """What a sweep must leave as it was; what `import ray` sets stays."""
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(("TUNE_", "RAY_USAGE", "RAY_enable", "PYTHONBREAK"))
    }
    return variables, sys.stdout, sys.stderr, [signal.getsignal(each) for each in HANDLED]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A sweep that was run, and its results."""
    sweep = load(tmp_path_factory.mktemp("run"), only="fraction=1")
    before = of_this_process()
    results = sweep.run(quiet=True)
    assert of_this_process() == before
    return sweep, results


@pytest.fixture
def ray_is_up():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


# -------------------------------------------------------------------------------------------------------------- import


def test_the_import_is_light_and_the_names_are_there():
    check = """
import sys
import cu_ray
heavy = {name for name in ("torch", "ray", "pandas", "pydantic", "rich") if name in sys.modules}
assert not heavy, heavy
assert {"Sweep", "Results", "UserError", "RayStopped", "Interrupted"} == set(cu_ray.__all__) <= set(dir(cu_ray))
for name in cu_ray.__all__:
    assert getattr(cu_ray, name).__name__ == name
try:
    cu_ray.sweeep
except AttributeError as error:
    assert "sweeep" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", check], check=True)


def test_results_are_read_without_torch_and_ray(run):
    check = """
import sys
import cu_ray
results = cu_ray.Results.read(sys.argv[1])
repr(results), results.table(), results.trials
heavy = {name for name in ("torch._C", "ray") if name in sys.modules}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", check, str(run[0].folder)], check=True)


# ------------------------------------------------------------------------------------------------------------- results


def test_the_plan_starts_nothing(tmp_path):
    counts = load(tmp_path).plan()
    assert (counts.originals, counts.trials_done) == (1, 0)
    assert counts.trials == sum(counts.by_method.values()) > 4
    assert not (tmp_path / "results").exists()


def test_a_sweep_ends_with_its_tables(run):
    sweep, results = run
    assert results.outcome.num_run == len(results.trials) + len(results.originals)
    assert not (results.outcome.num_failed or results.outcome.interrupted or results.outcome.time_is_up)
    for name in ("trials", "originals", "best", "curves"):
        pd.testing.assert_frame_equal(
            getattr(results, name), pd.read_parquet(sweep.folder / "tables" / f"{name}.parquet"), check_exact=True
        )
    assert set(results.trials["status"]) == {"ok"}


def test_results_are_the_same_when_read_later_and_from_elsewhere(run, tmp_path, monkeypatch):
    read = cu_ray.Results.read(str(run[0].folder))
    assert read.outcome is None
    monkeypatch.chdir(tmp_path)
    pd.testing.assert_frame_equal(read.best, run[1].best)


def test_the_table_holds_the_numbers_of_the_rule(run):
    _, results = run
    for rule in ("oracle_validation", "published"):
        table, best = results.table(rule), results.best.query("rule == @rule").set_index("method")
        assert list(table.index.names) == ["method", "fraction"]
        assert set(table.index) == {(method, 1.0) for method in best.index}
        for method in best.index:
            shown, row = table.loc[(method, 1.0)], best.loc[method]
            assert shown["acc_retain"] == row["acc_retain_mean"]
            assert shown["seconds"] == row["unlearn_seconds_mean"]
            assert shown["n"] == row["n"]
    pd.testing.assert_frame_equal(results.table(), results.table("oracle_validation"))
    assert "confusion_rate" not in results.table()


def test_results_show_themselves_as_the_command_does(run):
    sweep, results = run
    shown = sweeps.command(sweep.folder, "table", str(sweep.folder)).stdout
    assert repr(results).splitlines()[: len(shown.splitlines())] == shown.splitlines()
    assert repr(results).endswith(f"{len(results.trials)} of {len(results.trials)} trials are done.")
    assert results._repr_html_().startswith("<pre")
    assert "│ scrub" in results._repr_html_()


def test_a_name_is_shown_as_it_is(run, tmp_path):
    shutil.copytree(run[0].folder / "tables", tmp_path / "tables")
    best = pq.read_table(tmp_path / "tables" / "best.parquet")
    odd = pa.array([f"[/x] :fire: {method}" for method in best["method"].to_pylist()])
    pq.write_table(best.set_column(best.schema.get_field_index("method"), "method", odd), tmp_path / "tables" / "best.parquet")
    assert "[/x] :fire: scrub" in repr(cu_ray.Results.read(tmp_path))


def test_a_second_run_does_nothing(run, capsys):
    sweep, results = run
    again = sweep.run()
    assert again.outcome.num_run == 0
    assert "Nothing to do" in capsys.readouterr().out
    pd.testing.assert_frame_equal(again.trials, results.trials)
    counts = sweep.plan()
    assert counts.trials == counts.trials_done == len(results.trials)


def test_a_time_limit_is_in_the_outcome(tmp_path):
    results = one_trial(tmp_path).run(time_limit="0s", quiet=True)
    assert results.outcome.time_is_up
    assert "Time is up: 0 of 1 trials are done." in repr(results)
    assert results.trials.empty


# --------------------------------------------------------------------------------------- the process, threads, and Ray


def test_a_sweep_runs_in_another_thread_whose_output_alone_goes_to_the_log(tmp_path, ray_is_up, capsys):
    (other := tmp_path / "other").mkdir()
    sweep, found = one_trial(tmp_path), []
    thread = threading.Thread(target=lambda: found.append(sweep.run()))
    before = of_this_process()
    thread.start()
    while sys.stdout is before[1] and thread.is_alive():
        time.sleep(0.01)
    print("of the main thread")
    with pytest.raises(cu_ray.UserError, match="another sweep is running in this process"):
        one_trial(other).run()
    thread.join()
    assert len(found[0].trials) == 1
    assert of_this_process() == before
    said = capsys.readouterr().out
    assert "of the main thread" in said
    assert "Joining the Ray of this process" in said
    assert "of the main thread" not in (sweep.folder / "logs").read("tune.log").decode()


def left_in_ray():
    """The desks that live, and the megabytes in the object store."""
    import ray

    names = [child.name() for child in psutil.Process().children(recursive=True) if child.is_running()]
    room, free = ray.cluster_resources()["object_store_memory"], ray.available_resources()["object_store_memory"]
    return [name for name in names if name == "ray::Desk"], round((room - free) / 1e6)


def run_interrupted(sweep, number, monkeypatch):
    """The results of a run into which the signal comes with its first trial's record."""
    complete = Agenda.complete

    def complete_and_signal(agenda, record):
        failed_with_it = complete(agenda, record)
        if record.kind == "trial":
            signal.raise_signal(number)
        return failed_with_it

    before = of_this_process()
    with monkeypatch.context() as patch, pytest.raises(cu_ray.Interrupted) as caught:
        patch.setattr(Agenda, "complete", complete_and_signal)
        sweep.run(quiet=True)
    assert of_this_process() == before
    assert isinstance(caught.value, KeyboardInterrupt)
    return caught.value.results


def test_a_terminated_sweep_has_its_tables_and_its_ray_is_gone(tmp_path, monkeypatch):
    import ray

    results = run_interrupted(load(tmp_path, only="fraction=1"), signal.SIGTERM, monkeypatch)
    assert results.outcome.interrupted
    assert len(results.trials) == results.outcome.estimate.trials_done == 1
    assert "Interrupted: 1 of" in repr(results)
    assert not ray.is_initialized()


def test_a_ray_that_is_up_stays_up_and_an_interrupted_sweep_gives_its_workers_back(tmp_path, ray_is_up, monkeypatch):
    sweep = load(tmp_path, only="fraction=1")
    assert len(run_interrupted(sweep, signal.SIGINT, monkeypatch).trials) == 1
    assert ray_is_up.is_initialized()
    deadline = time.monotonic() + 20
    while ray_is_up.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray_is_up.available_resources()["CPU"] == 2
    results = sweep.run(quiet=True)
    assert not results.outcome.interrupted
    assert results.outcome.num_run == len(results.trials) - 1
    deadline = time.monotonic() + 20
    while left_in_ray() != ([], 0) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_in_ray() == ([], 0), "the desks of two sweeps, or their data sets, stay"
    with pytest.raises(cu_ray.UserError, match=r"not at 10\.0\.0\.1:6379: leave the address out"):
        load(tmp_path).run(address="10.0.0.1:6379", quiet=True)


def test_what_is_ignored_stays_ignored_and_a_second_signal_does_what_it_did_before():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.signals_interrupt():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------------------------------------------------- wrong use

TEXT = sweeps.SMALL.format(fractions="[1.0]", seeds="[0]", trials=2, more="", storage="store")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [-1]}, "--seeds -1 is not allowed. Allowed: integers, not negative"),
        ({"seeds": [0.5]}, "--seeds 0.5"),
        ({"only": ["methd=ssd"]}, "Did you mean 'method'"),
        ({"only": "method=sdd"}, "Did you mean 'ssd'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(cu_ray.UserError) as caught:
        cu_ray.Sweep.parse(TEXT, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "runtime.workers: 0 is not allowed. Allowed: an integer or null, at least 1."),
        ({"workers": "2"}, "runtime.workers: '2' is not allowed"),
        ({"time_limit": "8 h"}, "--time-limit 8 h: hours, minutes and seconds are needed"),
        ({"time_limit": 3600}, "--time-limit 3600"),
    ],
)
def test_wrong_options_of_a_run_are_refused_before_anything_starts(options, message, tmp_path):
    with pytest.raises(cu_ray.UserError) as caught:
        cu_ray.Sweep.parse(TEXT, output=tmp_path).run(**options)
    assert message in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_a_wrong_file_text_folder_or_rule_is_refused(run, tmp_path):
    with pytest.raises(cu_ray.UserError, match=r"nowhere\.yaml"):
        cu_ray.Sweep.load("nowhere.yaml")
    with pytest.raises(cu_ray.UserError, match="Did you mean 'steps'"):
        cu_ray.Sweep.parse(TEXT.replace("steps: 12", "step: 12"))
    with pytest.raises(cu_ray.UserError, match=r"is .* the folder of a sweep"):
        cu_ray.Results.read(tmp_path)
    with pytest.raises(cu_ray.UserError, match="Did you mean 'oracle'"):
        run[1].table("oracl")


def test_a_method_of_the_notebook_itself_is_refused():
    with pytest.raises(cu_ray.UserError, match="workers cannot import it: put it into a file"):
        cu_ray.Sweep.parse(TEXT.replace("  no_unlearning: {}", "  __main__:Fancy: {}"))


def test_seeds_come_on_top_and_may_be_numpys():
    import numpy as np

    assert cu_ray.Sweep.parse(TEXT, seeds=np.arange(3)).file.seeds == (0, 1, 2)
