"""A training without torch: it saves whole checkpoints, marks them, obeys signals and resumes as a Trainer with the hook does.

So that what ckptsync does around a training can be tried in seconds. `python saver.py OUTPUT_DIR [options]`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from ckptsync import processes, record
from ckptsync.trainer import OUTPUT_DIR, RESUME_FROM, marker
from tests.checkpoints import make_checkpoint

received: list[int] = []


def main() -> int:
    """Count up to the last step. What it did stands in OUTPUT_DIR.log: start N, step N, signal N."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--save-seconds", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--fail-at", type=int, default=0, help="exit with 7 at that step")
    parser.add_argument("--fail-once", action="store_true", help="fail only where no checkpoint was resumed")
    parser.add_argument("--deaf", action="store_true", help="start over whatever there is to resume")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: received.append(number))
    resumed = None if options.deaf else os.environ.get(RESUME_FROM)
    step = json.loads((Path(resumed) / "trainer_state.json").read_text())["global_step"] if resumed else 0
    note(options.output_dir, f"start {step}")
    if OUTPUT_DIR in os.environ:
        record.update(options.output_dir, processes=[processes.identity(os.getpid())], max_steps=options.steps)
    while step < options.steps:
        time.sleep(float(os.environ.get("SAVER_SECONDS", options.seconds)))
        step += 1
        if step == options.fail_at and not (options.fail_once and resumed):
            return 7
        note(options.output_dir, f"step {step}")
        leaving = bool(received) and step < options.steps
        if leaving or step % options.save == 0 or step == options.steps:
            time.sleep(options.save_seconds)
            make_checkpoint(options.output_dir, step, max_steps=options.steps, size=options.size)
            marker.write(options.output_dir, step, world_size=1, preempted=leaving)
        if leaving:
            note(options.output_dir, f"signal {received[0]}")
            return 75
    return 0


def note(output_dir: Path, text: str) -> None:
    """Add a line to the log beside the output folder."""
    with output_dir.with_suffix(".log").open("a") as log:
        log.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
