"""The process in which trials run: what a method switches there is switched back, and only a signal ends it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cu_ray.lazy import torch

Switch = tuple[Callable[[], Any], Callable[[Any], object]]  # how a state is read and set


@contextlib.contextmanager
def state_kept() -> Iterator[None]:
    """A context after which the process computes as before: number formats, generators, modes, threads, folder.

    Within, a Ctrl-C can be told from a KeyboardInterrupt that a method raises: see `is_from_signal`.
    """
    put_back = state()
    with _ctrl_c_has_a_frame():
        try:
            yield
        finally:
            put_back()


def seed_generators(seed: int) -> None:
    """Seed the generators that a process shares: dropout draws from one. Within `state_kept`, which puts them back."""
    torch.manual_seed(seed)  # of GPUs too
    np.random.seed(seed % 2**32)
    random.seed(seed)


def state() -> Callable[[], None]:
    """What makes the process compute again as it does now."""
    before = [(put, get()) for get, put in _switches()]
    hooks = {name: value.copy() for name, value in _global_hooks().items()}

    def put_back() -> None:
        for name, value in _global_hooks().items():
            value.clear()
            value.update(hooks[name])
        problems = []
        for put, value in before:
            try:
                put(value)
            except Exception as problem:  # a folder that is gone, say: all else is put back
                problems.append(problem)
        if problems:
            raise problems[0]

    return put_back


def is_from_signal(problem: BaseException) -> bool:
    """Whether it was raised by this process's handler of Ctrl-C or SIGTERM (with which Ray ends a worker), not by a method."""
    handlers = (_interrupt, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    codes = [code for code in (getattr(handler, "__code__", None) for handler in handlers) if code is not None]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(problem.__traceback__))


def device_is_lost(device: torch.device) -> bool:
    """Whether a GPU does nothing more for this process: a bad address or failed assertion in a kernel is the end of it there."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _switches() -> list[Switch]:
    backends = torch.backends
    switches: list[Switch] = [
        (torch.is_inference_mode_enabled, _set_inference_mode),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_rng_state, torch.set_rng_state),
        (np.random.get_state, np.random.set_state),
        (random.getstate, random.setstate),
        (np.geterr, lambda wanted: np.seterr(**wanted)),
        (lambda: list(warnings.filters), lambda wanted: warnings.filters.__setitem__(slice(None), wanted)),  # type: ignore[index]
        (sys.getrecursionlimit, sys.setrecursionlimit),
        (os.getcwd, os.chdir),
        (lambda: False, torch.set_flush_denormal),  # cannot be read; nothing here sets it
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (_determinism, _set_determinism),
    ]
    switches += [_attribute(backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")]
    switches += [_attribute(backends.mkldnn, name) for name in ("enabled", "deterministic")]
    for device in ("cpu", "cuda"):
        switches += [_of_device(torch.is_autocast_enabled, torch.set_autocast_enabled, device)]
        switches += [_of_device(torch.get_autocast_dtype, torch.set_autocast_dtype, device)]
    if torch.cuda.is_initialized():
        switches += [(torch.cuda.get_rng_state_all, _set_cuda_generators)]
    return switches


def _set_cuda_generators(wanted: list[torch.Tensor]) -> None:
    """Not where the GPU is lost: nothing is drawn there any more, and what it was lost by is to be told."""
    try:
        torch.cuda.set_rng_state_all(wanted)
    except RuntimeError:
        if not device_is_lost(torch.device("cuda")):
            raise


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_determinism(wanted: tuple[bool, bool]) -> None:
    if _determinism() != wanted:  # torch imports all of torch.compile to set it
        torch.use_deterministic_algorithms(wanted[0], warn_only=wanted[1])


def _set_inference_mode(wanted: bool) -> None:
    if torch.is_inference_mode_enabled() != wanted:
        torch.inference_mode(wanted).__enter__()  # there is no other way to leave a mode that somebody else entered


def _attribute(owner: Any, name: str) -> Switch:
    return lambda: getattr(owner, name), lambda wanted: setattr(owner, name, wanted)


def _of_device(get: Callable[[str], Any], put: Callable[[str, Any], Any], device: str) -> Switch:
    return lambda: get(device), lambda wanted: put(device, wanted)


def _global_hooks() -> dict[str, Any]:
    """The hooks that PyTorch calls for modules of every model, by the kind of hook."""
    found = vars(torch.nn.modules.module)
    return {name: value for name, value in found.items() if name.startswith("_global_") and isinstance(value, dict)}


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _ctrl_c_has_a_frame() -> Iterator[None]:
    """A context in which Python's own handler of Ctrl-C, which leaves no frame in a traceback, is replaced by `_interrupt`."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
