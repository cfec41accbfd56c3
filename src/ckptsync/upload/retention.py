"""Which versions of a run may go. Decides purely; `plan` and `sweep` ask and tell the store.

Nothing goes that a person may want: no version with an alias that isn't ours, none that is linked, none that ckptsync didn't
upload, no final model, not what `latest` names, and never one of the newest two that are verified.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ckptsync.checkpoint import Version
from ckptsync.store import artifact
from ckptsync.store.contract import Store
from ckptsync.upload import lineage

STANDING = 2
"""How many verified versions always stay: when the bytes of one prove wrong, a resume falls back to the other."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep beside what always stays: the last so many, the best, and those of every so many steps."""

    last: int | None = None
    best: bool = False
    every: int | None = None

    def __bool__(self) -> bool:
        """Whether it asks for anything. One that doesn't lets nothing go."""
        return self.last is not None or self.best or self.every is not None

    def __str__(self) -> str:
        parts = [f"the last {self.last}" if self.last is not None else "", "the best" if self.best else ""]
        return ", ".join(filter(None, [*parts, f"every {self.every} steps" if self.every else ""])) or "everything"


@dataclass(frozen=True, slots=True)
class Choice:
    """A version, and why it is kept; it goes where there is no reason."""

    version: Version
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether it stays."""
        return bool(self.reasons)


def proven(version: Version) -> bool:
    """Whether ckptsync uploaded it and the store holds as many files and bytes as were pinned."""
    ours = version.ours
    return bool(ours) and (ours.get("files"), ours.get("bytes")) == (version.files, version.bytes)


def verified(version: Version, now: float) -> bool:
    """Whether a training can be resumed from it, as far as the store's records say, and its time isn't up."""
    alive = version.expires_at is None or version.expires_at > now
    return proven(version) and alive and bool(version.ours.get("resumable")) and not version.is_model


def choose(versions: Iterable[Version], policy: Retention, now: float, *, linked: Collection[str] = ()) -> list[Choice]:
    """What stays of a run's versions and why, newest first. `linked` are the qualified names of those that are linked.

    `now` is in seconds since the epoch: a version whose TTL is over doesn't count as one that stands.
    """
    ordered = newest_first(versions)
    checkpoints = [each for each in ordered if proven(each) and not each.is_model]
    standing = [each for each in ordered if verified(each, now)]
    rounds = _first_of_each_step(checkpoints)

    def reasons(version: Version) -> list[str]:
        found = [f"alias {alias}" for alias in artifact.users_aliases(version)]
        if version.qualified in linked:
            found.append("linked")
        if not policy:
            found.append("no policy")
        if not version.ours:
            found.append("not uploaded by ckptsync")
        elif version.is_model:
            found.append("the final model")
        elif not proven(version):
            found.append("not as it was uploaded")
        if "latest" in version.aliases:
            found.append("latest")
        if version in checkpoints[: policy.last or 0]:
            found.append(f"last {policy.last}")
        if policy.best and version in _best(checkpoints):
            found.append("best")
        if policy.every and version in rounds and (version.step or 0) % policy.every == 0:
            found.append(f"every {policy.every} steps")
        if version in standing[:STANDING]:
            found.append("newest verified")
        if not found and version not in _older_than_first(standing, ordered):
            found.append("nothing newer is verified")
        return found

    return [Choice(each, tuple(reasons(each))) for each in ordered]


def newest_first(versions: Iterable[Version]) -> list[Version]:
    """In the order of saving, by (attempt, step), then by number; no clock plays a part."""
    found = list(versions)
    attempts = lineage.attempts_of(found)

    def rank(version: Version) -> tuple[int, int, int]:
        return attempts[version.qualified], version.step if version.step is not None else -1, version.number

    return sorted(found, key=rank, reverse=True)


def _first_of_each_step(ordered: Sequence[Version]) -> list[Version]:
    """Of two saves of one step, the later one."""
    seen: dict[int | None, Version] = {}
    for version in ordered:
        seen.setdefault(version.step, version)
    return list(seen.values())


def _best(ordered: Sequence[Version]) -> list[Version]:
    """Those with the alias, and the checkpoint that the newest one calls its best so far."""
    named = ordered[0].ours.get("best") if ordered else None
    step = next((each for each in _first_of_each_step(ordered) if named is not None and each.step == named), None)
    return [each for each in ordered if "best" in each.aliases or each is step]


def _older_than_first(standing: Sequence[Version], ordered: Sequence[Version]) -> Sequence[Version]:
    return ordered[ordered.index(standing[0]) + 1 :] if standing else ()


def plan(store: Store, versions: Sequence[Version], policy: Retention, now: float) -> list[Choice]:
    """`choose`, with the store asked about links: one request for each version that would go."""
    choices = choose(versions, policy, now)
    linked = [each.version.qualified for each in choices if not each.kept and store.linked(each.version)]
    return choose(versions, policy, now, linked=linked) if linked else choices


def sweep(store: Store, choices: Iterable[Choice], *, at: float | None = None) -> list[Version]:
    """Let go what isn't kept, and return it. What somebody came to want since the plan stays.

    With `at`, in seconds since the epoch, the store deletes it then; what goes earlier by itself is left as it is.
    """
    going = [each.version for each in choices if not each.kept]
    if at is None:
        return [each for each in going if store.delete(each)]
    return [each for each in going if (each.expires_at or math.inf) <= at or store.expire(each, at)]
