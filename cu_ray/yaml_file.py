"""Sweep files as plain values: strict YAML with line numbers.

Stricter than YAML where that avoids surprises: a duplicate key is an error, and so is a number like `010`, `1:30` or `1_0`;
`1e-3` is a number. One addition: a file that says `extends: other.yaml` starts from that file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cu_ray.errors import Faults, UserError

MOST_BYTES = 1 << 20  # of a file
MOST_VALUES = 50_000  # when what aliases stand for is written out: a few lines can come to billions
MOST_BITS = 8192  # of an integer: Python writes no longer ones


@dataclass
class YamlFile:
    """The value of a YAML file, and the line of every path in it (`methods.scrub.alpha`, `seeds[1]`).

    origins: the file that a path comes from, where that is one that this file extends; files: all that it was read from.
    """

    source: str
    value: Any
    lines: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def where(self, path: str) -> str:
        """The path, with its line or that of its nearest parent."""
        parent = path
        while parent and parent not in self.lines:
            parent = parent[: max(parent.rfind("."), parent.rfind("["), 0)]
        origin = f" of {self.origins[parent]}" if parent in self.origins else ""
        return f"{path} (line {self.lines[parent]}{origin})" if parent else path


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read(
    path: Path | str, *, merged: Mapping[str, int], own: Collection[str] = (), extended_by: tuple[Path, ...] = ()
) -> YamlFile:
    """The file's value, that of the file it extends included.

    own: the sections that every file has for itself. merged: the sections of which single entries replace those of the
    extended file, by how many levels deep they are looked through; any other section replaces the whole of it. Raises
    UserError where a file cannot be read, Faults for what is not YAML and for duplicate keys.
    """
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is no sweep file: it has more than {MOST_BYTES} bytes")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    known = (Path(path).resolve(), *extended_by)
    file = parse(text, str(path))
    file.files.append(Path(path))
    return extended(file, Path(path).parent, merged=merged, own=own, extended_by=known)


def extended(
    file: YamlFile, folder: Path, *, merged: Mapping[str, int], own: Collection[str] = (), extended_by: tuple[Path, ...] = ()
) -> YamlFile:
    """The same over the value of the file that it extends, whose path is relative to the folder; otherwise as `read`."""
    if not isinstance(file.value, dict) or "extends" not in file.value:
        return file
    given = file.value.pop("extends")
    if not isinstance(given, str):
        raise Faults(file.source, [f"{file.where('extends')}: {given!r} is not allowed. Allowed: the path of one sweep file."])
    base_path = folder / given
    if not is_file(base_path):
        raise Faults(file.source, [f"{file.where('extends')}: there is no file {str(base_path)!r}"])
    if base_path.resolve() in extended_by:
        raise Faults(file.source, [f"{file.where('extends')}: {given!r} extends this file in turn"])
    base = read(base_path, merged=merged, own=own, extended_by=extended_by)
    if not isinstance(base.value, dict):
        raise Faults(file.source, [f"{file.where('extends')}: {str(base_path)!r} is not a mapping, as a sweep file is"])
    file.files += base.files
    base.value = {name: value for name, value in base.value.items() if name not in own}
    _lay_over(base, file, merged)
    return file


def is_file(path: Path) -> bool:
    """Whether there is such a file; not where the name is longer than a file system takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def _lay_over(base: YamlFile, file: YamlFile, merged: Mapping[str, int]) -> None:
    """Add to the file what it has from its base, with lines and origins."""
    inherited: list[str] = []

    def laid_over(below: dict[str, Any], above: dict[str, Any], prefix: str, depth: int) -> dict[str, Any]:
        """In the order of the base; names that it has not come last."""
        result = {}
        for name, value in (below | above).items():
            path = f"{prefix}.{name}" if prefix else name
            levels = depth if prefix else merged.get(name, 0)
            if name not in above:
                inherited.append(path)
            elif levels and isinstance(value, dict) and isinstance(below.get(name), dict):
                value = laid_over(below[name], value, path, levels - 1)
            result[name] = value
        return result

    file.value = laid_over(base.value, file.value, "", 0)
    for path, line in base.lines.items():
        if any(path == each or path.startswith((f"{each}.", f"{each}[")) for each in inherited):
            file.lines[path] = line
            file.origins[path] = base.origins.get(path, base.source)


