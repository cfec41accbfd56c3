"""The whole job under a real systemd: shutdown in order, restarts, a new machine, and a notice at the real address."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.systemd.conftest import Install, make_unit, open_up, set_up_key
from tests.systemd.guest import PYTHON, SHARED, UID, USER, Guest, Store

TINY = f"{PYTHON} -m ckptsync.trainer.tiny"

TRAINER = """
import pathlib, signal, sys, time
from tests.checkpoints import make_checkpoint

def save(number, frame):
    time.sleep(0.5)
    make_checkpoint(pathlib.Path(sys.argv[1]), 9)
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
print("training", flush=True)
signal.pause()
"""

SAVE = "from pathlib import Path; from tests.checkpoints import make_checkpoint; make_checkpoint(Path({!r}), 4)"

RUNTIME_FOLDER = f"""
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/install -d -m 700 -o {USER} -g {USER} /run/user/%i
"""
"""In place of logind's, which needs a bus."""

USER_MANAGER = f"""
[Service]
PAMName=
Environment=XDG_RUNTIME_DIR=/run/user/{UID}
"""

METADATA = """
import http.server, pathlib, time

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path.startswith("/computeMetadata/v1/instance/preempted") and self.headers["Metadata-Flavor"] == "Google"
        while known and "wait_for_change" in self.path and not pathlib.Path("/run/preempted").exists():
            time.sleep(0.1)
        body = b"TRUE" if pathlib.Path("/run/preempted").exists() else b"FALSE"
        self.send_response(200 if known else 404)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("ETag", body.decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("169.254.169.254", 80), Answer).serve_forever()
"""

Machine = Callable[[], AbstractContextManager[Guest]]


