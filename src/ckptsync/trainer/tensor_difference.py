"""The largest difference between two files of tensors, as JSON: {largest, relative, where}.

Run as `python -m ckptsync.trainer.tensor_difference ONE OTHER`, in a separate process because it needs torch. Reads safetensors
and what torch.save wrote, with the unpickler that executes no code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> int:
    """Compare the two files on the command line."""
    one, other = (dict(_tensors("", _load(Path(name)))) for name in sys.argv[1:3])
    largest, relative, where = 0.0, 0.0, ""
    for name in one.keys() & other.keys():
        if one[name].shape != other[name].shape:
            largest, where = float("inf"), name
            break
        first, second = one[name].double(), other[name].double()
        apart = float((first - second).abs().max()) if first.numel() else 0.0
        if apart > largest:
            largest, where = apart, name
            relative = apart / max(float(first.abs().max()), 1e-300)
    print(json.dumps({"largest": largest, "relative": relative, "where": where}))
    return 0


def _load(path: Path) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor in nested dicts and lists, with its path."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(f"{name}.{key}".lstrip("."), each)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _tensors(f"{name}.{index}", each)


if __name__ == "__main__":
    sys.exit(main())
