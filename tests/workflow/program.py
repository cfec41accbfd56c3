"""A user's program: a classifier, trained as W&B's guide for the Hugging Face Trainer has it. Knows nothing of ckptsync.

`--own-init` calls wandb.init itself, `--table` adds the table of predictions, `--crash-at` dies as a machine that is taken away
does, `--log-model` sets WANDB_LOG_MODEL in the program, as notebooks do.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

WORDS = ("good", "fine", "great", "bad", "poor", "awful")


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]")


def samples(seed: int, count: int, tokens: Any) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        label = generator.randrange(2)
        text = " ".join(generator.choices(WORDS[:3] if label else WORDS[3:], k=6))
        made.append({**tokens(text), "labels": label})
    return made


def model(seed: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification, set_seed

    set_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            num_labels=2,
            id2label={0: "NEGATIVE", 1: "POSITIVE"},
            label2id={"NEGATIVE": 0, "POSITIVE": 1},
        )
    )


def trainer(output_dir: str | Path, *, steps: int, save: int = 4, load_best: bool = False, **more: Any) -> Any:
    import transformers
    from transformers import Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokens = tokenizer()
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=more.pop("learning_rate", 1e-2),
        logging_steps=1,
        save_strategy="steps",
        save_steps=save,
        eval_strategy="steps",
        eval_steps=save,
        load_best_model_at_end=load_best,
        seed=7,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="wandb",
        **more,
    )
    made = Trainer(
        model=model(7),
        args=arguments,
        train_dataset=samples(1, 16, tokens),
        eval_dataset=samples(2, 8, tokens),
        processing_class=tokens,
    )
    made.remove_callback(transformers.trainer_callback.PrinterCallback)
    return made


def crash_at(step: int) -> Any:
    from transformers import TrainerCallback

    class Crash(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step >= step:
                os.kill(os.getpid(), signal.SIGKILL)

    return Crash()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--run-name", default=None)
    parser.add_argument("--load-best", action="store_true")
    parser.add_argument("--first-is-best", action="store_true", help="take the highest loss for the best: that of the first save")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--own-init", action="store_true")
    parser.add_argument("--log-model", default=None)
    parser.add_argument("--crash-at", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    return parser.parse_args(argv)


def main() -> int:
    options = parse()
    if options.log_model:
        os.environ["WANDB_LOG_MODEL"] = options.log_model
    if options.own_init:
        import wandb

        wandb.init(project="sentiment", name="bert-high-lr", tags=["baseline", "high-lr"], group="bert")
    more: dict[str, Any] = {"run_name": options.run_name} if options.run_name else {}
    if options.first_is_best:
        more |= {"metric_for_best_model": "loss", "greater_is_better": True}
    made = trainer(
        options.output_dir,
        steps=options.steps,
        load_best=options.load_best,
        learning_rate=options.learning_rate,
        **more,
    )
    if options.table:
        from ckptsync import PredictionTableCallback

        made.add_callback(PredictionTableCallback(made, tokenizer(), samples(3, 5, tokenizer()), every_epochs=2))
    if options.crash_at:
        made.add_callback(crash_at(options.crash_at))
    made.train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
