"""What `doctor` says of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptsync.rehearsal import health_check
from ckptsync.upload import snapshot
from tests.checkpoints import make_checkpoint

MOUNTS = """22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /data rw - nfs4 server:/data rw
24 23 0:22 / /data/fast\\040disk rw - xfs /dev/sdb rw
25 22 0:23 / /mnt/bucket rw - fuse.gcsfuse bucket rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/data/out", "nfs4"),
        ("/data", "nfs4"),
        ("/database", "ext4"),
        ("/data/fast disk/out", "xfs"),
        ("/mnt/bucket/x", "fuse.gcsfuse"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)

    assert health_check.file_system(Path(path), mounts) == kind


def test_without_mountinfo_the_file_system_is_unknown(tmp_path: Path) -> None:
    assert health_check.file_system(tmp_path, tmp_path / "none") == "unknown"


def test_the_way_of_pinning_is_found_by_trying_and_leaves_nothing(tmp_path: Path) -> None:
    assert snapshot.cheapest_way(tmp_path) in ("reflink", "link")
    assert not list(tmp_path.iterdir())


def test_every_finding_that_is_not_ok_says_what_to_do(tmp_path: Path, home: Path) -> None:
    make_checkpoint(tmp_path, 4)

    findings = list(health_check.machine(tmp_path))

    assert {each.check for each in findings} >= {"output folder", "links", "locks", "file events", "disk", "libraries", "notices"}
    assert all(each.advice for each in findings if each.state != health_check.OK)
