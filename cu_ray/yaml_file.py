"""Sweep files as plain values: strict YAML with line numbers.

Stricter than YAML where that avoids surprises: a duplicate key is an error, and `1e-3` is a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cu_ray.errors import Faults, UserError


@dataclass
class YamlFile:
    """The value of a YAML file, and the line of every path in it (`methods.scrub.alpha`, `seeds[1]`)."""

    source: str
    value: Any
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, path: str) -> str:
        """The path, with its line or that of its nearest parent."""
        parent = path
        while parent and parent not in self.lines:
            parent = parent[: max(parent.rfind("."), parent.rfind("["), 0)]
        return f"{path} (line {self.lines[parent]})" if parent else path


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read(path: Path | str) -> YamlFile:
    """The file's value. Raises UserError where it cannot be read, Faults for what is not YAML and for duplicate keys."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> YamlFile:
    """The value of a YAML text; `source` names it in messages."""
    result, faults = YamlFile(source, None), list[str]()
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        result.value = None if node is None else _value(loader, node, "", result.lines, faults)
    except yaml.YAMLError as error:
        raise Faults(source, [f"not YAML: {' '.join(str(error).split())}"]) from error
    except RecursionError as error:
        raise Faults(source, ["nested too deeply"]) from error
    finally:
        if loader is not None:
            loader.dispose()
    if faults:
        raise Faults(source, faults)
    return result


def _value(loader: _Loader, node: yaml.Node, path: str, lines: dict[str, int], faults: list[str]) -> Any:
    lines[path] = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        faults.append(f"{path} (line {lines[path]}): the tag {node.tag!r} is not allowed: plain values only")
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, f"{path}[{index}]", lines, faults) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node, deep=True)
        except (ValueError, LookupError, AttributeError) as error:  # how YAML's constructors refuse, say, the date 2001-99-99
            faults.append(f"{path} (line {lines[path]}): {node.value[:40]!r} cannot be read: {error}")
            return None
    written = [key.value for key, _ in node.value]
    loader.flatten_mapping(node)  # `<<` merges
    values: dict[str, Any] = {}
    for key_node, item in node.value:
        key = str(key_node.value)
        place = f"{path}.{key}" if path else key
        if written.count(key) > 1:
            faults.append(f"{place} (line {key_node.start_mark.line + 1}): this key is given more than once")
        values[key] = _value(loader, item, place, lines, faults)
        lines[place] = key_node.start_mark.line + 1
    return values
