"""Checkpoints of a given size. The next one takes no time: the folder is renamed, and a few bytes change in each file."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from ckptsync.trainer import marker
from tests import checkpoints

PIECE = 2**20
LARGE = {"model-00001-of-00002.safetensors": 1000, "model-00002-of-00002.safetensors": 700, "optimizer.pt": 300}
"""Of 2 GB: file → MB."""


@dataclass(slots=True)
class Payload:
    """A checkpoint folder that can be renewed with bytes that no store has seen before.

    `sizes` are in MB; the small files that the Trainer writes are added.
    """

    output_dir: Path
    sizes: dict[str, int] = field(default_factory=lambda: dict(LARGE))
    step: int = 0

    @property
    def folder(self) -> Path:
        """Its current path."""
        return self.output_dir / f"checkpoint-{self.step}"

    @property
    def bytes(self) -> int:
        """The sum of its file sizes."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def large(self) -> list[Path]:
        """Its large files."""
        return [self.folder / name for name in self.sizes]

    def make(self) -> None:
        """Write the first one."""
        self.step = 1
        checkpoints.make_checkpoint(self.output_dir, 1, max_steps=10**6, without=("model.safetensors", *self.sizes))
        for name, size in self.sizes.items():
            _write(self.folder / name, size * 10**6)
        shards = [name for name in self.sizes if name.endswith(".safetensors")]
        weights = {f"weight-{number}": name for number, name in enumerate(shards)}
        total = sum(self.sizes[name] for name in shards) * 10**6
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weights})
        (self.folder / "model.safetensors.index.json").write_text(index)
        self._finish()

    def renew(self) -> None:
        """Turn it into the next checkpoint: rename the folder to the next step, and change bytes in every large file."""
        before = self.folder
        self.step += 1
        before.rename(self.folder)
        for path in self.large():
            _change(path)
        self._finish()

    def complete(self) -> None:
        """Write the marker that the callback inside a training writes: this save is complete."""
        marker.write(self.output_dir, self.step, world_size=1)

    def _finish(self) -> None:
        state = checkpoints.state_bytes(self.step, max_steps=10**6, best=None, metrics={"loss": 1.0})
        (self.folder / "trainer_state.json").write_bytes(state)


def _write(path: Path, size: int) -> None:
    block = os.urandom(PIECE)
    with path.open("wb") as file:
        if path.suffix == ".pt":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
                with archive.open(zipfile.ZipInfo("archive/data/0"), "w", force_zip64=True) as member:
                    _fill(member.write, block, size)
            return
        number = "-00002-" in path.name
        header = json.dumps({f"weight-{int(number)}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        _fill(file.write, block, size)


def _fill(write: object, block: bytes, size: int) -> None:
    assert callable(write)
    for start in range(0, size, PIECE):
        # Every piece differs: a store may deduplicate equal ones.
        piece = struct.pack("<Q", start) + block[8:]
        write(piece[: min(PIECE, size - start)])


def _change(path: Path) -> None:
    """Change bytes in the middle of the file, and keep the zip's checksum valid."""
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle)
        before = file.read(12)
        after = os.urandom(8)
        file.seek(middle)
        # The last four bytes restore the CRC-32 state, so that what follows still matches.
        file.write(after + _patch(before, after) if path.suffix == ".pt" else after)


def _patch(before: bytes, after: bytes) -> bytes:
    """The four bytes which, behind `after`, give the CRC-32 state that `before` gave: the checksum is linear in them."""
    wanted = zlib.crc32(before) ^ zlib.crc32(after + bytes(4))
    columns = [zlib.crc32(after + (1 << bit).to_bytes(4, "little")) ^ zlib.crc32(after + bytes(4)) for bit in range(32)]
    rows = [(column, 1 << bit) for bit, column in enumerate(columns)]
    solution = 0
    for bit in range(32):
        pivot = next((row for row in rows if row[0] >> bit & 1), None)
        assert pivot is not None
        rows = [(row[0] ^ pivot[0], row[1] ^ pivot[1]) if row[0] >> bit & 1 else row for row in rows if row is not pivot]
        if wanted >> bit & 1:
            wanted, solution = wanted ^ pivot[0], solution ^ pivot[1]
    return solution.to_bytes(4, "little")
