"""The unit files, as systemd-analyze reads them: with and without root."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ckptsync.service import units
from ckptsync.service.units import Instance, Owner, Place
from tests.systemd.conftest import analyze

NOBODY = 65534
TEMPLATES = sorted(path.relative_to(units.templates()) for path in units.templates().rglob("*.service"))

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed: units unchecked")


@pytest.fixture(params=["as we are", "without root"])
def user(request: pytest.FixtureRequest) -> int | None:
    """Whom to run systemd-analyze as."""
    if request.param == "as we are":
        return None
    if os.geteuid() != 0:
        pytest.skip("not root anyway")
    return NOBODY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that everybody may enter and read."""
    for each in [tmp_path, *tmp_path.parents][:-2]:
        each.chmod(each.stat().st_mode | 0o111)
    tmp_path.chmod(0o777)
    return tmp_path


def test_there_are_both_units_for_the_system_and_for_a_user() -> None:
    names = ["ckptsync-resume@.service", "ckptsync-watch@.service"]

    assert [str(path) for path in TEMPLATES] == [*names, *(f"user/{name}" for name in names)]


@pytest.mark.parametrize("template", TEMPLATES, ids=str)
def test_every_unit_is_understood_to_the_last_key_and_little_exposed(template: Path, folder: Path, user: int | None) -> None:
    unit = folder / template.name
    unit.write_text((units.templates() / template).read_text())
    manager = "--user" if template.parent.name == "user" else "--system"

    verified = analyze(manager, "verify", unit, runtime=folder, user=user)
    exposure = analyze(manager, "security", "--offline=true", "--threshold=20", unit, runtime=folder, user=user)

    assert (verified.returncode, verified.stderr) == (0, "")
    assert exposure.returncode == 0, exposure.stdout


@pytest.mark.parametrize("kind", units.KINDS)
def test_an_installed_unit_is_understood_with_its_drop_in_whatever_the_paths(kind: str, folder: Path, user: int | None) -> None:
    output_dir = folder / 'runs 100% "$HOME" ünï'
    output_dir.mkdir()
    place = Place(folder / "etc" / "systemd" / "system", folder / "etc" / "ckptsync")
    instance = Instance(
        "demo",
        kind,
        output_dir,
        ["/bin/true"],
        {"run-id": "demo"},
        owner=Owner("nobody-else", 1, frozenset()),
        folder=output_dir if kind == "resume" else None,
        before="training.service" if kind == "watch" else None,
    )
    units.write(instance, place, units.plan(instance, place))

    verified = analyze("verify", place.units / instance.unit, runtime=folder, user=user)

    assert (verified.returncode, verified.stderr) == (0, "")
