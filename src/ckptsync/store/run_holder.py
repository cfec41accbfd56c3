"""Which machine follows a run, as the server knows it: a note and a heartbeat in the run `ckptsync-<run_id>`.

Plain HTTP: an idle watcher must not load the wandb client for a request every few seconds. A heartbeat is the request by which
the client itself starts a run (wandb 0.31), so the server dates it with its own clock.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from ckptsync import processes
from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import PermanentStoreError, TransientStoreError

TIMEOUT = 10.0

REFUSALS = (400, 401, 403, 404)

_FIELDS = "name state notes heartbeatAt project { name entity { name } }"
_TRAINING = """query TrainingRun($entity: String, $project: String, $run: String!) {
    project(name: $project, entityName: $entity) { run(name: $run) { state host heartbeatAt } } }"""
_READ = f"""query Holder($entity: String, $project: String, $run: String!) {{
    project(name: $project, entityName: $entity) {{ run(name: $run) {{ {_FIELDS} }} }} }}"""
_WRITE = f"mutation Hold($input: UpsertBucketInput!) {{ upsertBucket(input: $input) {{ bucket {{ {_FIELDS} }} }} }}"


@dataclass(frozen=True, slots=True)
class Holder:
    """The ckptsync that follows a run: its process (`processes.identity`), machine, output folder and SLURM job.

    `leaving` says that a preemption notice came, so that it will soon be gone. `beside` says that it was told to go on beside
    whoever else follows the run, so that it takes it from nobody. `ended` says that it follows the run no longer: the note stays,
    so that a machine which had held the run before and was paused finds out that it was taken. `undone` says that it started the
    training, whose program has not come to an exit with 0: what follows `train()` is still to be done. `trained` says that it
    started a training itself, and that no Python process of that lived any more when it ended.
    """

    process: Mapping[str, Any]
    boot: str
    output_dir: str
    job: str = ""
    leaving: bool = False
    beside: bool = False
    ended: bool = False
    undone: bool = False
    trained: bool = False

    def is_same(self, other: Holder | None) -> bool:
        """Whether both are one process."""
        return other is not None and (self.process, self.boot) == (other.process, other.boot)

    def is_another(self, here: Holder) -> bool:
        """Whether it follows the run from another folder, machine or container, and as no part of the same SLURM job."""
        if self.job and self.job == here.job:
            return False
        return not (self._shares_machine(here) and self.output_dir == here.output_dir)

    def has_ended(self, here: Holder) -> bool:
        """Whether it ran on this machine, in this container, and is gone."""
        return self._shares_machine(here) and processes.living(self.process) is None

    def _shares_machine(self, here: Holder) -> bool:
        return self.boot == here.boot and processes.is_visible(self.process)

    def __str__(self) -> str:
        return f"{self.process.get('host')} (pid {self.process.get('pid')}, {self.output_dir})"


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life of a W&B run: at which server time, and from which host; `age` is in seconds, None if unknown.

    `holder` is who follows the training, by the note of the sync run; None where there is none.
    """

    host: str | None = None
    holder: Holder | None = None
    beat: str | None = None
    running: bool = False
    age: float | None = None

    def __str__(self) -> str:
        return f"followed by ckptsync on {self.holder}" if self.holder else f"trained on {self.host}"


