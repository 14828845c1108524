"""The commands as a user gives them."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cu_ray.cli import look, main
from cu_ray.places import at
from cu_ray.sweep.ledger import Ledger
from tests import sweeps

QUICKSTART = Path(__file__).parent.parent / "sweeps" / "quickstart.yaml"


def cu_ray(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_plan_json_is_one_object_with_the_promised_names(tmp_path):
    result = cu_ray("plan", str(QUICKSTART), "--json", "--output", str(tmp_path))
    counts = json.loads(result.stdout)
    assert result.exit_code == 0
    assert counts["originals"] == 2
    assert counts["trials"] == sum(counts["by_method"].values()) == 158
    assert counts["trials_done"] == 0
    assert counts["images_forward"] > counts["images_backward"] > 0
    assert set(counts["by_method"]) == {
        "no_unlearning",
        "exact_unlearning",
        "catastrophic_forgetting",
        "scrub",
        "bad_teaching",
        "ssd",
    }
    assert not (tmp_path / "quickstart").exists()


@pytest.mark.parametrize("arguments", [["plan", str(QUICKSTART)], ["list"], ["list", "methods"], ["list", "methods", "ssd"]])
def test_light_commands_do_not_import_torch(arguments, tmp_path):
    check = f"""
import sys
from cu_ray.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
heavy = [name for name in ("torch", "ray", "torchvision") if f"{{name}}._C" in sys.modules or f"{{name}}.nn" in sys.modules
         or (name == "ray" and "ray" in sys.modules)]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["click", "numpy", "rich.table", "cu_ray.cli.run", "cu_ray.sweep.status"])
