"""What ckptsync 0.1.0 wrote is still listed, uploaded, resumed from and pruned: output folder, versions, server.

`state_of_0_1_0/` holds the JSON, the manifests and the database that 0.1.0 wrote for four checkpoints, which are made here again,
byte for byte: 4 and 8 are durable, 12 is parked, and 16 was queued when the machine was lost.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptsync import record
from tests import evidence
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Tool, contents, events, kept, program
from tests.server_process import ServerProcess

WRITTEN = Path(__file__).with_name("state_of_0_1_0")
SAVED = 1_700_000_000
STEPS = (4, 8, 12, 16)


@pytest.fixture
def output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder as 0.1.0 left it."""
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "out" / ".ckptsync"
    shutil.copytree(WRITTEN / "output", state)
    for step in STEPS:
        # Relative, since training_args.bin holds the path.
        folder = make_checkpoint(Path("out"), step, max_steps=40, saved_at=SAVED + step)
        for pinned in [*state.glob(f"spool/{folder.name}.*"), *state.glob(f"parked/{folder.name}.*")]:
            shutil.copytree(folder, pinned / "files", copy_function=os.link)
    return tmp_path / "out"


@pytest.fixture
def server(tmp_path: Path, output_dir: Path) -> Iterator[ServerProcess]:
    """Today's server on the data folder of 0.1.0."""
    data = tmp_path / "server"
    _address(data, "md5", "").mkdir(parents=True)
    with sqlite3.connect(data / "server.db") as database:
        database.executescript((WRITTEN / "server" / "server.sql").read_text())
    database.close()
    for manifest in (WRITTEN / "server").glob("*.json"):
        _put(_address(data, "md5", manifest.stem), manifest.read_bytes())
    for step in (4, 8):
        for content in _bytes(output_dir, step):
            _put(_address(data, "xxh128", evidence.hexadecimal(content)), content)
    with ServerProcess(data) as started:
        yield started


def _address(data: Path, algorithm: str, name: str) -> Path:
    return data / "content" / algorithm / name[:2] / name


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.slow
def test_the_versions_of_0_1_0_are_listed_verified_and_pulled(tool: Tool, tmp_path: Path, output_dir: Path) -> None:
    listed = tool.json("list", "r1")
    verified = tool("verify", "r1:step-4", "--remote")
    pulled = tool("pull", "r1:v1", tmp_path / "pulled")

    assert [(each["step"], sorted(each["aliases"])) for each in listed] == [(8, ["latest", "step-8"]), (4, ["step-4"])]
    assert all(each["resumable"] and each["metrics"]["loss"] for each in listed)
    assert verified.returncode == pulled.returncode == 0, verified.stderr + pulled.stderr
    assert contents(tmp_path / "pulled") == contents(output_dir / "checkpoint-8")


def test_the_output_folder_of_0_1_0_is_shown_by_status(tool: Tool, output_dir: Path) -> None:
    shown = json.loads(tool("status", output_dir, "--json").stdout)

    assert (shown["run"], shown["last_durable_step"], shown["last_durable_version"]) == ("r1", 8, "local/tests/checkpoint-r1:v1")
    assert [name.partition(".")[0] for name in shown["pending_names"]] == ["checkpoint-16"]
    assert [name.partition(".")[0] for name in shown["parked_reasons"]] == ["checkpoint-12"]
    assert shown["stored_bytes"] == sum(map(len, [*_bytes(output_dir, 4), *_bytes(output_dir, 8)]))


def _bytes(output_dir: Path, step: int) -> list[bytes]:
    return list(contents(output_dir / f"checkpoint-{step}").values())


@pytest.mark.parametrize(("backlog", "new"), [pytest.param("all", [12, 16], marks=pytest.mark.slow), ("newest", [16])])
def test_what_0_1_0_queued_and_parked_becomes_durable_once_and_in_order(
    tool: Tool, server: ServerProcess, output_dir: Path, backlog: str, new: list[int]
) -> None:
    before = (output_dir / ".ckptsync" / "history.jsonl").read_text()

    done = tool.watch_once(output_dir, "r1", "--backlog", backlog)
    again = tool.watch_once(output_dir, "r1", "--backlog", backlog)

    assert done.returncode == again.returncode == 0, done.stderr + again.stderr
    versions = evidence.versions(server, "checkpoint-r1")
    assert [each.step for each in versions] == [4, 8, *new]
    assert [each.files for each in versions] == [evidence.digests(output_dir / f"checkpoint-{each.step}") for each in versions]
    assert versions[-1].aliases >= {"latest", "step-16"}
    assert not evidence.leftovers(output_dir)
    assert (output_dir / ".ckptsync" / "history.jsonl").read_text().startswith(before)


def test_a_version_of_0_1_0_is_resumed_from_on_a_new_machine(tool: Tool, tmp_path: Path, output_dir: Path) -> None:
    assert tool.pulled("r1", tmp_path / "new") == contents(output_dir / "checkpoint-8")


@pytest.mark.slow
def test_run_continues_in_a_folder_of_0_1_0_and_prune_keeps_the_newest(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    training = program(
        "assert sys.argv[1].endswith('checkpoint-16'), sys.argv[1]",
        f"make_checkpoint(pathlib.Path({str(output_dir)!r}), 40, max_steps=40)",
    )

    done = tool("run", "--run-id", "r1", "--output-dir", output_dir, "--quiet-period", "0.2", "--", *training, "{checkpoint}")
    after_run = kept(server, "r1")
    pruned = tool("prune", "r1", "--keep-last", "1", "--yes")

    assert done.returncode == pruned.returncode == 0, done.stderr + pruned.stderr
    assert [step for step, _ in after_run] == [4, 8, 16, 40]
    assert ("resumed", 16) in events(output_dir, "resumed")
    assert tool.json("status", output_dir)["last_durable_step"] == 40
    assert [step for step, aliases in kept(server, "r1") if "latest" in aliases] == [40]
    assert {step for step, _ in kept(server, "r1")} <= {16, 40}


@pytest.mark.slow
def test_a_new_version_beside_those_of_0_1_0_is_the_newest_whatever_its_step(
    tool: Tool, tmp_path: Path, server: ServerProcess, output_dir: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    training = program(f"make_checkpoint(pathlib.Path({str(elsewhere)!r}), 6)")

    done = tool(
        *("resume", "r1:step-4", "--output-dir", elsewhere, "--quiet-period", "0.2", "--yes"), "--", *training, "{checkpoint}"
    )

    assert done.returncode == 0, done.stderr
    assert [(step, "latest" in aliases) for step, aliases in kept(server, "r1")] == [(4, False), (8, False), (6, True)]
    resumed = tool("resume", "r1", "--output-dir", tmp_path / "third", "--download-only")
    assert Path(resumed.stdout.strip()).name == "checkpoint-6"


def test_a_restart_from_scratch_that_0_1_0_noted_is_not_resumed_from(tool: Tool, output_dir: Path) -> None:
    record.update(output_dir, restarted_at=SAVED + 14.0)

    done = tool("resume", "r1", "--output-dir", output_dir, "--download-only")

    assert Path(done.stdout.strip()).name == "checkpoint-12", done.stderr
