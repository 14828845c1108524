"""One share of a GPU for a run: memory is never exceeded, and Ray places as many trials as were meant."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cu_ray.stages.canary import Measure
from cu_ray.sweep import shares
from cu_ray.sweep.canaries import canaries
from cu_ray.sweep.measuring import mps_is_on
from cu_ray.sweep.shares import CONTEXT_BYTES, MOST_TRIALS, RESERVE, kept_bytes, next_share, share_for, share_of
from cu_ray.types import OriginalSpec
from tests.sweep.simulator import SCRUB, SSD_GRID, plan

GIB = 1 << 30
SMALL = Measure("a GPU", 80 * GIB, GIB, 0, 0, 0, 1e-5, 1.0, None)
PLAN = plan({"scrub": SCRUB, "ssd": SSD_GRID}, seeds=[0, 1, 2], deletion_fractions=[0.1, 0.5])
ORIGINAL, SCRUB_TRIAL, SSD_TRIAL = canaries(PLAN)


def units(share):
    """How many ten-thousandths of a GPU: what Ray calculates with."""
    return round(share * 10_000)


def measured(scrub=SMALL, *, original=SMALL, ssd=SMALL):
    return [(ORIGINAL, original), (SCRUB_TRIAL, scrub), (SSD_TRIAL, ssd)]


def taking(peak, **facts):
    return replace(SMALL, peak_bytes=int(peak * GIB), **facts)


@given(st.integers(1, 100))
def test_so_many_trials_fit_on_a_gpu_in_rays_arithmetic_and_not_one_more(trials):
    share = share_for(trials)
    assert trials * units(share) <= 10_000 < (trials + 1) * units(share)
    assert units(share) / 10_000 == share, "four decimals"


def test_shares_are_rounded_down():
    assert [share_for(trials) for trials in range(1, 9)] == [1.0, 0.5, 0.3333, 0.25, 0.2, 0.1666, 0.1428, 0.125]


@given(
    peaks=st.lists(st.integers(0, 200 * GIB), min_size=3, max_size=3),
    kept=st.tuples(*[st.integers(0, GIB)] * 3),
    gpu=st.integers(GIB, 200 * GIB),
)
def test_the_memory_of_a_gpu_is_never_exceeded_and_no_trial_less_than_fits(peaks, kept, gpu):
    canaries = measured(*(Measure("a GPU", gpu, peak + sum(kept), *kept, None, None, None) for peak in peaks[:1]))
    canaries = [
        (spec, replace(canaries[1][1], peak_bytes=peak + sum(kept))) for (spec, _), peak in zip(canaries, peaks, strict=True)
    ]
    share = share_of(PLAN, canaries)
    trials = 10_000 // units(share.gpus)
    worker = CONTEXT_BYTES + max(peaks) + kept[2] + 3 * kept[0] + 3 * kept[1] + 4 * kept[2]
    assert share.need_bytes == worker
    room = gpu * (1 - RESERVE)
    assert 1 <= trials <= MOST_TRIALS
    assert trials * worker <= room or (trials == 1 and not share.fits)
    assert trials == MOST_TRIALS or (trials + 1) * worker > room - 1


def test_the_hungriest_decides_and_the_smallest_gpu():
    assert share_of(PLAN, measured()).gpus == 0.125
    assert share_of(PLAN, measured(taking(15))).gpus == 0.25
    assert share_of(PLAN, measured(original=taking(15))).gpus == 0.25
    assert share_of(PLAN, measured(taking(15), ssd=replace(SMALL, device_bytes=40 * GIB))).gpus == 0.5


def test_under_mps_more_of_them_go_onto_a_gpu_where_memory_allows():
    assert share_of(PLAN, measured(), mps=True).gpus == share_for(14) == 0.0714
    assert share_of(PLAN, measured(taking(15)), mps=True).gpus == 0.25


@pytest.mark.parametrize(
    ("content", "on"),
    [("{alive}", True), ("{alive}\n", True), (str(2**22 + 1), False), ("", False), ("gone", False), (None, False)],
)
def test_mps_is_on_where_its_process_is_alive(tmp_path, monkeypatch, content, on):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    if content is not None:
        (tmp_path / "nvidia-cuda-mps-control.pid").write_text(content.format(alive=os.getpid()))
    assert mps_is_on() is on


def test_what_is_said():
    assert str(share_of(PLAN, measured(taking(14.7)))) == (
        "gpus_per_trial: 0.25 (the hungriest, scrub on resnet9: 15.2 GiB of 80.0 GiB)"
    )
    assert str(share_of(PLAN, measured(original=taking(99)))) == (
        "gpus_per_trial: 1 (the hungriest, training on resnet9: 99.5 GiB of 80.0 GiB, which may be too little)"
    )


def test_one_that_does_not_fit_gets_a_whole_gpu():
    share = share_of(PLAN, measured(taking(79)))
    assert (share.gpus, share.fits) == (1.0, False)


def test_a_worker_keeps_what_it_had_of_each_setting_up_to_a_limit():
    few = measured(taking(3, data_bytes=10, original_bytes=100, memo_bytes=1000), ssd=taking(2, data_bytes=10, memo_bytes=5000))
    assert kept_bytes(PLAN, few) == 3 * 10 + 3 * 100 + 4 * 5000
    many = plan({"scrub": SCRUB}, seeds=list(range(9)), manipulation={"name": "backdoor", "size": [50, 100]})
    assert kept_bytes(many, few) == 4 * 10 + 4 * 100 + 4 * 5000


def test_data_of_one_setting_are_shared_by_models_and_their_originals_are_not():
    two = plan({"scrub": SCRUB}, model={"name": "resnet9", "width": [2, 4]})
    own = [(spec, taking(3, data_bytes=10, original_bytes=100)) for spec in canaries(two)]
    assert kept_bytes(two, own) == 10 + 2 * 100


def test_each_data_set_has_a_workbench_that_keeps():
    other = replace(PLAN.studies[0].settings[0], content_hash="other")
    two = replace(PLAN, studies=(*PLAN.studies, replace(PLAN.studies[0], settings=(other,))))
    there = [*measured(taking(3, data_bytes=10)), (OriginalSpec(other), taking(1, data_bytes=7))]
    assert kept_bytes(two, there) == 3 * 10 + 7
    third = replace(other, content_hash="a third")
    three = replace(two, studies=(*two.studies, replace(PLAN.studies[0], settings=(third,))))
    assert kept_bytes(three, [*there, (OriginalSpec(third), taking(1, data_bytes=9))]) == 3 * 10 + 9, "no more than two are kept"


def test_a_larger_share_takes_half_as_many_trials_until_a_gpu_is_one_trials():
    assert [next_share(share_for(trials)) for trials in range(1, 9)] == [None, 1.0, 1.0, 0.5, 0.5, 0.3333, 0.3333, 0.25]


@pytest.mark.parametrize(("share", "larger"), [(0.3, 1.0), (0.05, 0.1), (0.6, None), (1.0, None), (2.0, None)])
def test_a_share_that_a_user_gave_has_a_larger_one_too(share, larger):
    assert next_share(share) == larger


@given(st.integers(1, 100))
def test_larger_shares_come_to_an_end(trials):
    share = share_for(trials)
    for _ in range(8):
        larger = next_share(share)
        if larger is None:
            break
        assert larger > share
        share = larger
    assert next_share(share) is None
    assert share == 1.0


def test_limits_are_those_that_are_documented():
    assert (shares.MOST_TRIALS, shares.RESERVE) == (8, 0.1)
