"""Names that TRL, LLaMA-Factory, axolotl and OpenRLHF have, and what to use here: hints for unknown settings."""

from __future__ import annotations

_ALWAYS = "it is always so, leave it out"
_BATCH = "use global_batch_size (pairs of an optimizer step over all ranks)"
_BF16 = "use dtype bfloat16 with zero_stage >= 1"
_CHAT = "use chat_template (plain, chatml, a Jinja file, or left out: the tokenizer's own)"
_COLUMNS = "use columns (ours=yours: --columns prompt=question chosen=good rejected=bad)"
_DATA = "use data (files, folders, globs or prepared folders on this machine)"
_EPOCHS = "use num_train_epochs"
_LOGS = "metrics.jsonl and TensorBoard events are always written, leave it out"
_LENGTH = "use max_tokens (prompt and response together; what is cut is the end of the response)"
_LORA = "use lora.r (> 0 trains adapters; 0, the default, all weights)"
_MICRO = "use per_device_train_batch_size (the most pairs of a micro-batch), or max_tokens_per_batch alone"
_METHOD = "use method (sigmoid is dpo, ipo is ipo, simpo is simpo, sft is sft, a reward model is reward)"
_MIXTURE = "use data with weights (--data a.jsonl:0.7 b.jsonl:0.3: shares of rows, without repetition)"
_NO_MODULES = "adapters are on linear layers alone, see lora.target_modules; leave it out"
_PROCESSES = "data is read by all cores, leave it out (threads limits those of a rank)"
_PROMPT_LOSS = "prompts are never trained on, leave it out"
_REFERENCE = "the reference is the policy's start (model, or base.path with policy_init base), leave it out"
_RESUME = "give the same command again: it goes on from the last checkpoint"
_SPLIT = "use data and eval_data (a file each), or eval_ratio (a share of the prompts of data)"
_STOP = "there is no early stopping; use until_converged (a training loss), or max_steps"
_UPLOAD = "nothing is uploaded; give OUTPUT_DIR/policy to huggingface-cli upload"
_WARMUP = "use warmup_ratio (a share of the steps in [0, 1), not their number)"

