"""One machine with a real systemd for all of these tests, and what an administrator does on it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.guest import CKPTSYNC, SHARED, UID, USER, Guest, Store, why_not

REQUIRED = "CKPTSYNC_TEST_SYSTEMD"
"""Set to `required`, a machine on which no real systemd can be booted fails these tests in place of skipping them."""


@pytest.fixture(scope="session")
def bootable() -> None:
    """Skips, with the reason, where no real systemd can be booted."""
    reason = why_not()
    if reason and os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, but no real systemd can be booted here: {reason}")
    if reason:
        pytest.skip(f"no real systemd can be booted here, so the units were not tried: {reason}")


@pytest.fixture(scope="session")
def guest(bootable: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The machine, with a store in its network."""
    folder = tmp_path_factory.mktemp("guest")
    shared = folder / "shared"
    shared.mkdir()
    open_up(shared)
    with Guest(shared) as booted:
        Store(booted, folder / "store")
        set_up_key(booted)
        yield booted


@pytest.fixture
def store(guest: Guest) -> Iterator[Store]:
    """Its store, without faults before and after."""
    assert guest.store
    guest.store.faults()
    yield guest.store
    guest.store.faults()


def open_up(folder: Path) -> None:
    """Let other users on the way to a folder, which pytest makes for root alone."""
    for each in [folder, *folder.parents][:-2]:
        each.chmod(each.stat().st_mode | 0o111)
    folder.chmod(0o777)


def set_up_key(guest: Guest) -> None:
    """The key where LoadCredential= looks."""
    assert guest.store
    guest.write("/etc/ckptsync/credentials/wandb", guest.store.key + "\n", mode=0o600)


@dataclass
class Unit:
    """One installed instance and its output folder."""

    guest: Guest
    name: str
    kind: str

    @property
    def unit(self) -> str:
        return f"ckptsync-{self.kind}@{self.name}.service"

    @property
    def output_dir(self) -> str:
        return f"{SHARED}/{self.name}"

    @property
    def folder(self) -> Path:
        """The same, as this machine sees it."""
        return self.guest.shared / self.name

    def settings(self, text: str) -> None:
        """Replace all settings but the names."""
        path = f"/etc/ckptsync/{self.name}.toml"
        kept = [line for line in self.guest.sh(f"cat {path}").splitlines() if re.match("output-dir|run-id|project|command", line)]
        self.guest.write(path, "\n".join([*kept, text]) + "\n")

    def override(self, *lines: str) -> None:
        """Settings of the service for this test alone."""
        self.guest.write(f"/etc/systemd/system/{self.unit}.d/90-test.conf", "\n".join(["[Service]", *lines]) + "\n")
        self.guest.sh("systemctl daemon-reload")

    def start(self) -> None:
        self.guest.sh(f"systemctl start {self.unit}")

    def stop(self) -> None:
        self.guest.sh(f"systemctl stop {self.unit}")

    def show(self, *properties: str) -> dict[str, str]:
        return self.guest.show(self.unit, *properties)

    def wait(self, *, seconds: float = 60, **wanted: str) -> dict[str, str]:
        return self.guest.wait_for_unit(self.unit, seconds=seconds, **wanted)

    def save(self, step: int, *, size: int = 64) -> None:
        """Save a checkpoint as its owner."""
        self.guest.as_trainer(
            "from pathlib import Path; from tests.checkpoints import make_checkpoint;"
            f"make_checkpoint(Path({self.output_dir!r}), {step}, size={size})"
        )

    def told(self) -> str:
        return self.guest.told(self.unit)

    def events(self) -> list[dict[str, Any]]:
        """history.jsonl."""
        path = self.folder / ".ckptsync" / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def durable(self) -> list[int]:
        """The steps that have a receipt."""
        return sorted(json.loads(path.read_text())["step"] for path in (self.folder / ".ckptsync" / "receipts").glob("*.json"))

    def waiting(self) -> list[str]:
        """What is in the queue."""
        return sorted(path.name for path in (self.folder / ".ckptsync" / "spool").iterdir())

    def versions(self) -> list[dict[str, Any]]:
        """What the store has."""
        assert self.guest.store
        variables = f"WANDB_BASE_URL={self.guest.store.url} WANDB_API_KEY={self.guest.store.key}"
        found: list[dict[str, Any]] = json.loads(
            self.guest.sh(f"cd /home/{USER}; {variables} {CKPTSYNC} list {self.name} --project tests --json", user=USER)
        )
        return found


Install = Callable[..., Unit]


@pytest.fixture
def install(guest: Guest, store: Store, request: pytest.FixtureRequest) -> Iterator[Install]:
    """Installs a unit with install-units, as an administrator does, and takes it away again."""
    installed: list[Unit] = []

    def installing(*command: str, settings: str = 'quiet-period = "0.3s"') -> Unit:
        unit = make_unit(guest, re.sub(r"\W+", "-", request.node.name)[5:40].strip("-"), *command, settings=settings)
        installed.append(unit)
        return unit

    yield installing
    for unit in installed:
        guest.sh(
            f"systemctl kill -s KILL {unit.unit}; systemctl stop {unit.unit}; systemctl reset-failed {unit.unit}", check=False
        )
        guest.sh(f"rm -f /etc/systemd/system/{unit.unit}.d/90-test.conf; {CKPTSYNC} uninstall-units {unit.name} --force")


def make_unit(guest: Guest, name: str, *command: str, settings: str = "") -> Unit:
    """Call install-units for a new output folder, and add what a test wants."""
    assert guest.store
    unit = Unit(guest, name, "resume" if command else "watch")
    guest.sh(f"install -d -o {UID} -g {UID} {unit.output_dir}")
    words = f"--output-dir {unit.output_dir} --run-id {name} --project tests --working-directory /home/{USER}"
    words += f" -- {' '.join(command)}" if command else ""
    guest.sh(f"{CKPTSYNC} install-units {name} {words} && systemctl daemon-reload")
    guest.write(f"/etc/ckptsync/{name}.env", f"WANDB_BASE_URL={guest.store.url}\nHF_HUB_OFFLINE=1\nOMP_NUM_THREADS=1\n")
    unit.settings(settings)
    return unit


def analyze(*words: str | Path, runtime: Path, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """systemd-analyze, perhaps as another user."""
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, words)],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(runtime), "HOME": str(runtime)},
        capture_output=True,
        text=True,
        user=user,
        cwd="/",
    )
