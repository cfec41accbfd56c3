"""Which command lines may be recorded."""

from __future__ import annotations

import shlex

import pytest

from ckptsync import secret_detection

SECRET = [
    "python train.py --hub_token hf_abcdefghijklmnopqrst",
    "python train.py --hub_token abc",
    "python train.py --hub-token=abc",
    "python train.py --use_auth_token abc",
    "python train.py --password hunter2",
    "python train.py --db-passwd=hunter2",
    "python train.py --api-key abc",
    "python train.py --openai_apikey abc",
    "python train.py --wandb.key abc",
    "python train.py --key abc",
    "python train.py --aws_secret_access_key abc",
    "python train.py --aws-access-key-id=abc",
    "python train.py --tokenizer_api_key abc",
    "python train.py --tokenizer_hub_token abc",
    "python train.py trainer.logger.token=abc",
    "python train.py +credentials=abc",
    "env HF_TOKEN=abc python train.py",
    "env WANDB_API_KEY=0123 python train.py",
    "bash -c 'HF_TOKEN=abc python train.py'",
    "bash -c 'export DEBUG=1; HF_TOKEN=abc python train.py'",
    "bash -c 'cd x && python train.py --hub_token abc'",
    """python train.py '{"hub": {"token": "abc"}}'""",
    "python train.py --header 'Authorization: Bearer abc'",
    "python train.py --data https://me:hunter2@example.org/data",
    "python train.py --data 'https://example.org/data?size=1&token=abc'",
    "python train.py --x 0123456789abcdef0123456789abcdef01234567",
    "python train.py --x wandb_v1_abcdef",
    "python train.py --x 'Bearer hf_abcdefghijklmnopqrst'",
    "python train.py --x sk-proj-abcd_efgh-ijklmnop",
    "python train.py --x sk-ant-api03-abcdefghijkl",
    "python train.py --x ghp_abcdefghijklmnopqrst",
    "python train.py --x github_pat_abcdefghijklmnopqrst",
    "python train.py --x glpat-abcdefghijklmnopqrst",
    "python train.py --x AKIAIOSFODNN7EXAMPLE",
    "python train.py --x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc",
]

HARMLESS = [
    "python run_clm.py --model_name_or_path gpt2 --tokenizer_name gpt2 --do_train --output_dir out",
    "python run_clm.py --max_new_tokens 5 --num_virtual_tokens 20 --token-per-batch 4096 --tokens_per_batch 1",
    "python run_clm.py --include_num_input_tokens_seen --average_tokens_across_devices true",
    "python run_clm.py --pad_token '<pad>' --eos-token '<|im_end|>' --eos_token_id 2 --add_special_tokens",
    "python train.py --num_key_value_heads 8 --num-key-value-heads=8 model.key_value_proj_dim=64",
    "python train.py --hidden_size 16 --per_device_train_batch_size=8 --gradient_accumulation_steps 2",
    "env TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 python train.py",
    "torchrun --nproc-per-node 2 --rdzv-endpoint localhost:29500 train.py",
    "accelerate launch --config_file fsdp.yaml -m axolotl.cli.train config.yml",
    "llamafactory-cli train examples/train_lora/llama3_lora_sft.yaml",
    "python -m trl.scripts.sft --dataset_name trl-lib/Capybara --max_length 2048 --use_fast_tokenizer",
    "python train.py --resume_from_checkpoint {checkpoint} --tokenize_on_the_fly --detokenizer none",
    "python train.py --dataset s3://bucket/tokens/train --tokenized_dataset data",
    "python /home/me/secret-project/token_model/train.py --learning_rate 1e-4",
    "python token_classification/run_ner.py --token_classification_head",
    "bash -c 'cd x && OMP_NUM_THREADS=1 python train.py --max_tokens 5'",
    """python train.py '{"max_new_tokens": 5, "tokenizer": "gpt2"}'""",
]


@pytest.mark.parametrize("line", SECRET)
def test_a_command_line_with_a_secret_is_not_recorded(line: str) -> None:
    assert not secret_detection.recordable(shlex.split(line))


@pytest.mark.parametrize("line", HARMLESS)
def test_an_ordinary_command_line_is_recorded(line: str) -> None:
    assert [word for word in shlex.split(line) if secret_detection.looks_secret(word)] == []
