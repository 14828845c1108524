"""What a sweep changes in its process, and puts back."""

from __future__ import annotations

import io
import logging

import pytest

from cu_ray.sweep import session
from cu_ray.sweep.process import only_errors_of, output_in


def test_errors_of_a_logger_go_where_output_goes_meanwhile_and_all_else_as_before(tmp_path):
    logger, before = logging.Logger("somebody"), io.StringIO()
    logger.addHandler(logging.StreamHandler(before))  # made at the import of its package
    logging.Logger.manager.loggerDict["somebody"] = logger
    try:
        with output_in(tmp_path / "logs" / "tune.log"), only_errors_of("somebody"):
            logger.error("a worker died")
            logger.warning("it is late")
        logger.warning("and now?")
    finally:
        del logging.Logger.manager.loggerDict["somebody"]
    assert (tmp_path / "logs" / "tune.log").read_text() == "a worker died\n"
    assert before.getvalue() == "and now?\n"


@pytest.mark.parametrize(
    ("given", "prestart"),
    [({}, "1"), ({"RAY_enable_worker_prestart": "0"}, "0"), ({"RAY_prestart_worker_first_driver": "0"}, "0")],
)
def test_a_user_who_lets_ray_start_no_processes_ahead_is_heard(given, prestart, monkeypatch):
    for name in ("RAY_enable_worker_prestart", "RAY_prestart_worker_first_driver"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert session._prestart() == prestart
