"""Every error that a user can meet, with what to do next and the exit code. May not import anything of ours.

CkptsyncError                1   unexpected
├── UsageError               2   the command line or a name in it is wrong
├── ConfigurationError       3   credentials or settings: a person has to act
├── NotFoundError            4   no such run or version
├── IntegrityError           5   nothing valid: torn, corrupt, or not what was recorded
│   └── RestartedError       5   a resumed training began again from an earlier step
├── SnapshotChangedError     1   the files changed under the snapshot: throw it away, take a new one
├── LockedError              7   another watcher holds the folder
├── PreemptedError          75   the machine goes away and everything is durable: start me again
└── StoreError
    ├── TransientStoreError  6   trying again can help (network, 5xx, 429, a stalled or killed upload)
    └── PermanentStoreError  1   trying again cannot help (quota, type clash)
        └── RejectedError    3   the store refuses the credentials
"""

from __future__ import annotations


class CkptsyncError(Exception):
    """Something failed that a user should read about on one line.

    `exit_code` is the process's exit status; `hint` says what to do next and is printed after the message.
    """

    exit_code = 1
    hint = "Run again with -v for the details; if it stays, report it with that output."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return str(self.args[0])


class UsageError(CkptsyncError):
    """The command line or a name in it cannot be right."""

    exit_code = 2
    hint = "See `ckptsync COMMAND --help`."


class ConfigurationError(CkptsyncError):
    """A setting or a credential is missing or wrong: a person has to act."""

    exit_code = 3
    hint = "See `ckptsync --help` for the settings."


class NotFoundError(CkptsyncError):
    """No such run, collection or version in that entity and project."""

    exit_code = 4
    hint = "Check the run id, --project and --entity."


class IntegrityError(CkptsyncError):
    """Nothing valid: the bytes are torn, corrupt, or not the ones that were recorded."""

    exit_code = 5
    hint = "See `ckptsync list` for other versions, and `ckptsync verify` for the reason."


class RestartedError(IntegrityError):
    """A resumed training saved a checkpoint that is not above the step that it resumed from: it started over."""

    hint = "Check that the program resumes from {checkpoint}; if starting over is what you want, add --allow-restart."


class SnapshotChangedError(CkptsyncError):
    """The files of a snapshot are not those that were pinned: the trainer wrote into them again."""

    hint = "Nothing to do: the checkpoint is taken again when it is quiet."


class LockedError(CkptsyncError):
    """Another watcher holds the output folder."""

    exit_code = 7
    hint = "One watcher per output folder is enough; stop that one first."


class PreemptedError(CkptsyncError):
    """The machine is going away and everything is durable."""

    exit_code = 75
    hint = "Start the same command again."


class StoreError(CkptsyncError):
    """The store did not do what it was asked."""


class TransientStoreError(StoreError):
    """Trying again can succeed. The exit code is the one for "unreachable after retries"."""

    exit_code = 6
    hint = "Check the network and WANDB_BASE_URL, then run the same command again."


class PermanentStoreError(StoreError):
    """Trying again cannot succeed: a person has to act."""

    hint = "Fix the cause, then `ckptsync push --parked OUTPUT_DIR`."


class RejectedError(PermanentStoreError):
    """The store refuses the credentials."""

    exit_code = 3
    hint = "Set WANDB_API_KEY or run `wandb login`, or use --local for the embedded server."
