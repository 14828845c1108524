"""The cluster of a cluster.yaml, by the means of Ray's launcher: is it up, run a command on its head, copy to it and from it.

Nothing else knows how the head is reached: by ssh, through a cloud's own machines or into a container is the launcher's business.
"""

from __future__ import annotations

import contextlib
import json
import os
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

from cu_ray.errors import CuRayError, UserError

RAY_FOLDER = Path("/tmp/ray")  # noqa: S108 where the launcher keeps what it knows of clusters of given machines
PACKED = "cu-ray-packed"  # the file that is copied
ENDED = "cu-ray-ended:"  # before the exit code: the launcher itself does not tell it


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
        workers = [each.get("min_workers", 0) for each in kinds.values() if isinstance(each, dict)]
        return cls(path, value["cluster_name"], provider, sum(workers) or int(value.get("min_workers", 0)))

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
            nodes = _json(RAY_FOLDER / f"cluster-{self.name}.state")
            head = nodes.get(str(self.provider["head_ip"]), {})
            return (head.get("state"), head.get("tags", {}).get("ray-node-status")) == ("running", "up-to-date")
        kept = (_json(path).get("config", {}) for path in Path(tempfile.gettempdir()).glob("ray-config-*"))
        known = [(each.get("cluster_name"), each.get("provider", {}).get("type")) for each in kept]
        return (self.name, self.provider["type"]) in known

    def ask(self, command: str) -> str:
        """What a command prints on the head. Raises HeadFailed where the head is not reached or the command fails."""
        from ray.autoscaler import sdk

        with self._quiet():
            answer = sdk.run_on_cluster(str(self.path), cmd=f"({command}) 2>&1; echo {ENDED}$?", with_output=True)
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
        output, _, code = text.replace("\r\n", "\n").rpartition(ENDED)
        if code.strip() != "0":
            raise HeadFailed(f"on the head of {self.name}, exit code {code.strip() or 'unknown'}: {output.strip() or command}")
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
        self.ask(f"tar czf {there} {left_out} -C {quoted(folder)} . || [ $? = 1 ]")  # 1: a file changed meanwhile
        try:
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

        with self._quiet():
            sdk.rsync(str(self.path), source=source, target=target, down=down)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """The launcher and its ssh without their remarks; the last one is part of the error where they fail."""
        import click
        from ray.autoscaler import sdk

        if self._is_of_given_machines and not self.was_launched():  # asked all the same, the launcher would forget another one
            raise HeadFailed(f"{self.name} ({self.path}) is not up as far as this machine knows. {self._mend}")
        with tempfile.TemporaryFile("w+") as remarks, _stderr_in(remarks), contextlib.redirect_stdout(_Aside(remarks)):
            sdk.configure_logging(log_style="pretty", color_mode="false", verbosity=0)
            try:
                yield
            except (click.ClickException, RuntimeError, ValueError, OSError, SystemExit) as error:
                remarks.flush()
                remarks.seek(0)
                said = [line.strip() for line in remarks if line.strip() and not line.startswith("Shared connection")]
                why = said[-1] if said and "SSH command failed" in str(error) else str(error)
                raise HeadFailed(f"the head of {self.name} is not reached: {why.rstrip('.')}. {self._mend}") from error

    @property
    def _is_of_given_machines(self) -> bool:
        return self.provider["type"] == "local" and "head_ip" in self.provider

    @property
    def _mend(self) -> str:
        return f"`ray up {self.path}` starts it; `cu-ray sweep --local` runs on this machine"


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
def _stderr_in(file: IO[str]) -> Iterator[None]:
    """Error output, also of child processes, goes to a file until the end of the context."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
