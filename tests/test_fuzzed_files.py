"""Any text as a sweep file: a sweep, or one UserError that names the file and the place; never a traceback, never long.

The same few hundred cases each time; `CU_RAY_FUZZ=3400` for 10,200 others (three minutes).
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from cu_ray import config
from cu_ray.config import SECTIONS
from cu_ray.errors import Faults, UserError

CASES = int(os.environ.get("CU_RAY_FUZZ", "150"))
LONGEST = 2.0  # seconds of processor time a file
SWEEPS = sorted((Path(__file__).parent.parent / "sweeps").rglob("*.yaml"))
BIG = 10**400
PLACE = r"[^:]*?\(line \d+( of .*?)?\): "

fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    derandomize="CU_RAY_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a case that takes long takes hours to shrink
)

VALID = {
    "name": "fuzz",
    "dataset": "fashion_mnist_small",
    "model": {"name": "resnet9", "width": 2},
    "manipulation": [
        {"name": "backdoor", "size": [100, 300], "patch": 3, "target": "t_shirt"},
        {"name": "interclass_confusion", "size": 120, "classes": [["pullover", "coat"]]},
    ],
    "train": {"steps": 12, "lr": 0.05, "batch_size": 64, "precision": "fp32"},
    "original": {"weights": None},
    "detection": "uniform",
    "deletion_fractions": [0.1, 0.5],
    "seeds": [0, 1],
    "methods": {
        "no_unlearning": {},
        "exact_unlearning": {"points": [{"k": None, "steps": 6}, {"k": 2, "steps": 5}]},
        "scrub": {"steps": 6, "lr": 0.005, "msteps": 2, "trials": 3},
        "ssd": {
            "selection_share": {"low": 0.002, "high": 0.1, "log": True, "num": 4},
            "relative_dampening": [0.5, 1],
            "sampler": "grid",
        },
    },
    "search": {"sampler": "tpe", "seeds": "first", "lag": 2},
    "controls": {"never_manipulated": True, "unlearning_seeds": 2},
    "runtime": {"storage": "store", "output": "results", "trial_time_limit": "1h30m", "gpus_per_trial": 0.5},
}

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**18, BIG, -BIG]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 5e-324, 1.7e308, float("nan"), float("inf"), float("-inf")]),
    st.text(max_size=12),
    st.sampled_from(
        [
            *("auto", "grid", "resnet9", "vit", "wide_resnet", "cifar_resnet", "npz", "parquet", "image_folder", "from_file"),
            *(
                "",
                " ",
                "..",
                "../x",
                "/etc/passwd",
                "/dev/zero",
                "/",
                "~",
                "~nobody_here/x",
                "x" * 300,
                "a\0b",
                "\ud800",
                "\x1b[31m",
            ),
            *(
                "json:loads",
                ":",
                "a:b:c",
                "no.such:Thing",
                "__main__:x",
                "..x:y",
                "this_does_not_exist:x",
                "1e400h",
                "99999999999h",
            ),
        ]
    ),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(
        [
            {"name": "vit", "depth": 10**9},
            {"name": "wide_resnet", "depth": 10**9 + 4},
            {"name": "cifar_resnet", "depth": 10**12},
            {"name": "resnet9", "width": list(range(1, 3000))},
            {"name": "npz", "file": "x.npz"},
            {"name": "npz", "file": "/etc/passwd"},
            {"name": "parquet", "file": "/etc/passwd"},
            {"name": "parquet", "file": "a\0b"},
            {"name": "image_folder", "folder": "/nowhere"},
            {"name": "image_folder", "folder": "~nobody_here"},
            {"name": "from_file", "file": "/etc/passwd", "size": 5},
            {"name": "from_file", "file": "~nobody_here/x.csv"},
            {"name": "from_file", "file": "a\0b.csv"},
            {"low": 1e-320, "high": 1e308, "log": True, "num": 5},
            {"low": -1.7e308, "high": 1.7e308, "num": 5},
            {"low": -1.7e308, "high": 1.7e308},
            {"low": 1, "high": 10**18},
            {"low": 1, "high": 1000, "num": 10**12},
            [[[[1]]]],
            list(range(1500)),
            [{"name": "backdoor", "size": list(range(1, 80)), "patch": list(range(1, 20)), "target": list(range(10))}],
        ]
    ),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.floats(), max_size=2)), max_size=4),
    st.dictionaries(
        st.text(max_size=6), st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)), max_size=3
    ),
)

SNIPPETS = [
    *(
        "\t",
        "\n",
        "  ",
        ":",
        ": ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "<<: *a",
        "<<: [*a, *a]",
        "!!python/object:os.system ",
        "!!set ",
    ),
    *(
        "!!float x",
        "!!int ''",
        "!!bool x",
        "!!timestamp x",
        "!!binary x",
        "!!null x",
        "!!omap ",
        "!local ",
        "!!str ",
        "!!merge x",
        "? ",
    ),
    *(
        "2001-99-99",
        "0001-01-01 00:00:00 +23:59",
        "9999-12-31 23:59:59 -23:59",
        "1" * 5000,
        "0x" + "f" * 5000,
        "1:" * 300 + "1",
        "1_0",
    ),
    *(
        "0b101",
        "0o7",
        ".inf",
        ".nan",
        "-.inf",
        "1:1.5",
        "1:" * 300 + "1.5",
        "\u2028",
        "\ufeff",
        "\x00",
        "\x85",
        "é",
        "😀",
        "'",
        '"',
        "%YAML 1.2\n",
    ),
    *(
        "---\n",
        "...\n",
        "# ",
        "|",
        ">",
        "@",
        "`",
        "extends: ",
        "extends: fuzz.yaml\n",
        "extends: ..\n",
        "name: x\n",
        "runtime:\n",
        "seeds:\n",
    ),
    *(
        "extends: quickstart.yaml\n",
        "extends: /etc/passwd\n",
        "extends: [a]\n",
        "extends: a\\0b\n",
        'extends: "a\\0b"\n',
        "extends: ~nobody/x\n",
    ),
    *(
        "[" * 2000,
        "{a: " * 500,
        "- " * 1500,
        "&b [*b]",
        "x: &c {<<: *c}\n",
        "a: &d [*d, *d]\n",
        'extends: "\\uD800"\n',
        f"extends: {'x' * 300}\n",
    ),
]


def typo(word: str, chance: random.Random) -> str:
    place = chance.randrange(len(word) + 1)
    return chance.choice([word[:place] + word[place + 1 :], word[:place] + chance.choice("abz_ .[") + word[place:], word.upper()])


def places(value, found=None, path=()):
    """All paths of a value."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((*path, key))
        places(item, found, (*path, key))
    return found


