"""The display of a running sweep: live on a terminal; elsewhere plain lines, and a file for who follows it on a terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cu_ray.plugins import name_of
from cu_ray.sweep.estimate import Estimate
from cu_ray.sweep.frame import Frame
from cu_ray.sweep.pace import Load
from cu_ray.sweep.ready import Job
from cu_ray.types import OriginalSpec, Record, TrialSpec

LINE_EVERY, FRAME_EVERY = 10.0, 1.0  # seconds between plain lines, and between frames in the file


class Progress:
    """Counts what is cached, done, running and failed, and estimates the time left."""

    def __init__(self, console: Console, estimate: Estimate, file: Path) -> None:
        self._console, self._file = console, file
        self._cached = estimate.originals_done + estimate.trials_done
        self._expected = estimate.originals - estimate.originals_done + estimate.trials - estimate.trials_done
        self._running: Callable[[], list[tuple[Job, float]]] = list
        self._left: tuple[float, float] | None = None  # seconds, and when that was
        self._statuses: Counter[str] = Counter()
        self._started = self._last_line = self._last_frame = time.monotonic()
        self._live = live(console, lambda: self._frame().render()) if console.is_terminal else None

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)  # of a driver that was killed
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        self._file.unlink(missing_ok=True)

    def follow(self, running: Callable[[], list[tuple[Job, float]]]) -> None:
        """Show what runs: jobs, and for how many seconds."""
        self._running = running

    def heard(self, job: Job, record: Record) -> None:
        """A job ended."""
        self._statuses[record.status] += 1
        if not record.ok:
            self._say(f"{record.status}: {describe(job)}: {record.error}")

    def take_in(self, estimate: Estimate) -> None:
        """What is left by now, by the pace of what is done and with as many workers as are at it."""
        running, took, pace = self._running(), estimate.pace.took(estimate.work), estimate.pace
        if took is None or (estimate.work and not running):
            self._left = None
            return
        spent = [
            (job.kind, min(seconds, pace.longest({pace.likeness(job.spec): Load(1, job.images)}))) for job, seconds in running
        ]
        left = max(0.0, took.seconds - sum(seconds for _, seconds in spent)) / max(1, len(running))
        into_chain = max((seconds for kind, seconds in spent if kind == "trial"), default=0.0)
        self._left = max(left, estimate.chain_seconds - into_chain), time.monotonic()

    def tick(self) -> None:
        """Time has gone by: where there is no live display, a line and a frame are due now and then."""
        now = time.monotonic()
        if self._live is None and now - self._last_line > LINE_EVERY:
            self._last_line = now
            self._say(self._frame().line)
        if self._live is None and now - self._last_frame > FRAME_EVERY:
            self._last_frame = now
            self._frame().write(self._file)

    def seconds_left(self) -> float | None:
        """The time left; None where that is not known."""
        left = self._left  # read once: another thread writes it
        return None if left is None else max(0.0, left[0] - (time.monotonic() - left[1]))

    def _frame(self) -> Frame:
        done = sum(self._statuses.values())
        return Frame(
            done=done,
            expected=max(self._expected, done),
            cached=self._cached,
            failed=done - self._statuses["ok"],
            elapsed=time.monotonic() - self._started,
            left=self.seconds_left(),
            running=[(describe(job), seconds) for job, seconds in self._running()],
        )

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def live(console: Console, render: Callable[[], Group]) -> Live:
    """A display at the lower end of a terminal that is drawn anew twice a second."""
    return Live(console=console, get_renderable=render, refresh_per_second=2, redirect_stdout=False, redirect_stderr=False)


def describe(job: Job) -> str:
    """A job in a few words."""
    spec = job.spec
    if isinstance(spec, OriginalSpec):
        return f"original model, {name_of(spec.setting.manipulation)} {spec.setting.manipulation.size}, seed {spec.setting.seed}"
    assert isinstance(spec, TrialSpec)
    setting = spec.original.setting
    fraction = f", fraction {spec.deletion_size / setting.manipulation.size:g}" if spec.deletion_size else ""
    further = [setting.control and setting.control.replace("_", " "), "part held out" if spec.held_out else None]
    further += [f"unlearning seed {spec.unlearning_seed}" if spec.unlearning_seed else None]
    return f"{name_of(spec.method)}{fraction}, seed {setting.seed}" + "".join(f", {each}" for each in further if each)
