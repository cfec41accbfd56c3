"""Makes real checkpoints with a real Trainer on a model of 10 kB: `python saves.py OUTPUT_DIR LAYOUT…`.

Several processes: `python -m torch.distributed.run --nproc-per-node 2 saves.py OUTPUT_DIR ddp`. Each layout gets its
folder OUTPUT_DIR/LAYOUT with checkpoint-2 and checkpoint-4. Runs in the training's environment, not in the watcher's.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)


def model() -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_attention_heads=2, num_key_value_heads=2, **size))


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(64)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1")


def trainer(output: Path, net: Any, **options: Any) -> Any:
    """A Trainer that saves at the steps 2 and 4 of 4."""
    row = torch.arange(8)
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = TrainingArguments(**(settings | options))
    if "fsdp" in options:
        pretend_gpus()
    return Trainer(
        model=net,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row}] * 16,
        processing_class=tokenizer(),
    )


def plain(output: Path) -> None:
    trainer(output, model()).train()


def sharded(output: Path) -> None:
    net = model()
    net.save_pretrained = functools.partial(net.save_pretrained, max_shard_size="12KB")
    trainer(output, net).train()


def peft(output: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    trainer(output, adapted).train()


def weights_only(output: Path) -> None:
    trainer(output, model(), save_only_model=True).train()


def ddp(output: Path) -> None:
    trainer(output, model(), ddp_backend="gloo").train()


def fsdp_full(output: Path) -> None:
    fsdp(output, "FULL_STATE_DICT")


def fsdp_sharded(output: Path) -> None:
    fsdp(output, "SHARDED_STATE_DICT")


def fsdp(output: Path, kind: str) -> None:
    config = {"state_dict_type": kind, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "version": 2}
    trainer(output, model(), ddp_backend="gloo", fsdp=True, fsdp_config=config).train()


def pretend_gpus() -> None:
    """FSDP on CPU: torch can do it, accelerate (1.15) makes it DDP unless the processes look like those of GPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def zero(output: Path, stage: int) -> None:
    config = {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
    }
    trainer(output, model(), deepspeed=config).train()


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "plain": plain,
    "sharded": sharded,
    "peft": peft,
    "weights-only": weights_only,
    "ddp": ddp,
    "fsdp-full": fsdp_full,
    "fsdp-sharded": fsdp_sharded,
    "zero-1": functools.partial(zero, stage=1),
    "zero-2": functools.partial(zero, stage=2),
    "zero-3": functools.partial(zero, stage=3),
}

if __name__ == "__main__":
    for layout in sys.argv[2:]:
        LAYOUTS[layout](Path(sys.argv[1]) / layout)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # Now and then a thread of torch outlives that, and the rank aborts at its exit when all is saved ("terminate called").
        os._exit(0)
