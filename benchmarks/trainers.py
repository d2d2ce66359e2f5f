"""One side of `benchmarks/train.py` in its own process: `python -m benchmarks.trainers SIDE SET [options]`.

Both sides build the model from the set's config.json with one seed, score the reference log-probs, and train on the
same pairs in the same order, with their own trainers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.workers import CORES

SEED = 0
PAD = "<pad>"
BETA = 0.1
LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)


def clocks() -> tuple[float, float]:
    """Seconds by the wall, and of processor time in all threads, which other work on the machine does not add to."""
    return time.perf_counter(), time.process_time()


def passed(since: tuple[float, float], name: str = "") -> dict[str, float]:
    """Seconds since then, by both clocks."""
    return {f"{name}{kind}": now - then for kind, now, then in zip(("wall", "cpu"), clocks(), since, strict=True)}


def steps(times: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Seconds of each step, by both clocks."""
    return dict(zip(("wall", "cpu"), np.diff(times, axis=0).T.tolist(), strict=True))


def reset_peak() -> int:
    """Forget the peak of the resident set; what it is now, bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Largest resident set since `reset_peak`, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def trl(given: argparse.Namespace) -> dict[str, Any]:
    """TRL's DPOTrainer with precomputed reference log-probs; of its work only the tokenization is left out."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from pyprefopt.data.store.segments import SegmentStore

    datasets.disable_progress_bars()
    config = AutoConfig.from_pretrained(given.set)
    torch.manual_seed(SEED)
    kind = getattr(torch, given.dtype)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(kind)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    ids = SegmentStore.open(given.set / "segments").table["ids"].to_pylist()
    rows = datasets.Dataset.from_dict({name: ids[k::3] for k, name in enumerate(names)})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({PAD: 0}, PAD)), pad_token=PAD, eos_token=PAD
    )
    folder = tempfile.mkdtemp()
    arguments = DPOConfig(
        output_dir=folder, per_device_train_batch_size=given.micro,
        gradient_accumulation_steps=given.batch // given.micro, max_steps=given.steps,
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0, beta=BETA,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_length=None, precompute_ref_log_probs=True,
        gradient_checkpointing=False, use_cpu=True, bf16=given.autocast, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, seed=SEED, dataloader_pin_memory=False,
    )  # fmt: skip
    found: dict[str, Any] = {"before_bytes": reset_peak(), "parameters": count(model)}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.times.append(clocks())

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times.append(clocks())
            found["peak_bytes"] = peak()

    class Peer(DPOTrainer):
        losses: list[float] = []  # noqa: RUF012

        def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
            return dataset  # token ids already

        def _get_train_sampler(self, *_: object) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *arguments: Any) -> Any:
            started = clocks()
            scored = super()._precompute_ref_logps(*arguments)
            found.update(passed(started, "scoring_"))
            return scored

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            self.losses.append(loss.item())
            return loss

    clock = Clock()
    trainer = Peer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[clock])
    found["scoring_peak_bytes"] = peak()
    reset_peak()
    trainer.train()
    micro = np.array(Peer.losses).reshape(given.steps, -1)
    return found | {"losses": micro.mean(1).tolist(), **steps(clock.times)}


