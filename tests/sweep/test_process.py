"""What a sweep changes in its process, and puts back."""

from __future__ import annotations

import io
import logging

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
