"""An experiment tracker is told of each trial as it ends; whatever it does, the sweep goes on."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from cu_ray.sweep import aside, trackers
from cu_ray.sweep.trackers import COSTS, entry_of
from cu_ray.sweep.tracking import Tracking
from tests import sweeps
from tests.sweep.simulator import SSD_GRID, plan, run


@pytest.fixture(scope="module")
def records():
    """The trials of a simulated sweep, one of them failed, and the originals."""
    made = plan({"no_unlearning": {}, "ssd": SSD_GRID})
    known, _ = run(made, workers=1)
    trials = list(known.trials.values())
    return [replace(trials[0], status="failed", error="ValueError: no", scores={}), *trials[1:], *known.originals.values()]


def told(records, tracker, sweep="quick"):
    """What the user is told while these records come in."""
    said = []
    with Tracking(sweep, tracker, said.append) as found:
        for record in records:
            found.heard(record)
    return said


class Kept:
    """A tracker that keeps what it is told, and fails at the one of that number."""

    def __init__(self, fails_at=math.inf):
        self.entries, self._fails_at, self.threads = [], fails_at, set()

    def take(self, entry):
        self.threads.add(threading.current_thread())
        if len(self.entries) == self._fails_at:
            raise ConnectionError("no route\nto host")
        self.entries.append(entry)


def test_it_is_told_of_each_trial_in_another_thread_and_not_of_originals(records):
    tracker = Kept()
    assert told(records, lambda: tracker) == []
    assert [entry.key for entry in tracker.entries] == [record.key for record in records if record.kind == "trial"]
    assert threading.current_thread() not in tracker.threads


def test_what_it_is_told_are_words_and_values_of_the_tables(records):
    failed = entry_of("quick", records[0])
    record = next(each for each in records[1:] if each.spec.get("method", {}).get("name") == "ssd")
    assert (failed.status, failed.error) == ("failed", "ValueError: no")
    assert failed.scores.keys() <= set(COSTS)
    entry = entry_of("quick", record)
    assert entry.settings["method"] == "ssd" and entry.settings["manipulation_size"] == 100
    assert entry.settings["hp_selection_share"] == record.spec["method"]["selection_share"]
    assert entry.scores["val_acc_corr"] == record.scores["val_acc_corr"]
    assert None not in entry.settings.values() and None not in entry.scores.values()
    assert entry.started == datetime(2024, 1, 1, tzinfo=UTC)
    assert entry.name.startswith("ssd 0.5 seed 0 ")


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_tracker_that_fails_is_one_warning(records, fails_at):
    tracker = Kept(fails_at)
    assert told(records, lambda: tracker) == [
        "Warning: the tracker failed and is told no more: no route to host. The tables have all."
    ]
    assert len(tracker.entries) == fails_at


def test_a_tracker_that_cannot_be_made_is_one_warning(records):
    def make():
        raise RuntimeError("no key")

    assert told(records, make) == ["Warning: the tracker failed and is told no more: no key. The tables have all."]


def test_a_tracker_that_hangs_is_left_behind(records, monkeypatch):
    monkeypatch.setattr(aside, "PATIENCE", 0.2)
    hangs = threading.Event()

    class Hanging:
        def take(self, entry):
            hangs.wait()

    num_trials = sum(record.kind == "trial" for record in records)
    (said,) = told(records, Hanging)
    hangs.set()
    assert f"was not told of {num_trials} trials" in said


def test_without_a_tracker_there_is_no_thread(records):
    before = threading.active_count()
    with Tracking("quick", None, print) as found:
        found.heard(records[0])
        assert threading.active_count() == before


def test_a_tracker_that_is_not_installed_is_named_before_anything_starts(tmp_path, monkeypatch):
    assert set(trackers.PACKAGES) == set(trackers_of_config())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"wandb is not installed: pip install 'cu-ray\[wandb\]'"):
        trackers.require("wandb")


def trackers_of_config():
    from cu_ray.config import TRACKERS

    return TRACKERS


def events(folder):
    """The events of the one file in a folder, by TensorBoard's format: length, its checksum, content, its checksum."""
    (file,) = folder.iterdir()
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_a_sweep_with_tensorboard_leaves_event_files_that_say_what_the_tables_say(tmp_path):
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=2)
    file.write_text(file.read_text().replace("runtime: {", "runtime: {tracker: tensorboard, "))
    done = sweeps.command(tmp_path, "sweep", "small.yaml", "--local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout
    trials = pd.read_parquet(tmp_path / "results" / "small" / "tables" / "trials.parquet").set_index("trial_key")
    seen = {}
    for folder in (tmp_path / "results" / "small" / "tensorboard").iterdir():
        values = {value.tag: value for event in events(folder) for value in event.summary.value}
        session = HParamsPluginData.FromString(
            values["_hparams_/session_start_info"].metadata.plugin_data.content
        ).session_start_info.hparams
        row = trials.loc[session["trial_key"].string_value]
        assert session["method"].string_value == row["method"]
        for name in ("acc_corr", "val_acc_retain", *COSTS):
            assert values[name].simple_value == pytest.approx(row[name])
        seen[row.name] = session["hp_selection_share"].number_value if "hp_selection_share" in session else None
    assert seen.keys() == set(trials.index)
    shares = trials.loc[trials["method"] == "ssd", "hp_selection_share"]
    assert {key: seen[key] for key in shares.index} == pytest.approx(shares.to_dict())


@pytest.mark.filterwarnings("default")  # SQLAlchemy's, at MLflow
def test_mlflow_has_a_run_for_each_trial(records, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed (pip install 'cu-ray[mlflow]')")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for part in (records[:2], records[2:]):  # a sweep that was interrupted goes on in the same experiment
        assert told(part, lambda: trackers.make("mlflow", "quick", tmp_path)) == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "quick"]
    runs = {each.data.tags["trial_key"]: each for each in client.search_runs([experiment.experiment_id])}
    trials = [record for record in records if record.kind == "trial"]
    assert runs.keys() == {record.key for record in trials}
    for record in trials:
        found, entry = runs[record.key], entry_of("quick", record)
        assert found.info.status == ("FINISHED" if record.ok else "FAILED")
        assert found.data.metrics == pytest.approx(dict(entry.scores))
        assert found.data.params == {name: str(value) for name, value in entry.settings.items()}
        assert found.info.start_time == 1704067200000
    assert runs[records[0].key].data.tags["error"] == "ValueError: no"


def test_wandb_offline_leaves_a_run_for_each_trial(records, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'cu-ray[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert told(records[:3], lambda: trackers.make("wandb", "quick", tmp_path / "wandb")) == []
    found = {}
    for file in (tmp_path / "wandb").rglob("*.wandb"):
        parts = list(wandb_records(file.read_bytes()))
        start = next(part.run for part in parts if part.WhichOneof("record_type") == "run")
        config = {item.key: json.loads(item.value_json) for item in start.config.update}
        history = [item for part in parts for item in part.history.item]
        scores = {"/".join([*item.nested_key]) or item.key: json.loads(item.value_json) for item in history}
        found[start.run_id] = (start.run_group, config, scores)
    assert found.keys() == {record.key[:32] for record in records[:3]}
    for record in records[:3]:
        (group, config, scores), entry = found[record.key[:32]], entry_of("quick", record)
        assert group == "quick"
        assert config.items() >= entry.settings.items()
        assert {name: scores[name] for name in entry.scores} == pytest.approx(dict(entry.scores))


def wandb_records(content):
    """The records of a run's file, in LevelDB's log format: blocks of 32 KiB, parts of records with crc, length and type."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""  # after the file's own header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # the rest of a block that no part fits into
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_after_a_failure_nothing_more_is_kept_for_it():
    problems = []

    def work(items):
        raise RuntimeError("no network")

    with aside.Aside("test", work, problems.append) as failed:
        failed._thread.join()
        failed.put("a record")
        assert failed._queue.qsize() == 0
    assert [str(problem) for problem in problems] == ["no network"]
    assert failed.num_left is None
