"""Fixtures of the tests with real trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shared_folders import made_once
from tests.trainer.trainings import TINY, Training


@pytest.fixture
def training() -> Iterator[Training]:
    """Starts trainings; none of them outlives the test."""
    one = Training()
    yield one
    one.end()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a tiny training that nothing disturbed."""
    return made_once(tmp_path_factory, "uninterrupted", lambda folder: Training().run(*TINY, folder))


@pytest.fixture(scope="session")
def uninterrupted_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two ranks."""
    return made_once(tmp_path_factory, "uninterrupted-ranks", lambda folder: Training().run(*TINY, folder, ranks=2))
