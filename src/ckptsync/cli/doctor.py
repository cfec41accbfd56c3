"""`doctor`: checks credentials, server and machine, and reports problems with advice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from ckptsync import config, connections, record
from ckptsync.checkpoint import Run
from ckptsync.cli import options
from ckptsync.errors import CkptsyncError
from ckptsync.rehearsal import health_check
from ckptsync.rehearsal.health_check import ERROR, OK, WARNING, Finding
from ckptsync.restore import resume
from ckptsync.store import server_info
from ckptsync.store.server_info import ServerInfo
from ckptsync.store.session import open_store
from ckptsync.store.wandb_store import WandbStore

SKEW_MUCH = 60.0
"""The largest clock difference in seconds: signed URLs are valid for minutes, and `status` computes ages by this clock."""

MARKS = {OK: "ok     ", WARNING: "warning", ERROR: "error  "}


@click.command(
    "doctor", epilog="Example: ckptsync doctor runs/llama", short_help="Check credentials, server and machine for problems."
)
@click.argument("output_dir", metavar="[OUTPUT_DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Skip the permission check, which uploads and deletes a tiny artifact.")
@options.as_json
@options.common
def doctor_command(
    output_dir: Path | None, dry_run: bool, as_json: bool, project: str | None, entity: str | None, local: bool
) -> None:
    """Check credentials, server, permissions, disk, links, file events, libraries, preemption notices and clocks.

    OUTPUT_DIR is the Trainer's output_dir (default: the current folder). Exits 0 without errors, else with the code of the
    first error. JSON: a list of {check, state (ok, warning, error), message, advice}.
    """
    folder = resume.require_output_dir(output_dir or Path(), create=False)
    known = record.read(folder)
    run = config.make_run(
        known.text("run_id") or "doctor",
        project=project or known.text("project"),
        entity=entity or (None if local else known.text("entity")),
    )
    failed: list[CkptsyncError] = []
    findings = []
    for finding in (*_store(run, failed, local=local, rehearse=not dry_run), *health_check.machine(folder)):
        findings.append(finding)
        if not as_json:
            click.echo(f"{MARKS[finding.state]}  {finding.check}: {finding.message}")
            if finding.advice:
                click.echo(f"         {' ' * len(finding.check)}→ {finding.advice}")
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=1))
    if any(each.state == ERROR for each in findings):
        raise click.exceptions.Exit(failed[0].exit_code if failed else 1)


def _store(run: Run, failed: list[CkptsyncError], *, local: bool, rehearse: bool) -> Iterator[Finding]:
    """Credentials, server, project, permissions and clock; stops at the first failure."""
    mode = config.upload_mode()
    if mode != "online":
        yield Finding("credentials", WARNING, f"W&B is {mode} (WANDB_MODE or WANDB_DISABLED)", "Unset it to upload.")
        return
    try:
        with connections.connected(local=local) as connection:
            about = server_info.ask(connection, run)
            yield Finding("credentials", OK, f"the key belongs to {about.user}")
            yield Finding("server", OK, f"{connection.base_url} ({about.server}) responds in {1000 * about.seconds:.0f} ms")
            yield _entity(about)
            yield _project(run, about)
            if rehearse and about.project_exists:
                with open_store(connection, run) as store:
                    yield _permissions(store, failed)
            yield _clock(about)
    except CkptsyncError as error:
        failed.append(error)
        check = "server" if error.exit_code == 6 else "credentials"
        yield Finding(check, ERROR, str(error), error.hint)


def _entity(about: ServerInfo) -> Finding:
    if about.entity in about.entities:
        return Finding("entity", OK, f"you belong to {about.entity}")
    return Finding(
        "entity", WARNING, f"{about.entity} is not one of yours: {', '.join(about.entities)}", "Check --entity and WANDB_ENTITY."
    )


def _project(run: Run, about: ServerInfo) -> Finding:
    if about.project_exists:
        return Finding("project", OK, f"{about.entity}/{run.project} exists")
    advice = "If it should exist, check --project and WANDB_PROJECT."
    return Finding("project", WARNING, f"{about.entity}/{run.project} does not exist; the first run creates it", advice)


def _permissions(store: WandbStore, failed: list[CkptsyncError]) -> Finding:
    try:
        store.rehearse()
    except CkptsyncError as error:
        failed.append(error)
        return Finding("permissions", ERROR, str(error), "Use a key with write access to this project.")
    return Finding("permissions", OK, "uploaded and deleted a tiny artifact")


def _clock(about: ServerInfo) -> Finding:
    if about.skew is None:
        return Finding("clock", OK, "unknown: the server doesn't report its time")
    if abs(about.skew) > SKEW_MUCH:
        ahead = "behind" if about.skew > 0 else "ahead of"
        return Finding(
            "clock",
            WARNING,
            f"this machine is {abs(about.skew):.0f} s {ahead} the server",
            "Enable NTP: timedatectl set-ntp true.",
        )
    return Finding("clock", OK, f"within {max(1, abs(round(about.skew)))} s of the server")
