"""A notebook in a real kernel: train, interrupt, `resumed_run`, finish; and the watcher in the background of a program."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.conftest import Tool, kept, program, wait_for
from tests.server_process import ServerProcess
from tests.workflow.conftest import names, python, run_on

TRAIN = """
import wandb
import ckptsync
from tests.workflow.program import trainer

run = wandb.init(id="notebook", settings=wandb.Settings(console="off"))
training = trainer({out!r}, steps=16, save=4)
"""

INTERRUPT = """
from transformers import TrainerCallback

class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 10:
            raise KeyboardInterrupt

training.add_callback(Interrupt())
try:
    with ckptsync.watch_in_background({out!r}) as watching:
        training.train()
except KeyboardInterrupt:
    pass
run.finish()
print("interrupted at", training.state.global_step, "watcher alive:", watching.alive)
"""

RESUME = """
with ckptsync.resumed_run("notebook", output_dir={new!r}, settings=wandb.Settings(console="off")) as (run, checkpoint_dir):
    assert ckptsync.verify(checkpoint_dir).resumable
    training = trainer({new!r}, steps=16, save=4)
    with ckptsync.watch_in_background({new!r}):
        training.train(resume_from_checkpoint=str(checkpoint_dir))
    run.finish()
print("finished at", training.state.global_step, "from", checkpoint_dir.name)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_trains_is_interrupted_resumes_and_finishes(
    tool: Tool, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: the notebook was not executed")
    import nbformat

    out, new = repr(str(tmp_path / "out")), repr(str(tmp_path / "new"))
    cells = [each.replace("{out!r}", out).replace("{new!r}", new) for each in (TRAIN, INTERRUPT, RESUME)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    for name, value in {**tool.environment, "PYTHONPATH": str(Path(__file__).parents[2]), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    began = time.monotonic()

    where = {"metadata": {"path": str(tool.home)}}
    nbclient.NotebookClient(notebook, timeout=150, kernel_name="python3", resources=where).execute()

    said = [
        "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout") for cell in notebook.cells
    ]
    assert "interrupted at 10 watcher alive: False" in said[1]
    assert "finished at 16 from checkpoint-8" in said[2]
    run = run_on(server, "notebook")
    assert run["state"] == "finished"
    assert run["summary"]["train/global_step"] == 16
    assert len(names(run, "inputArtifacts")) == 1
    assert {row["step"] for row in tool.json("list", "notebook") if row["kind"] == "checkpoint"} >= {8, 16}
    assert time.monotonic() - began < 170


@pytest.mark.slow
def test_a_watcher_in_the_background_ends_with_its_program_after_it_has_uploaded(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = f"""
import os, sys
from pathlib import Path
import ckptsync
from tests.checkpoints import make_checkpoint
watching = ckptsync.watch_in_background({str(out)!r}, run_id="left")
entered = watching.__enter__()
make_checkpoint(Path({str(out)!r}), 4, content="left")
print(entered.process.pid, flush=True)
os._exit(0)
"""

    pid = int(python(tool, script).stdout)

    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
    assert list((out / ".ckptsync/receipts").glob("checkpoint-4.*"))


def test_a_watcher_in_the_background_starts_below_a_long_tmpdir_and_beside_modules_with_the_names_of_python_s_own(
    tool: Tool, tmp_path: Path
) -> None:
    (tool.home / "secrets.py").write_text("raise SystemExit('the project's module ran')\n")
    tool.environment["TMPDIR"] = str(tmp_path / ("long" * 30))
    Path(tool.environment["TMPDIR"]).mkdir()
    out = tmp_path / "out"
    script = f"""
import sys
sys.path.remove('')
from pathlib import Path
import ckptsync
from tests.checkpoints import make_checkpoint
with ckptsync.watch_in_background({str(out)!r}, run_id="long"):
    make_checkpoint(Path({str(out)!r}), 4)
"""

    python(tool, script)

    assert list((out / ".ckptsync/receipts").glob("checkpoint-4.*"))


def test_what_programs_import_is_light_and_typed(tool: Tool) -> None:
    script = """
import sys
import ckptsync
assert {"pull", "verify", "resumed_run", "watch_in_background", "SyncCallback", "PredictionTableCallback"} <= set(dir(ckptsync))
assert not {"click", "wandb", "torch", "transformers", "ckptsync.api"} & set(sys.modules), "the package itself"
ckptsync.pull, ckptsync.verify, ckptsync.resumed_run, ckptsync.watch_in_background
assert not {"wandb", "torch", "transformers"} & set(sys.modules), "the functions"
"""

    python(tool, script)


def test_pull_in_python_raises_what_went_wrong(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    script = f"""
import ckptsync
from ckptsync import errors
for run, kind in (("nobody-knows-it", errors.NotFoundError), ("a/b", errors.UsageError)):
    try:
        ckptsync.pull(run, {str(tmp_path / "dest")!r})
    except kind as error:
        print(error.exit_code)
assert not ckptsync.verify({str(tmp_path)!r}).complete
"""

    assert python(tool, script).stdout.split() == ["4", "2"]
    assert not (tmp_path / "dest").exists()


def test_a_watcher_that_cannot_start_is_an_error_before_the_block_begins(tool: Tool, tmp_path: Path) -> None:
    script = f"""
import os
import ckptsync
from ckptsync.errors import ConfigurationError
os.environ["WANDB_API_KEY"] = "0" * 40
try:
    with ckptsync.watch_in_background({str(tmp_path / "out")!r}, run_id="wrong-key"):
        print("trains for a week")
except ConfigurationError as error:
    print(error, error.__notes__)
"""

    said = python(tool, script).stdout

    assert "trains for a week" not in said
    assert "refuses the key" in said


def test_a_watcher_that_is_killed_is_reported_at_once_and_an_error_in_the_end(tool: Tool, tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
import ckptsync
from tests.checkpoints import make_checkpoint
out = Path({str(tmp_path / "out")!r})
try:
    with ckptsync.watch_in_background(out, run_id="killed") as watching:
        watching.process.kill()
        watching.process.wait()
        time.sleep(0.5)
        print("told:", end=" ", flush=True)
        make_checkpoint(out, 4)
except ckptsync.errors.CkptsyncError as error:
    print(error)
"""

    done = python(tool, "import ckptsync.errors\n" + script)

    assert "nothing is uploaded any more: the watcher of" in done.stderr
    assert "told: the watcher of" in done.stdout
    assert "was killed (SIGKILL) before everything was durable" in done.stdout


@pytest.mark.slow
def test_without_a_run_of_its_own_the_block_gives_the_training_one(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
import ckptsync
from tests.checkpoints import make_checkpoint
out = Path({str(tmp_path / "out")!r})
with ckptsync.watch_in_background(out) as watching:
    assert os.environ["WANDB_RUN_ID"] == watching.run.run_id
    make_checkpoint(out, 4)
assert "WANDB_RUN_ID" not in os.environ
print(watching.run.run_id, ckptsync.status(out)["last_durable_step"])
"""

    run_id, step = python(tool, script).stdout.split()

    assert step == "4"
    assert [row["step"] for row in tool.json("list", run_id)] == [4]


@pytest.mark.slow
def test_everything_in_python_can_use_the_embedded_server(tool: Tool, tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
import ckptsync
from tests.checkpoints import make_checkpoint
for name in ("WANDB_BASE_URL", "WANDB_API_KEY"):
    os.environ.pop(name)
out = Path({str(tmp_path / "out")!r})
with ckptsync.watch_in_background(out, run_id="local", local=True):
    make_checkpoint(out, 4)
print([row["step"] for row in ckptsync.versions("local", local=True)])
print(ckptsync.pull("local", out / "pulled", local=True).name)
assert "WANDB_API_KEY" not in os.environ
"""

    assert python(tool, script).stdout.split("\n")[:2] == ["[4]", "pulled"]


@pytest.mark.slow
def test_leaving_with_0_finishes_a_resumed_run_and_an_active_run_is_an_error(tool: Tool, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
import ckptsync, wandb
from ckptsync.errors import ConfigurationError
from tests.checkpoints import make_checkpoint
out = Path({str(tmp_path / "out")!r})
run = wandb.init(id="left", settings=wandb.Settings(console="off"))
with ckptsync.watch_in_background(out):
    make_checkpoint(out, 4)
try:
    with ckptsync.resumed_run("left"):
        pass
except ConfigurationError as error:
    print(error)
run.finish()
with ckptsync.resumed_run("left", settings=wandb.Settings(console="off")):
    sys.exit(0)
"""

    done = python(tool, script)

    assert "run left is active in this process already" in done.stdout
    assert "'finished'" in python(tool, "import wandb; print(repr(wandb.Api().run('local/tests/left').state))").stdout


BELOW_RUN = (
    "import ckptsync, logging",
    "from ckptsync import config, locks",
    "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s')",
    "out = pathlib.Path(os.environ['CKPTSYNC_OUTPUT_DIR'])",
)


def test_a_program_with_a_watcher_in_the_background_works_below_run_which_uploads(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    block = (
        "before = dict(os.environ)",
        "with ckptsync.watch_in_background(out) as watching:",
        "    print(watching.alive, watching.process, watching.run.run_id, dict(os.environ) == before)",
        "    make_checkpoint(out, 4, content='below', max_steps=4)",
        "    print(watching.stop(timeout=600), watching.error(), 'alive:', watching.alive)",
        "deadline = time.monotonic() + 30",
        "while watching.stop() and time.monotonic() < deadline: time.sleep(0.1)",
        "print(watching.stop(), watching.error(), 'in the end')",
    )
    words = program(*BELOW_RUN, *block)

    done = tool("run", "--run-id", "below", "--output-dir", out, "--quiet-period", "0.2", "--", *words)

    assert done.returncode == 0, done.stderr
    assert f"ckptsync watches {out} for run local/tests/below above this process: starting no watcher" in done.stdout
    assert "True None below True" in done.stdout
    assert f"1 not everything in {out} is durable yet" in done.stdout
    assert "alive: True" in done.stdout
    assert "0 None in the end" in done.stdout
    assert [step for step, _ in kept(server, "below")] == [4]


@pytest.mark.slow
def test_a_watcher_in_the_background_below_run_still_watches_another_folder(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    block = (
        f"other = pathlib.Path({str(other)!r})",
        "with ckptsync.watch_in_background(other, run_id='beside') as watching: make_checkpoint(other, 8, content='beside')",
        "print('watched by', type(watching.process).__name__)",
        "make_checkpoint(out, 4, content='below', max_steps=4)",
    )
    words = program(*BELOW_RUN, *block)

    done = tool("run", "--run-id", "not-beside", "--output-dir", out, "--quiet-period", "0.2", "--", *words)

    assert done.returncode == 0, done.stderr
    assert "watched by Popen" in done.stdout
    assert [[step for step, _ in kept(server, run)] for run in ("beside", "not-beside")] == [[8], [4]]


@pytest.mark.slow
def test_a_watcher_in_the_background_for_another_run_or_beside_somebody_elses_is_an_error_below_run_too(
    tool: Tool, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    theirs = tool.start("watch", other, "--run-id", "theirs", log=tmp_path / "log")
    block = (
        "def refused(folder, run_id):",
        "    try:",
        "        with ckptsync.watch_in_background(folder, run_id=run_id): print('watches')",
        "    except ckptsync.errors.LockedError as error: print('locked:', error)",
        "import ckptsync.errors",
        "refused(out, 'another')",
        f"refused({str(other)!r}, 'theirs')",
    )
    try:
        wait_for(lambda: "watching" in (tmp_path / "log").read_text(), what="the other watcher")

        done = tool("run", "--run-id", "mine", "--output-dir", out, "--", *program(*BELOW_RUN, *block))
    finally:
        theirs.terminate()
        theirs.wait(30)

    assert done.stdout.count("locked:") == 2, done.stdout + done.stderr
    assert "watches" not in done.stdout
