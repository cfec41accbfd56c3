"""The processes that train together, where all of them have to do the same thing at the same step."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others to finish a save. The default of 30 minutes is too short for a slow file system."""

_group: Any = None
"""One process group for all trainings of this process: making one costs about 10 ms, and they are never freed."""


class Ranks:
    """Agreement and waiting among the ranks. With one rank nothing is sent and nothing waits.

    What is sent goes through gloo, on the CPU: a flag that went through NCCL would make every step wait for the GPU.
    Every rank has to make the same calls in the same order, or all of them hang.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._distributed: Any = None
        self._flag: Any = None
        if world_size > 1:
            self._join()

    @property
    def together(self) -> bool:
        """Whether agreement is possible: with several ranks it needs torch.distributed (XLA has its own way)."""
        return self.world_size == 1 or self._distributed is not None

    def agree(self, flag: bool) -> bool:
        """Whether any rank says yes: the same answer in all of them."""
        if self._distributed is None:
            return flag
        self._flag.fill_(flag)
        self._distributed.all_reduce(self._flag, op=self._distributed.ReduceOp.MAX, group=_group)
        return bool(self._flag.item())

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self._distributed is not None:
            self._distributed.barrier(group=_group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of the ranks."""
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
                # All ranks fail together: gloo connects each with each. The training itself needs no gloo.
                sys.stderr.write(f"ckptsync: no markers and no save at a signal, the ranks can't agree: {error}\n")
                return
        self._distributed, self._flag = distributed, torch.zeros(1, dtype=torch.uint8)
