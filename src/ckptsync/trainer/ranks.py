"""The ranks of one training, and how they agree, wait for each other and exchange values."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import timedelta
from typing import Any

from ckptsync.trainer import say

_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others to finish a save. The default of 30 minutes is too short for slow file systems."""

_ARRIVAL = timedelta(seconds=30)
"""How long a rank waits for the others to announce themselves. Each does when its `train()` begins, and the Trainer itself lets
no rank get from there to `on_train_begin` before all of them have come that far."""

_HERE, _DECISION = "ckptsync/rank", "ckptsync/together"

_group: Any = None
"""One process group for all trainings of this process: creating one takes about 10 ms, and they are never freed."""


def announce() -> None:
    """Tell the other ranks, if there are any, that this one makes the calls of `Ranks` too. Waits for nobody."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return
    with contextlib.suppress(RuntimeError, ValueError):
        _store().set(f"{_HERE}/{distributed.get_rank()}", "here")


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
            missing = _missing(distributed)
            if missing:
                if distributed.get_rank() == min(set(range(self.world_size)) - set(missing)):
                    say(
                        f"no markers and no save at a signal: rank {', '.join(map(str, missing))} of {self.world_size}"
                        " was started without ckptsync's hook (a launcher that drops PYTHONPATH?)"
                    )
                return
            try:
                _group = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
            except (RuntimeError, ValueError) as error:
                # All ranks fail together, because gloo connects each with each. The training itself needs no gloo.
                say(f"no markers and no save at a signal, the ranks can't agree: {error}")
                return
        self._distributed, self._flag = distributed, torch.zeros(1, dtype=torch.uint8)


def _missing(distributed: Any) -> list[int]:
    """The ranks that have not announced themselves in time: the same answer in all that have, however late each of them comes."""
    store = _store()
    keys = [f"{_HERE}/{rank}" for rank in range(distributed.get_world_size())]
    with contextlib.suppress(RuntimeError):
        store.wait(keys, _ARRIVAL)
    absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
    # The first rank to decide decides for all: one that comes after that would otherwise wait for ranks that have gone on.
    return list(json.loads(store.compare_set(_DECISION, "", json.dumps(absent))))


def _store() -> Any:
    """Where the ranks of this process group leave values for each other, without waiting for one another."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
