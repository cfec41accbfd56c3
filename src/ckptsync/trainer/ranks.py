"""The ranks of one training, and how they agree, wait for each other and exchange values."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others to finish a save. The default of 30 minutes is too short for slow file systems."""

_group: Any = None
"""One process group for all trainings of this process: creating one takes about 10 ms, and they are never freed."""


class Ranks:
    """The ranks of a training. Every rank must make the same calls in the same order, or all of them hang.

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
            try:
                _group = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
            except (RuntimeError, ValueError) as error:
                # All ranks fail together, because gloo connects each with each. The training itself needs no gloo.
                sys.stderr.write(f"ckptsync: no markers and no save at a signal, the ranks can't agree: {error}\n")
                return
        self._distributed, self._flag = distributed, torch.zeros(1, dtype=torch.uint8)
