"""Folders that are no results, gaps and costs of those that are."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cu_ray
from cu_ray.cli import main
from cu_ray.errors import UserError
from cu_ray.places import Folder
from cu_ray.plugins import name_of
from cu_ray.report.cells import cell_names, chosen
from cu_ray.report.costs import ORIGINALS, costs
from cu_ray.report.gaps import gaps
from cu_ray.report.results import read, read_all
from tests.report.made import folder
from tests.sweep.simulator import SCRUB, fails, record_of


def test_a_folder_that_is_no_result_is_said(tmp_path):
    with pytest.raises(UserError, match=r"is .* the folder of a sweep"):
        read(tmp_path)


def test_a_damaged_table_is_said(tmp_path):
    path = folder(tmp_path / "one") / "tables" / "best.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"best\.parquet cannot be read: .*[^.]\. `cu-ray sweep`"):
        read(tmp_path / "one")


@pytest.mark.parametrize(("said", "message"), [("2", "has schema 2; this cu-ray knows up to 1"), (None, "no table of cu-ray")])
def test_a_table_of_a_newer_schema_or_of_another_program_is_said(tmp_path, said, message):
    path = folder(tmp_path / "one") / "tables" / "trials.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(said and {"cu_ray_schema": said}), path)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "one")


@pytest.fixture(params=[("2", "has schema 2; this cu-ray knows up to 1"), (None, "no table of cu-ray")])
def strange(request, tmp_path):
    """A folder whose table of the best is of a newer schema, or another program's, and what is to be said of it."""
    said, message = request.param
    path = folder(tmp_path / "one") / "tables" / "best.parquet"
    whole = pq.read_table(path) if said else pa.table({"method": ["ssd"], "n": [1]})
    pq.write_table(whole.replace_schema_metadata(said and {"cu_ray_schema": said}), path)
    facts = {"running": False, "process": 1, "host": "here", "storage": str(tmp_path / "store"), "device": "cpu"}
    facts |= dict.fromkeys(("trials", "trials_done", "trials_failed", "originals", "originals_done", "studies"), 1)
    (tmp_path / "one" / "status.json").write_text(json.dumps(facts))
    return tmp_path / "one", message


@pytest.mark.parametrize(
    "command", [["table"], ["table", "--latex", "acc_corr"], ["report"], ["export"], ["bundle", "--to", "b", "--models"]]
)
def test_no_command_shows_such_a_table_as_if_it_were_understood(strange, command, monkeypatch):
    where, message = strange
    monkeypatch.chdir(where.parent)
    done = CliRunner().invoke(main, [command[0], str(where), *command[1:]])
    assert done.exit_code == 2, done.output
    assert f"cu-ray: {where / 'tables' / 'best.parquet'} " in done.output and message in done.output
    assert len(done.output.splitlines()) == 1
    assert not (where.parent / "b").exists()


def test_nor_do_results_from_python(strange):
    where, message = strange
    with pytest.raises(UserError, match=message):
        cu_ray.Results.read(where)
    with pytest.raises(UserError, match=message):
        cu_ray.Results(Folder(where)).best  # noqa: B018 (it is read when it is asked for)


def test_a_sweep_that_is_not_done_says_how_far_it_is(tmp_path):
    assert read(folder(tmp_path / "one")).unfinished is None
    (tmp_path / "one" / "status.json").write_text(json.dumps({"trials": 90, "trials_done": 12}))
    assert read(tmp_path / "one").unfinished == "12 of 90 trials are done"


def test_without_a_status_the_tables_say_whether_searches_are_done(tmp_path):
    where = folder(tmp_path / "one")
    (where / "status.json").write_text("{")
    assert read(where).unfinished is None
    path = where / "tables" / "best.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("coverage")
    pq.write_table(
        table.set_column(place, "coverage", pa.array([0.5] * len(table))).replace_schema_metadata(table.schema.metadata), path
    )
    assert "unfinished searches" in read(where).unfinished


def test_folders_of_one_name_are_told_apart_and_none_is_taken_twice(tmp_path):
    one, two = folder(tmp_path / "a" / "same"), folder(tmp_path / "b" / "same")
    assert [each.label for each in read_all([one, two])] == [str(one), str(two)]
    assert [each.label for each in read_all([one])] == ["same"]
    with pytest.raises(UserError, match="given twice"):
        read_all([one, tmp_path / "b" / ".." / "a" / "same"])


