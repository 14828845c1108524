"""What `cu-ray plan` counts of the published grid, on a machine without the data. tests/protocol holds it point by point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cu_ray.cli import main

FOLDER = Path(__file__).parent.parent / "sweeps" / "paper"


def plan_says(name: str, *more: str) -> dict:
    result = CliRunner().invoke(main, ["plan", str(FOLDER / f"{name}.yaml"), "--json", *more])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "name", ["cifar10_backdoor", "cifar10_confusion", "cifar100_backdoor", "cifar100_confusion", "pcam_backdoor"]
)
def test_a_cell_has_1950_trials_and_3_originals_for_one_seed(name):
    said = plan_says(name)
    assert said["by_method"] == {
        "no_unlearning": 3,
        "exact_unlearning": 90,
        "catastrophic_forgetting": 90,
        "scrub": 240,
        "bad_teaching": 30,
        "ssd": 1500,
    }
    assert (said["originals"], said["trials"] - said["by_method"]["no_unlearning"]) == (3, 1950)
    assert (said["trials_done"], said["originals_done"], said["seconds"]) == (0, 0, None)
    assert said["datasets_not_here"] == [name.split("_")[0]]
    assert said["images_forward"] > said["images_backward"] > 0


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_a_random_label_swap_has_66_trials_and_1_original_for_one_seed(data):
    said = plan_says(f"random_label_swap_{data}")
    assert (said["originals"], said["trials"] - said["by_method"]["no_unlearning"]) == (1, 66)
    assert said["by_method"]["scrub"] == 9
    assert said["datasets_not_here"] == [data]


def test_three_seeds_are_three_times_as_many():
    said = plan_says("cifar10_confusion", "--seeds", "+1,2")
    assert (said["originals"], said["trials"]) == (9, 3 * 1953)
