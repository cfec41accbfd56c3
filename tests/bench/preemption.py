"""The time from a preemption notice to a durable checkpoint, stage by stage: `python -m tests.bench.preemption [--rounds N]`.

A real training, a notice from an emulated GCE metadata service, the real client, the embedded server on the same machine. So the
network costs nothing, and server and client share the cores: what counts is the split, and that the stages before the upload
stay short.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ckptsync.upload.spool import Spool
from tests.integration.conftest import Tool, kill_tree, training, wait_for
from tests.preemption.metadata import GoogleService
from tests.server_process import ServerProcess

STAGES = ("signal", "save", "detect", "hash", "upload", "commit")

SIZES = {"tiny": {"hidden": 32, "save": 20, "seconds": 0.2}, "500 MB": {"hidden": 1312, "save": 40, "seconds": 0.0}}
"""The notice comes midway between two regular saves, when nothing else is being uploaded."""


def measure(server: ServerProcess, folder: Path, name: str, round_number: int) -> tuple[int, dict[str, float]]:
    """One preemption: the bytes of the checkpoint, and the seconds of each stage."""
    options = SIZES[name]
    run_id = f"bench-{name.replace(' ', '')}-{round_number}"
    output_dir = folder / run_id
    tool = Tool(folder / "home", server)
    sizes = {"hidden": int(options["hidden"]), "batch_size": 1, "save_total_limit": 2}
    command = training(output_dir, steps=10_000, save=int(options["save"]), seconds=options["seconds"], **sizes)
    with GoogleService() as service:
        words = ["run", "--run-id", run_id, "--output-dir", str(output_dir), "--notice", "gce", "--", *command]
        process = tool.start(*words, log=folder / f"{run_id}.log", **service.variables)
        try:
            wait_for(lambda: list(Spool(output_dir).receipts), seconds=240, what="a first durable checkpoint")
            wait_for(lambda: not Spool(output_dir).waiting(), seconds=60, what="an empty queue")
            noticed = time.time()
            service.announce(30)
            code = process.wait(240)
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
                process.wait()
    assert code == 75, (folder / f"{run_id}.log").read_text()
    return _split(server, output_dir, noticed)


def _split(server: ServerProcess, output_dir: Path, noticed: float) -> tuple[int, dict[str, float]]:
    """The stages, from the times that the training, the watcher and the server recorded."""
    receipt = Spool(output_dir).receipts.newest()
    assert receipt is not None
    marker = json.loads((output_dir / f".ckptsync/complete/checkpoint-{receipt.step}").read_text())
    events = [json.loads(line) for line in (output_dir / ".ckptsync/history.jsonl").read_text().splitlines()]
    pinned = next(each["time"] for each in events if each["event"] == "pinned" and each["step"] == receipt.step)
    first_file = min(path.stat().st_mtime for path in (output_dir / f"checkpoint-{receipt.step}").iterdir())
    asked = [each for each in server.requests() if each["time"] > pinned]
    created = next(each["time"] for each in asked if each.get("operation") == "CreateArtifact")
    ended = [each["time"] + each["seconds"] for each in asked if each["method"] == "PUT"]
    sent = max((moment for moment in ended if moment <= receipt.committed_at), default=created)
    moments = [noticed, first_file, marker["saved_at"], pinned, created, sent, receipt.committed_at]
    stages = {stage: max(0.0, end - start) for stage, start, end in zip(STAGES, moments, moments[1:], strict=False)}
    return receipt.bytes, stages


def main() -> int:
    """Measure each size, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, action="append")
    options = parser.parse_args()
    print(f"{'checkpoint':<12}{'bytes':>12}" + "".join(f"{stage:>9}" for stage in STAGES) + f"{'all':>9}   (seconds, medians)")
    with tempfile.TemporaryDirectory(prefix="ckptsync-bench-") as temporary:
        folder = Path(temporary)
        (folder / "server").mkdir()
        with ServerProcess(folder / "server" / "data") as server:
            for name in options.size or SIZES:
                rounds = [measure(server, folder, name, number) for number in range(options.rounds)]
                medians = [statistics.median(stages[stage] for _, stages in rounds) for stage in STAGES]
                whole = statistics.median(sum(stages.values()) for _, stages in rounds)
                row = "".join(f"{seconds:9.2f}" for seconds in [*medians, whole])
                print(f"{name:<12}{rounds[-1][0]:>12}{row}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
