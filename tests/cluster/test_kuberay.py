"""The manifest for Kubernetes against KubeRay's own schema: a part of it here, the whole where RAYCLUSTER_CRD says where it lies.

git show v1.7.0:ray-operator/config/crd/bases/ray.io_rayclusters.yaml > rayclusters.yaml      RAYCLUSTER_CRD=rayclusters.yaml
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cluster.crd import manifest, schema_in, strict

pytest.importorskip("jsonschema")  # Ray brings it
WORKERS = "spec/workerGroupSpecs/0"
PART = Path(__file__).parents[1] / "data" / "raycluster.json"
with_the_whole = pytest.mark.skipif("RAYCLUSTER_CRD" not in os.environ, reason="RAYCLUSTER_CRD: KubeRay's definition")


def faults(schema, value):
    """What is not allowed, by its place."""
    from jsonschema import Draft202012Validator

    return {"/".join(map(str, each.absolute_path)): each.message for each in Draft202012Validator(schema).iter_errors(value)}


def part():
    return json.loads(PART.read_text())


def whole():
    return strict(schema_in(Path(os.environ["RAYCLUSTER_CRD"])))


@pytest.mark.parametrize("schema", [part, pytest.param(whole, marks=with_the_whole)])
def test_the_operator_takes_the_manifest(schema):
    assert faults(schema(), manifest()) == {}


@pytest.mark.parametrize("schema", [part, pytest.param(whole, marks=with_the_whole)])
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda spec, workers: spec.update(enableInTreeAutoscaler=True), "spec"),
        (lambda spec, workers: spec["autoscalerOptions"].update(idleTimeout=300), "spec/autoscalerOptions"),
        (lambda spec, workers: workers.update(minReplicas="0"), f"{WORKERS}/minReplicas"),
        (lambda spec, workers: workers["rayStartParams"].update({"num-cpus": 0}), f"{WORKERS}/rayStartParams/num-cpus"),
        (lambda spec, workers: workers.pop("groupName"), WORKERS),
        (lambda spec, workers: workers["template"]["spec"].update(containers={}), f"{WORKERS}/template/spec/containers"),
        (lambda spec, workers: spec["headGroupSpec"]["template"]["spec"].update(volume=[]), "spec/headGroupSpec/template/spec"),
    ],
)
def test_what_the_operator_does_not_take_is_seen(schema, change, place):
    wrong = manifest()
    change(wrong["spec"], wrong["spec"]["workerGroupSpecs"][0])
    assert list(faults(schema(), wrong)) == [place]
