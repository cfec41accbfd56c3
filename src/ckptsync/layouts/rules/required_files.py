"""Every file is present that the other files, or the previous checkpoint, require."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ckptsync.checkpoint import File, Problem
from ckptsync.layouts import file_names, trainer_state
from ckptsync.layouts.folder import Folder
from ckptsync.layouts.rules import rng_states


def check(folder: Folder, layout: str, expected_names: Collection[str]) -> Iterator[Problem]:
    """There are weights, no set is partial, nothing is missing that the previous checkpoint had, and no save is in progress."""
    yield from _check_markers(folder)
    if not file_names.weights(folder.files):
        yield Problem(".", "has no model weights and no adapter", transient=True)
    elif layout != "weights-only":
        # The Trainer writes all three or none (save_only_model), and on resume silently reinitializes what is missing.
        for part in missing_parts(folder.files, layout):
            yield Problem(part, "missing, but other training state is present", transient=True)
    yield from _check_pairs(folder.files)
    yield from _check_expected(folder.files, expected_names)


def missing_parts(files: Collection[str], layout: str) -> tuple[str, ...]:
    """What a resumed training would reinitialize: optimizer, scheduler, RNG state."""
    missing = []
    if not any(file_names.is_optimizer(name) for name in files):
        missing.append("optimizer.bin" if layout.startswith("fsdp") else "optimizer.pt")
    # DeepSpeed keeps a scheduler that it made in its own tree.
    if layout != "deepspeed" and not any(name in file_names.SCHEDULERS for name in files):
        missing.append("scheduler.pt")
    if rng_states.ranks(files) is None:
        missing.append("rng_state.pth")
    return tuple(missing)


def leftovers(folder: Folder) -> Iterator[str]:
    """Temporary files of a killed save, harmless since a later save finished."""
    return (name for name, file in folder.files.items() if _is_marker(name) and _is_leftover(folder, file))


def _check_markers(folder: Folder) -> Iterator[Problem]:
    for name, file in folder.files.items():
        if _is_marker(name) and not _is_leftover(folder, file):
            yield Problem(name, "marks a save that has not finished", transient=True)


def _is_marker(name: str) -> bool:
    return bool(file_names.MARKER.fullmatch(file_names.base(name)))


def _is_leftover(folder: Folder, marker: File) -> bool:
    state = folder.files.get(trainer_state.NAME)
    return file_names.base(marker.path).startswith(".tmp") and state is not None and marker.mtime_ns < state.mtime_ns


def _check_pairs(files: Collection[str]) -> Iterator[Problem]:
    """Files that belong together: one alone would be loaded as something else or not at all."""
    if "optimizer.bin" in files and not any(file_names.FSDP_MODEL.fullmatch(name) for name in files):
        yield Problem("pytorch_model_fsdp.bin", "missing, but FSDP's optimizer.bin is present", transient=True)
    folders = {name.split("/")[0] for name in files if name.endswith(".distcp")}
    for optimizer in sorted(folder for folder in folders if folder.startswith("optimizer_")):
        model = "pytorch_model_fsdp_" + optimizer.removeprefix("optimizer_")
        if model not in folders:
            yield Problem(model, f"missing, but {optimizer} is present", transient=True)
    adapters = {file_names.parent(name) for name in files if file_names.ADAPTER.fullmatch(file_names.base(name))}
    configured = {file_names.parent(name) for name in files if file_names.base(name) == "adapter_config.json"}
    for folder in sorted(adapters - configured):
        yield Problem(f"{folder}/adapter_config.json".removeprefix("./"), "missing, but its adapter is present", transient=True)
    for folder in sorted(configured - adapters):
        yield Problem(
            f"{folder}/adapter_model.safetensors".removeprefix("./"),
            "missing, but its adapter_config.json is present",
            transient=True,
        )


def _check_expected(files: Collection[str], expected_names: Collection[str]) -> Iterator[Problem]:
    present = {file_names.normalise(name) for name in files}
    for name in sorted({file_names.normalise(name) for name in expected_names} - present):
        if not _is_marker(name):
            yield Problem(name, "missing, but the previous checkpoint had it", transient=True)
