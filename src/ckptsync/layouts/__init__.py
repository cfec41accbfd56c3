"""Knows when a Hugging Face Trainer checkpoint folder is whole. The only place that knows the Trainer's file names.

Looks from outside: no torch, no transformers, nothing executed, nothing written, no symlink followed.
"""

from __future__ import annotations

from ckptsync.layouts.final_model import loads_best, model_files
from ckptsync.layouts.folder import list_files
from ckptsync.layouts.inspection import inspect
from ckptsync.layouts.trainer_state import log_history, read_state

__all__ = ["inspect", "list_files", "loads_best", "log_history", "model_files", "read_state"]
