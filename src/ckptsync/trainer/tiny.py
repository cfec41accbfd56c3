"""A complete training in a few seconds on a CPU: `python -m ckptsync.trainer.tiny --output-dir DIR --max-steps 20`.

A small GPT-2 with random weights learns generated text byte by byte: no download, no network. It is written like run_clm.py,
knows nothing of ckptsync, and calls `trainer.train()` without arguments, so it resumes through the hook or `--resume-from`.
Dropout and shuffling are on: a resumed training equals an uninterrupted one only if every random generator was restored.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from typing import Any

BLOCK = 32
SAMPLES = 64


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. A checkpoint takes about 144 x hidden^2 x layers bytes: `--hidden 1320` makes 500 MB."""
    parser = argparse.ArgumentParser(prog="python -m ckptsync.trainer.tiny", description="Train a tiny model for real.")
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--save-steps", type=int, default=5)
    parser.add_argument("--logging-steps", type=int, default=1)
    parser.add_argument("--eval-steps", type=int, default=0, help="evaluate every this many steps; 0: never")
    parser.add_argument("--save-total-limit", type=int, default=None)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=32, help="a multiple of 4")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--lr-scheduler", default="cosine")
    parser.add_argument("--report-to", choices=("wandb", "none"), default="wandb")
    parser.add_argument("--resume-from", default=None, metavar="CHECKPOINT")
    parser.add_argument("--step-seconds", type=float, default=0.0, help="sleep this long before each step")
    parser.add_argument("--crash-at", type=int, default=0, metavar="STEP", help="kill this process at the end of a step")
    return parser.parse_args(argv)


def text(seed: int, length: int) -> bytes:
    """Sentences with some structure to learn, equal for equal seeds."""
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    words = ("the", "ship", "sails", "home", "and", "a", "bird", "sings", "over", "calm", "water")
    out = bytearray()
    while len(out) < length:
        out += " ".join(generator.choices(words, k=generator.randint(3, 7))).encode() + b".\n"
    return bytes(out[:length])


def samples(seed: int, count: int) -> list[dict[str, Any]]:
    """Blocks of bytes as samples for a causal language model."""
    import torch

    data = text(seed, count * BLOCK)
    blocks = [torch.tensor(list(data[index * BLOCK : (index + 1) * BLOCK])) for index in range(count)]
    return [{"input_ids": block, "labels": block.clone()} for block in blocks]


def build(options: argparse.Namespace) -> Any:
    """The Trainer that the options describe."""
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    set_seed(options.seed)
    config = GPT2Config(
        vocab_size=256,
        n_positions=BLOCK,
        n_embd=options.hidden,
        n_layer=options.layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    arguments = TrainingArguments(
        output_dir=options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=1e-3,
        lr_scheduler_type=options.lr_scheduler,
        logging_steps=options.logging_steps,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=options.save_total_limit,
        eval_strategy="steps" if options.eval_steps else "no",
        eval_steps=options.eval_steps or None,
        seed=options.seed,
        use_cpu=True,
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        log_level_replica="error",
        report_to=options.report_to,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=samples(options.seed, SAMPLES),
        eval_dataset=samples(options.seed + 1, 8) if options.eval_steps else None,
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(_pace(options.step_seconds, options.crash_at))
    return trainer


def _pace(step_seconds: float, crash_at: int) -> Any:
    """A callback that slows the steps down, and kills the process at a given step as a lost machine would."""
    from transformers import TrainerCallback

    class Pace(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            time.sleep(step_seconds)

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if crash_at and state.global_step >= crash_at:
                os.kill(os.getpid(), signal.SIGKILL)

    return Pace()


def main(argv: list[str] | None = None) -> int:
    """Train, save the final model beside the checkpoints, return 0."""
    options = parse(argv)
    # Otherwise accelerate names a rank's device `cpu:0`, and transformers 4.57 can't load an optimizer onto that.
    os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    trainer = build(options)
    if options.resume_from:
        trainer.train(resume_from_checkpoint=options.resume_from)
    else:
        trainer.train()
    trainer.save_model()
    trainer.save_state()
    return 0


if __name__ == "__main__":
    sys.exit(main())
