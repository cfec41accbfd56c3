"""Decides whether a Hugging Face Trainer checkpoint is complete. The only package that knows the Trainer's file names.

Takes a folder; gives a Verdict, the training state, and the files of the final model. It never imports torch or transformers,
never executes what a file says, never writes, and never follows a symlink.
"""

from __future__ import annotations

from ckptsync.layouts.file_names import saved_print
from ckptsync.layouts.final_model import loads_best, model_files
from ckptsync.layouts.folder import list_files
from ckptsync.layouts.inspection import inspect
from ckptsync.layouts.trainer_state import log_history, read_state, rows_digest

__all__ = ["inspect", "list_files", "loads_best", "log_history", "model_files", "read_state", "rows_digest", "saved_print"]
