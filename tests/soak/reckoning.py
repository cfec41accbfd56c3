"""Accounts for every checkpoint, from the training's ledger, the watcher's history, and the server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptsync import durable
from ckptsync.checkpoint import Receipt
from ckptsync.upload.spool import Spool
from tests import evidence
from tests.server_process import ServerProcess
from tests.soak.scene import FOREIGN_RUN
from tests.soak.training import RUN, Ledger

ADDED = "eval_results.json"
"""The file that the soak puts into checkpoints. With it or without, a version holds the same save."""


@dataclass
class Reckoning:
    """The figures of a soak. `wrong` holds a sentence for each broken promise; the run passes if it is empty."""

    figures: dict[str, object] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    latest: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    exits: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """Every broken promise, as a sentence."""
        return [*self.lost, *self.torn, *self.duplicate, *self.latest, *self.exits, *self.left, *self.other]

    def count(self) -> None:
        """Bring the figures up to date with the promises."""
        self.figures |= {
            "lost": len(self.lost),
            "torn": len(self.torn),
            "twice": len(self.duplicate),
            "wrong latest": len(self.latest),
            "exit 0 with something not durable": len(self.exits),
            "left behind": len(self.left),
            "other broken promises": len(self.other),
        }


def reckon(output_dir: Path, former: Sequence[Path], ledger: Ledger, server: ServerProcess) -> Reckoning:
    """Compare the three records with each other, and with the folder. `former` are output folders that were taken away."""
    found = Reckoning()
    kept = [_without_added(each) for each in evidence.versions(server, f"checkpoint-{RUN}")]
    found.versions = [each.version for each in kept]
    events = _events(output_dir)
    named = {kind: {_name(event) for event in events if event["event"] == kind} for kind in ("pinned", "superseded", "changed")}
    receipts = {receipt.snapshot: receipt for receipt in Spool(output_dir, run_id=RUN).receipts}
    found.lost = [f"lost: {name}" for name in sorted(named["pinned"] - receipts.keys() - named["superseded"] - named["changed"])]
    damage = evidence.damage(kept, ledger.saves, wanted=())
    found.torn = [f"torn: {version}" for version in damage.torn]
    found.torn += [f"torn: {each.version}: bytes that are not its own" for each in kept if not _holds_all(server, each)]
    found.duplicate = [f"twice: {version}" for version in damage.duplicate]
    found.latest = _wrong_latest(ledger, kept)
    found.left = [f"left behind: {path}" for path in evidence.leftovers(output_dir) if not _is_foreign(output_dir, path)]
    everywhere = [receipt for folder in (output_dir, *former) for receipt in Spool(folder, run_id=RUN).receipts]
    found.other = [*_receipts_without_version(everywhere, kept), *_changed_outside(output_dir, ledger)]
    found.figures = {
        "checkpoints saved": len(ledger.done),
        "saves cut short": len(ledger.saves) - len(ledger.done),
        "pinned": len(named["pinned"] | receipts.keys()),
        "uploaded": len(receipts),
        "superseded": len(named["superseded"] - receipts.keys()),
        "changed under the pin": len(named["changed"] - receipts.keys() - named["superseded"]),
        "versions": len(kept),
    }
    return found


def _without_added(version: evidence.Kept) -> evidence.Kept:
    return replace(version, files={path: digest for path, digest in version.files.items() if path != ADDED})


def _events(output_dir: Path) -> list[Mapping[str, Any]]:
    path = output_dir / ".ckptsync" / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if "print" in event]


def _name(event: Mapping[str, Any]) -> str:
    return f"{event['checkpoint']}.{event['print']}"


def _holds_all(server: ServerProcess, version: evidence.Kept) -> bool:
    """Whether the server's own file of every digest has that digest."""
    return all(evidence.digest(evidence.content(server, each)) == each for each in set(version.files.values()))


def _is_foreign(output_dir: Path, path: str) -> bool:
    """Whether it is what another run left in the queue: that has to stay there."""
    value = durable.read_json(output_dir / ".ckptsync" / path / "snapshot.json") or {}
    return value.get("run_id") == FOREIGN_RUN


def _receipts_without_version(receipts: Sequence[Receipt], kept: list[evidence.Kept]) -> list[str]:
    steps = {each.version: each.step for each in kept}
    return [
        f"the receipt of {receipt.snapshot} names {receipt.version}, which is not that step"
        for receipt in receipts
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
        here = {path: digest for path, digest in evidence.digests(folder).items() if path != ADDED}
        if content in ledger.done and here != ledger.saves[content]:
            strange.append(folder.name)
    return [f"changed outside .ckptsync: {name}" for name in strange]
