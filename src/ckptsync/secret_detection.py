"""Decides whether a command line may be recorded: not if an argument looks like a token, key or password."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
