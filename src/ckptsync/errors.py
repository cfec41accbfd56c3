"""Every error that a user can meet, with the next step and the exit code. Imports nothing of ours.

CkptsyncError                1   unexpected
├── UsageError               2   the command line is wrong
├── ConfigurationError       3   a setting or the credentials are missing or wrong
├── NotFoundError            4   no such run, artifact or version
├── IntegrityError           5   no valid checkpoint: incomplete, corrupt, or not the recorded bytes
│   └── RestartedError       5   the training restarted from scratch instead of resuming
│       ├── HookMissingError 5   the hook that hands over the checkpoint did not reach the training
│       └── TrainedAgainError 5  the program called train() a second time in the same output folder
├── SnapshotChangedError     1   the files changed while they were pinned or uploaded; pinned again automatically
├── LockedError              7   another watcher holds the folder
├── PreemptedError          75   preempted, everything durable: start me again
└── StoreError
    ├── TransientStoreError  6   a retry can succeed (network, 5xx, 429, a stalled or killed upload)
    └── PermanentStoreError  1   no retry can succeed (quota, type clash)
        └── RejectedError    3   the store refused the credentials
"""

from __future__ import annotations


class CkptsyncError(Exception):
    """An error that is reported to the user as one line: the message, then the hint.

    `exit_code` is the exit status of the command; `hint` says what to do next.
    """

    exit_code = 1
    hint = "Run the command again with -v for details; if it fails again, report it with that output."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint
        # What to do next stands below a traceback, too.
        self.add_note(self.hint)

    def __str__(self) -> str:
        return str(self.args[0])


class UsageError(CkptsyncError):
    """An argument, an option or a name on the command line is invalid."""

    exit_code = 2
    hint = "See `ckptsync COMMAND --help`."


class ConfigurationError(CkptsyncError):
    """A setting or a credential is missing or invalid. No retry helps."""

    exit_code = 3
    hint = "Check the settings and credentials with `ckptsync doctor`."


class NotFoundError(CkptsyncError):
    """The entity and project have no such run, artifact or version."""

    exit_code = 4
    hint = "Check the run id, --project and --entity."


class IntegrityError(CkptsyncError):
    """No valid checkpoint: the files are incomplete, corrupt, or differ from what was recorded."""

    exit_code = 5
    hint = "Run `ckptsync verify` for the reason and `ckptsync list RUN` for other versions."


class RestartedError(IntegrityError):
    """A resumed training saved a checkpoint at or below the step that it should have resumed from: it restarted from scratch."""

    hint = (
        "Make the program resume from the checkpoint, for example with --resume_from_checkpoint {checkpoint};"
        " if it is meant to restart from scratch, add --allow-restart."
    )


class HookMissingError(RestartedError):
    """A checkpoint was to be handed over by the hook, which reached no Python process of the training."""

    hint = (
        "python -I, sudo, env -i, a container or a PYTHONPATH of its own loses the hook: put {checkpoint} into the command,"
        " or add --no-hook if the program resumes by itself."
    )


class TrainedAgainError(RestartedError):
    """A process that had trained into an output folder trained into it again, from scratch."""

    hint = "Give each train() an output_dir of its own; if the later one is to replace the earlier, add --allow-restart."


class SnapshotChangedError(CkptsyncError):
    """The trainer changed the files of a snapshot after they were pinned."""

    hint = "Nothing to do: ckptsync pins the checkpoint again after the next quiet period."


class LockedError(CkptsyncError):
    """Another watcher holds the output folder."""

    exit_code = 7
    hint = "One watcher per output folder is enough; to replace it, stop that process first."


class PreemptedError(CkptsyncError):
    """The machine is being preempted, and every checkpoint is durable."""

    exit_code = 75
    hint = "Run the same command again to resume, on this machine or another."


class StoreError(CkptsyncError):
    """A request to the store failed."""


class TransientStoreError(StoreError):
    """A retry can succeed. As an exit code: the store was still unreachable after all retries.

    `retry_after` is how many seconds the store asked to wait, 0 where it didn't.
    """

    exit_code = 6
    retry_after = 0.0
    hint = "Check the network and WANDB_BASE_URL, then run the same command again."


class PermanentStoreError(StoreError):
    """No retry can succeed until somebody removes the cause."""

    hint = "Fix the cause, then retry with `ckptsync push --parked OUTPUT_DIR`."


class RejectedError(PermanentStoreError):
    """The store refused the credentials."""

    exit_code = 3
    hint = "Set WANDB_API_KEY or run `wandb login`; without an account, add --local for the embedded server."
