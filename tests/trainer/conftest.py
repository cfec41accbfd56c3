"""Fixtures of the tests with real trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
    folder = tmp_path_factory.mktemp("uninterrupted")
    Training().run(*TINY, folder)
    return folder


@pytest.fixture(scope="session")
def uninterrupted_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two ranks."""
    folder = tmp_path_factory.mktemp("uninterrupted-ranks")
    Training().run(*TINY, folder, ranks=2)
    return folder
