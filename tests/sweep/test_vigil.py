"""The end of a server of Ray is noticed within two seconds; who hangs in Ray then is ended; what Ray leaves behind is, too."""

from __future__ import annotations

import errno
import functools
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from rich.console import Console

from cu_ray.config import RuntimeSection
from cu_ray.errors import RayStopped, UserError
from cu_ray.lease import LeaseLost
from cu_ray.sweep import cluster, process, vigil
from cu_ray.sweep.cluster import connected
from cu_ray.sweep.remains import Remains
from cu_ray.sweep.room import Room
from cu_ray.sweep.vigil import RayIsGone, Server, Vigil


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


class Rest:
    """What is left of a Ray."""

    ended = False

    def look(self) -> None:
        pass

    def end(self) -> None:
        self.ended = True


def watching(listener: socket.socket, *, patience: float = 0.5, leave=lambda: None, rest: Rest | None = None) -> Vigil:
    server = Server("gcs_server", f"127.0.0.1:{listener.getsockname()[1]}", "gcs_server.out", patience)
    return Vigil([server], remains=rest, leave=leave, last_words=pytest.fail)


def work(watch: Vigil, seconds: float) -> None:
    """What the driver's loop does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watch.require()
        time.sleep(0.02)


def end(listener: socket.socket, watch: Vigil) -> None:
    """The server ends, which the driver's loop notices within two seconds."""
    listener.close()
    with pytest.raises(RayIsGone):
        work(watch, 2.0)


def test_the_end_of_a_server_is_said_within_two_seconds_and_the_rest_is_ended(listener):
    rest = Rest()
    expected = r"Ray's gcs_server ended: see gcs_server\.out\. Nothing is lost; the same command goes on from there\."
    with pytest.raises(RayStopped, match=expected), watching(listener, rest=rest) as watch:
        work(watch, 1.0)
        end(listener, watch)
        watch.require()
    assert rest.ended


def test_an_error_that_the_end_of_ray_brings_is_said_as_what_it_is(listener):
    with pytest.raises(RayStopped, match="gcs_server ended"), watching(listener) as watch:
        end(listener, watch)
        raise ConnectionError("gcs did not answer")


def test_a_ctrl_c_then_stays_one(listener):
    with pytest.raises(KeyboardInterrupt), watching(listener) as watch:
        end(listener, watch)
        raise KeyboardInterrupt


def test_a_server_that_comes_back_in_time_has_not_ended(listener):
    address = listener.getsockname()
    with watching(listener, patience=3.0) as watch:
        listener.close()
        work(watch, 1.5)
        with socket.create_server(address):
            work(watch, 3.0)


