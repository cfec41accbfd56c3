"""Python imports this at start-up if the hook folder is first on PYTHONPATH, in every process, so it must cost next to nothing.

It puts finders on `sys.meta_path` that wait for the import of `transformers.trainer` or `wandb` and only then import ckptsync,
and it runs the `sitecustomize` that it hides. It imports only what `site` has imported already.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib_external import PathFinder  # importlib.machinery is the same class, 2 ms later

TYPE_CHECKING = False  # typing costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_TRAINER = "transformers.trainer"
_HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib costs 3 ms in every process


class _Loader:
    """Executes the module with its own loader, then lets ckptsync patch it. Its finder has done its work then."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        # The module must look untouched: inspect and pickle read these.
        module.__loader__ = module.__spec__.loader = self._loader
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._loader.exec_module(module)
        try:
            _ours(self._finder.patch).wrap(module)
        except Exception as error:
            # Without the patch the training would silently start over: better that it doesn't start.
            if os.environ.get("CKPTSYNC_RESUME_FROM") and module.__name__ == _TRAINER:
                raise
            if sys.stderr is not None:
                sys.stderr.write(f"ckptsync: the hook is off: {type(error).__name__}: {error}\n")


class _Finder:
    """Finds one module through the other finders, and has `patch`, a module of ckptsync, patch it when it is imported."""

    def __init__(self, name: str, patch: str) -> None:
        self._name = name
        self.patch = patch

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        for finder in [each for each in sys.meta_path if each is not self]:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


def _ours(name: str) -> Any:
    """The module `ckptsync.trainer.NAME`, even if the training's Python has no ckptsync installed."""
    import importlib
    import importlib.util

    found = importlib.util.find_spec("ckptsync")
    # A folder of that name beside the program is a namespace package, which has no origin.
    if found is None or found.origin is None:
        package = os.path.dirname(os.path.dirname(_HERE))  # noqa: PTH120
        file = os.path.join(package, "__init__.py")  # noqa: PTH118
        folders = [package, *(found.submodule_search_locations or () if found else ())]
        spec: Any = importlib.util.spec_from_file_location("ckptsync", file, submodule_search_locations=folders)
        module = sys.modules["ckptsync"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module("ckptsync.trainer." + name)


def _chain(seen: set[str | None]) -> None:
    """Run the next `sitecustomize` on the path, and report its failure as `site` does."""
    rest = [entry for entry in sys.path if os.path.realpath(entry) != _HERE]
    spec = PathFinder.find_spec("sitecustomize", rest)
    # Others chain too, and some lead back to this one: each runs once, or two of them would call each other forever.
    if spec is None or spec.loader is None or spec.origin in seen:
        return
    seen.add(spec.origin)
    module: Any = type(sys)("sitecustomize")
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    sys.modules["sitecustomize"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if sys.flags.verbose:
            sys.excepthook(*sys.exc_info())
        elif sys.stderr is not None:
            sys.stderr.write(f"Error in sitecustomize; set PYTHONVERBOSE for traceback:\n{type(error).__name__}: {error}\n")


def _note_presence(folder: str, attempt: str) -> None:
    """Show `ckptsync run` that the hook has reached a Python process of this attempt: python -I, sudo and containers lose it."""
    # Beside the folder while a training starts with an empty one.
    for state in (folder + "/.ckptsync", "{}/.{}.ckptsync".format(*os.path.split(os.path.realpath(folder)))):
        try:
            file = os.open(state + "/hooked", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError:
            continue
        try:
            os.write(file, attempt.encode())
        finally:
            os.close(file)
        return


_seen: set[str | None] | None = getattr(sys, "_ckptsync_chained", None)
if _seen is None:
    _seen = sys._ckptsync_chained = {__file__}  # type: ignore[attr-defined]
    if os.environ.get("CKPTSYNC_RESUME_FROM") or os.environ.get("CKPTSYNC_OUTPUT_DIR"):
        sys.meta_path.insert(0, _Finder(_TRAINER, "patch"))
    if os.environ.get("CKPTSYNC_OUTPUT_DIR") and os.environ.get("CKPTSYNC_ATTEMPT"):
        _note_presence(os.environ["CKPTSYNC_OUTPUT_DIR"], os.environ["CKPTSYNC_ATTEMPT"])
    if os.environ.get("CKPTSYNC_TRAINING_RUN"):
        sys.meta_path.insert(0, _Finder("wandb", "wandb_init"))
_chain(_seen)
