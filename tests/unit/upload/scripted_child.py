"""Stands in for the upload process: speaks its JSON lines, and for each job does what the next word in a file says.

The file is named by SCRIPT in the environment and holds a JSON list; when it is empty, a job succeeds. SCRIPT.log gets a line a
job: the process id and the snapshot's name.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(os.environ["SCRIPT"])
ERRORS = {
    "away": ("TransientStoreError", "injected: away"),
    "quota": ("PermanentStoreError", "injected: quota"),
    "rejected": ("RejectedError", "injected: key"),
    "changed": ("SnapshotChangedError", "injected: rewritten"),
}


def main() -> None:
    hello = json.loads(sys.stdin.readline())
    for number, line in enumerate(sys.stdin):
        job = json.loads(line)
        words = json.loads(SCRIPT.read_text())
        SCRIPT.write_text(json.dumps(words[1:]))
        with SCRIPT.with_name("SCRIPT.log").open("a") as log:
            log.write(f"{os.getpid()} {Path(job.get('snapshot', 'check')).name}\n")
        answer(words[0] if words else "done", job, hello["run"], number)


def answer(word: str, job: dict[str, Any], run: dict[str, Any], number: int) -> None:
    if word in ERRORS:
        name, message = ERRORS[word]
        say(event="failed", error=name, message=message, hint="injected: a hint")
        return
    if word == "dies":
        os._exit(135)
    if word == "dies in its answer":
        sys.stdout.write('{"event": "done", "version": {"qual')
        sys.stdout.flush()
        os._exit(137)
    if word == "hangs":
        say(event="progress", stage="hash", done=0, total=0, moved=0)
        time.sleep(60)
    if word == "seems to stand":
        for _ in range(8):
            say(event="progress", stage="upload", done=0, total=9, moved=0)
            time.sleep(0.2)
    if word == "hashes slowly":
        for moved in range(8):
            say(event="progress", stage="hash", done=0, total=0, moved=moved)
            time.sleep(0.2)
    if job["op"] == "check":
        say(event="done", run=run | {"entity": "me"})
        return
    name = job["upload"]["name"]
    version = {"qualified": f"me/p/{name}:v{number}", "name": name, "version": f"v{number}", "digest": "d"}
    say(event="done", version=version, seconds=0.5, attached=True)


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