@st.composite
def nearly_right(draw):
    """A right file in which a few values, names or lines were changed."""
    value, chance = copy.deepcopy(VALID), draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(places(value)))
        inside = value
        for step in parents:
            inside = inside[step]
        change = draw(st.sampled_from(["value", "value", "value", "name", "leave out", "list"]))
        if change == "value":
            inside[last] = copy.deepcopy(draw(ODD))
        elif change == "list":
            inside[last] = [inside[last], copy.deepcopy(draw(ODD))]
        elif change == "leave out":
            del inside[last]
        elif isinstance(last, str):
            inside[typo(last, chance)] = inside.pop(last)
    return yaml.safe_dump(value, default_flow_style=draw(st.sampled_from([None, True, False])), allow_unicode=draw(st.booleans()))


@st.composite
def mutated(draw):
    """The bytes of a real file, some replaced, doubled or left out, odd pieces put in between."""
    content = bytearray(draw(st.sampled_from(SWEEPS)).read_bytes())
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 30)))
        piece = draw(
            st.one_of(
                st.sampled_from(SNIPPETS).map(str.encode),
                st.binary(max_size=4),
                st.just(bytes(content[start:end]) * 2),
                st.just(b""),
            )
        )
        content[start:end] = piece
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the file lies: beside those that it may extend."""
    made = tmp_path_factory.mktemp("fuzz")
    for path in SWEEPS:
        shutil.copy(path, made / path.name)
    return made


def read(folder: Path, content: bytes) -> UserError | None:
    """What is wrong with a file of that content."""
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    began = time.process_time()
    try:
        config.load(path)
    except UserError as error:
        assert str(path) in str(error) or "extends" in str(error) or b"extends" in content
        assert len(str(error)) < 100_000
        return error
    finally:
        assert time.process_time() - began < LONGEST
    return None


def assert_placed(error: UserError | None) -> None:
    """Each fault says which section it is in, and the line of what is in the file."""
    for fault in error.faults if isinstance(error, Faults) else ():
        assert re.match(rf"{PLACE}|the section '\w+' is missing|not YAML: .*line \d+|a sweep file is a mapping", fault), fault


def laughs(first: str, further: str) -> str:
    """Ten lines in which each stands for nine of the one before."""
    lines = [f"k0: &k0 {first}", *(f"k{n}: &k{n} {further}".format(", ".join([f"*k{n - 1}"] * 9)) for n in range(1, 10))]
    return "\n".join(lines)


@fuzzed
@given(text=nearly_right())
@example(text="")
@example(text="[]")
@example(text="name: a\n" * 3)
@example(text=laughs("[x]", "[{}]"))
@example(text=laughs("{x: 1}", "{{<<: [{}]}}"))
@example(text="model: {name: vit, patch: [1, 2], depth: null}")  # the same complaint twice
@example(text="a: &a [*a]")
@example(text="a: &a {<<: *a}")
def test_a_file_that_is_nearly_right(folder, text):
    assert_placed(read(folder, text.encode(errors="surrogatepass")))


@fuzzed
@given(content=mutated())
def test_a_real_file_whose_bytes_were_changed(folder, content):
    read(folder, content)


@fuzzed
@given(piece=st.sampled_from(SNIPPETS), key=st.sampled_from(SECTIONS), other=st.sampled_from(SNIPPETS))
def test_odd_yaml_in_the_place_of_a_section(folder, piece, key, other):
    lines = [f"{name}: {value}" for name, value in VALID.items() if name != key]
    read(folder, "\n".join([*lines, f"{key}: {piece}{other}"]).encode())


def test_the_file_without_changes_is_right(folder):
    assert read(folder, yaml.safe_dump(VALID).encode()) is None
