"""Python imports this at start-up if the hook folder is first on PYTHONPATH, in every process, so it must cost next to nothing.

It puts a finder on `sys.meta_path` that waits for the import of `transformers.trainer` and only then imports ckptsync, and it
runs the `sitecustomize` that it hides. It imports only what `site` has imported already.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib_external import PathFinder  # importlib.machinery is the same class, 2 ms later

TYPE_CHECKING = False  # typing costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_TARGET = "transformers.trainer"
_HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib costs 3 ms in every process


class _Loader:
    """Executes the module with its own loader, then lets ckptsync patch it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        # The module must look untouched: inspect and pickle read these.
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            _patch().wrap(module)
        except Exception as error:
            # Without the patch the training would silently start over: better that it doesn't start.
            if os.environ.get("CKPTSYNC_RESUME_FROM"):
                raise
            sys.stderr.write(f"ckptsync: the hook is off: {type(error).__name__}: {error}\n")


class _Finder:
    """Finds `transformers.trainer` through the other finders, once, and then removes itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _TARGET:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


def _patch() -> Any:
    """The module `ckptsync.trainer.patch`, even if the training's Python has no ckptsync installed."""
    import importlib
    import importlib.util

    if importlib.util.find_spec("ckptsync") is None:
        package = os.path.dirname(os.path.dirname(_HERE))  # noqa: PTH120
        file = os.path.join(package, "__init__.py")  # noqa: PTH118
        spec: Any = importlib.util.spec_from_file_location("ckptsync", file, submodule_search_locations=[package])
        module = sys.modules["ckptsync"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module("ckptsync.trainer.patch")


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
        else:
            sys.stderr.write(f"Error in sitecustomize; set PYTHONVERBOSE for traceback:\n{type(error).__name__}: {error}\n")


_seen: set[str | None] | None = getattr(sys, "_ckptsync_chained", None)
if _seen is None:
    _seen = sys._ckptsync_chained = {__file__}  # type: ignore[attr-defined]
    if os.environ.get("CKPTSYNC_RESUME_FROM") or os.environ.get("CKPTSYNC_OUTPUT_DIR"):
        sys.meta_path.insert(0, _Finder())
_chain(_seen)
