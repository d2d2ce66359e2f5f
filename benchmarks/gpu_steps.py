"""Whole optimizer steps on this device: time, tokens, MFU, memory; and TRL's steps on the same pairs."""

from __future__ import annotations

import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_checks import first_line, head_kernels, rounded, why
from benchmarks.gpu_file import LAYOUTS, BatchFile
from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, Method, SePO
from pyprefopt.modeling import LogpsModel, load_model, score_logps
from pyprefopt.modeling.attention.backends import WAYS
from pyprefopt.modeling.attention.packed import WAY_SETTING
from pyprefopt.modeling.cost import Flops, count_flops
from pyprefopt.modeling.head.choice import Kernel
from pyprefopt.training.metrics import useful_tokens
from pyprefopt.training.step import method_sums
from pyprefopt.training.throughput import GIB
from pyprefopt.training.usage import peak_memory
from pyprefopt.types import PackedBatch

Row = dict[str, Any]
METHODS: dict[str, Method] = {"dpo": DPO(), "sepo": SePO()}
LEARNING_RATE = 1e-6
WARM_UP = 2  # steps before the clock runs


def configuration(vocabulary: int, quick: bool) -> dict[str, Any]:
    """A Llama of about a billion weights; a toy where quick."""
    hidden, layers, heads = (64, 2, 4) if quick else (2048, 16, 32)
    return {
        "model_type": "llama", "vocab_size": rounded(vocabulary), "hidden_size": hidden,
        "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads // 4, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip


class Bench:
    """A model with its optimizer on the device, and the file's micro-batches beside it."""

    def __init__(self, file: BatchFile, device: torch.device, *, quick: bool, steps: int, peak: float) -> None:
        self.device, self.steps, self.peak = device, steps, peak
        self.dtype = "float32" if device.type == "cpu" else "bfloat16"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(configuration(file.vocabulary, quick)))
            self.model = LogpsModel(load_model(path, dtype=self.dtype).to(device))
        flops = count_flops(self.model)
        assert isinstance(flops, Flops)
        self.flops = flops
        self.weights = sum(p.numel() for p in self.model.parameters())
        fused = {"fused": True} if device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), **fused)
        self.batches = {key: [b.to(device) for b in some] for key, some in file.batches.items() if key[0] in METHODS}

    def add_reference(self) -> Iterator[Row]:
        """Reference log-probs, by the policy before any step: the first loss must be ln 2."""
        method = METHODS["dpo"]
        for layout in LAYOUTS:
            scored = [replace(b, ref_logps=score_logps(self.model, b)) for b in self.batches["dpo", layout]]
            self.batches["dpo", layout] = scored
            with torch.no_grad():
                losses = torch.cat([method.loss(method_sums(method, b, self.model(b)), b) for b in scored])
            off = abs(losses.double().mean().item() - math.log(2))
            limit = 1e-5 if self.dtype == "float32" else 1e-2
            yield {"layout": layout, "off_ln_2": off, "verdict": "ok" if off <= limit else "failed"}

    def time(self, name: str, layout: str, *, checkpointing: bool, way: str = "auto", kernel: Kernel = "auto") -> Row:
        """Steps of one kind; or why there are none."""
        row: Row = {"method": name, "layout": layout, "checkpointing": checkpointing, "attention": way}
        row["kernel"] = self.model.kernel = kernel
        causal = self.model.causal
        for part in (causal.config, causal.config.get_text_config()):
            setattr(part, WAY_SETTING, way)
        _switch(causal, checkpointing)
        batches, method = self.batches[name, layout], METHODS[name]
        try:
            seconds = _timed(lambda: self._step(method, batches), self.device, self.steps)
        except ConfigError as error:
            return row | {"verdict": "refused", "reason": why(error, way)}
        except Exception as error:  # of a kernel, too: the other ways are still worth a row
            self.optimizer.zero_grad(set_to_none=True)
            full = isinstance(error, torch.OutOfMemoryError)
            return row | {"verdict": "out of memory" if full else "failed", "reason": first_line(error)}
        useful, context = torch.stack([useful_tokens(b) for b in batches]).sum(0).tolist()
        tokens, scored = sum(len(b.input_ids) for b in batches), sum(len(b.target_ids) for b in batches)
        needed = self.flops.total(useful, context, scored)
        pairs = sum(len(b.pair_chosen) for b in batches)
        return row | {
            "seconds": seconds, "pairs_per_second": pairs / seconds, "tokens_per_second": tokens / seconds,
            "useful_tokens_per_second": useful / seconds, "mfu": needed / seconds / self.peak / 1e12,
            **memory(self.device), "verdict": "ok",
        }  # fmt: skip

    def all(self) -> Iterator[Row]:
        """Methods, layouts and kernels of the head, with and without checkpointing; then each way of attention."""
        for checkpointing in (False, True):
            for name in METHODS:
                for layout in LAYOUTS:
                    for kernel in head_kernels(self.device):
                        yield self.time(name, layout, checkpointing=checkpointing, kernel=kernel)
        for way in WAYS:
            for layout in LAYOUTS:
                yield self.time("dpo", layout, checkpointing=True, way=way)

    def _step(self, method: Method, batches: list[PackedBatch]) -> None:
        units = sum(len(b.pair_chosen) for b in batches)
        self.model.train()
        for batch in batches:
            losses = method.loss(method_sums(method, batch, self.model(batch)), batch)
            (losses.sum() / units).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _switch(model: Any, checkpointing: bool) -> None:
    """The methods have two names within transformers 5."""
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    if checkpointing:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{name}_disable")()


