"""Keeps every Hugging Face Trainer checkpoint as a verified W&B artifact and resumes the training from it."""

__version__ = "0.1.0"
