"""KubeRay's own schema of a RayCluster: as it is checked by `kubectl apply`, and the part of it that our manifest uses.

The whole is 0.9 MB; the part is in tests/data/raycluster.json. It is to be made again where the manifest says something new, from
the oldest version that docs/clusters.md says is enough (github.com/ray-project/kuberay, Apache-2.0):

    git show v1.4.0:ray-operator/config/crd/bases/ray.io_rayclusters.yaml > rayclusters.yaml
    python -m tests.cluster.crd rayclusters.yaml > tests/data/raycluster.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

MANIFEST = Path(__file__).parents[2] / "clusters" / "kubernetes.yaml"
RULES = ("type", "enum", "pattern", "minimum", "maximum", "required")


def manifest() -> dict[str, Any]:
    """The RayCluster of the repository."""
    objects = yaml.safe_load_all(MANIFEST.read_text())
    return next(each for each in objects if each["kind"] == "RayCluster")


def schema_in(path: Path) -> dict[str, Any]:
    """The schema of a RayCluster in the operator's definition of it."""
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    return next(each for each in versions if each["name"] == "v1")["schema"]["openAPIV3Schema"]


def strict(schema: dict[str, Any], values: list[Any] | None = None) -> dict[str, Any]:
    """As a JSON schema that knows no names but its own, as kubectl does. values: with only those names that these values have."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {name: schema[name] for name in RULES if name in schema}

    def inner(name: str) -> list[Any] | None:
        return None if values is None else [value[name] for value in values if name in value]

    if "properties" in schema:
        kept["properties"] = {
            name: strict(each, inner(name)) for name, each in schema["properties"].items() if values is None or inner(name)
        }
        kept["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    elif isinstance(schema.get("additionalProperties"), dict):
        each = None if values is None else [each for value in values for each in value.values()]
        kept["additionalProperties"] = strict(schema["additionalProperties"], each)
    if "items" in schema:
        kept["items"] = strict(schema["items"], None if values is None else [each for value in values for each in value])
    return kept


if __name__ == "__main__":
    print(json.dumps(strict(schema_in(Path(sys.argv[1])), [manifest()]), indent=1, sort_keys=True))
