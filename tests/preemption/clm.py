"""A training script in the style of transformers' run_clm.py: HfArgumentParser, TrainingArguments, `--resume_from_checkpoint`.

It knows nothing of ckptsync. CLM_SECONDS in the environment slows each batch down, so that there is a middle.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from ckptsync.trainer.tiny import samples


@dataclass
class ModelArguments:
    """Which model to train."""

    n_embd: int = field(default=32, metadata={"help": "Width."})


def collate(features: Any) -> Any:
    """The default collator, as slow as the environment wants it."""
    time.sleep(float(os.environ.get("CLM_SECONDS", "0")))
    return default_data_collator(features)


def main() -> None:
    """What run_clm.py's main does, without the download."""
    parser = HfArgumentParser((ModelArguments, TrainingArguments))
    model_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    sizes = {"vocab_size": 256, "n_positions": 32, "n_embd": model_args.n_embd, "n_layer": 2, "n_head": 4}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=training_args,
        train_dataset=samples(training_args.seed, 64) if training_args.do_train else None,
        data_collator=collate,
    )
    if training_args.do_train:
        checkpoint = None
        if training_args.resume_from_checkpoint is not None:
            checkpoint = training_args.resume_from_checkpoint
        train_result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", train_result.metrics)
        trainer.save_metrics("train", train_result.metrics)
        trainer.save_state()


if __name__ == "__main__":
    main()
