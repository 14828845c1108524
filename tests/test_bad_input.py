"""What a user gets wrong in a sweep file is one message of `cu-ray plan` and of `cu-ray sweep`, exit code 2, nothing started."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from cu_ray.cli import main

PLAIN = {
    "name": "bad",
    "dataset": "fashion_mnist_small",
    "model": "{name: resnet9, width: 2}",
    "manipulation": "{name: backdoor, size: 300}",
    "train": "{steps: 2, batch_size: 64, precision: fp32}",
    "deletion_fractions": "[1.0]",
    "methods": "{no_unlearning: {}}",
}

WRONG = {
    "a class that does not exist": (
        {"manipulation": "{name: backdoor, size: 300, target: sandle}"},
        ["manipulation.target (line 4)", "'sandle' is no class", "Did you mean 'sandal'?", "index from 0"],
    ),
    "a class beyond the last": (
        {"manipulation": "{name: blended_backdoor, size: 300, target: 10}"},
        ["manipulation.target (line 4)", "10 is no class"],
    ),
    "a negative class": ({"manipulation": "{name: backdoor, size: 300, target: -1}"}, ["manipulation.target", "-1 is no class"]),
    "confused classes that do not exist": (
        {"manipulation": "{name: interclass_confusion, size: 300, classes: [dress, short]}"},
        ["manipulation.classes (line 4)", "'short' is no class", "Did you mean 'shirt'?"],
    ),
    "one class confused with itself": (
        {"manipulation": "{name: interclass_confusion, size: 300, classes: [dress, 3]}"},
        ["manipulation.classes (line 4)", "names one class twice"],
    ),
    "an odd size for a confusion": (
        {"manipulation": "{name: interclass_confusion, size: 301, classes: [dress, shirt]}"},
        ["manipulation.size (line 4)", "301 is odd", "Allowed: an even number"],
    ),
    "more samples than there are": (
        {"manipulation": "{name: random_label_swap, size: 6001}"},
        ["manipulation.size (line 4)", "6001 manipulated samples are more than the 6000"],
    ),
    "more clean-label samples than the class has": (
        {"manipulation": "{name: backdoor, size: 601, target: coat, clean_label: true}"},
        ["manipulation.size", "class 4 has 600 samples, fewer than 601; a clean label takes no others"],
    ),
    "the same blended": (
        {"manipulation": "{name: blended_backdoor, size: 601, clean_label: true}"},
        ["manipulation.size", "class 0 has 600 samples, fewer than 601"],
    ),
    "a place that is none": (
        {"manipulation": "{name: backdoor, size: 300, position: botom_right}"},
        ["manipulation.position (line 4)", "Did you mean 'bottom_right'?"],
    ),
    "a brightness beyond white": (
        {"manipulation": "{name: backdoor, size: 300, value: 1.5}"},
        ["manipulation.value (line 4)", "1.5 is not allowed", "at least 0 and at most 1"],
    ),
    "nothing blended in": (
        {"manipulation": "{name: blended_backdoor, size: 300, blend: 0}"},
        ["manipulation.blend (line 4)", "0 is not allowed", "above 0 and at most 1"],
    ),
    "a patch larger than the image": (
        {"manipulation": "{name: backdoor, size: 300, patch: 29}"},
        ["manipulation.patch (line 4)", "a patch of 29 pixels is larger than an image of 28"],
    ),
    "a list of samples that is not given": ({"manipulation": "from_file"}, ["manipulation (line 4)", "'file' is missing"]),
    "packed samples given by hand": (
        {"manipulation": "{name: from_file, file: x.csv, samples: abc}"},
        ["manipulation.samples (line 4)", "unknown setting"],
    ),
    "an image that a model cannot cut into patches": (
        {"model": "{name: vit, patch: 5, depth: 1, width: 6, heads: 3}"},
        ["model", "28 x 28"],
    ),
}


@pytest.mark.parametrize("command", ["plan", "sweep"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_is_one_message_before_anything_starts(wrong, command, tmp_path):
    changes, expected = WRONG[wrong]
    file = tmp_path / "bad.yaml"
    file.write_text("\n".join(f"{name}: {value}" for name, value in {**PLAIN, **changes}.items()))
    result = CliRunner().invoke(main, [command, str(file), "--output", str(tmp_path / "results")])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert "faults" not in result.output
    for part in (str(file), *expected):
        assert part in result.output
    assert not (tmp_path / "results").exists()


def test_the_file_without_the_mistakes_is_right(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text("\n".join(f"{name}: {value}" for name, value in PLAIN.items()))
    assert CliRunner().invoke(main, ["plan", str(file), "--output", str(tmp_path / "results")]).exit_code == 0