def test_a_command_can_be_interrupted_while_its_modules_are_imported(module, tmp_path):
    program = f"""
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *others):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from cu_ray.cli import command
sys.argv[1:] = ["status", "."]
command()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "cu-ray: interrupted. What a sweep has finished is kept; the same command goes on from there.\n"


@pytest.mark.parametrize("command", ["status", "table", "report", "fetch", "merge", "bundle"])
def test_the_home_folder_of_nobody_is_one_message(command):
    refused = cu_ray(command, "~nobody-here/x", *(["other"] if command == "merge" else []))
    assert refused.exit_code == 2
    assert refused.output == "cu-ray: '~nobody-here/x' is not allowed: there is no such home folder\n"


def test_a_storage_in_the_home_folder_of_nobody_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("CU_RAY_STORAGE", "~nobody-here/x")
    file = sweeps.small(tmp_path)
    file.write_text(file.read_text().replace("runtime: {storage: store}", ""))
    refused = cu_ray("plan", str(file))
    assert refused.exit_code == 2
    assert "CU_RAY_STORAGE of the environment: '~nobody-here/x' is not allowed: there is no such home folder" in refused.output


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("arguments", "code"), [(["list"], 0), (["status", "."], 2)])
def test_a_shell_may_close_streams(tmp_path, closed, arguments, code):
    line = f"{shlex.join(sweeps.program(*arguments))} {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "shown"), [("säd", r"s\xe4d"), ("\udcff", r"\udcff")])
@pytest.mark.parametrize("command", ["status", "table", "report"])
def test_a_folder_whose_name_the_terminal_has_no_characters_for_is_shown_all_the_same(tmp_path, name, shown, command):
    folder = tmp_path / name
    folder.mkdir()
    done = sweeps.command(folder.parent, command, name, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert done.stderr.startswith("cu-ray: there is no ")
    assert shown in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["attach", "fetch", "stop", "status", "table", "report", "merge"])
def test_a_file_in_the_place_of_a_folder_is_one_message(tmp_path, command):
    file = sweeps.small(tmp_path)
    refused = cu_ray(command, str(file), *([str(tmp_path)] if command == "merge" else []))
    assert refused.exit_code == 2
    assert refused.output == f"cu-ray: {file} is a file: the folder of a sweep (results/NAME) is needed\n"


@pytest.mark.parametrize("price", ["nan", "inf"])
def test_a_price_is_a_number(price):
    refused = cu_ray("plan", str(QUICKSTART), "--price", price)
    assert refused.exit_code == 2
    assert f"--price {price} is not allowed. Allowed: a number, at least 0." in refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", str(QUICKSTART), "--address", ""], "runtime.address: '' is not allowed. Allowed: the address of a Ray"),
        (["doctor", "--address", ""], "'' is not allowed. Allowed: the address of a Ray"),
        (["sweep", str(QUICKSTART), "--cluster", ""], "--cluster '' is not allowed. Allowed: the file that `ray up` was given"),
        (["doctor", "--cluster", ""], "--cluster '' is not allowed. Allowed: the file that `ray up` was given"),
        (["doctor", "--storage", "s4://bucket/x"], "s4:// is no place that can be written to."),
        (["clean", "--storage", "nowhere-at-all"], "--storage nowhere-at-all: there is no such folder"),
    ],
)
def test_a_place_that_is_none_is_said_before_anything_starts(monkeypatch, arguments, said):
    monkeypatch.setattr("cu_ray.sweep.cluster.connected", None)
    monkeypatch.setattr("cu_ray.sweep.runner.run", None)
    refused = cu_ray(*arguments)
    assert refused.exit_code == 2, repr(refused.exception)
    assert said in refused.output


def test_a_wrong_command_gets_the_nearest_name():
    result = cu_ray("swep", "x.yaml")
    assert result.exit_code == 2
    assert "Did you mean 'sweep'" in result.output
    assert "status, stop, sweep, table" in result.output
    assert "watch" not in result.output, "it is hidden"


@pytest.mark.parametrize("command", ["sweep", "plan"])
def test_a_missing_file_is_one_message_and_code_2(command):
    result = cu_ray(command, "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.output
    assert "Traceback" not in result.output


def test_all_faults_of_a_file_come_at_once(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(QUICKSTART.read_text().replace("msteps", "mstep").replace("t_shirt", "tshirt").replace("lr: 0.05", "lr: -1"))
    result = cu_ray("sweep", str(file))
    assert result.exit_code == 2
    assert "3 faults" in result.output
    for part in ("methods.scrub.mstep", "Did you mean 'msteps'", "manipulation.target", "'t_shirt'", "train.lr", "-1"):
        assert part in result.output
    assert not (tmp_path / "results").exists()


def test_list_names_every_kind_and_its_settings():
    everything = cu_ray("list").output
    for name in ("scrub", "backdoor", "uniform", "cifar10", "resnet9", "asr", "tpe", "oracle_validation"):
        assert name in everything
    assert "selection_share" in cu_ray("list", "methods", "ssd").output
    wrong = cu_ray("list", "methodz")
    assert wrong.exit_code == 2
    assert "Did you mean 'methods'" in wrong.output


@pytest.mark.parametrize("command", ["status", "table"])
def test_a_folder_without_a_sweep_is_said(command, tmp_path):
    result = cu_ray(command, str(tmp_path))
    assert result.exit_code == 2
    assert str(tmp_path) in result.output


@pytest.mark.parametrize(("silent_for", "state"), [(3600, "running"), (8000, "stopped before its end")])
def test_a_driver_on_another_machine_runs_as_long_as_it_says_so(tmp_path, silent_for, state):
    counts = dict.fromkeys(("trials", "trials_done", "trials_failed", "originals", "originals_done", "studies"), 1)
    facts = {"running": True, "process": 1, "host": "elsewhere", "updated_at": time.time() - silent_for}
    (tmp_path / "status.json").write_text(json.dumps(facts | counts | {"storage": "store", "device": "cpu"}))
    assert f"{tmp_path.name}: {state}; 1 of 1 trials done" in cu_ray("status", str(tmp_path)).output.replace("\n", "")


@pytest.mark.parametrize("file", ["status.json", "ledger/000001.log"])
@pytest.mark.parametrize("command", ["table", "report"])
def test_a_sweep_that_was_killed_before_its_first_tables_is_no_folder_without_a_sweep(tmp_path, file, command):
    (tmp_path / "ledger").mkdir()
    (tmp_path / file).touch()
    refused = cu_ray(command, str(tmp_path))
    assert refused.exit_code == 2
    said = f"there are no tables in {tmp_path}/tables yet: the same `cu-ray sweep` command goes on and writes them"
    assert refused.output == f"cu-ray: {said}\n"


def status_of(folder, **facts):
    counts = dict.fromkeys(("trials", "trials_done", "trials_failed", "originals", "originals_done", "studies"), 1)
    said = {"running": True, "host": platform.node(), "updated_at": time.time(), "storage": "store", "device": "cpu", **facts}
    (folder / "status.json").write_text(json.dumps(said | counts))
    return cu_ray("status", str(folder)).output.replace("\n", "")


@pytest.mark.parametrize("process", [os.getpid(), -1, 10**30], ids=["this one", "none", "too large"])
def test_a_driver_on_this_machine_runs_as_long_as_it_holds_the_ledger(tmp_path, process):
    assert "stopped before its end" in status_of(tmp_path, process=process), "a number is another process's after a while"
    with Ledger(tmp_path / "ledger"):
        assert f"{tmp_path.name}: running;" in status_of(tmp_path, process=process)
    assert "stopped before its end" in status_of(tmp_path, process=process)


@pytest.mark.parametrize(
    ("process", "alive"),
    [(os.getpid(), True), (-1, False), (0, False), (10**30, False)],
    ids=["this one", "none", "all", "too large"],
)
def test_a_driver_whose_results_are_at_a_uri_runs_as_long_as_its_process(process, alive):
    assert look._alive(at("s3://bucket/results"), {"host": platform.node(), "process": process}) == alive


def test_records_of_others_that_came_in_are_not_counted_as_the_sweeps_own(tmp_path):
    counts = {"trials": 4, "trials_done": 4, "trials_failed": 0, "originals": 1, "originals_done": 1, "studies": 1}
    facts = {"running": False, "process": 1, "host": "here", "storage": "store", "device": "cpu"}
    then = {"in_ledger": {"trials_done": -2, "trials_failed": 0, "originals_done": 0}}  # two more have come in since
    (tmp_path / "status.json").write_text(json.dumps(facts | counts | then))
    assert "4 of 4 trials done" in cu_ray("status", str(tmp_path)).output
    (tmp_path / "status.json").write_text(json.dumps(facts | counts | then | {"running": True, "trials_done": 3}))
    assert "4 of 4 trials done" in cu_ray("status", str(tmp_path)).output


def test_try_runs_one_trial_without_ray_and_replay_repeats_a_recorded_one(tmp_path):
    file = sweeps.small(tmp_path, fractions="[1.0]", seeds="[0]", trials=1)
    tried = sweeps.command(tmp_path, "try", "scrub", "--set", "steps=3", "--set", "alpha=1e-2", "--sweep", str(file))
    assert tried.returncode == 0, tried.stderr
    assert "acc_corr" in tried.stdout
    wrong = sweeps.command(tmp_path, "try", "scrub", "--set", "alpa=1", "--sweep", str(file))
    assert wrong.returncode == 2
    assert "Did you mean 'alpha'" in wrong.stderr
    done = sweeps.command(tmp_path, "sweep", str(file), "--only", "method=ssd")
    assert done.returncode == 0, done.stderr
    shown = sweeps.command(tmp_path, "status", "results/small")
    assert "4 of 4 trials done" in shown.stdout
    key = sweeps.table(tmp_path / "results" / "small", "trials")["trial_key"][0]
    replayed = sweeps.command(tmp_path, "replay", "results/small", key[:12])
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "same to the bit" in replayed.stdout


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_try_refuses_a_seed_that_a_sweep_would_refuse(seed):
    refused = cu_ray("try", "no_unlearning", "--seed", seed)
    assert refused.exit_code == 2
    assert f"--seed {seed} is not allowed. Allowed: integers, not negative, below 2^63" in refused.output


OWN_METHOD = """
from dataclasses import dataclass
from typing import ClassVar

