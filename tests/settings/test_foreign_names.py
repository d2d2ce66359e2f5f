"""Names of other trainers: each is known or explained, and explained by settings that are there."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from pyprefopt.cli.options import parse_args
from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.foreign_names import ABSENT, FAMILIES, FOREIGN, meaning_of
from pyprefopt.settings.resolve import configure
from pyprefopt.settings.typed import dotted_names

OURS = {name for method in METHODS for name, _ in dotted_names(RunConfig, method)}

# What people write, by trainer and method.
CONFIGS = {
    "TRL, DPO": """model_name_or_path dataset_name dataset_train_split dataset_test_split beta loss_type learning_rate
        num_train_epochs per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
        max_length max_prompt_length max_completion_length gradient_checkpointing
        gradient_checkpointing_kwargs logging_steps eval_strategy eval_steps save_strategy save_steps
        output_dir warmup_ratio warmup_steps lr_scheduler_type bf16 fp16 optim report_to run_name use_peft
        lora_r lora_alpha lora_dropout lora_target_modules load_in_4bit load_in_8bit bnb_4bit_quant_type
        attn_implementation torch_dtype precompute_ref_log_probs padding_free rpo_alpha label_smoothing
        push_to_hub hub_model_id remove_unused_columns dataset_num_proc seed deepspeed max_grad_norm
        weight_decay ref_model disable_dropout dataloader_num_workers resume_from_checkpoint
        overwrite_output_dir""",
    "TRL, SimPO": "loss_type simpo_gamma cpo_alpha beta max_length learning_rate gamma_beta_ratio",
    "TRL, SFT": "packing eval_packing assistant_only_loss completion_only_loss dataset_text_field max_seq_length",
    "TRL, RM": "center_rewards_coefficient max_length disable_dropout lora_task_type lora_modules_to_save",
    "LLaMA-Factory, DPO": """model_name_or_path trust_remote_code stage do_train finetuning_type lora_rank lora_alpha
        lora_dropout lora_target pref_beta pref_loss pref_ftx dpo_label_smoothing dataset dataset_dir
        eval_dataset template cutoff_len max_samples overwrite_cache preprocessing_num_workers output_dir
        logging_steps save_steps plot_loss overwrite_output_dir save_only_model report_to
        per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs
        lr_scheduler_type warmup_ratio bf16 pure_bf16 ddp_timeout resume_from_checkpoint val_size
        per_device_eval_batch_size eval_strategy eval_steps flash_attn quantization_bit mix_strategy
        interleave_probs neat_packing packing ref_model deepspeed enable_liger_kernel use_swanlab
        tokenized_path""",
    "LLaMA-Factory, SimPO": "stage pref_loss simpo_gamma pref_beta",
    "LLaMA-Factory, SFT": "stage train_on_prompt mask_history packing neat_packing loraplus_lr_ratio use_dora",
    "LLaMA-Factory, RM": "stage additional_target create_new_adapter disable_gradient_checkpointing",
    "axolotl, DPO": """base_model model_type tokenizer_type tokenizer_config rl rl_beta dpo_beta datasets test_datasets
        dataset_prepared_path val_set_size output_dir sequence_len sample_packing pad_to_sequence_len
        adapter lora_r lora_alpha lora_dropout lora_target_linear lora_target_modules lora_modules_to_save
        wandb_project wandb_entity wandb_watch wandb_name wandb_log_model gradient_accumulation_steps
        micro_batch_size num_epochs optimizer lr_scheduler learning_rate bf16 tf32 fp16
        gradient_checkpointing resume_from_checkpoint logging_steps xformers_attention flash_attention
        sdp_attention flex_attention warmup_steps warmup_ratio evals_per_epoch saves_per_epoch weight_decay
        special_tokens chat_template chat_template_jinja load_in_8bit load_in_4bit strict
        early_stopping_patience local_rank fsdp fsdp_config deepspeed hub_model_id max_steps seed rpo_alpha
        plugins dataset_processes auto_resume_from_checkpoints save_safetensors train_on_inputs
        group_by_length""",
    "axolotl, SimPO": "rl simpo_gamma cpo_alpha rl_beta",
    "axolotl, SFT": "train_on_inputs field_messages pretraining_dataset shuffle_merged_datasets unfrozen_parameters",
    "axolotl, RM": "reward_model center_rewards_coefficient field_chosen field_rejected",
    "OpenRLHF, DPO": """pretrain ref_pretrain dataset dataset_probs eval_dataset train_split eval_split save_path
        ckpt_path save_steps logging_steps eval_steps max_ckpt_num max_ckpt_mem micro_train_batch_size
        train_batch_size load_checkpoint max_norm gradient_checkpointing seed disable_fast_tokenizer
        zero_stage bf16 param_dtype ref_offload learning_rate lr_warmup_ratio lr_scheduler zpg adam_offload
        flash_attn attn_implementation max_epochs l2 beta ipo label_smoothing aux_loss_coef nll_loss_coef
        adam_betas load_in_4bit lora_rank lora_alpha target_modules lora_dropout packing_samples prompt_key
        chosen_key rejected_key input_template apply_chat_template tokenizer_chat_template max_samples
        max_len use_wandb wandb_org wandb_group wandb_project wandb_run_name use_tensorboard ring_attn_size
        ds_tensor_parallel_size full_determinism""",
    "OpenRLHF, SFT": "input_key output_key pretrain max_len packing_samples",
    "OpenRLHF, RM": "value_head_prefix compute_fp32_loss margin_loss pretrain",
}
NAMES = sorted({name for names in CONFIGS.values() for name in names.split()} - OURS)


@pytest.mark.parametrize("name", sorted({*FOREIGN, *NAMES}))
def test_other_trainers_names_are_explained(name: str) -> None:
    assert name not in OURS
    assert meaning_of(name)
    with pytest.raises(ConfigError) as error:
        configure(**{name: 1})
    assert str(error.value) == f"unknown setting '{name}'; {meaning_of(name)}"


@pytest.mark.parametrize("text", sorted({*FOREIGN.values(), *FAMILIES.values()}))
def test_explanations_name_settings_that_are_there(text: str) -> None:
    for name in re.findall(r"\buse ([a-z_0-9.]+)", text):
        assert name in OURS, text
    for name in re.findall(r"\b([a-z]+(?:_[a-z0-9]+)*\.[a-z_0-9]+)\b", text):  # dotted
        assert name in OURS or re.search(r"\.(json|jsonl)$", name), text
    for name in re.findall(r"method ([a-z-]+)\b", text):
        assert name in METHODS, text


def test_every_setting_of_trl_is_known_or_explained() -> None:
    trl = pytest.importorskip("trl")
    classes = [trl.DPOConfig, trl.SFTConfig, trl.RewardConfig, trl.ModelConfig, trl.ScriptArguments]
    names = {f.name for cls in classes for f in fields(cls)}
    assert not sorted(name for name in names - OURS if not meaning_of(name))


@pytest.mark.parametrize("trainer", sorted(CONFIGS))
def test_a_config_of_another_trainer_is_explained_at_once(trainer: str) -> None:
    names = [name for name in dict.fromkeys(CONFIGS[trainer].split()) if name not in {*OURS, "local_rank"}]
    with pytest.raises(ConfigError) as error:
        parse_args([f"--{name}=1" for name in names])
    lines = [f"  '{name}'; {meaning_of(name)}" for name in names]
    assert str(error.value).split("\n") == [f"{len(names)} settings are unknown", *lines]


def test_tables_say_a_thing_once() -> None:
    assert not ABSENT & {*FOREIGN}
    assert not [name for name in (*FOREIGN, *ABSENT) if name.startswith(tuple(FAMILIES)) and name != "fsdp_config"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"lr": 1, "loss": {"betta": 1}, "frobnicate": 2, "base": {"num_epochs": 3}},
            "4 settings are unknown\n  'lr'; use learning_rate\n  'loss.betta'; did you mean 'loss.beta'?\n"
            "  'frobnicate'\n  'base.num_epochs'; use base.num_train_epochs",
        ),
        ({"frobnicate": 1}, "unknown setting 'frobnicate'"),  # no guess
        ({"turbo_rate": 1}, "unknown setting 'turbo_rate'"),
        ({"learning_rates": 1}, "unknown setting 'learning_rates'; did you mean 'learning_rate'?"),
        ({"oracle": {"lr": 1}}, "unknown setting 'oracle.lr'; use oracle.learning_rate"),
    ],
)
def test_unknown_settings_are_told_at_once(given: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError) as error:
        configure(method="dpo", **given)
    assert sorted(str(error.value).split("\n")) == sorted(message.split("\n"))
    words = [f"--{name}={value}" for name, value in given.items() if not isinstance(value, dict)]
    words += [f"--{a}.{b}={v}" for a, inner in given.items() if isinstance(inner, dict) for b, v in inner.items()]
    with pytest.raises(ConfigError) as error:
        parse_args(["--method", "dpo", *words])
    assert sorted(str(error.value).split("\n")) == sorted(message.split("\n"))
