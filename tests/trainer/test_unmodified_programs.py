"""An unmodified program that ran without ckptsync runs the same with it: exit code, output, weights and W&B rows, side by side.

Each program runs alone, below `ckptsync run`, and some also below `ckptsync run --no-hook`.
TRL's row needs `pip install trl`: the test extra doesn't install it, since transformers imports datasets with it in every test.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.figures import Table
from tests.integration.conftest import Tool, kill_tree
from tests.server_process import ServerProcess
from tests.terminal import Pty

TABLE = Table(
    "unmodified programs, alone and with ckptsync",
    ("program", "with", "exit codes", "output differs", "weights differ", "rows differ", "time ratio"),
    ("output differs", "weights differ", "rows differ"),
)

HANGS = 300.0
"""Seconds after which a program counts as hanging; the longest takes a tenth of it where nothing else runs."""

MEASURED = re.compile(r"_timestamp|_wandb|.*(runtime|per_second)")
"""Keys of rows whose values are times."""

PRELUDE = """
import multiprocessing, os, signal, subprocess, sys

def build(*options, out="out", wandb=True):
    from ckptsync.trainer import tiny
    report = ["--report-to", "wandb" if wandb else "none"]
    trainer = tiny.build(tiny.parse(["--output-dir", out, "--max-steps", "4", "--save-steps", "2", *report, *options]))
    trainer.args.run_name = "training"
    return trainer

