"""A real server, and ckptsync as a user runs it: the command, in a home of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ckptsync.checkpoint import step_of
from tests.server import api
from tests.server_process import ServerProcess

TRAINING = (sys.executable, "-m", "ckptsync.trainer.tiny")
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ ")
UPSERT = "mutation UpsertBucket($input: UpsertBucketInput!) { upsertBucket(input: $input) { bucket { name } } }"
VERSIONS = """query Versions($name: String!) { project(name: "tests", entityName: "local") { artifactCollection(name: $name) {
    artifacts { edges { version node { state metadata aliases { alias } } } } } } }"""
POLICY = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}


class Tool:
    """The command `ckptsync` in an environment that knows the test's server and nothing of this machine's user."""

    def __init__(self, home: Path, server: ServerProcess | None = None, **variables: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "CKPTSYNC_", "XDG_"))}
        ours = {"HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_DIR": str(home), "WANDB_CONSOLE": "off"}
        self.home = home
        self.environment = kept | ours | (server.environment if server else {}) | {"WANDB_PROJECT": "tests"} | variables
        self.environment.pop("WANDB_ENTITY", None)

    def __call__(self, *words: str | Path, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment | variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *words: str | Path, log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command and leave it running. What it says goes to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(*words),
                env=self.environment | variables,
                cwd=self.home,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

    def json(self, *words: str | Path) -> Any:
        """What a command with --json prints."""
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def watch_once(self, output_dir: Path, run_id: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Upload what is there and exit."""
        return self("watch", output_dir, "--run-id", run_id, "--once", "--quiet-period", "0.1", *words)

    def pulled(self, run_id: str, output_dir: Path) -> dict[str, bytes]:
        """Every file of what `resume --download-only` brings into a folder."""
        done = self("resume", run_id, "--output-dir", output_dir, "--download-only")
        assert done.returncode == 0, done.stderr
        return contents(Path(done.stdout.strip()))

    def run_program(self, command: Sequence[str], *, timeout: float = 120) -> int:
        """Run something else to its end, in the same environment."""
        return subprocess.run(command, env=self.environment, cwd=self.home, timeout=timeout).returncode

    @staticmethod
    def command(*words: str | Path) -> list[str]:
        return [sys.executable, "-m", "ckptsync", *map(str, words)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module; each test has a run of its own on it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as started:
        yield started


@pytest.fixture(autouse=True)
def no_faults(server: ServerProcess) -> Iterator[None]:
    """What one test injects is gone before the next."""
    yield
    server.faults([])


@pytest.fixture
def tool(tmp_path: Path, server: ServerProcess) -> Tool:
    """The command, connected to the server."""
    return Tool(tmp_path / "home", server)


Ended = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


@pytest.fixture
def ended() -> Iterator[Ended]:
    """Registers a process that must not outlive its test."""
    processes: list[subprocess.Popen[bytes]] = []

    def register(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        processes.append(process)
        return process

    yield register
    for process in processes:
        if process.poll() is None:
            kill_tree(process.pid)
        process.wait(30)


def wait_for(condition: Callable[[], Any], *, seconds: float = 60, what: str) -> Any:
    """The first true answer of a condition; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not in {seconds} s: {what}")


def descendants(pid: int) -> list[int]:
    """Every process below this one."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
        except OSError:
            continue
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL for a process and all below it: the machine is gone."""
    for each in [pid, *descendants(pid)]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def training(output_dir: Path, *, steps: int = 12, save: int = 4, seconds: float = 0.0, **options: Any) -> list[str]:
    """The command of a tiny real training."""
    extra = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    numbers = ["--max-steps", str(steps), "--save-steps", str(save), "--step-seconds", str(seconds)]
    return [*TRAINING, "--output-dir", str(output_dir), *numbers, *extra]


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused command says, log lines (they begin with the time) apart."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ckptsync: ")
    return lines[0]


def make_run(server: ServerProcess, run_id: str, *, project: str = "tests") -> None:
    """A run on the server, as a training's wandb.init leaves it."""
    config = json.dumps({"_wandb": {"value": {"t": {}}}})
    api.data(server.graphql(UPSERT, input={"entityName": "local", "modelName": project, "name": run_id, "config": config}))


def publish(
    server: ServerProcess,
    folder: Path,
    run_id: str,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    ours: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
    unannounced: Sequence[str] = (),
    policy: Mapping[str, Any] = POLICY,
    as_hf_does: bool = False,
) -> bytes:
    """Make a checkpoint folder a version as ckptsync would, or as HF's WandbCallback does: in milliseconds, without the client.

    Returns its manifest. `ours` changes the metadata that ckptsync writes, `extra` adds files, `unannounced` ones stand in the
    manifest alone, and `policy` is what that says beside its contents.
    """
    kind = "model" if as_hf_does else "checkpoint"
    collection = name or f"{kind}-{run_id}"
    step = step_of(folder.name)
    assert step is not None
    files = contents(folder) | dict(extra or {})
    saved_at = max(path.stat().st_mtime for path in folder.rglob("*"))
    metadata: dict[str, Any] = {
        "global_step": step,
        "ckptsync": {"version": 1, "step": step, "saved_at": saved_at, **(ours or {})},
    }
    named = [f"checkpoint_global_step_{step}" if as_hf_does else f"step-{step}", "latest", *aliases]
    made = api.create(
        server,
        collection,
        api.hexmd5(repr(sorted(files.items())).encode()),
        projectName="tests",
        aliases=[{"artifactCollectionName": collection, "alias": alias} for alias in named],
        metadata=json.dumps({} if as_hf_does else metadata),
    )
    for path, content in files.items():
        announced = api.announce(server, made, "config.json" if path in unannounced else path, content)
        if announced["uploadUrl"]:
            assert api.put(server, announced["uploadUrl"], content, api.b64md5(content)) == 200
    entries = {path: {"digest": api.b64md5(content), "size": len(content)} for path, content in files.items()}
    text = json.dumps({"version": 1, **policy, "contents": entries}).encode()
    file = api.data(server.graphql(api.MANIFEST, id=made, digest=api.b64md5(text)))["artifactManifest"]["file"]
    assert api.put(server, file["uploadUrl"], text, api.b64md5(text)) == 200
    assert api.data(server.graphql(api.COMMIT, id=made))["artifact"]["state"] == "COMMITTED"
    return text


def kept(server: ServerProcess, run_id: str) -> list[tuple[int, list[str]]]:
    """(step, aliases) of what the server keeps of a run, oldest first."""
    project = api.data(server.graphql(VERSIONS, name=f"checkpoint-{run_id}"))
    collection = project["artifactCollection"] if project else None
    edges = reversed(collection["artifacts"]["edges"]) if collection else []
    nodes = [edge["node"] for edge in edges if edge["node"]["state"] == "COMMITTED"]
    return [(json.loads(node["metadata"])["global_step"], sorted(each["alias"] for each in node["aliases"])) for node in nodes]


def events(output_dir: Path, *kinds: str) -> list[tuple[str, int]]:
    """(event, step) of what history.jsonl says, of these kinds alone."""
    path = output_dir / ".ckptsync" / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["event"], line["step"]) for line in lines if line["event"] in kinds]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for_event(output_dir: Path, kind: str, step: int) -> None:
    """Wait until history.jsonl tells it."""
    wait_for(lambda: (kind, step) in events(output_dir, kind), what=f"{kind} {step}")


def program(*lines: str) -> list[str]:
    """The command of a program of these lines, which has `make_checkpoint` and some modules at hand."""
    prelude = (
        "import os, pathlib, signal, sys, time",
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})",
        "from tests.checkpoints import make_checkpoint",
    )
    return [sys.executable, "-c", "\n".join([*prelude, *lines])]


def address(content: bytes | Path) -> str:
    """Where the server keeps a content: what the path of its requests ends with."""
    return f"/storage/content/md5-{api.hexmd5(content if isinstance(content, bytes) else content.read_bytes())}"