def memory(device: torch.device) -> Row:
    """Peak on the GPU, GiB; nothing elsewhere, where all that ran before in the process would be in it."""
    return {"memory_gib": peak_memory() / GIB} if device.type == "cuda" else {}


def _timed(step: Callable[[], None], device: torch.device, steps: int) -> float:
    """Median seconds of a step; the peak of memory counts from the end of the warm-up on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for _ in range(WARM_UP):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_tflops(device: torch.device, size: int) -> float:
    """What a plain matrix product reaches here, in the precision of the steps: best of 5."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):  # three to warm up
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times[3:]) / 1e12


def trl_missing() -> str | None:
    """What TRL's side lacks here; None: nothing."""
    missing = [name for name in ("trl", "datasets", "accelerate") if find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


def trl(file: BatchFile, device: torch.device, *, quick: bool, steps: int, micro: int, checkpointing: bool) -> Row:
    """TRL's DPOTrainer on the same pairs, model, precision and optimizer; reference log-probs made before the clock."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    row: Row = {"micro": micro, "checkpointing": checkpointing}
    datasets.disable_progress_bars()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    settings = configuration(file.vocabulary, quick)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = datasets.Dataset.from_dict({name: [pair[k] for pair in file.pairs] for k, name in enumerate(names)})
    pad = "<pad>"
    words = Tokenizer(models.WordLevel({pad: 0}, pad))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, eos_token=pad)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            synchronize(device)
            if len(times) == WARM_UP and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.started = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            synchronize(device)
            times.append(time.perf_counter() - self.started)

    class Peer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
            return dataset  # token ids already

    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=len(rows) // micro,
            max_steps=WARM_UP + steps, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0,
            max_length=None, precompute_ref_log_probs=True, gradient_checkpointing=checkpointing, bf16=False,
            optim="adamw_torch_fused" if device.type == "cuda" else "adamw_torch", adam_beta2=0.95,
            use_cpu=device.type == "cpu", save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
            log_level="error",
        )  # fmt: skip
        try:
            peer = Peer(
                model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[Clock()]
            )
            peer.remove_callback(PrinterCallback)
            peer.train()
        except torch.OutOfMemoryError as error:
            return row | {"verdict": "out of memory", "reason": first_line(error)}
        except Exception as error:  # of a kernel or of TRL: the other rows are still worth something
            return row | {"verdict": "failed", "reason": first_line(error)}
    seconds = statistics.median(times[WARM_UP:])
    used = len(rows) // micro * micro
    return row | {
        "seconds": seconds, "pairs_per_second": used / seconds, **memory(device), "verdict": "ok",
    }  # fmt: skip