def at_save(trainer, does):
    from transformers import TrainerCallback
    class At(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            does(state)
    trainer.add_callback(At())
    return trainer

def finish(trainer):
    trainer.train()
    trainer.save_model()
    print("trained to", trainer.state.global_step)
"""

POOL = """
def longest(text):
    return max(map(len, text.split()))

def metrics(_):
    with multiprocessing.get_context({method!r}).Pool(4) as pool:
        return {{"longest": max(pool.map(longest, ["a bb", "ccc d", "eeee"] * 8))}}

if __name__ == "__main__":
    trainer = build("--eval-steps", "2")
    trainer.compute_metrics = metrics
    finish(trainer)
    print([row["eval_longest"] for row in trainer.state.log_history if "eval_longest" in row])
"""

PROGRAMS = {
    "no Trainer": """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(abs, [-1, -2]))
        child = subprocess.Popen(["sleep", "60"])
        child.terminate()
        print(child.wait(), os.path.basename(os.getcwd()), sys.argv, sys.stdin.read())
        sys.exit(3)
    """,
    "fork pool": POOL.format(method="fork"),
    "spawn pool": POOL.format(method="spawn"),
    "subprocess in a worker": """
        from ckptsync.trainer import tiny
        class Decoding(list):
            def __getitem__(self, index):
                decoder = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                assert decoder.communicate(b"frame")[0] == b"frame"
                endless = subprocess.Popen(["sleep", "60"])
                endless.terminate()
                assert endless.wait() == -15
                return super().__getitem__(index)
        samples = tiny.samples
        tiny.samples = lambda *given: Decoding(samples(*given))
        finish(build("--workers", "2"))
    """,
    "own rows": """
        import wandb
        wandb.init(name="training")
        trainer = at_save(build(wandb=False), lambda state: wandb.log({"saved": state.global_step}, step=state.global_step))
        wandb.log({"begun": 1})
        finish(trainer)
        wandb.log({"done": 1}, step=9)
    """,
    "child runs": """
        EVALUATE = "import wandb; wandb.init(name='evaluation').log(dict(accuracy=1)); wandb.finish(); print('evaluated')"
        def evaluate(state):
            print(subprocess.run([sys.executable, "-c", EVALUATE], check=True, capture_output=True, text=True).stdout)
        finish(at_save(build("--save-steps", "4"), evaluate))
        import wandb
        wandb.finish()
        wandb.init(name="summary").log({"score": 2})
    """,
    "two Trainers": """
        finish(build(out="out/reward"))
        finish(build("--seed", "7", out="out/policy"))
    """,
    "two Trainers, one below": """
        finish(build(out="out/reward"))
        finish(build("--seed", "7"))
    """,
    "working folder of its own": """
        os.makedirs("outputs/12-00-00", exist_ok=True)
        os.chdir("outputs/12-00-00")
        finish(build())
    """,
    "empty-folder check": """
        if os.path.isdir("out") and os.listdir("out"):
            raise ValueError("Output directory (out) already exists and is not empty.")
        finish(build())
    """,
    "torchrun with restarts": """
        from transformers.trainer_utils import get_last_checkpoint
        trainer, last = build(wandb=False), os.path.isdir("out") and get_last_checkpoint("out")
        def fail(state):
            if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and state.global_step == 2 and os.environ["RANK"] == "1":
                sys.exit(9)
        at_save(trainer, fail)
        trainer.train(resume_from_checkpoint=last or None)
        trainer.save_model()
        if os.environ["RANK"] == "0":
            print("trained from", last, "to", trainer.state.global_step)
    """,
    "accelerate launch": "finish(build())",
    "TRL": """
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, ProgressCallback, set_seed
        from trl import SFTConfig, SFTTrainer
        set_seed(1)
        words = ["<eos>", "<unk>", *(f"w{index}" for index in range(14))]
        model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
        model.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")
        texts = [" ".join(words[2 + (at + each) % 14] for each in range(12)) for at in range(64)]
        config = GPT2Config(vocab_size=16, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
        args = SFTConfig("out", max_steps=4, save_steps=2, logging_steps=1, use_cpu=True, bf16=False, report_to="wandb")
        args.run_name = "training"
        dataset = Dataset.from_dict({"text": texts})
        trainer = SFTTrainer(model=GPT2LMHeadModel(config), args=args, train_dataset=dataset, processing_class=tokenizer)
        trainer.remove_callback(ProgressCallback)  # It prints running times.
        finish(trainer)
    """,
    "pdb and input()": """
        trainer = build()
        breakpoint()
        name = input("name? ")
        trainer.train()
        print("trained to", trainer.state.global_step, "for", name)
    """,
    "fails": """
        def fail(state):
            raise RuntimeError("no more data")
        finish(at_save(build(), fail))
    """,
}

AT_A_TERMINAL = "pdb and input()"

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
num_machines: 1
num_processes: 1
use_cpu: true
mixed_precision: 'no'
"""

# More than one restart: the port of a restart's own store may be taken.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=5", "--monitor-interval=0.1")
LAUNCHERS = {
    "torchrun with restarts": TORCHRUN,
    "accelerate launch": ("-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml"),
}
FOLDERS = {"two Trainers": "out/policy", "working folder of its own": "outputs/12-00-00/out"}

EXIT_CODES = {"no Trainer": 3, "fails": 1}

WITHOUT_HOOK = {"no Trainer", "fork pool", "own rows", "torchrun with restarts"}
"""Programs that run with --no-hook as well."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program left behind."""

    code: int
    output: str
    weights: dict[str, str]
    rows: list[Any]
    seconds: float
    said: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server; every start of a program has a project of its own on it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as started:
        yield started


def prepared(server: ServerProcess, folder: Path, program: str) -> tuple[Tool, list[str]]:
    """A home with the program in it, which is also where it runs, and the program's command."""
    # With torchrun's own store for all restarts, the ranks of a restart find the addresses of those before and may never connect,
    # also without ckptsync (torch 2.13, measured).
    shared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    tool = Tool(folder, server, WANDB_PROJECT=secrets.token_hex(4), ACCELERATE_TORCH_DEVICE="cpu", WANDB_SILENT="true", **shared)
    (folder / "program.py").write_text(PRELUDE + textwrap.dedent(PROGRAMS[program]))
    (folder / "accelerate.yaml").write_text(ACCELERATE)
    return tool, [sys.executable, *LAUNCHERS.get(program, ()), "program.py"]


def below(tool: Tool, program: str, command: Sequence[str], *options: str) -> list[str]:
    """The program's command below `ckptsync run`."""
    head = ["run", "--run-id", secrets.token_hex(4), "--output-dir", FOLDERS.get(program, "out"), "--quiet-period", "0.2"]
    return tool.command(*head, *options, "--", *command)


def run(server: ServerProcess, tool: Tool, command: Sequence[str]) -> Ran:
    """Run a command in its home, and gather what it left."""
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        env=tool.environment,
        cwd=tool.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, said = process.communicate(timeout=HANGS)
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.communicate()
    seconds = time.monotonic() - began
    return Ran(process.returncode, output, weights(tool.home), rows(server, tool), seconds, said)


def weights(folder: Path) -> dict[str, str]:
    """The digest of every file of weights, optimizers and random states, by its path."""
    kinds = ("*.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
    found = (path for kind in kinds for path in folder.rglob(kind) if ".ckptsync" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def rows(server: ServerProcess, tool: Tool) -> list[Any]:
    """Every run of the program's project, ckptsync's own apart: its name, its state and its rows without times."""
    import wandb

    api = wandb.Api(overrides={"base_url": server.url}, api_key=server.api_key)
    path = f"local/{tool.environment['WANDB_PROJECT']}"
    try:
        found = [each for each in api.runs(path) if not each.id.startswith("ckptsync-")]
    except ValueError:
        return []
    return sorted(((each.name, each.state, [untimed(row) for row in each.scan_history()]) for each in found), key=repr)


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sorted(row.items()) if not MEASURED.fullmatch(key)}


def compare(program: str, alone: Ran, beside: Ran, how: str) -> None:
    """Add a row to the table, and fail where the program ran in another way."""
    differs = [alone.output != beside.output, alone.weights != beside.weights, alone.rows != beside.rows]
    ratio = f"{beside.seconds / alone.seconds:.2f} ({beside.seconds:.1f} s / {alone.seconds:.1f} s)"
    TABLE.add(program, how, f"{alone.code}, {beside.code}", *map(int, differs), ratio)
    assert beside.code == alone.code, beside.said
    assert beside.output == alone.output, beside.said
    assert beside.weights == alone.weights
    assert beside.rows == alone.rows


@pytest.mark.slow
@pytest.mark.timeout(4 * HANGS)
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != AT_A_TERMINAL])
def test_a_program_does_with_ckptsync_what_it_does_without(server: ServerProcess, tmp_path: Path, program: str) -> None:
    if program == "TRL":
        pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
    tool, command = prepared(server, tmp_path / "alone/home", program)
    alone = run(server, tool, command)
    assert alone.code == EXIT_CODES.get(program, 0), alone.said

    for option in ["--hook", "--no-hook"][: 2 if program in WITHOUT_HOOK else 1]:
        tool, command = prepared(server, tmp_path / option / "home", program)
        compare(program, alone, run(server, tool, below(tool, program, command, option)), option)


