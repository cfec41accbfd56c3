"""The ranks of one training, and how they agree, wait for each other and exchange values."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ckptsync.trainer import say

_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others to finish a save. The default of 30 minutes is too short for slow file systems."""

_ARRIVAL = timedelta(seconds=30)
"""How long a rank waits for the others to announce themselves. Each does when its `train()` begins, and the Trainer itself lets
no rank get from there to `on_train_begin` before all of them have come that far."""

_CONNECTION = timedelta(seconds=12)
"""How long a rank tries to connect to the others. gloo takes five times as long before it gives up (torch 2.13, measured)."""

_HERE, _JOINED = "ckptsync/rank", "ckptsync/joined"

_group: Any = None
"""One process group for all trainings of this process: creating one takes about 10 ms, and they are never freed."""


def announce() -> None:
    """Tell the other ranks, if there are any, that this one makes the calls of `Ranks` too. Waits for nobody."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        _say_of_itself(distributed, _HERE)


class Ranks:
    """The ranks of a training. Every rank must make the same calls in the same order, or all of them hang.

    A rank that was started without ckptsync makes none: each announces itself, and where one is missing, the others do without.

    Communicates over gloo, on the CPU: over NCCL, a flag would make every step wait for the GPU. A single rank sends nothing.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._distributed: Any = None
        self._flag: Any = None
        if world_size > 1:
            self._join()

    @property
    def together(self) -> bool:
        """Whether the ranks can communicate. Several ranks need torch.distributed, which XLA doesn't use."""
        return self.world_size == 1 or self._distributed is not None

    def agree(self, flag: bool) -> bool:
        """Whether any rank passed True; the same answer in all of them."""
        if self._distributed is None:
            return flag
        self._flag.fill_(flag)
        self._distributed.all_reduce(self._flag, op=self._distributed.ReduceOp.MAX, group=_group)
        return bool(self._flag.item())

    def wait(self) -> None:
        """Return when every rank has called this."""
        if self._distributed is not None:
            self._distributed.barrier(group=_group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order."""
        if self._distributed is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        self._distributed.all_gather_object(values, value, group=_group)
        return values

    def _join(self) -> None:
        global _group
        import torch
        import torch.distributed as distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return
        if _group is None:
            announce()
            if missing := _missing(distributed, _HERE):
                _say_once(
                    distributed,
                    missing,
                    f"rank {_names(missing)} of {self.world_size} was started without ckptsync's hook"
                    " (a launcher that drops PYTHONPATH?)",
                )
                return
            _forget(distributed, _JOINED)
            try:
                group = distributed.new_group(backend="gloo", timeout=_CONNECTION)
                _wait_longer(group)
            except (RuntimeError, ValueError) as error:
                # The training itself needs no gloo.
                say(f"no markers and no save at a signal, the ranks can't agree: {error}")
                return
            # One may have failed alone: the others would wait for it at their first save.
            _say_of_itself(distributed, _JOINED)
            if missing := _missing(distributed, _JOINED):
                _say_once(distributed, missing, f"rank {_names(missing)} of {self.world_size} can't connect to the others")
                return
            _group = group
        self._distributed, self._flag = distributed, torch.zeros(1, dtype=torch.uint8)


def _wait_longer(group: Any) -> None:
    """Let the collectives of a group take as long as a save. Without this function of torch (2.2), they have its default."""
    from torch.distributed import distributed_c10d

    if set_timeout := getattr(distributed_c10d, "_set_pg_timeout", None):
        set_timeout(_TIMEOUT, group)


def _say_once(distributed: Any, missing: Sequence[int], reason: str) -> None:
    """Say in one of the ranks that are there why none of them uses the group."""
    if distributed.get_rank() == min(set(range(distributed.get_world_size())) - set(missing)):
        say(f"no markers and no save at a signal: {reason}")


def _names(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _say_of_itself(distributed: Any, what: str) -> None:
    """Let the other ranks know that this one has come so far."""
    with contextlib.suppress(RuntimeError, ValueError):
        _store().set(f"{what}/{distributed.get_rank()}", "here")


def _forget(distributed: Any, what: str) -> None:
    """Drop what an earlier start of the ranks left in the store: torchrun keeps it over its restarts (torch 2.13).

    Before the group is made. A rank that is connected to another one then knows that the other dropped it too.
    """
    with contextlib.suppress(RuntimeError, NotImplementedError):
        for key in (distributed.get_rank(), "missing"):
            _store().delete_key(f"{what}/{key}")


def _missing(distributed: Any, what: str) -> list[int]:
    """The ranks that have not come so far in time: the same answer in all that have, however late each of them comes."""
    store = _store()
    keys = [f"{what}/{rank}" for rank in range(distributed.get_world_size())]
    with contextlib.suppress(RuntimeError):
        store.wait(keys, _ARRIVAL)
    absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
    # The first rank to decide decides for all: one that comes after that would otherwise wait for ranks that have gone on.
    return list(json.loads(store.compare_set(f"{what}/missing", "", json.dumps(absent))))


def _store() -> Any:
    """Where the ranks of this process group leave values for each other, without waiting for one another."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