def parse(text: str, source: str) -> YamlFile:
    """The value of a YAML text; `source` names it in messages."""
    result, faults = YamlFile(source, None), list[str]()
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _num_values(node, {})
            result.value = _value(loader, node, "", result.lines, faults)
    except yaml.YAMLError as error:
        said = re.sub(r"://\S*", "://...", _problem(error, text))  # it may quote a URI with a password
        raise Faults(source, [f"not YAML: {said}"]) from error
    except RecursionError as error:
        raise Faults(source, ["nested too deeply"]) from error
    finally:
        if loader is not None:
            loader.dispose()
    if faults:
        raise Faults(source, dict.fromkeys(faults))  # a key may be given twice in one line
    return result


def _problem(error: yaml.YAMLError, text: str) -> str:
    """Where a text is no YAML, and why, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position].split("\n")
        return f"line {len(before)}, column {len(before[-1]) + 1}: character #x{error.character:04x}: {error.reason}"
    assert isinstance(error, yaml.MarkedYAMLError)
    context, mark = error.context_mark, error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    begun = f" ({error.context}, line {context.line + 1})" if context else ""
    return " ".join(f"{place}{error.problem}{begun}".split())


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node comes to with its aliases written out. Raises MarkedYAMLError for too many, and for endless ones."""
    if known.setdefault(id(node), -1) > 0:
        return known[id(node)]
    parts = [
        part for item in node.value for part in (item if isinstance(item, tuple) else (item,)) if isinstance(part, yaml.Node)
    ]
    number = 1
    for part in parts:
        if known.get(id(part)) == -1:
            raise yaml.MarkedYAMLError(problem="an alias stands for something that it is part of", problem_mark=node.start_mark)
        number += _num_values(part, known)
    if number > MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES} values", problem_mark=node.start_mark)
    known[id(node)] = number
    return number


def _value(loader: _Loader, node: yaml.Node, path: str, lines: dict[str, int], faults: list[str]) -> Any:
    lines[path] = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        faults.append(f"{path} (line {lines[path]}): the tag {node.tag!r} is not allowed: plain values only")
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, f"{path}[{index}]", lines, faults) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            value = _plain(loader.construct_object(node, deep=True))
        except (ValueError, LookupError, AttributeError, ArithmeticError) as error:  # so constructors refuse the date 2001-99-99
            faults.append(f"{path} (line {lines[path]}): {node.value[:40]!r} cannot be read: {error}")
            return None
        if (instead := _meant(node, value)) is not None:
            told = f"{node.value} would be read as {value!r}: write {instead}, or {node.value!r} in quotes for a text"
            faults.append(f"{path or 'the value'} (line {lines[path]}): {told}")
        return value
    written = Counter(str(key.value) for key, _ in node.value)
    loader.flatten_mapping(node)  # `<<` merges
    if len(written) == written.total():  # once each, and so again where an alias comes here
        node.value = list({str(key.value): (key, item) for key, item in node.value}.values())
    values: dict[str, Any] = {}
    for key_node, item in node.value:
        key = str(key_node.value)
        place = f"{path}.{key}" if path else key
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or not key or not _is_text(key):
            faults.append(f"{path or 'the file'} (line {line}): a key that is no plain name")
            continue
        if written[key] > 1:
            faults.append(f"{place} (line {line}): this key is given more than once")
        values[key] = _value(loader, item, place, lines, faults)
        lines[place] = line
    return values


def _meant(node: yaml.Node, value: Any) -> str | None:
    """What to write instead of a number that YAML reads in octal, by sixties or without its '_'; None where it is plain."""
    if node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        return None
    if re.fullmatch(r"[-+]?[0-9][0-9_]*", node.value) and (decimal := int(node.value.replace("_", ""))) != value:
        return f"{decimal} or {value!r}"
    return repr(value) if "_" in node.value or ":" in node.value else None


def _plain(value: Any) -> Any:
    """The value, where it is one that messages, files and floats can hold. Raises ValueError for any other."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError("too large a number")
    if isinstance(value, str) and not _is_text(value):
        raise ValueError("characters that no text has")
    return value


def _is_text(value: str) -> bool:
    """Whether a text can be written: halves of characters cannot, and a NUL ends the names of files."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