def ours(given: argparse.Namespace) -> dict[str, Any]:
    """Our trainer, as a run's stages use it."""
    from pyprefopt.data.batching.loader import StepLoader
    from pyprefopt.data.batching.packing import Packer
    from pyprefopt.data.store.segments import SegmentStore
    from pyprefopt.losses import DPO, SePO
    from pyprefopt.modeling import LogpsModel, load_model
    from pyprefopt.settings.resolve import configure
    from pyprefopt.training.callbacks import Callback
    from pyprefopt.training.trainer import Job, fit

    model = LogpsModel(load_model(given.set / "config.json", dtype=given.dtype, seed=SEED))
    store = SegmentStore.open(given.set / "segments")
    selective = given.ratio is not None
    found: dict[str, Any] = {"before_bytes": reset_peak(), "parameters": count(model)}
    columns: dict[str, Any] = {}
    if selective:
        share = {"chosen_ratio": given.ratio, "rejected_ratio": given.ratio} if given.ratio < 1 else {}
        columns = {"selected": selection(store, given.ratio), **share}
    else:
        started = clocks()
        columns = {"ref_logps": score(model, store, given)}
        found.update(passed(started, "scoring_"))
        found["scoring_peak_bytes"] = peak()
    packer = Packer(store, layout=given.layout, **columns)
    loader = StepLoader(
        packer, global_batch_size=given.batch, max_tokens=given.max_tokens, seed=SEED,
        shuffle=False,
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    run = configure(
        model="given", data="embedded:toy", method="sepo" if selective else "dpo", output_dir=str(folder),
        learning_rate=LEARNING_RATE,
        global_batch_size=given.batch, max_steps=given.steps, lr_scheduler_type="constant", warmup_ratio=0.0,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], dtype=given.dtype, zero_stage=0 if given.dtype == "float32" else 1,
        save_steps=0, max_tokens_per_batch=given.max_tokens, layout=given.layout,
    )  # fmt: skip

    class Clock(Callback):
        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []
            self.losses: list[float] = []

        def on_start(self, _: Any) -> None:
            self.times.append(clocks())

        def on_step(self, _: Any, metrics: Any) -> None:
            self.times.append(clocks())
            self.losses.append(metrics["loss"])
            found["peak_bytes"] = peak()

    clock = Clock()
    method = SePO() if selective else DPO(beta=BETA)
    job = Job("benchmark", model, method, loader, run, run, folder, "benchmark")
    reset_peak()
    with profiled(given.profile):
        fit(job, [clock])
    return found | {"losses": clock.losses, **steps(clock.times)}


def score(model: Any, store: Any, given: argparse.Namespace) -> np.ndarray:
    """Reference log-probs of every response token, as the stage `logps` makes them."""
    from pyprefopt.data.batching.loader import StepLoader
    from pyprefopt.data.batching.packing import Packer
    from pyprefopt.data.store.segments import scatter_values
    from pyprefopt.modeling import score_logps

    loader = StepLoader(
        Packer(store, layout=given.layout), global_batch_size=given.batch,
        max_tokens=given.max_tokens, seed=SEED,
    )  # fmt: skip
    lines, lengths, values = [], [], []
    for batch in loader.scan():
        values.append(score_logps(model, batch).numpy())
        lines.append(batch.response_line.numpy())
        lengths.append(batch.scored_length.numpy())
    return scatter_values(store, *(np.concatenate(parts) for parts in (lines, lengths, values)))


def count(model: torch.nn.Module) -> int:
    """Weights of a model."""
    return sum(p.numel() for p in model.parameters())


def selection(store: Any, ratio: float) -> np.ndarray:
    """A random share of each response's tokens, so that no tail is spared more than chance gives."""
    random = np.random.default_rng(SEED)
    selected = np.zeros(int(store.response_offsets[-1]), np.bool_)
    for first, last in zip(store.response_offsets[:-1], store.response_offsets[1:], strict=True):
        kept = int(ratio * (last - first) + 0.5)
        selected[first + random.permutation(last - first)[:kept]] = True
    return selected


@contextlib.contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    """Print where the time goes, to standard error."""
    if not wanted:
        yield
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["trl", "ours"])
    parser.add_argument("set", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="pairs of an optimizer step")
    parser.add_argument("--micro", type=int, default=4, help="pairs that TRL pads together")
    parser.add_argument("--max_tokens", type=int, default=16384, help="tokens that we pack together")
    parser.add_argument("--layout", default="shared")
    parser.add_argument("--ratio", type=float, help="SePO with this share of the tokens; else DPO")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--autocast", action="store_true", help="TRL's bf16: float32 weights, bfloat16 products")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.disable(logging.WARNING)
    found = {"trl": trl, "ours": ours}[given.side](given)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
