"""What is shown on a terminal of a driver that runs elsewhere without one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from cu_ray.sweep.frame import Frame, file_in
from tests import sweeps

DRIVER = """
import sys
from pathlib import Path
from cu_ray.sweep.frame import Frame, file_in
file = file_in(Path("results/small"))
print("Joining Ray at auto ...", flush=True)
Frame(0, 9, 3, 0, 1.0, None, []).write(file)
input()
print(Frame(0, 9, 3, 0, 1.0, None, []).line, flush=True)
print("failed: ssd, fraction 1, seed 0: why", flush=True)
Frame(2, 9, 3, 1, 2.0, 7.0, [("scrub, fraction 0.1, seed 0", 1.5)]).write(file)
input()
file.unlink()
print("Best of each study\\nwithout an end of the line", end="", flush=True)
"""


def test_a_terminal_shows_the_frames_and_every_other_line_of_the_driver_until_its_end(tmp_path):
    (tmp_path / "results/small/logs").mkdir(parents=True)
    with open(tmp_path / "run.log", "w") as log:
        driver = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=tmp_path, stdin=subprocess.PIPE, stdout=log, text=True)
    terminal, end = pty.openpty()
    command = sweeps.program("watch", "results/small", "--log", "run.log", "--process", str(driver.pid))
    follower = subprocess.Popen(command, cwd=tmp_path, stdin=end, stdout=end, stderr=end, env={**os.environ, "TERM": "xterm"})
    os.close(end)
    said = until(terminal, "0 of 9 done, 0 running, 3 known before, 0 failed, 0:01 elapsed")
    print(file=driver.stdin, flush=True)
    said += until(terminal, "scrub, fraction 0.1, seed 0")
    with driver.stdin:
        print(file=driver.stdin)
    assert driver.wait(timeout=60) == 0
    said += until(terminal, None)
    assert follower.wait(timeout=60) == 0, said
    assert "2 of 9 done, 1 running, 3 known before, 1 failed, 0:02 elapsed, about 0:07 left" in said
    assert "━━━" in said
    assert all("\x1b[2K" in after for after in said.split("0 of 9 done")[1:])  # drawn over, not left as a line of the log
    for line in ("Joining Ray at auto ...", "failed: ssd, fraction 1, seed 0: why", "Best of each study", "without an end of"):
        assert said.count(line) == 1


def until(terminal, text):
    """What a terminal shows until a text is there; without one, until its last user has gone."""
    shown = ""
    while text is None or text not in shown:
        try:
            shown += os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            assert text is None, shown
            break
    return shown


def test_a_frame_comes_back_from_its_file_and_there_may_be_none(tmp_path):
    file = file_in(tmp_path)
    assert Frame.read(file) is None
    Frame(0, 1, 0, 0, 0.0, None, []).write(file)  # its folder is not there: a sweep does not end of that
    file.parent.mkdir()
    Frame(1, 2, 3, 0, 61.0, 3600.0, [("ssd", 2.0)]).write(file)
    whole = file.read_text()
    for damaged in ("", whole[:-5], "{}", "[]"):
        file.write_text(damaged)
        assert Frame.read(file) is None
    file.write_text(whole)
    assert Frame.read(file).line == "1 of 2 done, 1 running, 3 known before, 0 failed, 1:01 elapsed, about 1:00:00 left"
