"""The README's way from nothing to a job, as a new user types it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.systemd.guest import Guest, Store

README = (Path(__file__).parents[2] / "README.md").read_text()


def _blocks() -> list[str]:
    section = README.split("## From nothing to a job that survives the loss of its machine")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, re.DOTALL)


@pytest.mark.slow
def test_every_line_of_the_readme_works(guest: Guest, store: Store) -> None:
    installing, describing, key, starting, removing = _blocks()
    assert "pip install" in installing, "the guest has that already, and no network to do it again"
    unit = "ckptsync-resume@llama"
    guest.sh("rm -r /etc/ckptsync/credentials")
    guest.write("/etc/ckptsync/llama.env", f"WANDB_BASE_URL={store.url}\n")

    shown = guest.sh(describing)
    guest.sh(f"{key.strip()} <<< {store.key}")
    started = guest.sh(starting)

    assert "systemctl enable --now ckptsync-resume@llama" in shown
    assert "Active: active (running)" in started
    guest.wait_for_unit(unit, ActiveState="inactive", Result="success", seconds=120)
    assert re.search(r"uploaded checkpoint-60 as checkpoint-llama-7:v\d", guest.told(unit))
    guest.sh(removing)
    assert "ckptsync" not in guest.sh("find /etc/systemd -name '*ckptsync*'; ls /etc/ckptsync | grep llama.toml || true")
