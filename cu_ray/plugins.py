"""The folder listing is the registry: names, classes and fields of the plug-ins of each kind.

A plug-in is one public frozen dataclass in one file of its kind's folder. The file's name is its name in YAML; the annotated
fields are its settings, and for a method its hyperparameters:

    @dataclass(frozen=True)
    class Fancy(Method):
        version: ClassVar[int] = 1
        strength: Annotated[float, Search(0.01, 1, log=True), Bound(low=0)] = 0.1

Files outside the package work too: `my_lab.fancy:Fancy` in place of a name, or an entry point in the group `cu_ray.methods`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from cu_ray.errors import ContractBroken, CuRayError, UserError, did_you_mean, in_one_line
from cu_ray.identity import mapping_of

ANNOTATIONS = "Allowed in Annotated: Search(low, high, log), Choices(values), Bound(low, high, open_low)."
KINDS = ("methods", "manipulations", "detections", "datasets", "models", "metrics")


@dataclasses.dataclass(frozen=True)
class Search:
    """The range that a search covers by default: from low to high, both included."""

    low: float
    high: float
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Choices:
    """The values that are allowed at all."""

    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Bound:
    """What is allowed at all: low <= value <= high, or low < value where `open_low`."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False

    def admits(self, value: float) -> bool:
        """Whether the value is allowed."""
        above = self.low is None or value > self.low or (value == self.low and not self.open_low)
        return above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'above' if self.open_low else 'at least'} {self.low:g}"
        high = "" if self.high is None else f"at most {self.high:g}"
        return " and ".join(part for part in (low, high) if part)


@dataclasses.dataclass(frozen=True)
class FieldFact:
    """One setting of a plug-in: its type, default and what its annotation says of it."""

    name: str
    hint: Any  # its type as annotated, the notes below left out
    default: Any
    search: Search | None
    choices: Choices | None
    bound: Bound | None

    @property
    def required(self) -> bool:
        """Whether the setting has no default."""
        return self.default is dataclasses.MISSING

    def describe(self) -> str:
        """What is allowed, for messages and listings: 'float, above 0'."""
        named = self.choices and ", ".join(map(str, self.choices.values))
        if named and not self.bound:
            return f"one of {named}"
        hint = Union[tuple(kind for kind in get_args(self.hint) if kind is not str)] if named else self.hint  # noqa: UP007
        open_ = ", ".join(part for part in (_type_names(hint), self.bound and str(self.bound)) if part)
        return f"{open_}, or {named}" if named else open_


def names(kind: str) -> list[str]:
    """The names of all plug-ins of a kind: the files of its folder and the installed entry points."""
    return sorted({*_files(kind), *_entry_points(kind)})


def find(kind: str, name: str) -> type[Any]:
    """The class of a plug-in by its name, its entry point or its dotted path `module:Class`.

    Raises UserError for a name that does not exist (with the nearest one) and for a module that cannot be imported.
    """
    if ":" in name:
        return _imported(kind, name)
    if name in _entry_points(kind):
        return _imported(kind, _entry_points(kind)[name])
    if name not in names(kind):
        own = _path_for(kind, name)
        hint = f" One of your own is named by module:Class, here {own}." if own else ""
        raise UserError(f"{name!r} is not among the {kind}. {did_you_mean(name, names(kind))}{hint}")
    return _inside(kind, name)


def name_of(plugin: Any) -> str:
    """The name under which `find` gives this plug-in's class again."""
    cls = _class_of(plugin)
    package, _, module = cls.__module__.rpartition(".")
    inside = package.startswith("cu_ray.") and package.split(".")[1] in KINDS
    return module if inside else f"{cls.__module__}:{cls.__qualname__}"


def is_own(plugin: Any) -> bool:
    """Whether a plug-in, or its class, is from outside the package: a user's own."""
    return not _class_of(plugin).__module__.startswith("cu_ray.")


def with_file(plugin: Any) -> str:
    """Name and file of a plug-in, or of its class, for messages: 'fancy:Fancy (/home/me/fancy.py)'."""
    file = getattr(sys.modules.get(_class_of(plugin).__module__), "__file__", None)
    return f"{name_of(plugin)} ({file})" if file else name_of(plugin)


