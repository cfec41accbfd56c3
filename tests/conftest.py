"""For every test: a machine on which nobody is logged in to W&B, hypothesis without surprises on a busy one, and its figures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest

from tests import figures
from tests.terminal import Pty

hypothesis.settings.register_profile(
    "ckptsync", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ckptsync")


def pytest_configure(config: pytest.Config) -> None:
    figures.begin()


LONG = ("trainer", "workflow", "preemption", "crash", "layouts", "systemd", "integration", "faults", "server", "property")
"""Folders of tests, the one with the longest files first: a long file that is started last keeps one core busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for table in figures.gathered():
        table.show(terminalreporter)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a figure is wrong, whatever the tests said."""
    if any(table.wrong() for table in figures.gathered()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        figures.end()


_OTHERS = ("CREDENTIALS_DIRECTORY", "NETRC", "NOTIFY_SOCKET", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


@pytest.fixture
def terminal() -> Iterator[type[Pty]]:
    """Opens pseudo-terminals; none of them outlives the test."""
    opened: list[Pty] = []

    class Opened(Pty):
        def __init__(self, *command: str, environment: Mapping[str, str] = os.environ) -> None:
            super().__init__(*command, environment=environment)
            opened.append(self)

    yield Opened
    for one in opened:
        one.close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own W&B account or settings reaches a test; CKPTSYNC_TEST_* are for the tests themselves."""
    for name in list(os.environ):
        if name in _OTHERS or (name.startswith(("WANDB_", "CKPTSYNC_")) and not name.startswith("CKPTSYNC_TEST_")):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with nothing in it."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, for a test that makes hundreds of synced files."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ckptsync-test-") as folder:
        yield Path(folder)


@pytest.fixture
def other_file_system() -> Iterator[Path]:
    """A folder to which no hard link from tmp_path can lead. Skips where there is no second file system."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("no second file system here: the fallback from link to copy was not checked")
    with tempfile.TemporaryDirectory(dir=shared, prefix="ckptsync-test-") as folder:
        yield Path(folder)
