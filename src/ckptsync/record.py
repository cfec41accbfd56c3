"""run.json: who the training in an output folder is. Knows no store and no process.

Written by `watch`, `run` and `resume`, and completed from inside the training; keys that this version doesn't know are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptsync import durable

FOLDER = ".ckptsync"
"""The folder below output_dir that holds all that is ours. The Trainer's rotation matches `checkpoint-*` only."""

_SECRET = re.compile(
    r"(?i)token|secret|passw|passphrase|credential|authorization|api[-_]?key|(?:^|[-_.])(?:key|pwd|auth)(?:$|[-_.])"
)
_HARMLESS = re.compile(
    r"(?i)(?:de)?tokeniz(?:e[rd]?s?|ing|ation)(?![a-z])"
    r"|(?<!auth[-_])(?<!access[-_])(?<!api[-_])(?<!hub[-_])(?<!hf[-_])tokens(?![a-z])"
    r"|(?<![a-z])(?:eos|bos|pad|unk|sep|cls|mask|image|audio|video|stop|start|special|per)[-_]token(?![a-z])"
    r"|token[-_](?:per|len|length|count|limit|ids?|types?|level|classification|dropout|index)(?![a-z])"
    r"|(?<![a-z])(?:num[-_])?key[-_](?:value|padding|dim|size|bias|proj)(?![a-z])"
)
"""What stands in the names of ordinary arguments (run_clm, TRL, axolotl, LLaMA-Factory) and only looks like a secret's."""

_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_\w{16,}|sk-[\w-]{16,}|[0-9a-f]{40}(?![0-9a-f])|wandb_v\d\w+|gh[opsu]_\w{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|xox[abp]-[\w-]{10,}|nvapi-[\w-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]+)"
    r"|://[^/\s@]+:[^/\s@]+@"
)
"""Keys by the shape that their makers gave them, JSON web tokens, and a password inside a URL."""

_ASSIGNMENT = re.compile(r"""["']?\s*[:=]\s*["']?""")
_WORD = re.compile(r"""[^\s,;&?|(){}"'`]+""")


def looks_secret(argument: str) -> bool:
    """Whether an argument, by a name or by the shape of a value in it, may hold a token, key or password.

    It may be a whole command for a shell, JSON, or a header, so every word of it counts.
    """
    if _SECRET_VALUE.search(argument):
        return True
    words = _WORD.findall(_ASSIGNMENT.sub("=", argument))
    return any(
        _names_secret(name) for name, equals, _ in (word.partition("=") for word in words) if equals or name.startswith("-")
    )


def _names_secret(name: str) -> bool:
    return bool(_SECRET.search(_HARMLESS.sub("", name)))


def recordable(command: Sequence[str]) -> bool:
    """Whether a command may be written down: no argument of it looks like a secret."""
    return not any(looks_secret(argument) for argument in command)


@dataclass(frozen=True, slots=True)
class Record:
    """What run.json says. `resumed_step` and `resumed_at` are of the last resume, None when there was none."""

    values: Mapping[str, Any]

    def text(self, key: str) -> str | None:
        """A string value, or None."""
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def command(self) -> list[str] | None:
        """The training's command line."""
        value = self.values.get("command")
        return value if isinstance(value, list) and value and all(isinstance(word, str) for word in value) else None

    @property
    def may_record_command(self) -> bool:
        """Whether the command may stand in a version's metadata; --no-record-command says no."""
        return self.values.get("record_command") is not False

    @property
    def world_size(self) -> int | None:
        """How many processes train together."""
        value = self.values.get("world_size")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def resumed_step(self) -> int | None:
        """The global step from which the last resume went on."""
        value = self.values.get("resumed_step")
        return value if isinstance(value, int) else None

    @property
    def restarted_at(self) -> float | None:
        """When the first checkpoint was saved of a training that had started over, None when none has since the last resume."""
        value = self.values.get("restarted_at")
        return float(value) if isinstance(value, int | float) else None

    @property
    def resumed_at(self) -> float:
        """When that was, in seconds since the epoch; 0 when there was none."""
        value = self.values.get("resumed_at")
        return float(value) if isinstance(value, int | float) else 0.0


def path_of(output_dir: Path) -> Path:
    """Where run.json is for an output folder."""
    return output_dir / FOLDER / "run.json"


def read(output_dir: Path) -> Record:
    """The record of an output folder; an empty one where there is none yet."""
    return Record(durable.read_json(path_of(output_dir)) or {})


def update(output_dir: Path, **values: Any) -> Record:
    """Set these keys, keep all others, and drop those given as None. Readable by the owner alone: it holds a command line."""
    path = path_of(output_dir)
    durable.make_folder(path.parent)
    # The watcher and the training both complete it, and neither may lose what the other wrote.
    with durable.exclusive(path.with_name("run.lock")):
        before = durable.read_json(path)
        merged = {"version": 1, **(before or {}), **values}
        merged = {key: value for key, value in merged.items() if value is not None}
        if merged != before:
            durable.write_json(path, merged, mode=0o600)
    return Record(merged)