@contextlib.contextmanager
def users_fault(plugin: Any, where: str = "") -> Iterator[None]:
    """A context in which what a user's own plug-in raises, or breaks, is a UserError that names it, its file and the line.

    where: what comes before it in the message: the sweep file and the section.
    """
    begin = f"{where}: {with_file(plugin)}" if where else with_file(plugin)
    try:
        yield
    except ContractBroken as error:
        raise UserError(f"{begin}: {error}") from error
    except CuRayError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        if not is_own(plugin):
            raise
        place = _line_in(_class_of(plugin).__module__, error)
        raise UserError(f"{begin} raised {type(error).__name__}{place}: {_said_by(error)}") from error


def facts(cls: type[Any]) -> dict[str, FieldFact]:
    """The settings of a plug-in class by name, in the order of its file. Raises UserError where an annotation cannot be read."""
    return dict(_facts(cls))  # type: ignore[arg-type] # mypy holds classes for unhashable


@functools.cache
def _facts(cls: Any) -> dict[str, FieldFact]:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:  # whatever an annotation raises
        reason = f"cannot be read: {type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"{with_file(cls)}: the annotation of {_unreadable(cls)} {reason}. {ANNOTATIONS}") from error
    fields = (field for field in dataclasses.fields(cls) if not field.metadata.get("derived"))
    return {field.name: _fact(field, hints[field.name]) for field in fields}


def describe(plugin: Any, *, locations: bool = True) -> dict[str, Any]:
    """The name, version and all settings of a plug-in, as plain JSON values; `build` undoes it.

    Without `locations` it is the plug-in's identity: settings that only say where something lies are left out.
    """
    return {"name": name_of(plugin), "version": plugin.version, **mapping_of(plugin, locations=locations)}


def build(kind: str, described: Mapping[str, Any]) -> Any:
    """The plug-in that `describe` described, in the version installed here."""
    settings = {name: _frozen(value) for name, value in described.items() if name not in ("name", "version")}
    return find(kind, described["name"])(**settings)


def fingerprint(cls: type[Any]) -> str:
    """A hash of the code of a plug-in, docstrings, comments and its version apart: tells that code changed.

    Of the class's file, and of what that imports, directly or not, from its own package (of cu_ray's own plug-ins: their kind's
    folder) or, where it is in none, from the folder that it lies in.
    """
    file = Path(inspect.getfile(cls))
    parts = cls.__module__.split(".") + (["__init__"] if file.name == "__init__.py" else [])
    depth = 2 if parts[0] == "cu_ray" else min(1, len(parts) - 1)
    package, root = ".".join(parts[:depth]), file.parents[len(parts) - depth - 1]
    digest, left, seen = hashlib.sha256(), [file], set[Path]()
    while left:
        each = left.pop()
        if each not in seen:
            seen.add(each)
            try:
                tree = _without_words(ast.parse(each.read_bytes()))
            except (SyntaxError, ValueError):  # of another version of Python, say: imported by nobody here
                digest.update(each.read_bytes())
                continue
            beside = _imports(tree, each, package, root)
            left += sorted((path for path in beside if package or not _is_installed(path)), reverse=True)
            digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:16]


def own_files(*roots: Path) -> dict[Path, Path]:
    """The files of the user's own modules, by the paths that their names ask for: a/b.py is a.b.

    These are the modules imported until now that lie below one of the folders, less cu-ray, what is installed and the standard
    library; and what they will import, directly or not, when they are run. A link is named by where it lies.
    """
    places = tuple(str(place).rstrip(os.sep) + os.sep for root in roots for place in (root, root.resolve()))
    found = {}
    for name, module in list(sys.modules.items()):
        given = Path(getattr(module, "__file__", None) or "none")
        named = (Path(os.path.normpath(given)), given.resolve()) if given.is_absolute() else ()
        file = next((each for each in named if str(each).startswith(places) and each.is_file() and not _is_installed(each)), None)
        if file is not None and file.suffix == ".py" and name != "__main__":
            path = Path(*name.split("."))
            found[path / file.name if file.name == "__init__.py" else path.with_suffix(".py")] = file
    _add_imported_later(found, roots)
    return found


