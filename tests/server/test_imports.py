"""What the server may import, and what finding it may not need."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import ckptsync.server

FOLDER = Path(ckptsync.server.__file__).parent
ALLOWED = {"ckptsync", "starlette", "uvicorn", "graphql", "h11", "re2", "xxhash"}


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
            if node.module == "ckptsync":
                assert [alias.name for alias in node.names] == ["__version__"]
    return names


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_module_imports_only_the_errors_and_the_servers_own_packages(path: Path) -> None:
    foreign = {name for name in _imported(path) if name.partition(".")[0] not in sys.stdlib_module_names}

    assert {name.partition(".")[0] for name in foreign} <= ALLOWED
    ours = {name for name in foreign if name.startswith("ckptsync") and not name.startswith("ckptsync.server")}
    assert ours <= {"ckptsync", "ckptsync.errors"}


def test_the_module_that_finds_the_server_needs_only_the_standard_library() -> None:
    foreign = {name for name in _imported(FOLDER / "local.py") if name.partition(".")[0] not in sys.stdlib_module_names}

    assert foreign == {"ckptsync.errors"}
