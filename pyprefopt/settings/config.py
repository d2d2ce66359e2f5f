"""The settings of a run, as frozen dataclasses checked at birth. Each field has its meaning, unit and usual range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pyprefopt.data.batching.rule import Selection
from pyprefopt.data.reading.catalog import TABLE, mapping_of, unknown_format
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.errors import check
from pyprefopt.log import Level
from pyprefopt.losses import DPO, METHODS, SFT, Method
from pyprefopt.rewards import NoReward, Reward
from pyprefopt.settings.values import check_types
from pyprefopt.types import unkeyed

Schedule = Literal["cosine", "linear", "constant"]
_LEFT_OUT: Any = None  # of a setting that a complete run has


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation of one training stage."""

    learning_rate: float = 5e-7  # peak learning rate of AdamW; usual 1e-7 to 1e-5, toy models 1e-4 to 1e-3
    num_train_epochs: float = 1.0  # passes over the training data; usual 1 to 3
    max_steps: int = -1  # optimizer steps; -1: as many as num_train_epochs gives
    until_converged: float | None = None  # end once the mean loss of the last steps is below this; usual 0.1 (dpo)
    convergence_window: int = 10  # optimizer steps that this mean is over; usual 5 to 50
    global_batch_size: int = 128  # pairs (rows, for SFT) of one optimizer step over all ranks; usual 32 to 256
    lr_scheduler_type: Schedule = "cosine"  # decay after the warm-up, to 0 (constant: none)
    warmup_ratio: float = 0.03  # share of the steps that the learning rate rises over; 0 to 0.1
    weight_decay: float = 0.0  # AdamW's decoupled weight decay; usual 0 to 0.1
    adam_beta1: float = 0.9  # decay of AdamW's first moment
    adam_beta2: float = 0.95  # decay of AdamW's second moment; 0.95 to 0.999
    adam_epsilon: float = 1e-8  # AdamW's epsilon
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0: no clipping

    def __post_init__(self) -> None:
        where = self._prefix()
        check_types(self, where)
        check(self.learning_rate > 0, f"{where}learning_rate", self.learning_rate, "> 0", "usual range 1e-7 to 1e-5")
        check(self.num_train_epochs > 0, f"{where}num_train_epochs", self.num_train_epochs, "> 0", "usual 1 to 3")
        check(self.max_steps == -1 or self.max_steps > 0, f"{where}max_steps", self.max_steps, "> 0 or -1")
        below, window = self.until_converged, self.convergence_window
        reachable = below is None or below > 0
        check(reachable, f"{where}until_converged", below, "a loss > 0, which no loss goes below", "usual 0.1")
        check(window > 0, f"{where}convergence_window", window, "> 0", "usual 5 to 50 steps")
        check(self.global_batch_size > 0, f"{where}global_batch_size", self.global_batch_size, "> 0", "usual 128")
        check(0 <= self.warmup_ratio < 1, f"{where}warmup_ratio", self.warmup_ratio, "in [0, 1)", "usual 0 to 0.1")
        check(self.weight_decay >= 0, f"{where}weight_decay", self.weight_decay, ">= 0")
        check(0 <= self.adam_beta1 < 1, f"{where}adam_beta1", self.adam_beta1, "in [0, 1)")
        check(0 <= self.adam_beta2 < 1, f"{where}adam_beta2", self.adam_beta2, "in [0, 1)")
        check(self.adam_epsilon > 0, f"{where}adam_epsilon", self.adam_epsilon, "> 0")
        check(self.max_grad_norm >= 0, f"{where}max_grad_norm", self.max_grad_norm, ">= 0", "0 turns clipping off")

    def _prefix(self) -> str:
        return ""


def check_share(section: str, fraction: float, sample: int) -> None:
    """ConfigError for a share of rows that is none, or a number of a sample that no draw has."""
    check(0 < fraction <= 1, f"{section}.fraction", fraction, "in (0, 1]")
    check(0 <= sample < 2**64, f"{section}.sample", sample, "in [0, 2^64)")