def here(output_dir: Path) -> Holder:
    """This process as a holder."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Holder(processes.identity(os.getpid()), boot, os.path.realpath(output_dir), os.environ.get("SLURM_JOB_ID", ""))


@dataclass(slots=True)
class HolderNotes:
    """Reads and writes who holds a run. Each method is one request or two.

    Raises TransientStoreError where the store can't be reached, PermanentStoreError where it refuses to say.
    """

    connection: Connection
    run: Run
    _path: str | None = field(default=None, init=False)

    def read(self) -> Sign:
        """The last sign of life of whoever holds the run."""
        return self._sign(*self._run_of(_READ, self._name))

    def read_training(self) -> Sign:
        """The last sign of life of the training itself, which its own wandb client gives, whatever started it."""
        return self._sign(*self._run_of(_TRAINING, self.run.run_id))

    def beat(self, holder: Holder | None = None) -> Sign:
        """Renew the heartbeat, with a holder also the note of who holds the run, and return what the server then knows."""
        given = {
            "host": socket.gethostname(),
            "groupName": self.run.run_id,
            "jobType": "checkpoint-sync",
            "displayName": self._name,
        }
        notes = {"notes": json.dumps(asdict(holder))} if holder else {}
        answer, now = self._ask(_WRITE, {"input": self._named() | given | notes})
        return self._sign((answer.get("upsertBucket") or {}).get("bucket"), now)

    def end(self, holder: Holder) -> None:
        """Say that this holder held the run last, and that nobody does any more."""
        self._ask(_WRITE, {"input": self._named() | {"notes": json.dumps(asdict(replace(holder, ended=True)))}})
        if self._path:
            self._post(self._path, {"complete": True, "exitcode": 0})

    def _run_of(self, query: str, name: str) -> tuple[Any, float | None]:
        answer, now = self._ask(query, {"entity": self.run.entity, "project": self.run.project, "run": name})
        return (answer.get("project") or {}).get("run"), now

    @property
    def _name(self) -> str:
        return f"ckptsync-{self.run.run_id}"

    def _named(self) -> dict[str, Any]:
        return {"entityName": self.run.entity, "modelName": self.run.project, "name": self._name}

    def _sign(self, found: Any, now: float | None) -> Sign:
        if not isinstance(found, dict):
            return Sign()
        with contextlib.suppress(TypeError, KeyError):
            where = found["project"]
            self._path = f"/files/{where['entity']['name']}/{where['name']}/{self._name}/file_stream"
        beat = found.get("heartbeatAt")
        age = None
        with contextlib.suppress(TypeError, ValueError):
            age = now - _seconds(beat) if now is not None else None
        running = found.get("state") in ("running", "preempting")
        return Sign(found.get("host"), _holder(found.get("notes")), beat, running, age)

    def _ask(self, query: str, variables: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
        """The data of an answer, and the server's time."""
        answer, date = self._post("/graphql", {"query": query, "variables": variables})
        found = answer.get("data")
        if not isinstance(found, dict) or answer.get("errors"):
            raise PermanentStoreError(f"{self.connection.base_url} does not say who follows the run: {answer.get('errors')}")
        now = None
        with contextlib.suppress(TypeError, ValueError):
            now = parsedate_to_datetime(str(date)).timestamp()
        return found, now

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        # Not `import http.client`: another thread may be importing it, and the package lack its submodule yet (CPython).
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        key = base64.b64encode(f"api:{self.connection.api_key}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {key}", "User-Agent": "ckptsync"}
        request = Request(self.connection.base_url.rstrip("/") + path, json.dumps(body).encode(), headers)  # noqa: S310 - the store's address
        try:
            with urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - the store's address
                answer = json.loads(response.read())
                return (answer if isinstance(answer, dict) else {}), response.headers.get("Date")
        except (OSError, HTTPException, ValueError) as error:
            refused = isinstance(error, HTTPError) and error.code in REFUSALS
            kind = PermanentStoreError if refused else TransientStoreError
            raise kind(f"{self.connection.base_url} does not say who follows the run: {error}") from error


def _seconds(moment: Any) -> float:
    parsed = datetime.fromisoformat(moment)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _holder(notes: Any) -> Holder | None:
    """The holder that a note names; None for a person's own note."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        value = json.loads(notes)
        process = value["process"]
        if isinstance(process, dict):
            flags = {name: value.get(name) is True for name in ("leaving", "beside", "ended", "undone", "trained")}
            return Holder(process, str(value["boot"]), str(value["output_dir"]), str(value.get("job") or ""), **flags)
    return None