def _add_imported_later(found: dict[Path, Path], roots: Sequence[Path]) -> None:
    """Add what these files import in a function, say, and has not been imported yet: from beside them, or from the folders."""
    own, left = {path.parts[0].removesuffix(".py") for path in found}, list(found.items())
    while left:
        path, file = left.pop()
        try:
            nodes = ast.walk(ast.parse(file.read_bytes()))
        except (SyntaxError, ValueError):  # of another version of Python, say
            continue
        imports = ast.Module([node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        for top in (*file.parents[len(path.parts) - 1 : len(path.parts)], *roots):
            for asked in _asked_for(imports, file, top):
                first, each = asked.parts[0].removesuffix(".py"), top / asked
                is_own = first in own or first not in sys.modules
                if is_own and asked not in found and each not in found.values() and not _is_installed(each):
                    found[asked] = each
                    left.append((asked, each))


def _asked_for(tree: ast.Module, file: Path, top: Path) -> Iterator[Path]:
    """The paths below a folder of what a file imports from there, and of the packages that this is in."""
    for each in sorted(_imports(tree, file, "", top)):
        if each.is_relative_to(top):
            path = each.relative_to(top)
            packages = (parent / "__init__.py" for parent in path.parents if parent.parts)
            yield from (package for package in packages if (top / package).is_file())
            yield path


def _is_installed(file: Path) -> bool:
    """Whether a file is of cu-ray, of what is installed or of the standard library."""
    found = file.resolve()
    if not {"site-packages", "dist-packages"}.isdisjoint((*file.parts, *found.parts)):
        return True
    places = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))]
    return any(found.is_relative_to(place) for place in places)


