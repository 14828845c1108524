"""One sweep that nothing disturbs, for all tests that compare with it."""

from __future__ import annotations

import pytest

from tests import sweeps


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = sweeps.command(folder, "sweep", str(sweeps.small(folder)))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
