"""The cluster of a cluster.yaml, by the means of Ray's launcher: is it up, run a command on its head, copy to it and from it.

Nothing else knows how the head is reached: by ssh, through a cloud's own machines or into a container is the launcher's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from cu_ray.errors import CuRayError, UserError, in_one_line

RAY_FOLDER = Path("/tmp/ray")  # noqa: S108 where the launcher keeps what it knows of clusters of given machines
PACKED = "cu-ray-packed"  # the file that is copied
BEGAN, ENDED = "cu-ray-began", "cu-ray-ended:"  # around what a command prints; behind them its exit code, which Ray does not tell
OF_SSH = re.compile(r"ssh|kex_|Host key |Connection (closed|reset|timed)|.*Permission denied")  # what its last words begin with


def quoted(path: str) -> str:
    """A path of the head's for its shell, which knows the home folder."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


class HeadFailed(CuRayError):
    """The head of a cluster is not reached, or a command failed there."""


@dataclass(frozen=True)
class Cluster:
    """A cluster.yaml that Ray's launcher takes."""

    path: Path
    name: str
    provider: dict[str, Any]
    min_workers: int

    @classmethod
    def of(cls, path: Path | str) -> Cluster:
        """The cluster of a file. Raises UserError where there is none, or it is no file for `ray up`."""
        if not str(path):
            raise UserError("--cluster '' is not allowed. Allowed: the file that `ray up` was given")
        path = Path(path).expanduser().resolve()
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"there is no file {path}: --cluster needs the file that `ray up` was given") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
        provider = value.get("provider") if isinstance(value, dict) else None
        if not (isinstance(provider, dict) and isinstance(value.get("cluster_name"), str) and "type" in provider):
            raise UserError(f"{path}: not a file for `ray up`: it needs cluster_name and provider.type")
        kinds = value.get("available_node_types") or {}
        if not (isinstance(kinds, dict) and isinstance(provider.get("worker_ips", []), list)):
            raise UserError(f"{path}: not a file for `ray up`: available_node_types has to be a mapping, worker_ips a list")
        *of_kinds, of_all = (each.get("min_workers", 0) for each in (*kinds.values(), value) if isinstance(each, dict))
        if not all(type(number) is int for number in (*of_kinds, of_all)):
            raise UserError(f"{path}: not a file for `ray up`: min_workers has to be a whole number")
        return cls(path, value["cluster_name"], provider, sum(of_kinds) or of_all)

    @property
    def num_nodes(self) -> int:
        """How many nodes it has at least when all have joined."""
        return 1 + (len(self.provider.get("worker_ips", ())) if self._is_of_given_machines else self.min_workers)

    @property
    def addresses(self) -> list[str]:
        """Of the machines that the file gives by address; of a cloud's there are none."""
        given = [self.provider.get("head_ip"), *self.provider.get("worker_ips", ())] if self._is_of_given_machines else []
        return [str(address) for address in given]

    def was_launched(self) -> bool:
        """Whether the launcher has started it from this machine, as far as the launcher's own files say: no network is used.

        Of a cluster of given machines they say whether it is up; of one in a cloud, only that it was looked after from here.
        """
        if self._is_of_given_machines:
            head = self.state().get(str(self.provider["head_ip"]), {})
            return (head.get("state"), head.get("tags", {}).get("ray-node-status")) == ("running", "up-to-date")
        kept = (_json(path).get("config", {}) for path in Path(tempfile.gettempdir()).glob("ray-config-*"))
        known = [(each.get("cluster_name"), each.get("provider", {}).get("type")) for each in kept]
        return (self.name, self.provider["type"]) in known

    def state(self) -> dict[str, Any]:
        """What the launcher has noted of given machines; nothing of a cloud's, which it asks."""
        return _json(self._state_file) if self._is_of_given_machines else {}

    def recall(self, state: dict[str, Any] | None) -> None:
        """Give the launcher back what it knew of given machines, where its file is gone as after a restart of this machine."""
        if state and self._is_of_given_machines and not self._state_file.exists():
            with contextlib.suppress(OSError):
                self._state_file.parent.mkdir(exist_ok=True)
                self._state_file.write_text(json.dumps(state), encoding="utf-8")

    def ask(self, command: str) -> str:
        """What a command prints on the head. Raises HeadFailed where the head is not reached or the command fails.

        Its shell's start and end may print as well. The marks are in two parts, so that they are not in the text of the command.
        """
        from ray.autoscaler import sdk

        began, ended = (f"{mark[:6]}''{mark[6:]}" for mark in (BEGAN, ENDED))
        with self._quiet():
            answer = sdk.run_on_cluster(str(self.path), cmd=f"echo {began}; ({command}) 2>&1; echo {ended}$?", with_output=True)
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
        text = re.sub("\r+\n", "\n", text)
        output, _, after = text.partition(f"{BEGAN}\n")[2].rpartition(ENDED)
        code = after.partition("\n")[0].strip()
        if code != "0":
            said = (output if code else text).strip()
            raise HeadFailed(f"on the head of {self.name}, exit code {code or 'unknown'}: {said or command}")
        return output

    def show(self, command: str) -> None:
        """Run a command on the head whose output goes to this terminal as it comes. Raises HeadFailed where it is not reached."""
        from ray.autoscaler import sdk

        with self._quiet():
            sdk.run_on_cluster(str(self.path), cmd=f"({command}); true")

    def send(self, folder: Path, to: str) -> None:
        """Put a folder's content into a folder of the head's, which is made. Raises HeadFailed.

        As one file: what cluster.yaml leaves out when Ray copies (rsync_exclude, rsync_filter) is meant for other things.
        """
        with tempfile.TemporaryDirectory(prefix="cu-ray-") as name:
            packed = Path(name) / PACKED
            with tarfile.open(packed, "w:gz") as file:
                file.add(folder, ".")
            self.ask(f"mkdir -p {to}")
            self._copy(str(packed), f"{to}/{PACKED}", down=False)
            self.ask(f"cd {to} && tar xzf {PACKED} && rm {PACKED}")

    def fetch(self, folder: str, to: Path) -> None:
        """Put the content of a folder of the head's into one here. Raises HeadFailed."""
        there = f"/tmp/{PACKED}-{uuid.uuid4().hex}"  # noqa: S108
        left_out = "--exclude=./.tune --exclude='./optuna-journal.log.lock*'"  # of the moment
        try:
            self.ask(f"tar czf {there} {left_out} -C {quoted(folder)} . || [ $? = 1 ]")  # 1: a file changed meanwhile
            with tempfile.TemporaryDirectory(prefix="cu-ray-") as name:
                self._copy(there, f"{name}/{PACKED}", down=True)
                with tarfile.open(f"{name}/{PACKED}") as file:
                    file.extractall(to, filter=_harmless)  # noqa: S202 (it looks at each)
        except (OSError, tarfile.TarError) as error:
            raise HeadFailed(f"what came from the head of {self.name} cannot be put into {to}: {error}") from error
        finally:
            self.ask(f"rm -f {there}")

    def _copy(self, source: str, target: str, *, down: bool) -> None:
        from ray.autoscaler import sdk

        try:
            with self._quiet():
                sdk.rsync(str(self.path), source=source, target=target, down=down)
        except HeadFailed as error:  # which says nothing of why; a head that is not reached does not answer now either
            room = self.ask("df -h --output=avail,target ~ /tmp | tail -n +2")
            free = ", ".join(dict.fromkeys(" in ".join(line.split()) for line in room.splitlines()))
            way = "from" if down else "to"
            raise HeadFailed(f"a file cannot be copied {way} the head of {self.name}; it answers, free there: {free}") from error

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """The launcher and its ssh without their remarks; ssh's last one is part of the error where they fail.

        ssh takes all that there is to read from this process on, though no command needs it: none, where no terminal is there.
        """
        from ray.autoscaler import sdk

        if self._is_of_given_machines and not self.was_launched():  # asked all the same, the launcher would forget another one
            raise HeadFailed(f"{self.name} ({self.path}) is not up as far as this machine knows. {self._mend}")
        with (
            tempfile.TemporaryFile("w+", errors="replace") as remarks,
            open(os.devnull) as nothing,
            _in_place_of(2, remarks),
            contextlib.nullcontext() if os.isatty(0) else _in_place_of(0, nothing),
            contextlib.redirect_stdout(_Aside(remarks)),
        ):
            sdk.configure_logging(log_style="pretty", color_mode="false", verbosity=0)
            try:
                yield
            except (Exception, SystemExit) as error:  # of the launcher, and of a cloud's own library
                remarks.flush()
                remarks.seek(0)
                said = [line.strip().removesuffix(".") for line in remarks if OF_SSH.match(line)]
                why = said[-1] if said else in_one_line(error) or type(error).__name__
                raise HeadFailed(f"the head of {self.name} is not reached: {why}. {self._mend}") from error

    @property
    def _is_of_given_machines(self) -> bool:
        return self.provider["type"] == "local" and "head_ip" in self.provider

    @property
    def _state_file(self) -> Path:
        return RAY_FOLDER / f"cluster-{self.name}.state"

    @property
    def _mend(self) -> str:
        return f"`ray up {self.path}` starts it, and ends sweeps that run there; `cu-ray sweep --local` runs on this machine"


def _harmless(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """What `tarfile` lets into a folder; nothing in the place of a link that leads out of it, unless that would be a result."""
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        if Path(member.name).parts[:1] in (("ledger",), ("tables",)):
            raise
        return None


class _Aside:
    """Standard output of which Python's part goes into a file, and that of child processes where it always went."""

    def __init__(self, file: IO[str]) -> None:
        self.write, self.flush, self.fileno, self.isatty = file.write, file.flush, sys.stdout.fileno, sys.stdout.isatty


@contextlib.contextmanager
def _in_place_of(descriptor: int, file: IO[str]) -> Iterator[None]:
    """A file stands for a descriptor, also of child processes, until the end of the context."""
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
