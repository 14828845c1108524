"""Why a trial failed, in one line: what a plug-in raised, whose it is and where."""

from __future__ import annotations

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from cu_ray.errors import AssumptionFailed, ContractBroken, Diverged, StoreFailed, TimeIsUp
from cu_ray.lazy import torch

LONGEST = 1000  # characters of a message that are kept
BLAME = "in "
INSTALLED = {"site-packages", "dist-packages"}
NOT_OWN = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))  # nor what is installed
NO_MEMORY = re.compile(r"CUDA( error:)? out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")  # in a plain RuntimeError


@contextlib.contextmanager
def blamed(name: str, kind: type[BaseException] = BaseException) -> Iterator[None]:
    """A context in which what is raised (of this kind) is noted to come from a plug-in."""
    try:
        yield
    except kind as problem:
        problem.add_note(BLAME + name)
        raise


def reason_of(problem: BaseException) -> str:
    """Its type, the plug-in to blame, its message and its place in the code, in one line that any table can hold.

    A time limit and a divergence are no faults of a line of code: without type and place. Without place also a broken
    contract, a failed assumption and a full disk, which say what it was.
    """
    blame = "".join(f" {note}" for note in getattr(problem, "__notes__", [])[:1] if note.startswith(BLAME))
    if isinstance(problem, TimeIsUp):
        return _message(problem)
    if isinstance(problem, Diverged):
        return _message(problem) + blame
    place = "" if isinstance(problem, (ContractBroken, AssumptionFailed, StoreFailed)) else f" ({_place(problem)})"
    return f"{type(problem).__name__}{blame}: {_message(problem)}{place}"


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether it says that the device, or the machine, has no memory left: also CUDA and its libraries in their own words."""
    if isinstance(problem, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and NO_MEMORY.search(str(problem)) is not None


def _message(problem: BaseException) -> str:
    try:
        message = " ".join(str(problem).split())
    except Exception:  # an error class of a plug-in
        return "(its message cannot be read)"
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
    return message.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates, as in names of files


def _place(problem: BaseException) -> str:
    """The innermost line of the user's own code, where that was at it; else the innermost of all."""
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(problem.__traceback__)]
    own = [each for each in lines if _is_own(Path(each[0]))]
    file, line = (own or lines)[-1]
    return f"{file.rsplit('/', 1)[-1]}:{line}"


def _is_own(file: Path) -> bool:
    installed = not INSTALLED.isdisjoint(file.parts) or any(file.is_relative_to(folder) for folder in NOT_OWN)
    return file.is_absolute() and not installed
