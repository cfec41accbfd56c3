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
"""Parts of ordinary argument names (run_clm, TRL, axolotl, LLaMA-Factory) that only look like the name of a secret."""

_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_\w{16,}|sk-[\w-]{16,}|[0-9a-f]{40}(?![0-9a-f])|wandb_v\d\w+|gh[opsu]_\w{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|xox[abp]-[\w-]{10,}|nvapi-[\w-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]+)"
    r"|://[^/\s@]+:[^/\s@]+@"
)
"""API keys by their issuers' formats, JSON web tokens, and passwords inside URLs."""

_ASSIGNMENT = re.compile(r"""["']?\s*[:=]\s*["']?""")
_WORD = re.compile(r"""[^\s,;&?|(){}"'`]+""")


def looks_secret(argument: str) -> bool:
    """Whether an argument may hold a token, key or password, by a name in it or by the format of a value.

    Every word counts: the argument may be a shell command, JSON or a header.
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
    """Whether a command may be recorded: no argument looks like a secret."""
    return not any(looks_secret(argument) for argument in command)