def test_a_process_without_a_file_left_says_nothing_of_ray(listener, monkeypatch):
    def no_file_left(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    with watching(listener) as watch:
        monkeypatch.setattr(vigil.socket, "create_connection", no_file_left)
        work(watch, 2.0)


def test_servers_that_end_because_we_leave_are_no_end_of_ray(listener):
    def leave():
        listener.close()
        time.sleep(2.0)

    rest = Rest()
    with watching(listener, leave=leave, rest=rest):
        pass
    assert not rest.ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_signal_breaks_off_the_leaving_of_ray(listener, number):
    left = []

    def leave():
        for _ in range(2):
            signal.raise_signal(number)
        left.append(True)

    before = [signal.getsignal(each) for each in process.ENDS_IT]
    with pytest.raises(KeyboardInterrupt), watching(listener, leave=leave):
        pass
    assert left
    assert [signal.getsignal(each) for each in process.ENDS_IT] == before


@pytest.mark.parametrize("raised", [UserError("no room"), LeaseLost("another has it")])
def test_a_signal_while_ray_is_left_hides_no_fault(listener, raised):
    with pytest.raises(type(raised)), watching(listener, leave=functools.partial(signal.raise_signal, signal.SIGINT)):
        raise raised


def test_who_hangs_in_ray_while_it_is_left_gets_out_once_the_rest_is_ended(listener, monkeypatch):
    monkeypatch.setattr(vigil, "LEFT_WITHIN", 0.5)
    ended = threading.Event()
    rest = Rest()
    rest.end = ended.set  # type: ignore[method-assign]
    began = time.monotonic()
    with watching(listener, leave=lambda: ended.wait(30), rest=rest):
        pass
    assert ended.is_set()
    assert time.monotonic() - began < 5


def test_a_fault_while_ray_that_has_ended_is_left_ends_the_rest_and_not_the_process(listener, monkeypatch):
    monkeypatch.setattr(vigil, "GRACE", 0.5)
    monkeypatch.setattr(vigil.os, "_exit", pytest.fail)

    def leave():
        raise OSError("no file left")

    rest = Rest()
    with pytest.raises(OSError, match="no file left"), watching(listener, leave=leave, rest=rest) as watch:
        end(listener, watch)
        watch.require()
    assert rest.ended
    time.sleep(1.0)


def test_a_signal_while_what_is_left_of_a_ray_is_ended_breaks_nothing_off(listener):
    rest = Rest()
    leave = functools.partial(signal.raise_signal, signal.SIGINT)
    with pytest.raises(RayStopped, match="gcs_server ended"), watching(listener, leave=leave, rest=rest) as watch:
        end(listener, watch)
        watch.require()
    assert rest.ended


HANGS = """
import socket, time
from cu_ray.sweep import cluster, vigil
from cu_ray.sweep.cluster import connected
from cu_ray.sweep.room import Room
vigil.GRACE = 1.0
listener = socket.create_server(("127.0.0.1", 0))
server = vigil.Server("raylet", f"127.0.0.1:{listener.getsockname()[1]}", "raylet.out", 0.5)
with vigil.Vigil([server], remains=None, leave=lambda: None, last_words=lambda message: print(message, flush=True)):
    listener.close()
    time.sleep(60)
"""


def test_a_main_thread_that_hangs_in_ray_is_ended_with_the_message():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("Ray's raylet ended: see raylet.out.")
    assert time.monotonic() - began < 20


LEFT_FOR_EVER = """
import socket, time
from cu_ray.sweep import vigil
vigil.LEFT_WITHIN = 0.5
listener = socket.create_server(("127.0.0.1", 0))
server = vigil.Server("raylet", f"127.0.0.1:{listener.getsockname()[1]}", "raylet.out", 0.5)
def leave():
    time.sleep(60)
with vigil.Vigil([server], remains=None, leave=leave, last_words=lambda message: print(message, flush=True)):
    pass
"""


def test_a_joined_ray_that_never_lets_go_is_left_with_a_message():
    done = subprocess.run([sys.executable, "-c", LEFT_FOR_EVER], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("Ray did not end within 0.5 s. Nothing is lost;")


def start(*session: str) -> tuple[subprocess.Popen, psutil.Process]:
    """A server of that session, and what it started."""
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    server = subprocess.Popen([sys.executable, "-c", script, *session])
    while not (children := psutil.Process(server.pid).children()):
        time.sleep(0.02)
    return server, children[0]


def test_what_one_session_started_is_ended_and_nothing_else():
    mine, others = start("--log-dir=/tmp/ray/session_1/logs"), start("--log-dir=/tmp/ray/session_2/logs")
    try:
        remains = Remains("session_1")
        mine[0].kill()
        mine[0].wait()
        remains.end()
        assert not psutil.wait_procs([mine[1]], timeout=5)[1], "a child outlived the server that it was of"
        assert others[0].poll() is None
        assert others[1].is_running()
    finally:
        for process in (mine[0], others[0], mine[1], others[1]):
            if psutil.pid_exists(process.pid):
                process.kill()
        mine[0].wait(), others[0].wait()


def test_a_ray_that_was_started_is_left_without_the_second_that_its_autoscaler_takes(monkeypatch):
    def shutdown():
        until = time.monotonic() + 5
        while "monitor.py" in those_that_live() and time.monotonic() < until:  # killed, and not dead yet
            time.sleep(0.02)
        there["as Ray is left"] = those_that_live()
        leave()

    leave, there = ray.shutdown, {}
    monkeypatch.setattr(ray, "shutdown", shutdown)
    with joined("local"):
        there["before"] = those_that_live()
    assert there == {"before": ["gcs_server", "monitor.py"], "as Ray is left": ["gcs_server"]}
    assert not ray.is_initialized()


def those_that_live() -> list[str]:
    """Which of two of Ray's processes do among the children of this one."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # has ended
            found += {Path(part).name for part in child.cmdline()} & {"gcs_server", "monitor.py"}
    return sorted(found)


def test_a_process_without_a_file_left_looks_again_later(monkeypatch):
    def no_file_left(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    remains = Remains("session_1")
    monkeypatch.setattr(psutil.Process, "children", no_file_left)
    for act in (remains.look, remains.end_autoscaler, remains.end):
        act()


def test_a_gcs_that_does_not_answer_holds_nobody_up_for_long_and_leaves_the_room_as_it_was(monkeypatch):
    room, silent = Room({"cpu": 1.0}, None), threading.Event()
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(Room, "_count", lambda self: 3)
    assert room() == 3
    monkeypatch.setattr(Room, "_count", lambda self: silent.wait(20) and 0)
    room._asked = -math.inf
    began = time.monotonic()
    assert room() == 3
    assert time.monotonic() - began < 3
    silent.set()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (Exception("The current node timed out"), "Ray did not start: The current node timed out .see tune.log.. Nothing is"),
        (ConnectionError("refused"), "Ray did not start: refused"),
    ],
)
def test_a_ray_that_does_not_start_is_one_message(monkeypatch, raised, said):
    monkeypatch.setattr(ray, "init", raising(raised))
    with pytest.raises(RayStopped, match=said), joined(None):
        pass


def test_a_ray_that_another_thread_has_started_is_left_alone(monkeypatch):
    monkeypatch.setattr(ray, "init", raising(RuntimeError("Maybe you called ray.init twice by accident?")))
    monkeypatch.setattr(ray, "shutdown", pytest.fail)
    with pytest.raises(UserError, match="another thread of this process has started Ray meanwhile"), joined(None):
        pass


@pytest.mark.parametrize("address", [None, "there"])
def test_what_does_not_come_up_is_ended_but_no_cluster_of_this_process_that_was_joined(monkeypatch, address):
    ended = []
    rest = Rest()
    rest.end = lambda: ended.append("rest")  # type: ignore[method-assign]
    monkeypatch.setattr(cluster.remains, "of_this_process", lambda: rest)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("ray"))
    monkeypatch.setattr(ray, "init", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt), joined(address):
        pass
    assert ended == (["ray", "rest"] if address is None else ["ray"])


def test_a_cluster_that_does_not_take_us_is_one_message(monkeypatch):
    monkeypatch.setattr(ray, "init", raising(ConnectionError("refused")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster answers at {address}: refused"), joined(address):
            pass


def test_a_cluster_that_dies_while_it_is_joined_ends_the_joining(monkeypatch):
    monkeypatch.setattr(cluster, "REACHED_IN", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def init(**options):
            server.close()
            time.sleep(3)  # as long as it takes until Ray gives up
            raise ConnectionError("timed out")

        monkeypatch.setattr(ray, "init", init)
        with pytest.raises(RayStopped, match=f"Ray's gcs_server at {address} ended"), joined(address):
            pass


def raising(error):
    def init(**options):
        raise error

    return init


def joined(address):
    runtime, out = RuntimeSection(address=address), Console(quiet=True)
    return connected(runtime, out, own_files={}, log=Path("tune.log"), last_words=pytest.fail)
