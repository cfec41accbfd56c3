"""What an installation of units writes, takes away, and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ckptsync.errors import NotFoundError, UsageError
from ckptsync.service import units
from ckptsync.service.units import Instance, Owner, Place

SOMEBODY = Owner("somebody", 54321, frozenset({54321}))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A manager's folders, still missing."""
    return Place(tmp_path / "etc" / "systemd" / "system", tmp_path / "etc" / "ckptsync")


def _instance(name: str = "demo", kind: str = "watch", **changes: object) -> Instance:
    values: dict[str, object] = {
        "name": name,
        "kind": kind,
        "output_dir": Path("/srv/out"),
        "program": ["/opt/ckptsync/bin/ckptsync"],
        "settings": {"output-dir": "/srv/out", "run-id": name},
        "owner": SOMEBODY,
    }
    return Instance(**(values | changes))  # type: ignore[arg-type]


def _install(instance: Instance, place: Place, *, force: bool = False) -> list[Path]:
    files = units.plan(instance, place)
    units.write(instance, place, files, force=force)
    return [file.path for file in files]


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_template_the_drop_in_and_the_settings_are_written(place: Place) -> None:
    template, drop_in, settings = _install(_instance(before="training.service"), place)

    assert template.read_text() == (units.templates() / "ckptsync-watch@.service").read_text()
    assert drop_in == place.units / "ckptsync-watch@demo.service.d" / "50-ckptsync.conf"
    for line in (
        "User=somebody",
        "ReadWritePaths=/srv/out",
        "Before=training.service",
        "ExecStart=/opt/ckptsync/bin/ckptsync watch --config %E/ckptsync/%i.toml",
    ):
        assert line in drop_in.read_text().splitlines()
    assert tomllib.loads(settings.read_text()) == {"output-dir": "/srv/out", "run-id": "demo"}


def test_whatever_stands_in_the_settings_comes_back(place: Place) -> None:
    command = ["/usr/bin/python", 'a "b"', "back\\slash", "line\nbreak", "ünï 😀", "\x7f", "100%"]

    *_, settings = _install(_instance(kind="resume", settings={"command": command}), place)

    assert tomllib.loads(settings.read_text()) == {"command": command}


def test_removing_leaves_nothing_behind(place: Place, tmp_path: Path) -> None:
    _install(_instance(), place)

    gone, kept = units.remove(place, "demo")

    assert len([path for path in gone if path.suffix]) >= 3
    assert not kept
    assert list(tmp_path.iterdir()) == []


def test_files_that_existed_before_are_kept(place: Place) -> None:
    place.settings.mkdir(parents=True)
    (place.settings / "mine.toml").write_text("")
    before = _files(place.settings.parent)
    _install(_instance(), place)

    units.remove(place, "demo")

    assert _files(place.settings.parent) == before


def test_the_template_stays_for_as_long_as_another_instance_needs_it(place: Place) -> None:
    template, *_ = _install(_instance("one"), place)
    _install(_instance("two"), place)

    _, kept = units.remove(place, "one")
    assert kept == [template]
    gone, _ = units.remove(place, "two")

    assert template in gone


def test_a_file_that_somebody_changed_is_kept(place: Place) -> None:
    *_, settings = _install(_instance(), place)
    settings.write_text("mine = 1\n")

    _, kept = units.remove(place, "demo")

    assert kept == [settings]
    assert settings.read_text() == "mine = 1\n"


def test_nothing_is_overwritten_without_force(place: Place) -> None:
    *_, settings = _install(_instance(), place)
    settings.write_text("mine = 1\n")
    before = {path: path.read_text() for path in _files(place.units.parent)}

    with pytest.raises(UsageError, match=r"not overwritten: .*demo\.toml"):
        _install(_instance(output_dir=Path("/elsewhere")), place)
    assert {path: path.read_text() for path in _files(place.units.parent)} == before
    _install(_instance(), place, force=True)

    assert "run-id" in settings.read_text()


def test_the_same_installation_again_is_no_conflict(place: Place) -> None:
    _install(_instance(), place)

    _install(_instance(), place)

    units.remove(place, "demo")
    assert not _files(place.units)


def test_what_was_never_installed_cannot_be_removed(place: Place) -> None:
    with pytest.raises(NotFoundError):
        units.remove(place, "nobody")


def test_a_unit_that_would_still_be_started_is_known(place: Place) -> None:
    _install(_instance(), place)
    wants = place.units / "multi-user.target.wants"
    wants.mkdir()
    (wants / "ckptsync-watch@demo.service").symlink_to(place.units / "ckptsync-watch@.service")

    assert units.enabled(place, "demo") == ["ckptsync-watch@demo.service"]
    assert units.enabled(place, "other") == []


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b", "a b", "a%b", "a@b", "ü", "config", "a\n"])
def test_a_name_that_cannot_be_an_instance_and_a_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        units.require_name(name)


def test_a_program_below_a_closed_home_cannot_be_reached(tmp_path: Path) -> None:
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        folder.chmod(folder.stat().st_mode | 0o111)
    home = tmp_path / "home"
    (home / "venv").mkdir(parents=True)
    program = home / "venv" / "python"
    program.write_text("")
    program.chmod(0o755)
    link = tmp_path / "python"
    link.symlink_to(program)
    units.require_reachable([program, link], SOMEBODY)
    home.chmod(0o700)

    for path in (program, link):
        with pytest.raises(UsageError, match=rf"somebody cannot reach {path}: {home} has mode 0700"):
            units.require_reachable([path], SOMEBODY)
    units.require_reachable([program, link], Owner("me", os.getuid(), frozenset()))


def _ckptsync(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckptsync", *words],
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
    )


def test_a_dry_run_shows_everything_and_writes_nothing(tmp_path: Path) -> None:
    words = ("install-units", "--user", "demo", "--output-dir", "out", "--run-id", "r1", "--project", "p")

    shown = _ckptsync(tmp_path, *words, "--dry-run")
    assert list(tmp_path.iterdir()) == []
    written = _ckptsync(tmp_path, *words)

    assert shown.returncode == written.returncode == 0, shown.stderr + written.stderr
    assert shown.stdout.replace("Not written (--dry-run).", "Written.") == written.stdout
    for path in _files(tmp_path / ".config"):
        if path.suffix != ".json":
            assert f"# {path}\n{path.read_text()}" in shown.stdout
    assert "systemctl --user enable --now ckptsync-watch@demo" in shown.stdout
    taken = _ckptsync(tmp_path, "uninstall-units", "--user", "demo")
    assert taken.returncode == 0, taken.stderr
    assert not _files(tmp_path / ".config")


def test_a_command_makes_it_the_whole_job_and_is_found_for_the_unit(tmp_path: Path) -> None:
    done = _ckptsync(
        tmp_path, "install-units", "--user", "demo", "--output-dir", "out", "--run-id", "r1", "--", "sh", "-c", "true"
    )

    assert done.returncode == 0, done.stderr
    settings = tomllib.loads((tmp_path / ".config" / "ckptsync" / "demo.toml").read_text())
    assert Path(settings["command"][0]).is_absolute()
    assert settings["command"][1:] == ["-c", "true"]
    assert (tmp_path / ".config" / "systemd" / "user" / "ckptsync-resume@.service").exists()


def test_a_secret_never_gets_into_the_settings(tmp_path: Path) -> None:
    words = ("install-units", "--user", "demo", "--output-dir", "out", "--run-id", "r1", "--", "sh", "--api-key", "x")

    done = _ckptsync(tmp_path, *words)

    assert done.returncode == 2
    assert "demo.env" in done.stderr
    assert list(tmp_path.iterdir()) == []