FOREIGN = {
    # what is trained, and how
    "generate_during_eval": "nothing is generated while a policy is trained, leave it out",
    "sequence_parallel_size": "a document is on one rank, leave it out (max_tokens_per_batch makes room)",
    "base_model": "use model", "model_name": "use model", "model_name_or_path": "use model", "pretrain": "use model",
    "model_id": "use model",
    "stage": _METHOD, "rl": _METHOD, "loss_type": _METHOD, "pref_loss": _METHOD,
    "reward_model": "use method reward to train one", "ipo": "use method ipo",
    "finetuning_type": _LORA, "adapter": _LORA, "use_peft": _LORA,
    "ref_model": _REFERENCE, "ref_pretrain": _REFERENCE, "model_ref": _REFERENCE, "ref_offload": _REFERENCE,
    "ref_model_adapters": _REFERENCE,
    "tokenizer_name": "use tokenizer", "tokenizer_config": "use tokenizer", "tokenizer_name_or_path": "use tokenizer",
    "torch_dtype": "use dtype", "param_dtype": "use dtype", "mixed_precision": "use dtype",
    "bf16": _BF16, "pure_bf16": _BF16, "bfloat16": _BF16,
    "fp16": "float16 is refused because it overflows; use dtype bfloat16 with zero_stage >= 1",
    "attn_implementation": "use attention (auto, the default, takes the fastest that is there)",
    "flash_attn": "use attention (auto, the default, takes flash attention where it is there)",
    "flash_attention": "use attention (auto, the default, takes flash attention where it is there)",
    "sdp_attention": "use attention (auto, the default, takes the fastest that is there)",
    "flex_attention": "use attention flex",
    "xformers_attention": "use attention (auto, the default, takes the fastest that is there)",
    # the loss
    "alpha": "use loss.alpha", "beta": "use loss.beta", "pref_beta": "use loss.beta", "rl_beta": "use loss.beta",
    "dpo_beta": "use loss.beta",
    "gamma": "use loss.gamma (simpo) or loss.reward_scale (sepo)",
    "gamma_beta_ratio": "use loss.gamma, which is gamma_beta_ratio * loss.beta",
    "simpo_gamma": "use method simpo with loss.gamma (the margin itself, as there)",
    "label_smoothing": "use loss.label_smoothing", "dpo_label_smoothing": "use loss.label_smoothing",
    "rpo_alpha": "use method dpo-sft with loss.alpha (of a sum over tokens, not a mean)",
    "pref_ftx": "use method dpo-sft with loss.alpha (of a sum over tokens, not a mean)",
    "nll_loss_coef": "use method dpo-sft with loss.alpha (of a sum over tokens, not a mean)",
    "cpo_alpha": "simpo is without it (0 there), leave it out",
    "margin_loss": "use method reward with loss.margin_scale (times score_chosen - score_rejected)",
    "tgdpo_alpha": "use loss.alpha, which is tgdpo_alpha * loss.beta / rewards.beta",
    "reference_free": "use method simpo, which has no reference, or leave it out",
    # optimisation
    "cosine_min_lr_ratio": "the learning rate falls to 0, leave it out",
    "steps": "use max_steps",
    "lr": "use learning_rate", "critic_learning_rate": "use learning_rate",
    "epochs": _EPOCHS, "num_epochs": _EPOCHS, "max_epochs": _EPOCHS,
    "batch_size": _BATCH, "train_batch_size": _BATCH,
    "micro_batch_size": _MICRO, "micro_train_batch_size": _MICRO,
    "gradient_accumulation_steps": (
        "use global_batch_size, which is gradient_accumulation_steps * per_device_train_batch_size * devices there"
    ),
    "per_device_eval_batch_size": "evaluation fills micro-batches; use max_tokens_per_batch",
    "eval_batch_size": "evaluation fills micro-batches; use max_tokens_per_batch",
    "lr_scheduler": "use lr_scheduler_type (cosine, linear or constant)",
    "scheduler": "use lr_scheduler_type (cosine, linear or constant)",
    "warmup_steps": _WARMUP, "lr_warmup_ratio": "use warmup_ratio", "lr_warmup_steps": _WARMUP,
    "l2": "use weight_decay", "adam_betas": "use adam_beta1 and adam_beta2", "adam_eps": "use adam_epsilon",
    "max_norm": "use max_grad_norm", "gradient_clipping": "use max_grad_norm",
    "optim": "AdamW is the only optimizer, leave it out", "optimizer": "AdamW is the only optimizer, leave it out",
    "early_stopping_patience": _STOP, "early_stopping_steps": _STOP,
    # data
    "dataset": _DATA, "datasets": _DATA, "dataset_name": _DATA, "dataset_path": _DATA, "train_file": _DATA,
    "train_data": _DATA, "dataset_dir": _DATA, "pretraining_dataset": _DATA,
    "dataset_prepared_path": "pyprefopt prepare IN --out DIR makes a folder; use data DIR",
    "tokenized_path": "pyprefopt prepare IN --out DIR makes a folder; use data DIR",
    "eval_dataset": "use eval_data", "test_datasets": "use eval_data", "validation_file": "use eval_data",
    "dataset_train_split": _SPLIT, "dataset_test_split": _SPLIT, "train_split": _SPLIT, "eval_split": _SPLIT,
    "dataset_config": "use data (the files of that configuration)",
    "val_size": "use eval_ratio (a share of the prompts, not a number of rows)",
    "val_set_size": "use eval_ratio (a share of the prompts, not a number of rows)",
    "dataset_probs": _MIXTURE, "prompt_data_probs": _MIXTURE, "interleave_probs": _MIXTURE, "mix_strategy": _MIXTURE,
    "dataset_mixer": _MIXTURE,
    "max_samples": "use data (a file of so many rows)", "max_train_samples": "use data (a file of so many rows)",
    "prompt_key": _COLUMNS, "chosen_key": _COLUMNS, "rejected_key": _COLUMNS, "input_key": _COLUMNS,
    "output_key": _COLUMNS, "field_messages": _COLUMNS, "field_chosen": _COLUMNS, "field_rejected": _COLUMNS,
    "dataset_text_field": _COLUMNS, "column_mapping": _COLUMNS,
    "max_length": _LENGTH, "max_seq_length": _LENGTH, "max_len": _LENGTH, "cutoff_len": _LENGTH,
    "sequence_len": _LENGTH, "model_max_length": _LENGTH,
    "max_prompt_length": "use max_prompt_tokens", "prompt_max_len": "use max_prompt_tokens",
    "max_completion_length": "use max_tokens (prompt and response together) and truncation.tokens",
    "truncation_mode": "use prompt_overflow (keep_end and keep_start are of prompts alone)",
    "template": _CHAT, "chat_template_path": _CHAT, "chat_template_jinja": _CHAT, "tokenizer_chat_template": _CHAT,
    "input_template": _CHAT, "apply_chat_template": "a chat template is always applied; use chat_template for another",
    "special_tokens": "use eos_token (the others are the tokenizer's)",
    "train_on_prompt": _PROMPT_LOSS, "train_on_inputs": _PROMPT_LOSS, "completion_only_loss": _PROMPT_LOSS,
    "mask_history": "of a chat the last response is trained on, leave it out",
    "assistant_only_loss": "of a chat the last response is trained on, leave it out",
    "dataset_num_proc": _PROCESSES, "preprocessing_num_workers": _PROCESSES, "dataset_processes": _PROCESSES,
    "overwrite_cache": "data that changed is read again, leave it out",
    # adapters and quantization
    "lora_r": "use lora.r", "lora_rank": "use lora.r", "lora_alpha": "use lora.alpha",
    "lora_dropout": "use lora.dropout", "lora_target_modules": "use lora.target_modules",
    "lora_target": "use lora.target_modules (left out: all linear layers)",
    "target_modules": "use lora.target_modules (left out: all linear layers)",
    "lora_target_linear": "use lora.target_modules (left out: all linear layers)",
    "lora_modules_to_save": _NO_MODULES, "additional_target": _NO_MODULES, "lora_target_parameters": _NO_MODULES,
    "load_in_4bit": "use lora.load_in_4bit", "quantization_bit": "use lora.load_in_4bit (8 bits there are none)",
    "load_in_8bit": "use lora.load_in_4bit, or dtype bfloat16",
    "bnb_4bit_quant_type": "lora.load_in_4bit is always nf4, leave it out",
    "quantization_type": "lora.load_in_4bit is always nf4, leave it out",
    "use_bnb_nested_quant": "lora.load_in_4bit always does, leave it out",
    "double_quantization": "lora.load_in_4bit always does, leave it out",
    # always so
    **dict.fromkeys(
        ("packing", "eval_packing", "sample_packing", "neat_packing", "packing_samples", "padding_free",
         "precompute_ref_log_probs", "group_by_length", "disable_dropout", "shuffle_dataset", "remove_unused_columns",
         "use_fast_tokenizer", "do_train", "save_safetensors", "use_tensorboard", "shuffle_merged_datasets"),
        _ALWAYS,
    ),
    # how it runs
    "torch_compile": "use compile on", "zero": "use zero_stage",
    "ds_config": "use deepspeed", "deepspeed_config": "use deepspeed",
    "adam_offload": "use deepspeed configs/deepspeed/zero2_offload.json",
    "activation_checkpointing": "use gradient_checkpointing",
    "disable_gradient_checkpointing": "use gradient_checkpointing (off by default)",
    "save_path": "use output_dir (the model is in OUTPUT_DIR/policy)", "output_path": "use output_dir",
    "ckpt_path": "use output_dir (checkpoints are in it)",
    "overwrite_output_dir": "use overwrite; finished stages that fit are used again, and others go on",
    "max_ckpt_num": "use save_total_limit", "save_strategy": "use save_steps", "eval_strategy": "use eval_steps",
    "evaluation_strategy": "use eval_steps", "logging_strategy": "use logging_steps",
    "evals_per_epoch": "use eval_steps (every so many optimizer steps)",
    "saves_per_epoch": "use save_steps (every so many optimizer steps)",
    "do_eval": "use eval_data, or eval_ratio", "data_seed": "use seed",
    "resume_from_checkpoint": _RESUME, "auto_resume_from_checkpoints": _RESUME, "load_checkpoint": _RESUME,
    "load_best_model_at_end": "the policy is that of the last step, leave it out",
    "disable_tqdm": "use progress_bar False",
    "report_to": _LOGS, "logging_dir": _LOGS, "run_name": _LOGS, "plot_loss": _LOGS,
    "push_to_hub": _UPLOAD,
}  # fmt: skip