def at_a_terminal(server: ServerProcess, tool: Tool, command: Sequence[str]) -> Ran:
    """Run a command at a pseudo-terminal, and answer the debugger and the question."""
    variables = [f"{name}={value}" for name, value in tool.environment.items()]
    began = time.monotonic()
    screen = Pty("env", *variables, "TERM=dumb", "sh", "-c", 'cd "$0" && "$@" 2>said; echo code $?', str(tool.home), *command)
    try:
        screen.expect("(Pdb) ", HANGS)
        screen.type("trainer.args.max_steps * 10\n")
        screen.expect("40\r\n(Pdb) ")
        screen.type("continue\n")
        screen.expect("name? ")
        screen.type("bert\n")
        screen.expect("bert\r\n")
        output = screen.expect("code ", HANGS)
        code = int(screen.expect("\r\n"))
    finally:
        screen.close()
    said = (tool.home / "said").read_text()
    return Ran(code, output, weights(tool.home), rows(server, tool), time.monotonic() - began, said)


@pytest.mark.slow
@pytest.mark.timeout(4 * HANGS)
def test_a_program_is_debugged_and_asks_at_a_terminal_with_ckptsync_as_without(server: ServerProcess, tmp_path: Path) -> None:
    tool, command = prepared(server, tmp_path / "alone", AT_A_TERMINAL)
    alone = at_a_terminal(server, tool, command)
    assert alone.code == 0, alone.said
    tool, command = prepared(server, tmp_path / "beside", AT_A_TERMINAL)

    beside = at_a_terminal(server, tool, below(tool, AT_A_TERMINAL, command))

    compare(AT_A_TERMINAL, alone, beside, "--hook")