@dataclass(frozen=True, kw_only=True)
class BaseConfig(OptimConfig):
    """The SFT base: trained on the chosen responses, or an existing checkpoint."""

    path: str | None = None  # use this checkpoint directory instead of training the base (alias: --base)
    data: str | tuple[str, ...] = "chosen"  # what SFT trains on: `chosen` responses of --data, or instruction files
    fraction: float = 1.0  # share of what SFT trains on that the base sees; that of oracle.fraction: the same pairs
    sample: int = 0  # which random share of that size, numbered from 0, as oracle.sample
    learning_rate: float = 5e-6  # peak learning rate of AdamW; usual 1e-6 to 2e-5, toy models 1e-3 to 1e-2
    loss: SFT = field(default_factory=SFT)  # base.loss.normalization sequence: sums over tokens (SePO Eq. 23)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("base", self.fraction, self.sample)

    def _prefix(self) -> str:
        return "base."


@dataclass(frozen=True, kw_only=True)
class OracleConfig(OptimConfig):
    """The DPO oracle that scores tokens (SePO): trained from the base, or an existing checkpoint."""

    path: str | None = None  # use this checkpoint directory, of any size and tokenizer (alias: --oracle)
    fraction: float = 1.0  # share of the training pairs that the oracle sees (SePO Fig. 5); (0, 1]
    sample: int = 0  # which random share of that size, numbered from 0; of one seed, other samples are other pairs
    loss: DPO = field(default_factory=DPO)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("oracle", self.fraction, self.sample)

    def _prefix(self) -> str:
        return "oracle."


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters through PEFT. Off where r is 0."""

    r: int = 0  # rank; 0: train all weights; usual 8 to 64
    alpha: int = 16  # scale; the update is multiplied by alpha / r
    dropout: float = 0.0  # dropout on the adapter's input; anything but 0 makes step-0 log-probs differ
    target_modules: tuple[str, ...] = ()  # names of linear layers; (): all linear layers except the head
    load_in_4bit: bool = False  # QLoRA: the frozen weights of linear layers are stored as NF4; needs bitsandbytes

    def __post_init__(self) -> None:
        check_types(self, "lora.")
        check(self.r >= 0, "lora.r", self.r, ">= 0", "usual 8 to 64, 0 turns LoRA off")
        check(self.alpha > 0, "lora.alpha", self.alpha, "> 0", "usual r to 2 r")
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """Pairs that a policy generates itself: samples to every prompt, ranked by a reward model, and picked."""

    # directory or hub name of a reward model with its own tokenizer, which ranks the samples; embedded:rule, the rule
    # by which the embedded set was made
    reward_model: str | None = None
    samples: int = 5  # of each prompt; usual 2 to 8
    temperature: float = 0.8  # logits are divided by it; usual 0.6 to 1
    top_p: float = 0.95  # tokens are drawn from the most probable ones that together have so much; (0, 1]
    max_new_tokens: int = 512  # of a sample
    pick: Literal["best_worst", "best_random", "all", "margin"] = "best_worst"  # which samples become pairs
    margin: float | None = None  # least difference of a pair's scores; None: any but 0

    def __post_init__(self) -> None:
        check_types(self, "on_policy.")
        check(self.samples > 1, "on_policy.samples", self.samples, "> 1", "a pair is made of two; usual 5")
        check(self.temperature > 0, "on_policy.temperature", self.temperature, "> 0", "usual 0.8")
        check(0 < self.top_p <= 1, "on_policy.top_p", self.top_p, "in (0, 1]", "usual 0.95")
        check(self.max_new_tokens > 0, "on_policy.max_new_tokens", self.max_new_tokens, "> 0", "usual 512")
        known = self.margin is None or self.margin > 0
        check(known, "on_policy.margin", self.margin, "> 0", "leave it out to take all pairs but ties")
        check(self.margin is not None or self.pick != "margin", "on_policy.margin", None, "given for pick margin")


@dataclass(frozen=True, kw_only=True)
class RunConfig(OptimConfig):
    """One run, complete: what is trained, on what, how.

    The policy's optimisation is at the top level. `pyprefopt.configure` makes a run of some settings, `load_config` of
    a file: they fill what follows from others, and check all of them together.

    Raises:
        ConfigError: a field that breaks its own rule, or one that only `configure` could fill.

    Example:
        >>> from dataclasses import replace
        >>> from pyprefopt import configure
        >>> replace(configure(method="dpo"), seed=1).seed
        1
    """

    # what
    method: str = "sepo"  # sft, dpo, sepo, simpo, … (docs/methods.md), or FILE.py:NAME of one's own
    loss: Method = _LEFT_OUT  # the method's own settings, as --loss.beta; their defaults are in configs/method/
    model: str = _LEFT_OUT  # directory, hub name or config.json (random weights); embedded:tiny alone
    tokenizer: str | None = None  # directory, hub name or tokenizer.json; None: the model's
    eos_token: str | None = None  # the text of the end token, for bare tokenizers
    chat_template: str | None = None  # plain, chatml, a file or the name of one of the tokenizer's; None: its own
    policy_init: Literal["model", "base"] | None = None  # start of the policy; None: base for the embedded model
    trust_remote_code: bool = unkeyed(False)  # allow code from the model's repository to run
    # data
    # training pairs or candidates: files (a.jsonl b.jsonl, or with shares a.jsonl:0.7 b.jsonl:0.3), folders, globs, or
    # a prepared folder; embedded:toy
    data: str | tuple[str, ...] = _LEFT_OUT
    eval_data: str | tuple[str, ...] | None = None  # test pairs or candidates, as --data; None: see eval_ratio
    eval_ratio: float = 0.05  # share of the prompts held out for evaluation where --eval_data is not given
    columns: tuple[str, ...] = ()  # columns of other names, as prompt=question chosen=good rejected=bad (ours=yours)
    format: str = "auto"  # preference, hh, sharegpt, ultrafeedback, shp, alpaca or candidates; auto: by its fields
    # of UltraFeedback's raw set: whose ratings are the scores of its completions
    aspect: Literal["helpfulness", "honesty", "instruction_following", "truthfulness"] | None = None
    on_error: Literal["raise", "skip"] = "raise"  # bad rows: report all and stop, or drop and record them
    max_prompt_tokens: int = 1024  # longer prompts: see prompt_overflow; tokens
    # longer prompts: bad rows (error), rows that are left out and counted (drop), or what is kept of them
    prompt_overflow: Literal["error", "drop", "keep_start", "keep_end"] = "error"
    max_tokens: int = 2048  # prompt plus response; longer responses are cut; tokens
    min_response_tokens: int = 1  # rows with a response of fewer tokens are left out and counted; SePO's code: 8
    score_reasoning: bool = True  # the assistant's reasoning (<think>…</think>, reasoning_content) is scored too
    truncation: Truncation = field(default_factory=Truncation)
    # test pairs: as they are (none), cut as the training pairs are (same), or both, one after the other
    eval_truncation: tuple[Literal["none", "same"], ...] = ("none",)
    # stages
    base: BaseConfig = field(default_factory=BaseConfig)
    oracle: OracleConfig = field(default_factory=OracleConfig)
    selection: Selection = field(default_factory=Selection)
    rewards: Reward | NoReward = field(default_factory=NoReward)
    # rounds of pairs that the policy generates to the prompts of data, and a training on them; 0: data as it is
    on_policy_rounds: int = 0
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    # how it runs
    output_dir: str = unkeyed(_LEFT_OUT)  # everything the run writes; None: runs/METHOD
    overwrite: bool = unkeyed(False)  # replace the finished policy of other settings or data that output_dir holds
    cache: str | None = unkeyed(None)  # folder where runs share data, base, oracle, log-probs; None: each has its own
    seed: int = 0  # seed of weights, data order and hold-out
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and computation; bfloat16 needs zero_stage >= 1
    zero_stage: Literal[0, 1, 2, 3] = unkeyed(0)  # DeepSpeed ZeRO stage
    deepspeed: str | None = unkeyed(None)  # JSON file with further DeepSpeed settings; a conflict with ours is an error
    gradient_checkpointing: bool = unkeyed(False)  # recompute activations in the backward pass: less memory, slower
    compile: Literal["off", "on"] = unkeyed("off")  # torch.compile of norms and MLP blocks; needs zero_stage <= 2
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: Literal["auto", "loop", "varlen", "flash", "flex", "unpacked"] = unkeyed("auto")  # by what
    head_kernel: Literal["auto", "torch", "triton"] = unkeyed("auto")  # what reads the head's output; auto: the faster
    max_tokens_per_batch: int = unkeyed(16384)  # token budget of one micro-batch on one rank
    per_device_train_batch_size: int | None = unkeyed(None)  # most pairs of a micro-batch; None: the budget decides
    layout: Literal["separate", "shared"] = unkeyed("shared")  # the prompt stands once per response, or once per pair
    eval_steps: int = unkeyed(0)  # evaluate every so many optimizer steps; 0: before and after training only
    save_steps: int = unkeyed(100)  # write a checkpoint every so many optimizer steps; 0: only on SIGTERM, Ctrl-C
    save_total_limit: int = unkeyed(2)  # checkpoints kept besides the best one
    logging_steps: int = unkeyed(1)  # write metrics every so many optimizer steps
    peak_tflops: float | None = unkeyed(None)  # TFLOP/s of a device in this dtype, for MFU; None: the card's, if known
    log_level: Level = unkeyed("info")  # what the screen shows: debug, info, warning or error; run.log has info too
    progress_bar: bool = unkeyed(True)  # on a terminal a bar for each stage, elsewhere a line a minute; False: none
    threads: int | None = unkeyed(None)  # CPU threads of a rank, whatever OMP_NUM_THREADS is; None: cores / local ranks
    check: bool = False  # look at data and models, take one micro-batch, estimate time and memory, write nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        # Rules about several fields at once are rows of `RULES`, not lines here.
        mapping_of(self.columns)
        if self.format != "auto" and self.format not in TABLE:
            raise unknown_format(self.format, TABLE)
        check(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        check(0 <= self.seed < 2**64, "seed", self.seed, "in [0, 2^64)")
        check(0 <= self.eval_ratio < 1, "eval_ratio", self.eval_ratio, "in [0, 1)", "usual 0.01 to 0.1")
        tests = self.eval_truncation
        check(0 < len(tests) == len({*tests}), "eval_truncation", " ".join(tests), "none, same, or none same")
        check(self.max_prompt_tokens > 0, "max_prompt_tokens", self.max_prompt_tokens, "> 0", "usual 512 to 2048")
        check(
            self.max_tokens > self.max_prompt_tokens, "max_tokens", self.max_tokens,
            f"> max_prompt_tokens ({self.max_prompt_tokens})", "it counts prompt and response",
        )  # fmt: skip
        least, most = self.min_response_tokens, self.max_tokens
        check(0 < least <= most, "min_response_tokens", least, f"in 1 to max_tokens ({most})", "1 leaves out no row")
        check(self.on_policy_rounds >= 0, "on_policy_rounds", self.on_policy_rounds, ">= 0", "usual 1 to 3")
        check(self.max_tokens_per_batch > 0, "max_tokens_per_batch", self.max_tokens_per_batch, "> 0")
        for name in ("eval_steps", "save_steps"):
            check(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        for name in ("save_total_limit", "logging_steps"):
            check(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        for name in ("per_device_train_batch_size", "threads", "peak_tflops"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "> 0", "leave it out for the default")
        for name in ("loss", "model", "data", "output_dir"):
            remedy = "make a RunConfig with pyprefopt.configure(...), which fills what is left out and checks the rest"
            value = getattr(self, name)
            check(value is not None, name, value, "given", remedy)