FAMILIES = {  # how a name begins -> the hint for all names that do
    "wandb": _LOGS, "use_wandb": _LOGS, "swanlab": _LOGS, "use_swanlab": _LOGS, "trackio": _LOGS, "mlflow": _LOGS,
    "comet": _LOGS, "use_comet": _LOGS, "hub_": _UPLOAD,
    "dataloader_": "batches are packed ahead by the data path, leave it out",
    "fsdp": "weights are sharded by DeepSpeed; use zero_stage 3",
    "ddp_": "ranks are DeepSpeed's; use zero_stage",
}  # fmt: skip

_ABSENT = """
accelerator_config activation_checkpointing_kwargs activation_offloading add_special_tokens add_tokens
auto_find_batch_size aux_loss_coef average_tokens_across_devices batch_eval_metrics bf16_full_eval
bnb_4bit_quant_storage cache_dir center_rewards_coefficient compute_fp32_loss context_parallel_size
create_new_adapter dataset_kwargs dataset_streaming debug disable_fast_tokenizer discopop_tau
do_predict ds_tensor_parallel_size enable_jit_checkpoint enable_liger_kernel eval_accumulation_steps eval_delay
eval_do_concat_batches eval_on_start eval_use_gather_object f_alpha_divergence_coef f_divergence_type fp16_full_eval
full_determinism gradient_checkpointing_kwargs gradient_checkpointing_use_reentrant greater_is_better
ignore_bias_buffers ignore_data_skip include_for_metrics include_num_input_tokens_seen is_llama_derived_model
kto_chosen_weight kto_rejected_weight label_names label_smoothing_factor ld_alpha length_column_name
liger_kernel_config local_rank log_level_replica log_on_each_node logging_first_step
logging_nan_inf_filter lora_task_type loraplus_lr_ratio loss_weights lr_scheduler_kwargs max_ckpt_mem media_dir
metric_for_best_model model_init_kwargs model_revision model_type moe_aux_loss_coef neftune_noise_alpha optim_args
optim_target_modules packing_strategy pad_to_multiple_of pad_to_sequence_len pad_token parallelism_config
peft_use_dora pissa_init plugins precompute_ref_batch_size prediction_loss_only project ref_model_mixup_alpha
ref_model_sync_steps restore_callback_states_from_checkpoint ring_attn_size rope_scaling router_aux_loss_coef
save_on_each_node save_only_model skip_memory_metrics special_tokens_config strict sync_ref_model tf32
tokenizer_type torch_compile_backend torch_compile_mode torch_empty_cache_steps train_sampling_strategy
unfrozen_parameters upcast_layernorm use_badam use_cache use_cpu use_dora use_galore use_liger_kernel use_rslora
use_unsloth use_weighting value_head_prefix zpg
"""
ABSENT = frozenset(_ABSENT.split())  # settings of these trainers that have no counterpart here


def meaning_of(name: str) -> str:
    """What stands here for a name of another trainer, in words; empty for a name of none."""
    if name in FOREIGN:
        return FOREIGN[name]
    for start, text in FAMILIES.items():
        if name.startswith(start):
            return text
    return "other trainers have it and there is none here, leave it out" if name in ABSENT else ""
