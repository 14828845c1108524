"""A Ray that a sweep starts lets nobody in but this process and its children."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from cu_ray.sweep import process


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A Ray that starts in this context takes no client without a token, which is made here and known to children only.

    Its processes listen on all addresses of the machine, and who may speak to them may run code. Left to itself Ray keeps one
    token for good, in the home folder. RAY_AUTH_MODE=disabled is a user's wish.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        yield
        return
    try:
        with process.environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)):
            _look_at_environment()
            yield
    finally:
        _look_at_environment()


def _look_at_environment() -> None:
    """Have Ray read its token and whether one is needed: it remembers what it has read before."""
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined] # compiled, its stubs do not say
    if hasattr(_raylet, "AuthenticationTokenLoader"):  # Ray before 2.52 knows no tokens
        _raylet.AuthenticationTokenLoader.instance().reset_cache()
