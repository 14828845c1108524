"""Curves over the share of what was found that was never manipulated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cu_ray.detections.false_positives import FalsePositives
from cu_ray.report import false_positives
from cu_ray.report.contents import gather
from cu_ray.report.results import read
from cu_ray.types import OriginalSpec
from tests.report.made import folder
from tests.sweep.simulator import record_of

RATES = [0.25, 0.5]
DETECTION = ["uniform", {"name": "false_positives", "rate": RATES}, "class_by_class"]


def rate_of(detection):
    return detection.rate if isinstance(detection, FalsePositives) else 0.0


def found(job):
    """Precision is what the rate leaves; nothing is known of a method that looks at no deletion set."""
    record = record_of(job)
    if isinstance(job.spec, OriginalSpec) or not job.spec.deletion_size:
        return record
    return replace(record, facts=record.facts | {"detection_precision": 1 - rate_of(job.spec.detection)})


def worse(spec, seed):
    """What was found wrongly costs as much as its share of acc_retain, and a tenth of it of acc_corr."""
    rate = rate_of(spec.detection)
    return 0.8 - rate / 10 + seed / 100, 0.9 - rate + seed / 100


def figure_of(where, **sections):
    contents = gather([read(folder(where, worse, outcome=found, **sections))], "oracle_validation")
    return {figure.name: figure for figure in contents.figures}.get("false_positives")


def test_a_panel_a_fraction_and_metric_with_each_method_at_all_shares(tmp_path):
    figure = figure_of(tmp_path / "x", detection=DETECTION)
    assert len(figure.panels) == 3 * 2
    assert figure.panels[2].title.endswith("0.5 found: acc_corr")
    assert all("detection" not in panel.title for panel in figure.panels)
    for panel in figure.panels:
        assert {line.name for line in panel.lines} == {"no_unlearning", "exact_unlearning", "scrub", "ssd"}
        assert panel.x_label == false_positives.SHARE
        corr = panel.y_label == "acc_corr"
        for line in panel.lines:
            assert line.x == pytest.approx((0, *RATES)), "the biased detection is no point of it"
            assert line.y == pytest.approx([0.81 - rate / 10 if corr else 0.91 - rate for rate in (0, *RATES)])
            assert all(low < mean < high for low, mean, high in zip(line.low, line.y, line.high, strict=True))


@pytest.mark.parametrize("detection", ["uniform", ["uniform", "class_by_class"], {"name": "false_positives", "rate": 0.5}])
def test_a_single_share_is_no_curve(tmp_path, detection):
    assert figure_of(tmp_path / "x", detection=detection) is None