@pytest.fixture
def machine(bootable: None, tmp_path: Path) -> Machine:
    """Boots a machine of its own; each has the same store, and the same shared folder as a disk that outlives it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    open_up(shared)

    @contextmanager
    def booted() -> Iterator[Guest]:
        with Guest(shared) as guest:
            Store(guest, tmp_path / "store")
            set_up_key(guest)
            yield guest

    return booted


def _steps_of_the_run(guest: Guest, name: str) -> tuple[str, list[int]]:
    """The state of a run, and the steps of its history."""
    assert guest.store
    program = (
        f"import json, wandb; run = wandb.Api().run('local/tests/{name}');"
        "rows = [row['train/global_step'] for row in run.scan_history(keys=['train/global_step', 'train/loss'])];"
        "print(json.dumps([run.state, rows]))"
    )
    variables = f"WANDB_BASE_URL={guest.store.url} WANDB_API_KEY={guest.store.key}"
    out = guest.sh(f'cd /home/{USER}; {variables} {PYTHON} -c "{program}" 2>/dev/null || echo \'["none", []]\'', user=USER)
    state, steps = json.loads(out.splitlines()[-1])
    return state, [int(step) for step in steps]


def test_a_command_that_succeeds_is_not_started_again(install: Install) -> None:
    unit = install("/bin/true")

    unit.start()

    unit.wait(ActiveState="inactive", Result="success", NRestarts="0")


@pytest.mark.slow
def test_a_training_that_fails_is_started_again_but_not_for_ever(install: Install) -> None:
    unit = install("/bin/false")
    unit.override("RestartSec=50ms", "[Unit]", "StartLimitBurst=3")

    unit.guest.sh(f"systemctl start --no-block {unit.unit}")

    unit.wait(ActiveState="failed", NRestarts="[23]", SubState="failed")
    assert "Start request repeated too quickly" in unit.told()


def test_wrong_settings_are_not_tried_again(install: Install) -> None:
    unit = install("/bin/false", settings='quiet-period = "soon"')

    unit.guest.sh(f"systemctl start {unit.unit}", check=False)

    assert unit.show("ActiveState", "NRestarts", "ExecMainStatus") == {
        "ActiveState": "failed",
        "NRestarts": "0",
        "ExecMainStatus": "2",
    }


def test_it_is_ready_when_the_training_has_been_started(install: Install) -> None:
    unit = install("/bin/sleep", "3600")

    unit.start()

    assert "/bin/sleep 3600" in unit.guest.sh(f"systemctl status {unit.unit}")
    assert unit.show("StatusText")["StatusText"] == "nothing durable yet; queue empty"
    unit.guest.sh(f"systemctl reload {unit.unit}")
    unit.guest.wait(lambda: "settings read again" in unit.told(), what="the new settings")


def test_at_shutdown_come_the_last_checkpoint_then_the_flush_then_the_network(machine: Machine) -> None:
    with machine() as guest:
        unit = make_unit(guest, "last", settings='quiet-period = "0.3s"')
        guest.sh(f"mkdir -p {SHARED}/order; chmod 777 {SHARED}/order")
        guest.write("/opt/training.py", TRAINER)
        guest.write(
            "/etc/systemd/system/training.service",
            f"[Unit]\nAfter={unit.unit}\n[Service]\nUser={USER}\nWorkingDirectory=/opt/ckguest/checkout\n"
            f"Environment=PYTHONPATH=/opt/ckguest/checkout\nExecStart={PYTHON} /opt/training.py {unit.output_dir}\n",
        )
        guest.write(
            "/etc/systemd/system/the-network.service",
            "[Unit]\nBefore=network.target\nWants=network.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
            f"ExecStop=/bin/sh -c 'date +%%s.%%N > {SHARED}/order/network-down; ip link set lo down'\n",
        )
        guest.sh(f"systemctl daemon-reload; systemctl start the-network {unit.unit} training")

        guest.wait(lambda: "training" in guest.told("training.service").splitlines(), what="the training")

        guest.power_off()

        receipt = json.loads(next((unit.folder / ".ckptsync" / "receipts").glob("checkpoint-9.*")).read_text())
        network_down = float((guest.shared / "order" / "network-down").read_text())
        assert receipt["saved_at"] < receipt["committed_at"] < network_down


@pytest.mark.slow
def test_a_user_needs_no_root(guest: Guest, store: Store) -> None:
    guest.write("/etc/systemd/system/user-runtime-dir@.service", RUNTIME_FOLDER)
    guest.write(f"/etc/systemd/system/user@{UID}.service.d/test.conf", USER_MANAGER)
    guest.sh(f"systemctl daemon-reload; systemctl start user@{UID}")
    home, output_dir = f"/home/{USER}", f"/home/{USER}/runs/mine"
    installing = f"ckptsync install-units --user mine --output-dir {output_dir} --run-id mine --project tests"

    told = guest.sh(f"cd; PATH=/opt/ckptsync/bin:$PATH; {installing}", user=USER)
    guest.sh(f"install -D -m 600 /dev/stdin {home}/.config/ckptsync/credentials/wandb <<< {store.key}", user=USER)
    guest.sh(f"echo WANDB_BASE_URL={store.url} > {home}/.config/ckptsync/mine.env", user=USER)
    guest.sh("systemctl --user daemon-reload && systemctl --user enable --now ckptsync-watch@mine", user=USER)
    guest.as_trainer(
        f"from pathlib import Path; from tests.checkpoints import make_checkpoint; make_checkpoint(Path({output_dir!r}), 4)"
    )

    guest.wait_for_unit("ckptsync-watch@mine", StatusText="step 4 durable", ActiveState="^active", user=USER)
    assert "systemctl --user enable --now ckptsync-watch@mine" in told
    pinned = guest.sh(f"cat {output_dir}/.ckptsync/history.jsonl", user=USER)
    assert re.search('"event": "pinned".*"by": "(re)?link"', pinned)
    guest.sh("systemctl --user disable --now ckptsync-watch@mine", user=USER)
    guest.sh("/opt/ckptsync/bin/ckptsync uninstall-units --user mine && ! find ~/.config/systemd | grep ckptsync-", user=USER)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_new_machine_brings_the_training_to_its_end_as_the_same_run(machine: Machine) -> None:
    command = f"{TINY} --output-dir {SHARED}/job --max-steps 12 --save-steps 4 --step-seconds 0.7"
    with machine() as lost:
        unit = make_unit(lost, "job", command, settings='quiet-period = "0.3s"')
        lost.sh(f"systemctl enable --now {unit.unit}")
        lost.wait_for_unit(unit.unit, StatusText="step [48] durable", seconds=120)
        lost.kill()
    (unit.folder).rename(unit.folder.with_name("lost-with-the-machine"))

    with machine() as new:
        unit = make_unit(new, "job", command, settings='quiet-period = "0.3s"')
        new.sh(f"systemctl enable --now {unit.unit}")
        new.wait_for_unit(unit.unit, ActiveState="inactive", Result="success", seconds=200)

        assert re.search(r"resuming from checkpoint-job:v\d, step [48]", unit.told())
        state, steps = _steps_of_the_run(new, "job")
        assert state == "finished"
        assert sorted(set(steps)) == list(range(1, 13))
        assert unit.versions()[0]["step"] == 12
        unit.start()
        unit.wait(ActiveState="inactive", Result="success", NRestarts="0")
        assert "the training is finished" in unit.told()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_notice_of_the_cloud_leads_to_a_durable_checkpoint_and_to_a_new_start(machine: Machine) -> None:
    with machine() as guest:
        guest.sh("ip address add 169.254.169.254/32 dev lo; echo 169.254.169.254 metadata.google.internal >> /etc/hosts")
        guest.write("/opt/metadata.py", METADATA)
        guest.sh(f"systemd-run --unit=metadata {PYTHON} /opt/metadata.py")
        command = f"{TINY} --output-dir {SHARED}/spot --max-steps 1000 --save-steps 500 --step-seconds 0.3"
        unit = make_unit(guest, "spot", command, settings='quiet-period = "0.3s"')
        unit.override("RestartSec=5s")
        unit.start()
        guest.wait(lambda: _steps_of_the_run(guest, "spot")[1][3:], what="four steps", seconds=120)

        guest.sh("touch /run/preempted")
        unit.wait(ExecMainStatus="^75$", SubState="auto-restart")
        guest.sh("rm /run/preempted")

        durable = unit.durable()
        assert len(durable) == 1
        assert durable[0] < 500, "that was no regular save"
        assert re.search(r"preemption notice from gce", unit.told())
        unit.wait(ActiveState="^active", SubState="running", StatusText=f"step {durable[0]} durable", seconds=120)
        assert re.search(rf"resuming from .*, step {durable[0]},", unit.told())
