"""A sweep on the head of a cluster: started there so that it needs this machine no more, followed, stopped, brought home.

On the head it has a folder of its own, `~/cu-ray/NAME`: what was sent in `files`, from which the driver runs, a list of that in
`content`, the checksum of what runs in `sent`, its output in `run.log`, its process in `process`, when that began in `since`,
its exit code in `exit` when it has ended, and a `lock`. What was sent before and is not sent again goes, so that no module is
imported that is no longer here; what the driver made in `files` stays. The ledgers here and there take over what the other one
has, whenever something is sent or fetched: nothing is run twice, and nothing is overwritten.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from rich.console import Console

from cu_ray import __version__
from cu_ray.config import Sweep, scratch_of
from cu_ray.errors import UserError
from cu_ray.identity import key_of
from cu_ray.places import Folder, Place, is_this_users
from cu_ray.remote.launcher import Cluster, HeadFailed, quoted
from cu_ray.remote.parcel import pack
from cu_ray.sweep import ledger

MARK = "cluster.json"  # where the sweep runs: with its results, but on this machine where these are at a URI
RUN = """#!/usr/bin/env bash
cd "$(dirname "$0")/files" || exit 1
{{ [ ! -d ../brought ] || cu-ray merge {results} ../brought; }} && exec {command} 9>&- &
sed 's/.*) //' /proc/$!/stat | cut -d' ' -f20 > ../since
echo $! > ../process
wait $!
echo $? > ../exit
"""
# whether the driver is there: a process of its number that also began when it did, for numbers come again
RUNS = """if [ -s since ]; then [ "$(sed 's/.*) //' /proc/$(cat process)/stat 2>/dev/null | cut -d' ' -f20)" = "$(cat since)" ]; \
else [ -s process ] && kill -0 $(cat process) 2>/dev/null; fi"""
# until this shell ends, and what it starts, no other command gets as far; where there are no locks, all do
ALONE = """exec 9>> lock; flock -n -E 75 9 2>/dev/null; \
[ $? != 75 ] || { echo another command sends or runs this sweep at the moment; exit 75; }"""


@dataclass(frozen=True)
class Away:
    """A sweep that was sent to a cluster. results: its folder on the head, from where the driver runs; home: its folder here.

    With results at a URI, they are at home there.
    """

    cluster: Cluster
    folder: str
    results: str
    home: Place
    ended: bool = False  # and everything is at home

    @classmethod
    def of(cls, home: Place) -> Away:
        """The sweep whose results are to come into this folder. Raises UserError where none was sent to a cluster from here.

        What was noted is run by Ray and by shells, so it is believed only where this user wrote it. A launcher that has forgotten
        the cluster gets back what it knew.
        """
        place = Folder(scratch_of(home))
        try:
            if not is_this_users(place, MARK):
                raise UserError(f"{home} is of a sweep that another user sent to a cluster: only they can ask for it there")
            facts = json.loads(place.read(MARK))
            away = cls(Cluster.of(facts["cluster"]), quoted(facts["folder"]), facts["results"], home, facts["ended"])
            if not away.ended:
                away.cluster.recall(facts.get("state"))
            return away
        except FileNotFoundError:
            raise UserError(f"{home} is not the folder (results/NAME) of a sweep that was sent to a cluster from here") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{place / MARK} is damaged: give the `cu-ray sweep --cluster` command again") from None

    @classmethod
    def open_at(cls, home: Place) -> Away | None:
        """The sweep that was sent from here and whose results are not all at home; None where there is none."""
        try:
            away = cls.of(home)
        except UserError:
            return None
        return None if away.ended else away

    def note(self) -> None:
        """Remember where the sweep runs, and what the launcher knows of there. Raises UserError where that cannot be written."""
        facts = {"cluster": str(self.cluster.path), "folder": self.folder, "results": self.results, "ended": self.ended}
        place = Folder(scratch_of(self.home))
        try:
            place.write(MARK, json.dumps(facts | {"state": self.cluster.state()}).encode())
        except OSError as error:
            raise UserError(
                f"results cannot be written to {place}: {error.strerror or error}. Give another place with --output."
            ) from error

    @property
    def status(self) -> str:
        """'running', or the exit code of the driver, or 'lost' where it ended without one. Raises HeadFailed."""
        return self.cluster.ask(
            f"cd {self.folder} && if [ -e exit ]; then cat exit; elif {RUNS}; then echo running; else echo lost; fi"
        ).strip()

    def report(self) -> str:
        """What `cu-ray status` says on the head. Raises HeadFailed."""
        results = quoted(self.results)
        return self.cluster.ask(
            f"cd {self.folder}/files && if [ -e {results}/status.json ]; then cu-ray status {results}; "
            "else echo 'It starts: nothing is done yet.'; fi"
        )

    def stop(self) -> None:
        """Let the driver stop as by Ctrl-C: its tables are written, and the same command goes on."""
        self.cluster.ask(f"cd {self.folder} && {RUNS} && kill -TERM $(cat process)")

    def fetch(self) -> str:
        """Bring tables and logs home, and what the ledger there has and the one here has not. Gives the status before.

        Where the driver has ended that is all, and the cluster is not asked again. Nothing is brought where the results are at
        a URI. Raises HeadFailed, and UserError where a sweep is writing to the folder here.
        """
        status = self.status
        if isinstance(self.home, Folder):
            self._bring(self.home)
        if status != "running":
            replace(self, ended=True).note()
        return status

    def _bring(self, home: Folder) -> None:
        there = str(PurePosixPath(self.folder, "files", self.results)) if self.results[:1] != "~" else self.results
        with tempfile.TemporaryDirectory(prefix="cu-ray-") as name:
            fetched = Path(name)
            if self.cluster.ask(f"test -e {quoted(there)} && echo there || true").strip():
                self.cluster.fetch(there, fetched)
            with ledger.Ledger(home / "ledger") as book:
                book.take_over(fetched / "ledger")
            shutil.rmtree(fetched / "ledger", ignore_errors=True)
            shutil.copytree(fetched, home.path, dirs_exist_ok=True)

    def follow(self, console: Console) -> int:
        """Show the driver's output until it ends, then bring the results home; the driver's exit code.

        Ctrl-C leaves the sweep alone and gives 130, a lost connection 1.
        """
        try:
            self._show(console.is_terminal, runs=self.status == "running")
            status = self.status
        except KeyboardInterrupt:
            status = "running"
        except HeadFailed as error:
            console.print(f"cu-ray: {error}.", soft_wrap=True)
            status = "unknown"
        if status in ("running", "unknown"):
            self._say_what_to_do(console)
            return 130 if status == "running" else 1
        status = self.fetch()
        if status in ("lost", "137"):
            console.print(f"The driver on {self.cluster.name} was killed. The same command goes on from there.", soft_wrap=True)
        console.print(f"Results are in {self.home}.", soft_wrap=True)
        return int(status) if status.isdigit() else 1

    def _show(self, is_terminal: bool, *, runs: bool) -> None:
        log, process = f"{self.folder}/run.log", f"$(cat {self.folder}/process)"
        there = f"cd {self.folder}/files && cu-ray watch {quoted(self.results)} --log {log} --process {process}"
        try:
            self.cluster.show(f"cat {log}" if not runs else there if is_terminal else f"tail -n +1 -f --pid={process} {log}")
        except HeadFailed:  # Ctrl-C is sent to the head, where it ends all that is shown
            self.cluster.ask("true")

    def _say_what_to_do(self, console: Console) -> None:
        console.print(f"\nNo longer followed; the sweep goes on on {self.cluster.name}. What to do from here:")
        for command, what in (
            ("attach", "follow it again, and bring it home when it has ended"),
            ("status", "how far it is"),
            ("fetch", "bring home what is done"),
            ("stop", "end it; the same command goes on later"),
        ):
            console.print(f"  cu-ray {command} {self.home}   {what}", soft_wrap=True)


def start(sweep: Sweep, cluster: Cluster, options: Sequence[str], console: Console, seconds: float = math.inf) -> Away:
    """The sweep, running on the cluster's head with these options of `cu-ray sweep`. The same one that runs there is taken.

    seconds: for how long it starts something more. Raises UserError where the head has another version of cu-ray, another state
    of the sweep runs there or a file cannot be sent, HeadFailed where the head is not reached.
    """
    local = isinstance(sweep.folder, Folder)  # a home folder (~) in its path is then the head's
    results = str(Path(sweep.runtime.output) / sweep.name if local else sweep.folder)
    away = Away(cluster, f"~/cu-ray/{sweep.name}", results, sweep.folder)
    _require_same_version(cluster)
    source = Path(sweep.source).resolve()
    with tempfile.TemporaryDirectory(prefix="cu-ray-") as name:
        parcel = Path(name)
        paths = pack(source, parcel / "files")
        command = ["cu-ray", "sweep", str(source.relative_to(Path.cwd())), "--address", "auto", *options]
        checksum = _checksum(parcel / "files", command)
        if cluster.ask(f"test -e {away.folder}/process && echo there || true").strip() and away.status == "running":
            away.note()
            if cluster.ask(f"cat {away.folder}/sent 2>/dev/null || true").strip() != checksum:
                raise UserError(
                    f"{sweep.name} runs on {cluster.name} with other files or options than these. cu-ray stop {away.home} ends "
                    f"it, then the same command goes on with these; cu-ray attach {away.home} follows what runs"
                )
            console.print(f"{sweep.name} runs on {cluster.name} already: following it.")
            return away
        replace(away, ended=Away.open_at(away.home) is None).note()  # not there yet; where it cannot be noted nothing is sent
        # packed before the folder `files`, by its name: what is there is in the list also where the unpacking is cut short
        sent = sorted(path.relative_to(parcel) for path in parcel.rglob("*") if not path.is_dir())
        (parcel / "content").write_text("".join(f"{path}\0" for path in sent), encoding="utf-8", errors="surrogateescape")
        if isinstance(away.home, Folder) and (away.home / "ledger").files():
            shutil.copytree(away.home.path / "ledger", parcel / "brought" / "ledger")
        if math.isfinite(seconds):
            command += ["--time-limit", f"{max(0, round(seconds))}s"]
        (parcel / "run.sh").write_text(RUN.format(command=shlex.join(command), results=quoted(away.results)), encoding="utf-8")
        console.print(f"Sending {len(paths)} files to {cluster.name} ...")
        cluster.ask(
            f"cd {away.folder} 2>/dev/null || exit 0; {ALONE}; rm -rf brought; [ ! -e content ] || xargs -0 rm -f -- < content"
        )
        cluster.send(parcel, away.folder)
    away.note()
    cluster.ask(
        f"cd {away.folder} || exit 1; {ALONE}; rm -f exit process since sent && echo {checksum} > sent "
        "&& (setsid nohup bash run.sh > run.log 2>&1 < /dev/null &) "
        "&& for i in $(seq 100); do [ -e process ] && exit 0; sleep 0.1; done; exit 1"
    )
    return away


def _checksum(folder: Path, command: Sequence[str]) -> str:
    """Of a command and the files that it runs from. A time limit is none of it: that is another one each time."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                files[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return key_of({"command": [*command], "files": files})


def _require_same_version(cluster: Cluster) -> None:
    there = cluster.ask("cu-ray --version || true").strip()
    if __version__ not in there.split():
        raise UserError(
            f"the head of {cluster.name} has {there or 'no cu-ray'}, this machine {__version__}: install the same version on "
            f"both (setup_commands of {cluster.path}, then `ray up` again)"
        )