def test_cells_are_named_by_what_differs(tmp_path):
    sizes = [{"name": "backdoor", "size": [50, 100]}, {"name": "interclass_confusion", "size": 100}]
    several = read(folder(tmp_path / "one", manipulation=sizes))
    assert sorted(cell_names([several]).values()) == ["backdoor 100", "backdoor 50", "interclass_confusion 100"]
    patches = read(folder(tmp_path / "two", manipulation={"name": "backdoor", "size": 100, "patch": [2, 3]}))
    assert sorted(cell_names([patches]).values()) == ["backdoor 100 patch=2", "backdoor 100 patch=3"]
    widths = read(folder(tmp_path / "three", model=[{"name": "resnet9", "width": 2}, {"name": "resnet9", "width": 4}]))
    assert sorted(cell_names([widths]).values()) == ["backdoor 100 model=resnet9(width=2)", "backdoor 100 model=resnet9(width=4)"]


def test_several_results_share_their_cells_and_name_their_methods(tmp_path):
    rows = chosen(read_all([folder(tmp_path / "a"), folder(tmp_path / "b")]), "oracle_validation")
    assert set(rows["cell"]) == {"backdoor 100"}
    assert "ssd (a)" in set(rows["method"])
    assert len(rows) == 2 * 36


def test_controls_are_no_results(tmp_path):
    made = read(folder(tmp_path / "one", controls={"never_manipulated": True}))
    assert made.best["control"].notna().any()
    assert len(chosen([made], "oracle_validation")) == 36


def test_the_gap_of_a_rule_is_the_oracles_score_less_its_own(tmp_path):
    # alpha 1 is best in truth and on the report half; the selection half prefers alpha 2, by which .1 of the mean is lost
    def twisted(job):
        record = record_of(job)
        if getattr(job.spec, "method", None) is None or name_of(job.spec.method) != "scrub":
            return record
        good = job.spec.method.alpha == 1
        halves = {"val_": 0.5 if good else 0.9, "report_": 0.8 if good else 0.7}
        given = {f"{half}{name}": value for half, value in halves.items() for name in ("acc_corr", "acc_retain")}
        record.scores.update(given)
        return record

    from cu_ray.sweep import tables
    from tests.sweep.simulator import plan, run

    methods = {"no_unlearning": {}, "scrub": {**SCRUB, "points": [{"alpha": 1}, {"alpha": 2}]}}
    made = plan(methods, seeds=[0, 1, 2], search={"seeds": "each"})
    tables.write(tmp_path / "one" / "tables", made, run(made, outcome=twisted)[0])
    found = gaps([read(tmp_path / "one")]).set_index("rule")
    assert found.loc["oracle_validation", "method"] == "scrub"
    assert found.loc["oracle_validation", ["gap", "low", "high"]].tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert not found.loc["oracle_validation", "flattered"]
    assert "defender" not in found.index  # it was not asked for


def test_costs_are_sums_by_method_with_the_originals_apart(tmp_path):
    def half_a_gpu(job):
        record = record_of(job)
        record.facts["gpu_share"] = 0.5
        return fails(job) if getattr(job.spec, "method", None) is not None and name_of(job.spec.method) == "ssd" else record

    made = read(folder(tmp_path / "one", outcome=half_a_gpu))
    found = costs(made).set_index("method")
    assert found.loc[ORIGINALS, ["trials", "failed", "seconds"]].tolist() == pytest.approx([3, 0, 3 * 1.1])
    scrub = made.trials[made.trials["method"] == "scrub"]
    seconds = scrub["unlearn_seconds_spent"].sum() + 0.1 * len(scrub)
    assert found.loc["scrub", ["trials", "seconds"]].tolist() == pytest.approx([len(scrub), seconds])
    assert found.loc["scrub", "gpu_hours"] == pytest.approx(seconds / 2 / 3600)
    assert found.loc["scrub", "forward"] == scrub["images_forward_spent"].sum()
    assert found.loc["ssd", "failed"] == found.loc["ssd", "trials"] > 0
    assert found.loc["ssd", ["forward", "backward", "seconds", "gpu_hours"]].isna().all()  # not known
