"""The command line: one module per command, imported when that command is used, and here the table of commands.

Reads flags and settings, calls the packages below, and prints what they answer. May not decide anything itself.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import sys

import click

from ckptsync import __version__, descriptors
from ckptsync.cli import log_output
from ckptsync.cli.visible import visible
from ckptsync.errors import CkptsyncError

COMMANDS = {
    "run": ("run", "Start a training, or resume it from its newest valid checkpoint."),
    "watch": ("watch", "Watch an output folder and upload each new checkpoint."),
    "resume": ("resume", "Restart a training from the newest valid checkpoint of its run."),
    "list": ("list", "List the checkpoint versions of a run."),
    "pull": ("pull", "Download one version and verify every byte."),
    "push": ("push", "Upload one checkpoint, or retry the parked ones."),
    "status": ("status", "Show the last durable step and the work at risk."),
    "verify": ("verify", "Check that a checkpoint is complete and resumable."),
    "prune": ("prune", "Delete versions that no retention rule keeps."),
    "promote": ("promote", "Link a version to the registry."),
    "doctor": ("doctor", "Check credentials, server and machine for problems."),
    "install-units": ("install_units", "Write systemd units that upload and resume a training."),
    "uninstall-units": ("install_units", "Remove what install-units wrote."),
    "server": ("server", "Run the embedded W&B-compatible server."),
    "drill": ("drill", "Kill and resume your own training, and compare the results."),
    "demo": ("demo", "Kill and resume a tiny training, and compare; no account needed."),
}
"""Command → its module in this package, and its line in `ckptsync --help`, which imports no command."""

INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a command only when it is used, so that `--help` of one command is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the README, not alphabetical."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name. None makes click suggest a similar name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ckptsync.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_") + "_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ckptsync")
def cli() -> None:
    """Upload every checkpoint of a Hugging Face Trainer as a verified W&B artifact, and resume trainings from it.

    RUN is RUN_ID or ENTITY/PROJECT/RUN_ID; add :ALIAS (best, step-500, v3) to select one version.

    Settings are read from flags, CKPTSYNC_* variables, ~/.config/ckptsync/config.toml and WANDB_*, in this order of
    precedence.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code. An error is reported in one line, with a traceback only if -v is given."""
    descriptors.claim()
    words = sys.argv[1:] if arguments is None else arguments
    # Where it is ignored, the kernel keeps no exit code of a child: a training that failed would count as one that succeeded.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        code = cli.main(words, prog_name="ckptsync", standalone_mode=False)
    except CkptsyncError as error:
        code = _report(f"{str(error).rstrip('.')}. {error.hint}", error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ckptsync"
        code = _report(f"{error.format_message().rstrip('.')}. See `{where} --help`.", 2)
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = _report("interrupted", INTERRUPTED)
    except BrokenPipeError:
        code = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _report(f"{where}{error.strerror or error}. Check this file system, then start the same command again.", 1)
    except Exception as error:
        code = _report(f"unexpected {type(error).__name__}: {error}. {CkptsyncError.hint}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _report(text: str, code: int) -> int:
    """Print the error as one line on stderr, after the traceback if -v is given."""
    if logging.getLogger().isEnabledFor(logging.DEBUG) and sys.exc_info()[0]:
        import traceback

        traceback.print_exc()
    line = visible(" ".join(text.split()))
    click.echo(f"<3>{line}" if log_output.is_journal(sys.stderr) else f"ckptsync: {line}", err=True)
    return code
