"""The sitecustomize in processes that have little or nothing to do with transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptsync.trainer import OUTPUT_DIR, RESUME_FROM, hook_path
from ckptsync.trainer.patch import wrap
from tests.trainer.trainings import environment

FAKE_TRAINER = """
class Trainer:
    def train(self, resume_from_checkpoint=None, trial=None):
        return resume_from_checkpoint
"""


def python(
    code: str, *folders: Path, env: dict[str, str] | None = None, status: int = 0, isolated: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run some Python with these folders on PYTHONPATH; `isolated` without this environment's packages."""
    path = ":".join(map(str, folders))
    result = subprocess.run(
        [sys.executable, *(["-S"] if isolated else []), "-c", code],
        env={**environment(), "PYTHONPATH": path, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == status, result.stderr
    return result


def other_sitecustomize(folder: Path, text: str) -> Path:
    """A folder with another program's sitecustomize."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text)
    return folder


def fake_transformers(folder: Path) -> Path:
    """A folder with a package that is called transformers, has a Trainer, and loads in no time."""
    (folder / "transformers").mkdir(parents=True)
    (folder / "transformers/__init__.py").write_text("")
    (folder / "transformers/trainer.py").write_text(FAKE_TRAINER)
    return folder


def test_the_hook_folder_holds_nothing_that_could_hide_another_module() -> None:
    names = {entry.name for entry in hook_path().iterdir()} - {"__pycache__"}

    assert names == {"sitecustomize.py"}


def test_another_sitecustomize_runs_too(tmp_path: Path) -> None:
    other = other_sitecustomize(tmp_path / "other", "import sys; sys.other_ran = True")

    result = python("import sys, sitecustomize; print(sys.other_ran, sitecustomize.__file__)", hook_path(), other)

    assert result.stdout.split() == ["True", str(other / "sitecustomize.py")]


@pytest.mark.parametrize("error", ["ImportError('no such thing')", "RuntimeError('broken')"])
def test_another_sitecustomize_that_fails_takes_nothing_down(tmp_path: Path, error: str) -> None:
    other = other_sitecustomize(tmp_path / "other", f"raise {error}")
    fake = fake_transformers(tmp_path / "fake")

    result = python(
        "from transformers.trainer import Trainer; print(Trainer.train._ckptsync)",
        hook_path(),
        other,
        fake,
        env={OUTPUT_DIR: "/x"},
    )

    assert result.stdout.split() == ["True"]
    assert "Error in sitecustomize" in result.stderr


def test_two_hooks_that_chain_to_each_other_run_once_each(tmp_path: Path) -> None:
    text = """
        import sys
        sys.count = getattr(sys, "count", 0) + 1
        del sys.modules["sitecustomize"]
        import sitecustomize
    """
    other = other_sitecustomize(tmp_path / "other", "\n".join(line.strip() for line in text.splitlines()))

    result = python("import sys; print(sys.count)", hook_path(), other)

    assert result.stdout.split() == ["1"]
    assert result.stderr == ""


def test_a_process_without_transformers_imports_nothing_of_ckptsync() -> None:
    code = "import sys, json, email; print([name for name in sys.modules if 'ckptsync' in name], len(sys.meta_path))"

    with_hook = python(code, hook_path(), env={OUTPUT_DIR: "/x", RESUME_FROM: "/x/checkpoint-1"})
    idle = python(code, hook_path())

    assert with_hook.stdout.startswith("[] ")
    assert int(with_hook.stdout.split()[-1]) == int(idle.stdout.split()[-1]) + 1


@pytest.mark.parametrize("imported_before", [True, False])
def test_a_folder_beside_the_program_that_is_called_ckptsync_is_not_taken_for_the_package(
    tmp_path: Path, imported_before: bool
) -> None:
    fake = fake_transformers(tmp_path / "fake")
    (fake / "ckptsync").mkdir()
    (fake / "ckptsync/results.py").write_text("mine = True")
    code = (
        "import sitecustomize",
        "from ckptsync import results" if imported_before else "",
        "from transformers.trainer import Trainer",
        "from ckptsync import results",
        "print(Trainer.train._ckptsync, results.mine)",
    )

    result = python("\n".join(code), hook_path(), fake, env={OUTPUT_DIR: "/x"}, isolated=True)

    assert result.stdout.split() == ["True", "True"]
    assert result.stderr == ""


def test_a_training_without_stderr_runs_as_without_the_hook(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("from ckptsync.trainer import say; say('lost'); print('trained')")

    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, str(file)],
        env={**environment(), "PYTHONPATH": str(hook_path()), OUTPUT_DIR: "/x"},
        stdout=subprocess.PIPE,
        text=True,
    )

    assert (done.returncode, done.stdout) == (0, "trained\n")


class FakeTrainer:
    """Tells what checkpoint and trial it was given."""

    def __init__(self, output_dir: Path) -> None:
        self.args = SimpleNamespace(output_dir=str(output_dir))

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, more: Any = None) -> tuple[Any, Any, Any]:
        return resume_from_checkpoint, trial, more


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint to resume from, in this process."""
    folder = tmp_path / "out/checkpoint-5"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").touch()
    monkeypatch.setenv(RESUME_FROM, str(folder))
    wrap(SimpleNamespace(Trainer=FakeTrainer))
    return folder


@pytest.mark.parametrize("given", [None, False, True])
def test_the_checkpoint_takes_the_place_of_no_path_at_either_position(checkpoint: Path, given: Any) -> None:
    trainer = FakeTrainer(checkpoint.parent)

    first = trainer.train(given, None, "more")
    second = trainer.train(resume_from_checkpoint=given)

    assert first == (str(checkpoint), None, "more")
    assert second == (given, None, None)


def test_a_trial_of_a_hyperparameter_search_is_never_resumed(checkpoint: Path) -> None:
    trainer = FakeTrainer(checkpoint.parent)

    assert trainer.train(None, "trial") == (None, "trial", None)
    assert trainer.train(trial="trial") == (None, "trial", None)
    assert trainer.train()[0] == str(checkpoint)


def test_a_link_to_the_output_folder_is_the_same_folder(checkpoint: Path) -> None:
    link = checkpoint.parent.with_name("link")
    link.symlink_to(checkpoint.parent)

    assert FakeTrainer(link).train()[0] == str(checkpoint)


def test_the_hook_imports_nothing_that_a_plain_start_does_not(tmp_path: Path) -> None:
    # What it costs beyond that is 0.2 ms with cached bytecode (measured: 15 starts with and without, medians).
    code = "import sys; print(sorted(sys.modules))"

    plain = python(code, tmp_path, env={OUTPUT_DIR: "/x"})
    hooked = python(code, hook_path(), env={OUTPUT_DIR: "/x"})

    assert set(ast.literal_eval(hooked.stdout)) - set(ast.literal_eval(plain.stdout)) <= {"sitecustomize", "__future__"}


def test_the_wrapped_module_shows_no_trace_of_the_hook(tmp_path: Path) -> None:
    fake = fake_transformers(tmp_path)
    code = """
import inspect, sys
import transformers.trainer as module
print(type(module.__loader__).__name__, module.__spec__.loader is module.__loader__)
print(inspect.signature(module.Trainer.train), len(inspect.getsource(module)))
print([type(finder).__name__ for finder in sys.meta_path if type(finder).__name__ == "_Finder"])
"""

    result = python(code, hook_path(), fake, env={OUTPUT_DIR: "/x"})

    assert result.stdout.splitlines() == [
        "SourceFileLoader True",
        f"(self, resume_from_checkpoint=None, trial=None) {len(FAKE_TRAINER)}",
        "[]",
    ]


def test_the_hook_works_where_the_python_of_the_training_has_no_ckptsync(tmp_path: Path) -> None:
    code = "import sitecustomize; from transformers.trainer import Trainer; print(Trainer.train._ckptsync)"

    result = python(code, hook_path(), fake_transformers(tmp_path), isolated=True, env={OUTPUT_DIR: "/x"})

    assert result.stdout.split() == ["True"]


def test_an_unusable_transformers_is_reported_on_one_line_if_there_is_nothing_to_resume(tmp_path: Path) -> None:
    fake = fake_transformers(tmp_path)
    (fake / "transformers/trainer.py").write_text("")

    result = python("import transformers.trainer", hook_path(), fake, env={OUTPUT_DIR: "/x"})

    assert result.stderr.startswith("ckptsync: the hook is off: AttributeError: ")
    assert result.stderr.count("\n") == 1


def test_an_unusable_transformers_is_an_error_where_the_training_would_start_over(tmp_path: Path) -> None:
    fake = fake_transformers(tmp_path)
    (fake / "transformers/trainer.py").write_text("")

    result = python("import transformers.trainer", hook_path(), fake, status=1, env={RESUME_FROM: "/x/checkpoint-1"})

    assert "has no attribute 'Trainer'" in result.stderr
