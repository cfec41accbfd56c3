"""The sidecar under a real systemd: ready, alive, restarted, stopped, reloaded, and what the journal tells."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.systemd.conftest import Install, Unit
from tests.systemd.guest import FrozenThread, Guest, Store

SLOW = {"match": {"method": "PUT"}, "action": {"throttle": 1_000_000}}
HUNG = {"match": {"method": "PUT"}, "action": {"delay": 600}}


def _main_pid(unit: Unit) -> int:
    return int(unit.show("MainPID")["MainPID"])


def test_it_is_ready_only_when_it_really_watches(guest: Guest, install: Install) -> None:
    unit = install()

    unit.start()

    pid = _main_pid(unit)
    assert unit.show("ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert f"pid {pid}" in (unit.folder / ".ckptsync" / "lock").read_text(), "the lock is held"
    assert "inotify" in guest.sh(f"ls -l /proc/{pid}/fd"), "file events are awaited"
    assert unit.show("StatusText")["StatusText"] == "nothing durable yet; queue empty", "the first look is done"


def test_a_folder_that_another_one_watches_never_becomes_ready(install: Install) -> None:
    unit = install()
    unit.start()
    unit.guest.sh(f"cp /etc/ckptsync/{unit.name}.toml /etc/ckptsync/{unit.name}-2.toml")
    second = Unit(unit.guest, f"{unit.name}-2", "watch")
    unit.guest.sh(f"mkdir -p /etc/systemd/system/{second.unit}.d; cp /etc/systemd/system/{unit.unit}.d/* $_")
    unit.guest.sh(f"cp /etc/ckptsync/{unit.name}.env /etc/ckptsync/{second.name}.env; systemctl daemon-reload")

    unit.guest.sh(f"systemctl start --no-block {second.unit}")

    second.wait(ExecMainStatus="7", SubState="auto-restart")
    assert re.search(rf"already watched by ckptsync, pid {_main_pid(unit)}", second.told())
    second.stop()


def test_the_status_follows_and_the_journal_tells_the_story_of_a_checkpoint(guest: Guest, install: Install, store: Store) -> None:
    unit = install()
    unit.start()
    store.faults(SLOW)

    unit.save(4, size=4_000_000)
    unit.wait(StatusText=r"nothing durable yet; 1 queued up to step 4; uploading checkpoint-4 \d+ %; \d+\.\d MB/s")
    store.faults()
    unit.wait(StatusText=r"^step 4 durable; queue empty; \d+\.\d MB/s$")

    story = [entry for entry in guest.journal(unit.unit) if entry.get("SYSLOG_IDENTIFIER") == "ckptsync"]
    told = [(entry["PRIORITY"], entry["MESSAGE"]) for entry in story if "checkpoint-4" in entry["MESSAGE"]]
    assert [priority for priority, _ in told] == ["6", "6", "6"]
    assert re.fullmatch(r"pinned checkpoint-4 \(7 files, [\d.]+ [kM]?B\) by (re)?link", told[0][1])
    assert re.fullmatch(r"uploading checkpoint-4 \(7 files, [\d.]+ [kM]?B\)", told[1][1])
    assert re.fullmatch(r"uploaded checkpoint-4 as checkpoint-[\w-]+:v0 \(7 files, [\d.]+ [kM]?B, \d+\.\d s\)", told[2][1])
    assert not [entry for entry in story if re.match(r"\d\d:\d\d:\d\d|<\d>", entry["MESSAGE"])], "the journal has its own time"
    everything = guest.sh("journalctl -o export --no-pager --all")
    assert store.key not in everything
    assert store.key not in guest.sh(f"systemctl show {unit.unit}; cat /proc/{_main_pid(unit)}/cmdline | tr '\\0' ' '")


@pytest.mark.slow
def test_a_killed_one_is_restarted_and_the_upload_in_hand_goes_on_without_a_duplicate(install: Install, store: Store) -> None:
    unit = install()
    unit.override("RestartSec=100ms")
    unit.start()
    store.faults(SLOW)
    unit.save(4, size=8_000_000)
    unit.wait(StatusText="uploading checkpoint-4")
    before = _main_pid(unit)

    unit.guest.sh(f"systemctl kill -s KILL --kill-whom=main {unit.unit}")
    unit.wait(NRestarts="1", ActiveState="^active", SubState="running")
    store.faults()

    unit.wait(StatusText="step 4 durable; queue empty")
    assert _main_pid(unit) != before
    assert [row["step"] for row in unit.versions()] == [4]
    assert [event["event"] for event in unit.events()].count("pinned") == 1


@pytest.mark.slow
def test_a_frozen_loop_is_restarted_though_other_threads_live(install: Install) -> None:
    unit = install()
    unit.override("RestartSec=100ms", "WatchdogSec=2s")
    unit.start()
    time.sleep(4)
    assert unit.show("NRestarts")["NRestarts"] == "0", "a loop that rests gives signs of life"

    with FrozenThread(unit.guest.outside(_main_pid(unit))):
        unit.wait(NRestarts="1", ActiveState="^active", SubState="running")

    assert "Watchdog timeout" in unit.told()
    unit.save(4)
    unit.wait(StatusText="step 4 durable")


@pytest.mark.slow
def test_a_stop_flushes_also_when_that_takes_longer_than_the_time_for_a_stop(install: Install, store: Store) -> None:
    unit = install()
    unit.override("TimeoutStopSec=3s")
    unit.start()
    store.faults(SLOW)
    unit.save(4, size=10_000_000)
    unit.wait(StatusText="uploading checkpoint-4")

    started = time.monotonic()
    unit.stop()
    took = time.monotonic() - started

    assert took > 3.5, "this test proves nothing when the flush is as fast as that"
    assert unit.show("Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    assert unit.durable() == [4]


@pytest.mark.slow
def test_a_hung_store_cannot_block_the_stop_for_ever_and_nothing_is_lost(install: Install, store: Store) -> None:
    unit = install()
    unit.override("TimeoutStopSec=3s")
    unit.start()
    store.faults(HUNG)
    unit.save(4)
    unit.wait(StatusText="uploading checkpoint-4")

    started = time.monotonic()
    unit.stop()
    took = time.monotonic() - started

    assert 2 < took < 15
    assert unit.show("Result")["Result"] == "timeout"
    assert len(unit.waiting()) == 1
    store.faults()
    unit.start()
    unit.wait(StatusText="step 4 durable; queue empty")
    assert [row["step"] for row in unit.versions()] == [4]


@pytest.mark.slow
def test_a_reload_takes_new_settings_and_wrong_ones_change_nothing(guest: Guest, install: Install) -> None:
    unit = install(settings='quiet-period = "1h"')
    unit.start()
    pid = _main_pid(unit)
    unit.save(4)
    time.sleep(2)
    assert unit.waiting() == [], "an hour is not over"

    unit.settings('quiet-period = "0.2s"\nbacklog = "all"\nspool-limit = "1G"\nstall-timeout = "77s"\nretry-for = "1h"')
    guest.sh(f"systemctl reload {unit.unit}")
    unit.wait(StatusText="step 4 durable", ActiveState="^active")
    unit.settings('quiet-period = "soon"')
    guest.sh(f"systemctl reload {unit.unit}")
    guest.wait(lambda: "settings not changed" in unit.told(), what="the complaint")
    unit.save(8)

    unit.wait(StatusText="step 8 durable", ActiveState="^active")
    assert _main_pid(unit) == pid
    told = unit.told()
    assert re.search(r"settings read again: quiet period 0\.2 s, .*keep_all=True, limit=1073741824, stall=77\.0.*3600", told)
    assert re.search(r"settings not changed: .*'soon' is not a duration", told)
    wrong = next(entry for entry in guest.journal(unit.unit) if "settings not changed" in entry["MESSAGE"])
    assert wrong["PRIORITY"] == "3"


def test_what_is_pinned_is_a_hard_link_and_not_one_byte_is_copied(install: Install, store: Store) -> None:
    unit = install()
    store.faults(HUNG)
    unit.start()

    unit.save(4)

    unit.wait(StatusText="uploading checkpoint-4")
    snapshot = json.loads((unit.folder / ".ckptsync" / "spool" / unit.waiting()[0] / "snapshot.json").read_text())
    assert snapshot["pinned_by"] in ("link", "reflink")


def test_it_can_write_nowhere_but_into_its_output_folder(install: Install) -> None:
    unit = install()
    unit.start()

    mounts = unit.guest.sh(f"cat /proc/{_main_pid(unit)}/mountinfo").splitlines()

    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    assert "ro" in options["/"]
    assert "rw" in options[unit.output_dir]
    status = unit.guest.sh(f"cat /proc/{_main_pid(unit)}/status")
    assert re.search(r"^CapBnd:\s*0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    assert re.search(r"^Uid:\s*4711\s+4711", status, re.MULTILINE)
