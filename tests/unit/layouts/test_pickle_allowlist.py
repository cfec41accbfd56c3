"""Enums as Python 3.11.2 pickles them are told from a getattr that would run something."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, TensorProperties

from ckptsync.layouts.formats import pickle_allowlist, pickle_reader
from ckptsync.layouts.formats.stream import Malformed


class Getattr:
    """Pickled as getattr(owner, name), and with `call` as a call of what that gives."""

    def __init__(self, owner: Any, name: str, *, call: Any = None) -> None:
        self.owner, self.name, self.call = owner, name, call

    def __reduce__(self) -> Any:
        if self.call is None:
            return getattr, (self.owner, self.name)
        return Getattr(self.owner, self.name), (self.call,)

    def __call__(self, _: Any) -> Any:
        """pickle asks for something that can be called."""


def read(value: Any) -> None:
    pickle_allowlist.enforce(pickle_reader.read(pickle.dumps(value, protocol=2)), pickle_allowlist.sharded)


def test_an_enum_of_torch_that_python_3_11_2_pickled_is_accepted() -> None:
    read({"memory_format": Getattr(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")})


@pytest.mark.parametrize(
    "value",
    [
        Getattr(Path, "unlink"),
        Getattr(TensorProperties, "__init__"),
        Getattr(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT", call=1),
        Getattr(Getattr(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT"), "name"),
    ],
)
def test_any_other_getattr_is_refused(value: Getattr) -> None:
    with pytest.raises(Malformed, match="getattr"):
        read(value)
