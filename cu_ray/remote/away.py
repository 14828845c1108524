"""A sweep on the head of a cluster: started there so that it needs this machine no more, followed, stopped, brought home.

On the head it has a folder of its own, `~/cu-ray/NAME`: what was sent in `files`, from which the driver runs, its output in
`run.log`, its process in `process`, and its exit code in `exit` when it has ended.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console

from cu_ray import __version__
from cu_ray.config import Sweep
from cu_ray.errors import UserError
from cu_ray.places import Folder, Place
from cu_ray.remote.launcher import Cluster, HeadFailed
from cu_ray.remote.parcel import pack

MARK = "cluster.json"  # in the results folder here, or at the URI of the results: where the sweep runs
RUN = """#!/usr/bin/env bash
cd "$(dirname "$0")/files" || exit 1
{command} &
echo $! > ../process
wait $!
echo $? > ../exit
"""


@dataclass(frozen=True)
class Away:
    """A sweep that was sent to a cluster. results: its folder on the head, from there; home: its folder here.

    With results at a URI, they are at home there.
    """

    cluster: Cluster
    folder: str
    results: str
    home: Place

    @classmethod
    def of(cls, home: Place) -> Away:
        """The sweep whose results are to come into this folder. Raises UserError where none was sent to a cluster from here."""
        try:
            facts = json.loads(home.read(MARK))
            return cls(Cluster.of(facts["cluster"]), facts["folder"], facts["results"], home)
        except FileNotFoundError:
            raise UserError(f"{home} is not the folder (results/NAME) of a sweep that was sent to a cluster from here") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{home / MARK} is damaged: give the `cu-ray sweep --cluster` command again") from None

    @property
    def status(self) -> str:
        """'running', or the exit code of the driver, or 'lost' where it ended without one. Raises HeadFailed."""
        return self.cluster.ask(
            f"cd {self.folder} && if [ -e exit ]; then cat exit; elif kill -0 $(cat process) 2>/dev/null; then echo running; "
            "else echo lost; fi"
        ).strip()

    def stop(self) -> None:
        """Let the driver stop as by Ctrl-C: its tables are written, and the same command goes on."""
        self.cluster.ask(f"cd {self.folder} && kill -TERM $(cat process)")

    def fetch(self) -> None:
        """Bring ledger, tables and logs home, unless the driver writes them there itself."""
        if isinstance(self.home, Folder):
            self.cluster.fetch(str(PurePosixPath(self.folder, "files", self.results)), self.home.path)

    def follow(self, console: Console) -> int:
        """Show the driver's output until it ends, then bring the results home; the driver's exit code.

        Ctrl-C leaves the sweep alone and gives 0.
        """
        try:
            self.cluster.show(f"tail -n +1 -f --pid=$(cat {self.folder}/process) {self.folder}/run.log")
            status = self.status
        except (KeyboardInterrupt, HeadFailed):
            status = "left"
        if status in ("running", "left"):
            console.print(f"\nNo longer followed; the sweep goes on on {self.cluster.name}. What to do from here:")
            for command, what in (("attach", "follow it again"), ("status", "how far it is"), ("fetch", "bring its tables home")):
                console.print(f"  cu-ray {command} {self.home}   {what}", soft_wrap=True)
            console.print(f"  cu-ray stop {self.home}     end it; the same command goes on later", soft_wrap=True)
            return 0
        self.fetch()
        console.print(f"Results are in {self.home}.", soft_wrap=True)
        return int(status) if status.isdigit() else 1


def start(sweep: Sweep, cluster: Cluster, options: Sequence[str], console: Console) -> Away:
    """The sweep, running on the cluster's head with these options of `cu-ray sweep`. One that runs there already is taken.

    Raises UserError where the head has another version of cu-ray or a file cannot be sent, HeadFailed where it is not reached.
    """
    away = Away(cluster, f"~/cu-ray/{sweep.name}", str(sweep.folder), sweep.folder)
    _require_same_version(cluster)
    mark = {"cluster": str(cluster.path), "folder": away.folder, "results": away.results}
    away.home.write(MARK, json.dumps(mark).encode())  # before anything starts: it may be that nothing can be written there
    if cluster.ask(f"test -e {away.folder}/process && echo there || true").strip() and away.status == "running":
        console.print(f"{sweep.name} runs on {cluster.name} already: following it.")
    else:
        source = Path(sweep.source).resolve()
        with tempfile.TemporaryDirectory(prefix="cu-ray-") as name:
            paths = pack(source, Path(name) / "files")
            command = ["cu-ray", "sweep", str(source.relative_to(Path.cwd())), "--address", "auto", *options]
            (Path(name) / "run.sh").write_text(RUN.format(command=shlex.join(command)), encoding="utf-8")
            console.print(f"Sending {len(paths)} files to {cluster.name} ...")
            cluster.send(Path(name), away.folder)
        cluster.ask(
            f"cd {away.folder} && rm -f exit process && (setsid nohup bash run.sh > run.log 2>&1 < /dev/null &) "
            "&& for i in $(seq 100); do [ -e process ] && exit 0; sleep 0.1; done; exit 1"
        )
    return away


def _require_same_version(cluster: Cluster) -> None:
    there = cluster.ask("cu-ray --version || true").strip()
    if __version__ not in there.split():
        raise UserError(
            f"the head of {cluster.name} has {there or 'no cu-ray'}, this machine {__version__}: install the same version on "
            f"both (setup_commands of {cluster.path}, then `ray up` again)"
        )
