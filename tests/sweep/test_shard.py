"""Parts of a sweep for machines without a Ray between them: disjoint, together the whole, with few originals trained twice."""

from __future__ import annotations

from collections import Counter

import pytest

from cu_ray import config
from cu_ray.errors import UserError
from cu_ray.places import at
from cu_ray.plugins import name_of
from cu_ray.sweep.ledger import Ledger
from cu_ray.sweep.shard import part_of
from cu_ray.types import OriginalSpec
from tests import sweeps
from tests.sweep.simulator import NUM_TEST, SCRUB, SSD_GRID, plan, planned_anew, run, sweep_file

SEARCHED = {**SCRUB, "trials": 4}
METHODS = {"no_unlearning": {}, "scrub": SEARCHED, "exact_unlearning": {"steps": 8}, "ssd": SSD_GRID}
MANY = {
    "manipulation": {"name": "backdoor", "size": [50, 100]},
    "seeds": [0, 1, 2],
    "deletion_fractions": [0.1, 0.5, 1.0],
    "controls": {"never_manipulated": True, "unlearning_seeds": 2},
}
WARM = {"search": {"seeds": "each", "warm_start": "neighbour"}}
KINDS = {"first": {"search": {"seeds": "first"}}, "all": {"search": {"seeds": "all"}}, "each": {"search": {"seeds": "each"}}}
KINDS |= {"across": {"search": {"scope": "across_fractions"}}, "warm": WARM}


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_disjoint_and_what_they_have_done_is_the_whole(kind, count, tmp_path):
    whole = plan(METHODS, **MANY, **KINDS[kind])
    expected, _ = run(whole)
    times = Counter()
    with Ledger(tmp_path / "merged") as merged:
        for number in range(1, count + 1):
            known, _ = run(part_of(whole, number, count))
            times.update(known.trials.keys())
            with Ledger(tmp_path / str(number)) as part:
                points = (point for written in known.points.values() for point in written.values())
                for record in (*known.originals.values(), *known.trials.values(), *points):
                    part.append(record)
            merged.take_over(tmp_path / str(number))
        assert set(times.values()) == {1}
        assert merged.known.trials == expected.trials
        assert merged.known.originals == expected.originals
        after, trace = run(whole, merged.known)
    assert not trace.started
    assert {key: after.points[key] for key in expected.points} == expected.points


def test_a_search_is_in_one_part_and_so_are_those_that_begin_where_it_ends():
    whole = plan(METHODS, **MANY, **WARM)
    parts = [part_of(whole, number, 7) for number in range(1, 8)]
    for part in parts:
        keys = {study.key for study in part.studies}
        assert all(study.neighbour is None or study.neighbour.key in keys for study in part.studies)
    searched = [study.key for part in parts for study in part.studies if study.searched]
    assert sorted(searched) == sorted(study.key for study in whole.studies if study.searched)


def test_as_many_parts_as_groups_of_equal_originals_train_each_original_once():
    whole = plan(METHODS, seeds=[0, 1, 2, 3], deletion_fractions=[0.1, 0.5], search={"seeds": "each"})
    for count in (2, 4):
        trained = [spec.key for number in range(1, count + 1) for spec in part_of(whole, number, count).originals()]
        assert sorted(trained) == sorted(spec.key for spec in whole.originals())
    for number in range(1, 5):
        (original,) = part_of(whole, number, 4).originals()
        assert original.setting.seed == number - 1


def test_an_original_is_trained_at_most_once_more_for_each_cut():
    whole = plan(METHODS, seeds=[0, 1, 2], deletion_fractions=[0.1, 0.3, 0.5, 1.0], search={"seeds": "each"})
    for count in (5, 8, 13):
        parts = [part_of(whole, number, count) for number in range(1, count + 1)]
        assert sum(len(part.originals()) for part in parts) <= len(whole.originals()) + count - 1


def test_parts_take_about_equally_long():
    fractions = [round(0.05 * index, 2) for index in range(1, 21)]
    whole = plan(METHODS, seeds=[0, 1], deletion_fractions=fractions, search={"seeds": "each"})
    images = []
    for number in range(1, 7):
        _, trace = run(part_of(whole, number, 6))
        images.append(sum(job.images for job in trace.ended) + 2 * NUM_TEST * sum(job.kind == "trial" for job in trace.ended))
    assert max(images) < 1.2 * sum(images) / len(images)


