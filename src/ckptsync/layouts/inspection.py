"""Applies every rule to one checkpoint folder and gives the verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from ckptsync.checkpoint import Problem, TrainingState, Verdict, step_of
from ckptsync.layouts import file_names, trainer_state
from ckptsync.layouts.folder import Folder, list_folder
from ckptsync.layouts.rules import (
    deepspeed,
    distributed_checkpoint,
    file_contents,
    required_files,
    rng_states,
    weight_shards,
    write_order,
)
from ckptsync.layouts.rules.read_errors import as_problems


def inspect(
    path: Path,
    *,
    step: int | None = None,
    world_size: int | None = None,
    expected_names: Collection[str] | None = None,
    ordered: bool = True,
    deep: bool = False,
) -> Verdict:
    """Whether the folder holds a complete checkpoint at this moment, and of which layout. Never raises for what it finds.

    `step` is the global_step that trainer_state.json must have; by default the number in the folder's name, if any.
    `world_size` is the number of training processes, if known.
    `expected_names` are the relative paths of the last complete checkpoint of the same training process: a missing one is a
    transient problem. Do not pass them on to a restarted training: its libraries may differ.
    `ordered` is false where modification times are not those of the save, as in a download.
    `deep` reads every byte that a checksum covers (torch's zips) and parses all JSON. Otherwise only headers, directories and
    small members are read, so the cost depends on the number of files alone.
    """
    try:
        folder = list_folder(path)
    except OSError as error:
        reason = "the folder is gone" if isinstance(error, FileNotFoundError) else f"cannot be listed: {error}"
        unreadable = not isinstance(error, FileNotFoundError | NotADirectoryError)
        return Verdict("unknown", (Problem(".", reason, transient=False, unreadable=unreadable),), resumable=False)
    state: list[TrainingState] = []
    layout = file_names.layout(folder.files)
    expected_step = step_of(path.name) if step is None else step
    problems = [
        *folder.problems,
        *_check_files(folder, deep=deep),
        *as_problems(trainer_state.NAME, partial(_check_state, folder, expected_step, state)),
        *_check_structure(folder, layout, world_size, deep=deep),
        *required_files.check(folder, layout, expected_names or ()),
        *(write_order.check(folder, layout) if ordered else ()),
    ]
    missing = required_files.missing_parts(folder.files, layout)
    return Verdict(
        layout=layout,
        problems=tuple(dict.fromkeys(problems)),
        resumable=not problems and not missing,
        files=tuple(folder.files.values()),
        state=state[0] if state else None,
        world_size=rng_states.count(folder.files),
        notes=tuple(_notes(folder, layout, missing)),
    )


def _check_files(folder: Folder, *, deep: bool) -> Iterator[Problem]:
    """Each file on its own, then the indexes, which need the number of tensors in each shard."""
    tensors: dict[str, int] = {}
    for name in folder.files:
        if name != trainer_state.NAME and not file_names.INDEX.fullmatch(name):
            yield from as_problems(name, partial(file_contents.check, folder, name, tensors, deep=deep))
    for name in folder.files:
        if file_names.INDEX.fullmatch(name):
            yield from as_problems(name, partial(weight_shards.check_index, folder, name, tensors))


def _check_state(folder: Folder, step: int | None, found: list[TrainingState]) -> Iterator[Problem]:
    """trainer_state.json is present, valid, and of this step. Appends the state to `found`."""
    if trainer_state.NAME not in folder.files:
        yield Problem(trainer_state.NAME, "missing: the Trainer writes it last, so the save has not finished", transient=True)
        return
    state = trainer_state.parse(folder.read(trainer_state.NAME, limit=trainer_state.LIMIT))
    found.append(state)
    if step is not None and state.global_step != step:
        reason = f"has global_step {state.global_step} in the checkpoint of step {step}"
        yield Problem(trainer_state.NAME, reason, transient=False)


def _check_structure(folder: Folder, layout: str, world_size: int | None, *, deep: bool) -> Iterator[Problem]:
    """The rules between files."""
    yield from weight_shards.check_numbers(folder)
    yield from rng_states.check(folder.files, world_size)
    yield from distributed_checkpoint.check(folder, deep=deep)
    if layout == "deepspeed":
        size = world_size or rng_states.count(folder.files)
        yield from as_problems("latest", partial(deepspeed.check, folder, size))


def _notes(folder: Folder, layout: str, missing: tuple[str, ...]) -> Iterator[str]:
    if layout == "weights-only":
        yield f"not exactly resumable: {', '.join(missing)} missing (save_only_model)"
    yield from (f"{name} is left out: its name is not UTF-8" for name in folder.left_out)
    yield from (f"{name} is a leftover from an earlier save" for name in required_files.leftovers(folder))
