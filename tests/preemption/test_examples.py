"""The job scripts in examples/, as far as this machine can try them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ckptsync import cli
from ckptsync.errors import PreemptedError
from tests.preemption.conftest import ROOT

EXAMPLES = ROOT / "examples"
SLURM = EXAMPLES / "slurm.sbatch"
MANIFESTS = sorted(EXAMPLES.glob("kubernetes-*.yaml"))

CKPTSYNC = """#!{python}
import signal, sys, time
def leave(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(75)
signal.signal(signal.SIGUSR1, leave)
signal.signal(signal.SIGTERM, leave)
print("started", *sys.argv[1:], flush=True)
time.sleep({seconds})
sys.exit({code})
"""


def manifest(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(path.read_text())
    return value


def pod(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = manifest(path)["spec"]["template"]["spec"]
    return value


def command_lines() -> list[tuple[str, list[str]]]:
    """Every call of ckptsync in the examples, by its file."""
    found = []
    for path in [*MANIFESTS, EXAMPLES / "skypilot.yaml", SLURM]:
        text = path.read_text().replace("\\\n", " ")
        calls = [shlex.split(call) for call in re.findall(r"^ *(?:- )?(ckptsync \w+ .*)", text, re.MULTILINE)]
        if path in MANIFESTS:
            containers = [*pod(path).get("initContainers", []), *pod(path)["containers"]]
            calls += [list(each["command"]) for each in containers if each["command"][0] == "ckptsync"]
        found += [(path.name, call[1:]) for call in calls]
    return found


@pytest.mark.parametrize("script", [SLURM], ids=lambda path: path.name)
def test_scripts_are_what_bash_and_shellcheck_accept(script: Path) -> None:
    for checker in (["bash", "-n"], ["shellcheck", "--shell=bash", "--severity=style"]):
        checked = subprocess.run([*checker, script], capture_output=True, text=True, env=_path(Path(sys.executable).parent))
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_shell_lines_inside_the_manifests_are_sound_too(path: Path) -> None:
    lines = [
        each["command"][2]
        for each in [*pod(path).get("initContainers", []), *pod(path)["containers"]]
        if each["command"][0] == "sh"
    ]
    for line in lines:
        checked = subprocess.run(
            ["shellcheck", "--shell=sh", "--exclude=SC2012", "-"],
            input=line,
            capture_output=True,
            text=True,
            env=_path(Path(sys.executable).parent),
        )
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_manifests_agree_with_the_schema_of_kubernetes(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")

    kubernetes_validate.validate(manifest(path), kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_preempted_pod_costs_no_retry_and_has_the_time_that_ckptsync_is_told(path: Path) -> None:
    job, template = manifest(path)["spec"], pod(path)

    ignored = [
        rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "Ignore" and "onExitCodes" in rule
    ]

    assert [(rule["containerName"], rule["values"]) for rule in ignored] == [("train", [PreemptedError.exit_code])]
    assert template["restartPolicy"] == "Never"
    grace = template["terminationGracePeriodSeconds"]
    assert any(f"--grace={grace}s" in command for name, command in command_lines() if name == path.name)


def test_the_sidecar_is_a_native_one_on_the_folder_of_the_training() -> None:
    template = pod(EXAMPLES / "kubernetes-sidecar.yaml")
    sidecars = [each for each in template["initContainers"] if each.get("restartPolicy") == "Always"]

    assert [each["name"] for each in sidecars] == ["ckptsync"]
    assert sidecars[0]["volumeMounts"] == template["containers"][0]["volumeMounts"]
    assert template["initContainers"].index(sidecars[0]) == 1


@pytest.mark.parametrize(("name", "words"), command_lines(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_every_call_of_ckptsync_is_one_that_it_understands(name: str, words: list[str]) -> None:
    words = [word for word in words if word not in ("||", "&")][: words.index("||") if "||" in words else None]
    with click.Context(cli.cli) as context:
        command = cli.cli.get_command(context, words[0])
        assert command is not None
        made = command.make_context(words[0], [os.path.expandvars(word) for word in words[1:]], parent=context)

    assert made.params


def test_the_skypilot_task_recovers_on_spot_machines() -> None:
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())

    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["strategy"] in ("EAGER_NEXT_REGION", "FAILOVER")
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [PreemptedError.exit_code]
    assert "WANDB_API_KEY" in task["secrets"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_slurm_script_passes_the_signal_on_and_goes_back_into_the_queue(tmp_path: Path, number: signal.Signals) -> None:
    job, out = _slurm(tmp_path, seconds=60)

    job.send_signal(number)

    assert job.wait(20) == 75
    assert "start 2 of job 4711" in out.read_text()
    assert f"got {number.name}" in out.read_text()
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "4711"]


@pytest.mark.parametrize("code", [0, 1])
def test_the_slurm_script_ends_with_the_code_of_the_job_and_stays_out_of_the_queue(tmp_path: Path, code: int) -> None:
    job, _ = _slurm(tmp_path, seconds=0.2, code=code)

    assert job.wait(20) == code
    assert not (tmp_path / "requeued").exists()


def _slurm(folder: Path, *, seconds: float, code: int = 0) -> tuple[subprocess.Popen[bytes], Path]:
    """The script as slurmd starts it, with a `ckptsync` that waits and a `scontrol` that notes; and what it says, in a file.

    Returns once the job runs.
    """
    tools = folder / "bin"
    tools.mkdir()
    (tools / "ckptsync").write_text(CKPTSYNC.format(python=sys.executable, seconds=seconds, code=code))
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {folder / "requeued"}\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "2", "HOME": str(folder)}
    out = folder / "out.txt"
    with out.open("w") as output:
        job = subprocess.Popen(["bash", SLURM], env=_path(tools) | slurm, stdout=output, stderr=output)
    deadline = time.monotonic() + 20
    while "started" not in out.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job, out


def _path(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
