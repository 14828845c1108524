"""A sweep on the head of a cluster: started there so that it needs this machine no more, followed, stopped, brought home.

On the head it has a folder of its own, `~/cu-ray/NAME`: what was sent in `files`, from which the driver runs, a list of that in
`content`, its output in `run.log`, its process in `process`, when that began in `since`, and its exit code in `exit` when it has
ended. What was sent before and is not sent again goes, so that no module is imported that is no longer here; what the driver made
in `files` stays. The ledgers here and there take over what the other one has, whenever something is sent or fetched: nothing is
run twice, and nothing is overwritten.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from rich.console import Console

from cu_ray import __version__
from cu_ray.config import Sweep
from cu_ray.errors import UserError
from cu_ray.places import Folder, Place
from cu_ray.remote.launcher import Cluster, HeadFailed, quoted
from cu_ray.remote.parcel import pack
from cu_ray.sweep import ledger

MARK = "cluster.json"  # in the results folder here, or at the URI of the results: where the sweep runs
RUN = """#!/usr/bin/env bash
cd "$(dirname "$0")/files" || exit 1
{{ [ ! -d ../brought ] || cu-ray merge {results} ../brought; }} && exec {command} &
sed 's/.*) //' /proc/$!/stat | cut -d' ' -f20 > ../since
echo $! > ../process
wait $!
echo $? > ../exit
"""
# whether the driver is there: a process of its number that also began when it did, for numbers come again
RUNS = """if [ -s since ]; then [ "$(sed 's/.*) //' /proc/$(cat process)/stat 2>/dev/null | cut -d' ' -f20)" = "$(cat since)" ]; \
else [ -s process ] && kill -0 $(cat process) 2>/dev/null; fi"""


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
        """The sweep whose results are to come into this folder. Raises UserError where none was sent to a cluster from here."""
        try:
            facts = json.loads(home.read(MARK))
            return cls(Cluster.of(facts["cluster"]), facts["folder"], facts["results"], home, facts["ended"])
        except FileNotFoundError:
            raise UserError(f"{home} is not the folder (results/NAME) of a sweep that was sent to a cluster from here") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{home / MARK} is damaged: give the `cu-ray sweep --cluster` command again") from None

    def note(self) -> None:
        """Remember in the folder here where the sweep runs. Raises UserError where that cannot be written."""
        facts = {"cluster": str(self.cluster.path), "folder": self.folder, "results": self.results, "ended": self.ended}
        try:
            self.home.write(MARK, json.dumps(facts).encode())
        except OSError as error:
            raise UserError(
                f"results cannot be written to {self.home}: {error.strerror or error}. Give another place with --output."
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


def start(sweep: Sweep, cluster: Cluster, options: Sequence[str], console: Console) -> Away:
    """The sweep, running on the cluster's head with these options of `cu-ray sweep`. One that runs there already is taken.

    Raises UserError where the head has another version of cu-ray or a file cannot be sent, HeadFailed where it is not reached.
    """
    local = isinstance(sweep.folder, Folder)  # a home folder (~) in its path is then the head's
    results = str(Path(sweep.runtime.output) / sweep.name if local else sweep.folder)
    away = Away(cluster, f"~/cu-ray/{sweep.name}", results, sweep.folder)
    _require_same_version(cluster)
    if cluster.ask(f"test -e {away.folder}/process && echo there || true").strip() and away.status == "running":
        away.note()
        console.print(f"{sweep.name} runs on {cluster.name} already: following it.")
        return away
    replace(away, ended=not _is_open(away.home)).note()  # not there yet; where it cannot be noted nothing is sent
    source = Path(sweep.source).resolve()
    with tempfile.TemporaryDirectory(prefix="cu-ray-") as name:
        parcel = Path(name)
        paths = pack(source, parcel / "files")
        # packed before the folder `files`, by its name: what is there is in the list also where the unpacking is cut short
        sent = sorted(path.relative_to(parcel) for path in parcel.rglob("*") if not path.is_dir())
        (parcel / "content").write_text("".join(f"{path}\0" for path in sent), encoding="utf-8", errors="surrogateescape")
        if isinstance(away.home, Folder) and (away.home / "ledger").files():
            shutil.copytree(away.home.path / "ledger", parcel / "brought" / "ledger")
        command = ["cu-ray", "sweep", str(source.relative_to(Path.cwd())), "--address", "auto", *options]
        (parcel / "run.sh").write_text(RUN.format(command=shlex.join(command), results=quoted(away.results)), encoding="utf-8")
        console.print(f"Sending {len(paths)} files to {cluster.name} ...")
        cluster.ask(f"cd {away.folder} 2>/dev/null || exit 0; rm -rf brought; [ ! -e content ] || xargs -0 rm -f -- < content")
        cluster.send(parcel, away.folder)
    away.note()
    cluster.ask(
        f"cd {away.folder} && rm -f exit process since && (setsid nohup bash run.sh > run.log 2>&1 < /dev/null &) "
        "&& for i in $(seq 100); do [ -e process ] && exit 0; sleep 0.1; done; exit 1"
    )
    return away


def _is_open(home: Place) -> bool:
    """Whether a sweep was sent from here whose results are not all at home."""
    try:
        return not Away.of(home).ended
    except UserError:
        return False


def _require_same_version(cluster: Cluster) -> None:
    there = cluster.ask("cu-ray --version || true").strip()
    if __version__ not in there.split():
        raise UserError(
            f"the head of {cluster.name} has {there or 'no cu-ray'}, this machine {__version__}: install the same version on "
            f"both (setup_commands of {cluster.path}, then `ray up` again)"
        )