from cu_ray.methods.no_unlearning import NoUnlearning


@dataclass(frozen=True)
class {name}(NoUnlearning):
    version: ClassVar[int] = 1

    def unlearn(self, task):
        {body}
"""


def test_what_a_plugin_says_is_printed_as_it_is(tmp_path):
    said = "shape [/x] mismatch [bold] :fire:"
    (tmp_path / "braise.py").write_text(OWN_METHOD.format(name="M", body=f"raise ValueError({said!r})"))
    tried = sweeps.command(tmp_path, "try", "braise:M", "--sweep", str(sweeps.small(tmp_path)))
    assert tried.returncode == 1, tried.stderr
    assert f"failed, ValueError in braise:M: {said} (" in tried.stdout


def test_a_reader_who_has_seen_enough_ends_no_sweep(tmp_path):
    sweeps.small(tmp_path, seeds="[0]", fractions="[1.0]", trials=2)
    command = sweeps.program("sweep", "small.yaml", "--local", "--only", "method=no_unlearning")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        driver.stdout.close()
        said = driver.stderr.read()
    assert driver.returncode == 0, said
    assert said == ""
    assert len(sweeps.table(tmp_path / "results" / "small", "trials")) == 1


def test_a_confusion_of_more_samples_than_its_classes_have_is_refused_before_anything_starts(tmp_path):
    file = sweeps.small(tmp_path)
    confusion = "manipulation: {name: interclass_confusion, size: 2000, classes: [dress, shirt]}"
    file.write_text(file.read_text().replace("manipulation: {name: backdoor, size: 300}", confusion))
    result = cu_ray("plan", str(file))
    assert result.exit_code == 2
    assert "manipulation.size: class 3 has 600 samples, fewer than 1000" in result.output


def test_an_empty_retain_set_is_refused(tmp_path):
    file = sweeps.small(tmp_path)
    file.write_text(file.read_text().replace("size: 300", "size: 6000"))
    result = cu_ray("plan", str(file))
    assert result.exit_code == 2
    assert "leaves no training samples" in result.output


def test_a_full_disk_is_one_message_and_code_1(tmp_path, monkeypatch):
    from cu_ray.sweep.ledger.folder import Appender

    def full(self, values):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)  # the file's storage is relative
    monkeypatch.setattr(Appender, "write", full)
    result = cu_ray("sweep", str(sweeps.small(tmp_path)), "--output", str(tmp_path / "results"))
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert "the same command goes on" in result.output
    assert "Traceback" not in result.output


def test_plugins_beside_the_sweep_file_are_found_from_any_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside_it.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from cu_ray.methods.no_unlearning import NoUnlearning\n\n\n"
        "@dataclass(frozen=True)\nclass Same(NoUnlearning):\n    version: ClassVar[int] = 1\n"
    )
    text = QUICKSTART.read_text().split("methods:")[0] + "methods: {beside_it:Same: {}}\n"
    (tmp_path / "sub" / "mine.yaml").write_text(text)
    done = sweeps.command(tmp_path, "plan", "sub/mine.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["by_method"] == {"beside_it:Same": 2}


def test_several_files_run_one_after_the_other_and_the_worst_of_their_codes_is_the_code(tmp_path):
    (tmp_path / "failing.py").write_text(
        "from cu_ray.methods.no_unlearning import NoUnlearning\n\n\n"
        "class Fails(NoUnlearning):\n    def unlearn(self, task):\n        raise ValueError('no luck')\n"
    )
    for name, more in (("first", "failing:Fails: {}"), ("second", "")):
        path = sweeps.small(tmp_path, seeds="[0]", fractions="[1.0]", trials=2, more=more, name=f"{name}.yaml")
        path.write_text(path.read_text().replace("name: small", f"name: {name}"))
    files = ("first.yaml", "second.yaml")
    done = sweeps.command(tmp_path, "sweep", *files, "--only", "method=no_unlearning", "--only", "method=failing:Fails")
    assert done.returncode == 2, "of the second nothing is left"
    assert not (tmp_path / "results").exists(), "no file is begun before all are read"
    done = sweeps.command(tmp_path, "sweep", *files)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.index("first.yaml:") < done.stdout.index("1 failed") < done.stdout.index("second.yaml:")
    assert done.stdout.count("Best of each study") == 2
    plans = sweeps.command(tmp_path, "plan", *files, "--json").stdout.splitlines()
    assert [json.loads(each)["trials_done"] for each in plans] == [json.loads(each)["trials"] for each in plans]
    shown = cu_ray("plan", *(str(tmp_path / file) for file in files), "--output", str(tmp_path / "results")).output
    assert shown.index("first.yaml:") < shown.index("second.yaml:")


def test_two_files_beside_each_of_which_is_a_plugin_of_one_name_are_refused(tmp_path):
    text = "from cu_ray.methods.no_unlearning import NoUnlearning\n\n\nclass Mine(NoUnlearning):\n    pass\n"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of_a_name.py").write_text(text)
        path = sweeps.small(tmp_path / name, more="of_a_name:Mine: {}")
        path.write_text(path.read_text().replace("name: small", f"name: {name}"))
    alone = [sweeps.command(tmp_path, "plan", f"{name}/small.yaml").returncode for name in ("one", "other")]
    done = sweeps.command(tmp_path, "plan", "one/small.yaml", "other/small.yaml")
    assert (alone, done.returncode) == ([0, 0], 2)
    assert f"{tmp_path}/other/of_a_name.py has the name of {tmp_path}/one/of_a_name.py" in done.stderr
    assert "give the files one by one" in done.stderr


def test_two_files_with_one_name_are_refused(tmp_path):
    one, other = sweeps.small(tmp_path), sweeps.small(tmp_path, name="other.yaml")
    result = cu_ray("plan", str(one), str(other))
    assert result.exit_code == 2
    assert "other.yaml: its results would go to results/small, as those of " in result.output


def test_one_rule_or_sampler_is_listed_and_another_name_is_refused():
    assert cu_ray("list", "rules", "defender").output.count("\n") == 2
    refused = cu_ray("list", "rules", "defendr")
    assert refused.exit_code == 2
    assert "Did you mean 'defender'?" in refused.output


@pytest.mark.parametrize("share", ["0", "0.00001", "2"])
def test_a_share_of_a_gpu_is_some_of_it_and_of_one(tmp_path, share):
    (tmp_path / "none.yaml").write_text(QUICKSTART.read_text() + f"runtime: {{gpus_per_trial: {share}}}\n")
    result = cu_ray("plan", str(tmp_path / "none.yaml"))
    assert result.exit_code == 2
    assert "runtime.gpus_per_trial" in result.output
    assert "at least 0.001 and at most 1" in result.output


def test_plan_says_what_is_left_at_a_price(tmp_path):
    file = sweeps.small(tmp_path, seeds="[0]", fractions="[1.0]", trials=2)
    unknown = cu_ray("plan", str(file), "--price", "2.5", "--output", str(tmp_path))
    assert unknown.output.split("cost", 1)[1].strip() == "unknown until a trial is done, or with --measure"
    done = sweeps.command(tmp_path, "sweep", str(file), "--only", "method=scrub", "--output", "results")
    assert done.returncode == 0, done.stderr
    counts, free = (
        json.loads(cu_ray("plan", str(file), "--json", *more, "--output", str(tmp_path / "results")).stdout)
        for more in (("--price", "2.5"), ())
    )
    assert counts["hours"] > 0
    assert counts["cost"] == 2.5 * counts["hours"]
    assert free["cost"] is None
    assert 3600 * free["hours"] / os.cpu_count() <= free["wall_seconds"] < 600
    known = cu_ray(
        "plan", str(file), "--only", "method=scrub", "--seeds", "+1", "--measure", "--output", str(tmp_path / "results")
    )
    assert "Measuring" not in known.output, "what is done tells it"
    assert "About " in known.output
    refused = cu_ray("plan", str(file), "--price", "-1")
    assert refused.exit_code == 2
    assert "--price" in refused.output


def test_plan_measures_how_long_all_will_take_where_nothing_is_done_yet(tmp_path):
    file = sweeps.small(tmp_path, seeds="[0]", fractions="[1.0]", trials=2)
    options = [str(file), "--output", str(tmp_path / "results")]
    assert json.loads(cu_ray("plan", *options, "--json").stdout)["wall_seconds"] is None
    threads = torch.get_num_threads()
    said = json.loads(cu_ray("plan", *options, "--json", "--measure").stdout)
    assert 0 < said["seconds"] / os.cpu_count() <= said["wall_seconds"] <= said["seconds"] < 600  # one original: others wait
    assert torch.get_num_threads() == threads
    shown = cu_ray("plan", *options, "--measure").output
    assert re.search(r"Measuring a few steps of training and unlearning, kinds: \d \.\.\.", shown)
    assert re.search(rf"About \d:\d\d on {os.cpu_count()} workers? of this machine\.", shown)
    assert not (tmp_path / "results").exists()
    assert not list(tmp_path.rglob("originals"))


def test_plan_cannot_measure_without_images(tmp_path):
    file = tmp_path / "cifar.yaml"
    file.write_text(QUICKSTART.read_text().replace("fashion_mnist_small", "cifar10").replace("t_shirt", "ship"))
    refused = cu_ray("plan", str(file), "--measure")
    assert refused.exit_code == 2
    assert "nothing can be measured without images, and cifar10 is not on this machine" in " ".join(refused.output.split())
    assert cu_ray("plan", str(file)).exit_code == 0


def test_plan_says_what_could_not_be_measured(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from cu_ray.methods.no_unlearning import NoUnlearning\n\n\n"
        "@dataclass(frozen=True)\nclass Fails(NoUnlearning):\n    version: ClassVar[int] = 1\n\n"
        "    def unlearn(self, task):\n        raise SystemExit('no luck')\n"
    )
    text = QUICKSTART.read_text().split("methods:")[0] + "methods: {no_unlearning: {}, 'mine:Fails': {}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    done = sweeps.command(tmp_path, "plan", "mine.yaml", "--measure")
    assert done.returncode == 0, done.stderr
    assert "Not measured, so that others stand for it: mine:Fails (SystemExit: no luck)." in done.stdout
    assert "About " in done.stdout


def test_merge_takes_over_what_others_have_done_and_a_full_or_forbidden_place_is_one_message(tmp_path):
    file = sweeps.small(tmp_path, seeds="[0]", fractions="[1.0]", trials=2)
    done = sweeps.command(tmp_path, "sweep", str(file), "--only", "method=no_unlearning", "--output", "one")
    assert done.returncode == 0, done.stderr
    merged = sweeps.command(tmp_path, "merge", "two/small", "one/small")
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout.startswith("3 records came in.")  # an original, a trial and the point that it is of
    left = sweeps.command(tmp_path, "plan", str(file), "--only", "method=no_unlearning", "--output", "two", "--json")
    assert json.loads(left.stdout)["trials_done"] == 1
    itself = sweeps.command(tmp_path, "merge", "two/small", "one/../two/small")
    assert itself.returncode == 2
    assert itself.stderr == "cu-ray: one/../two/small is two/small itself: give the folders of other sweeps after it\n"
    (tmp_path / "three").touch()
    refused = sweeps.command(tmp_path, "merge", "three/small", "one/small")
    assert refused.returncode == 1
    assert refused.stderr.startswith("cu-ray: Not a directory (three/small")
    assert len(refused.stderr.splitlines()) == 1