def test_there_are_no_more_parts_than_pieces_and_the_others_are_empty():
    whole = plan({"scrub": SEARCHED, "no_unlearning": {}}, seeds=[0])
    parts = [part_of(whole, number, 1000).studies for number in range(1, 1001)]
    assert sorted(name_of(study.method.cls) for part in parts for study in part) == ["no_unlearning", "scrub"]
    assert max(map(len, parts)) == 1


def test_parts_are_the_same_in_every_process_and_do_not_depend_on_what_is_done():
    text = sweep_file(METHODS, **MANY, **KINDS["each"])
    one, other = planned_anew(text), planned_anew(text)
    for number in (1, 2, 3):
        first, second = ([study.key for study in part_of(made, number, 3).studies] for made in (one, other))
        assert first == second
    assert part_of(one, 1, 1) is one


def test_repetitions_under_further_unlearning_seeds_are_of_one_setting_only():
    whole = plan({"exact_unlearning": {"steps": 8}}, seeds=[0, 1], controls={"unlearning_seeds": 3})
    repeated = Counter()
    for number in (1, 2):
        _, trace = run(part_of(whole, number, 2))
        for job in trace.ended:
            if not isinstance(job.spec, OriginalSpec) and job.spec.unlearning_seed:
                repeated[job.spec.original.setting.seed] += 1
    assert repeated == {0: 2}


def test_results_of_a_part_have_a_folder_of_their_own():
    sweep = config.parse(sweep_file({"scrub": SEARCHED}, runtime={"output": "there"}))
    part = config.sharded(sweep, "3/16")
    assert (part.shard, str(part.folder)) == ((3, 16), "there/shard-3-of-16/simulated")


def test_results_of_a_part_at_a_uri_keep_its_settings():
    output = "s3://bucket/there?endpoint_override=minio:9000&scheme=http"
    part = config.sharded(config.parse(sweep_file({"scrub": SEARCHED}, runtime={"output": output})), "3/16")
    assert at(part.runtime.output) == at("s3://bucket/there/shard-3-of-16?endpoint_override=minio:9000&scheme=http")


@pytest.mark.parametrize("given", ["0/16", "17/16", "a/b", "3", "3/", "/16", "3/16/2", "-1/2", "1.0/2", "1/0", ""])
def test_no_part_is_one_message(given):
    with pytest.raises(UserError, match=r"--shard .*: which part and of how many are needed, like 3/16 \(1/16 to 16/16\)"):
        config.sharded(config.parse(sweep_file({"scrub": SEARCHED})), given)


def test_two_parts_merged_are_the_whole_sweep(tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    file = sweeps.small(tmp_path)
    done = sweeps.command(tmp_path, "sweep", str(sweeps.small(alone)), "--output", str(alone))
    assert done.returncode == 0, done.stderr
    planned = [sweeps.command(tmp_path, "plan", str(file), "--json", "--shard", f"{number}/2").stdout for number in (1, 2)]
    for number in (1, 2):
        done = sweeps.command(tmp_path, "sweep", str(file), "--shard", f"{number}/2", "--output", "out")
        assert done.returncode == 0, done.stderr
        assert "Best of each study" in done.stdout
    assert planned[0] != planned[1]
    merged = sweeps.command(tmp_path, "merge", "out/small", "out/shard-1-of-2/small", "out/shard-2-of-2/small")
    assert merged.returncode == 0, merged.stderr
    done = sweeps.command(tmp_path, "sweep", str(file), "--output", "out")
    assert "Nothing to do" in done.stdout
    sweeps.assert_same_tables(alone / "small", tmp_path / "out" / "small")


def test_a_part_does_not_go_to_a_cluster(tmp_path):
    done = sweeps.command(tmp_path, "sweep", str(sweeps.small(tmp_path)), "--shard", "1/2", "--cluster", "cluster.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--shard is for machines without a Ray between them" in done.stderr
