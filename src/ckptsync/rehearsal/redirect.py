"""Replaces the output folder in a training's command, so that a rehearsal can't write to the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ckptsync.errors import UsageError

PLACEHOLDER = "{output_dir}"

_OPTION = re.compile(r"--?output[-_]dir")
_PUSHING = re.compile(r"--push[-_]to[-_]hub(?:=(?!false|no|0).*)?", re.IGNORECASE)


def redirect(command: Sequence[str], folder: Path) -> list[str]:
    """The command with every mention of its output folder replaced by `folder`.

    That is `{output_dir}`, or the value of --output_dir and every path below it (a logging folder, say). Raises UsageError if the
    command has neither, because it would write to the user's own folder, and if it would publish the model.
    """
    for index, word in enumerate(command):
        following = command[index + 1].lower() if index + 1 < len(command) else ""
        if _PUSHING.fullmatch(word) and following not in ("false", "no", "0"):
            raise UsageError(
                "the command pushes to the Hub, and the drill would too", hint="Leave --push_to_hub out for the drill."
            )
    if any(PLACEHOLDER in word for word in command):
        return [word.replace(PLACEHOLDER, str(folder)) for word in command]
    own = _output_dir(command)
    if own is None:
        raise UsageError(
            "the command has no --output_dir for the drill to replace by a folder of its own",
            hint=f"Write {PLACEHOLDER} where the output folder goes: ckptsync drill -- python train.py --out {PLACEHOLDER}",
        )
    return [_move(word, own, str(folder)) for word in command]


def _output_dir(command: Sequence[str]) -> str | None:
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if _OPTION.fullmatch(name):
            return value if equals else command[index + 1] if index + 1 < len(command) else None
    return None


def _move(word: str, own: str, other: str) -> str:
    """The word, with the path `own` or a path below it moved to `other`."""
    head, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    own = own.rstrip("/") or own
    if value.rstrip("/") == own or value.startswith(own + "/"):
        value = other + value[len(own) :]
    return head + equals + value
