"""The command line: one module per command, imported when that command is used."""

from __future__ import annotations

import importlib
import logging
import sys

import click

from ckptsync import __version__
from ckptsync.cli import log_output
from ckptsync.errors import CkptsyncError

COMMANDS = {
    "run": ("run", "Start a training, or resume it where there is something to resume."),
    "watch": ("watch", "Follow an output folder and upload each checkpoint."),
    "resume": ("resume", "Pull the newest valid checkpoint and restart the training."),
    "list": ("list", "The versions of a run's checkpoints."),
    "pull": ("pull", "Bring one version here, every byte verified."),
    "push": ("push", "Upload one checkpoint, or try the parked ones again."),
    "status": ("status", "The last durable step and what is at risk."),
    "verify": ("verify", "Is a checkpoint whole, and if not, why."),
    "prune": ("prune", "Delete versions that nothing asks to keep."),
    "promote": ("promote", "Link a version to the registry."),
    "doctor": ("doctor", "What will go wrong, before it does."),
    "install-units": ("units", "Write systemd units that keep a training safe."),
    "uninstall-units": ("units", "Take away what install-units wrote."),
    "server": ("server", "The embedded W&B-compatible server."),
    "drill": ("drill", "Rehearse with your own command: kill it, resume it, compare."),
    "demo": ("demo", "Kill a training, resume it, compare: no account needed."),
}
"""Command → the module of this package that holds it, and what `--help` says of it without importing that."""

INTERRUPTED = 130


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is used: `--help` of one never pays for another."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the README, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None, upon which click suggests a similar one."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ckptsync.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_") + "_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, none of them imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ckptsync")
def cli() -> None:
    """Keep every checkpoint of a Hugging Face Trainer as a verified W&B artifact, and resume from it.

    RUN is RUN_ID or ENTITY/PROJECT/RUN_ID, with :ALIAS (best, step-500, v3) where one version is meant.

    Settings come from flags, then CKPTSYNC_* variables, then ~/.config/ckptsync/config.toml, then WANDB_*.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code. A user sees one line for an error, never a traceback unless -v asks for it."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = cli.main(words, prog_name="ckptsync", standalone_mode=False)
    except CkptsyncError as error:
        code = _tell(f"{str(error).rstrip('.')}. {error.hint}", error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ckptsync"
        code = _tell(f"{error.format_message().rstrip('.')}. See `{where} --help`.", 2)
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = _tell("interrupted", INTERRUPTED)
    except BrokenPipeError:
        code = 1
    except Exception as error:
        code = _tell(f"unexpected {type(error).__name__}: {error}. {CkptsyncError.hint}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(text: str, code: int) -> int:
    """The one line on stderr; with -v the traceback comes first."""
    if logging.getLogger().isEnabledFor(logging.DEBUG) and sys.exc_info()[0]:
        import traceback

        traceback.print_exc()
    line = " ".join(text.split())
    click.echo(f"<3>{line}" if log_output.is_journal(sys.stderr) else f"ckptsync: {line}", err=True)
    return code
