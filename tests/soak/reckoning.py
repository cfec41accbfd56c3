"""Accounts for every checkpoint, from the training's ledger, the watcher's history, and the server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptsync.upload.spool import Spool
from tests import evidence
from tests.soak.training import Ledger


@dataclass
class Reckoning:
    """The figures of a soak. `wrong` holds a sentence for each broken promise; the run passes if it is empty."""

    figures: dict[str, object] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """Every broken promise, as a sentence."""
        return [*self.lost, *self.torn, *self.duplicate, *self.left, *self.other]


def reckon(output_dir: Path, ledger: Ledger, kept: list[evidence.Kept]) -> Reckoning:
    """Compare the three records with each other, and with the folder."""
    found = Reckoning()
    spool = Spool(output_dir)
    events = _events(output_dir)
    named = {kind: {_name(event) for event in events if event["event"] == kind} for kind in ("pinned", "superseded", "changed")}
    receipts = {receipt.snapshot: receipt for receipt in spool.receipts}
    found.lost = [
        f"lost: {name}"
        for name in sorted(named["pinned"] - receipts.keys())
        if name not in named["superseded"] and not _was_rewritten(name, named["changed"], ledger)
    ]
    damage = evidence.damage(kept, ledger.saves, wanted=())
    found.torn = [f"torn: {version}" for version in damage.torn]
    found.duplicate = [f"twice: {version}" for version in damage.duplicate]
    found.left = [f"left behind: {path}" for path in evidence.leftovers(output_dir)]
    found.other = [
        *_receipts_without_version(receipts, kept),
        *_wrong_latest(ledger, kept),
        *_changed_outside(output_dir, ledger),
    ]
    found.figures = {
        "checkpoints saved": len(ledger.done),
        "saves cut short": len(ledger.saves) - len(ledger.done),
        "pinned": len(named["pinned"] | receipts.keys()),
        "uploaded": len(receipts),
        "superseded": len(named["superseded"] - receipts.keys()),
        "changed under the pin": len(named["changed"] - receipts.keys() - named["superseded"]),
        "versions": len(kept),
        "lost": len(found.lost),
        "torn": len(found.torn),
        "duplicate": len(found.duplicate),
        "left behind": len(found.left),
        "other broken promises": len(found.other),
    }
    return found


def _events(output_dir: Path) -> list[Mapping[str, Any]]:
    lines = (output_dir / ".ckptsync" / "history.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if "print" in event]


def _name(event: Mapping[str, Any]) -> str:
    return f"{event['checkpoint']}.{event['print']}"


def _was_rewritten(name: str, changed: set[str], ledger: Ledger) -> bool:
    """Whether a pin was discarded because the training was saving that same step again: a hard link keeps no old bytes."""
    return name in changed and list(ledger.folders.values()).count(name.partition(".")[0]) > 1


def _receipts_without_version(receipts: Mapping[str, Any], kept: list[evidence.Kept]) -> list[str]:
    steps = {each.version: each.step for each in kept}
    return [
        f"the receipt of {name} names {receipt.version}, which is not that step"
        for name, receipt in receipts.items()
        if steps.get(receipt.version) != receipt.step
    ]


def _wrong_latest(ledger: Ledger, kept: list[evidence.Kept]) -> list[str]:
    if not ledger.done:
        return []
    last = ledger.saves[ledger.done[-1]]
    holders = [each for each in kept if "latest" in each.aliases]
    if len(holders) == 1 and holders[0].files == last:
        return []
    return [f"latest is {[each.version for each in holders]}, not the last save, {ledger.done[-1]}"]


def _changed_outside(output_dir: Path, ledger: Ledger) -> list[str]:
    """Whether anything that the training wrote has changed, or there is anything that it didn't write."""
    strange = [path.name for path in output_dir.iterdir() if path.name not in {*ledger.folders.values(), ".ckptsync"}]
    last = {ledger.folders[content]: content for content in ledger.saves}
    for folder in output_dir.glob("checkpoint-*"):
        content = last.get(folder.name)
        if content in ledger.done and evidence.digests(folder) != ledger.saves[content]:
            strange.append(folder.name)
    return [f"changed outside .ckptsync: {name}" for name in strange]