def _imports(tree: ast.Module, file: Path, package: str, root: Path) -> set[Path]:
    """The files of the package, which lies in the root, that a file of it imports."""
    modules = set[Path]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [("", alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [("", node.module or ""), *((node.module or "", alias.name) for alias in node.names)]
        else:
            continue
        level = getattr(node, "level", 0)
        for parts in ([part for each in names for part in each.split(".") if part] for names in named):
            own = package.split(".") if package and not level else []
            if parts[: len(own)] == own:
                modules.add((file.parents[level - 1] if level else root).joinpath(*parts[len(own) :]))
    candidates = {path for module in modules for path in (module.with_name(f"{module.name}.py"), module / "__init__.py")}
    return {path for path in candidates if path.is_file()}


def _without_words(tree: ast.Module) -> ast.Module:
    """The tree without docstrings, and without the version of classes, which is known besides."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [
                each for each in node.body if not (isinstance(each, ast.AnnAssign) and ast.unparse(each.target) == "version")
            ]
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
    return tree


def contract(kind: str) -> type[Any]:
    """The base class of a kind, from its folder's `__init__.py`."""
    folder = importlib.import_module(f"cu_ray.{kind}")
    base: type[Any] = getattr(folder, kind.rstrip("s").capitalize())
    return base


def _class_of(plugin: Any) -> type[Any]:
    return plugin if isinstance(plugin, type) else type(plugin)


@functools.cache
def _inside(kind: str, name: str) -> type[Any]:
    return _only_class(kind, importlib.import_module(f"cu_ray.{kind}.{name}"))


@functools.cache
def _files(kind: str) -> tuple[str, ...]:
    folder = importlib.import_module(f"cu_ray.{kind}").__path__
    return tuple(module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_"))


@functools.cache
def _entry_points(kind: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in importlib.metadata.entry_points(group=f"cu_ray.{kind}")}


def _imported(kind: str, path: str) -> type[Any]:
    module_name, _, class_name = path.partition(":")
    if module_name == "__main__":
        raise UserError(
            f"{path!r} is in a notebook or a script, where workers cannot import it: put it into a file, fancy.py, say"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's file raises when it is imported
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        hint = _nearest_module(module_name) if missing else ""
        place = _line_in(module_name, error)
        raise UserError(f"{path!r} cannot be imported: {type(error).__name__}{place}: {_said_by(error)}{hint}") from error
    if not hasattr(module, class_name):
        raise UserError(
            f"{path!r}: {module_name} has no class {class_name!r}. {did_you_mean(class_name, _classes(kind, module))}"
        )
    cls: type[Any] = getattr(module, class_name)
    if not (isinstance(cls, type) and issubclass(cls, contract(kind)) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{path!r} is not a dataclass derived from {contract(kind).__name__}, as {kind} are")
    return cls


def _path_for(kind: str, name: str) -> str:
    """`module:Class` for the name of a user's module or the dotted name of a class; empty where it is neither."""
    module, _, cls = name.rpartition(".")
    if module:
        return f"{module}:{cls}"
    if name not in _own_modules(""):
        return ""
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # not imported: it may be a script, which would run
        tree = ast.parse(_own_modules("")[name].read_bytes())
        base = kind.rstrip("s").capitalize()
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        of_kind = [each.name for each in classes if any(ast.unparse(b).endswith(base) for b in each.bases)]
        return f"{name}:{(of_kind or ['Class'])[0]}"
    return f"{name}:Class"


def _nearest_module(name: str) -> str:
    """A hint at the user's file whose name is nearest to a module's that is not there; empty where none is near."""
    package, _, last = name.removesuffix(".py").rpartition(".")
    near = difflib.get_close_matches(last, files := _own_modules(package), n=1, cutoff=0.5)
    return f". Did you mean {'.'.join([*filter(None, [package]), near[0]])!r} ({files[near[0]]})?" if near else ""


def _own_modules(package: str) -> dict[str, Path]:
    """The files in a package (or in none) that a user's plug-ins can be in, by module: beside the sweep file, above all."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")}
    folders = [Path(folder) for folder in sys.path if Path(folder) not in installed]
    return {file.stem: file for folder in folders for file in sorted(folder.joinpath(*package.split(".")).glob("*.py"))}


def _classes(kind: str, module: types.ModuleType) -> list[str]:
    """The public classes of a kind that a module defines."""
    base = contract(kind)
    return [
        name
        for name, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__ and name[0] != "_"
    ]


def _said_by(error: BaseException) -> str:
    """What an error says, with the file that it is about."""
    file = error.filename if isinstance(error, OSError) else None
    return f"{in_one_line(error)}{f' ({file})' if file else ''}"


def _line_in(module: str, error: BaseException) -> str:
    """Which line of a module raised an error, or called what did; empty where none did."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_globals.get("__name__") == module]
    return f" in line {lines[-1]}" if lines else ""


def _unreadable(cls: type[Any]) -> str:
    """The name of the first annotation of a class that cannot be evaluated."""
    for base in cls.__mro__:
        for name, hint in inspect.get_annotations(base).items():
            try:
                get_type_hints(type("", (), {"__annotations__": {name: hint}, "__module__": base.__module__}))
            except Exception:
                return name
    return "a field"


def _only_class(kind: str, module: types.ModuleType) -> type[Any]:
    found = _classes(kind, module)
    if len(found) != 1:
        raise UserError(f"{module.__name__} must define one public {contract(kind).__name__}, not {len(found)}")
    cls: type[Any] = getattr(module, found[0])
    return cls


def _fact(field: dataclasses.Field[Any], hint: Any) -> FieldFact:
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        notes = tuple(extras)
    return FieldFact(
        field.name,
        hint,
        field.default,
        next((note for note in notes if isinstance(note, Search)), None),
        next((note for note in notes if isinstance(note, Choices)), None),
        next((note for note in notes if isinstance(note, Bound)), None),
    )


def _type_names(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_type_names, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {', '.join(_type_names(kind) for kind in get_args(hint) if kind is not ...)}"
    return {types.NoneType: "null", int: "an integer", float: "a number", str: "a text", bool: "true or false"}.get(
        hint, str(hint)
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


class Plugin:
    """Base of all plug-in contracts."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = ""
