"""`--check`: the first rows, one micro-batch of each stage, and what the whole run will take. It leaves nothing."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyprefopt import ranks
from pyprefopt.errors import counted
from pyprefopt.log import only_warnings, show_seconds
from pyprefopt.modeling.checkpoints.adapters import add_lora
from pyprefopt.modeling.checkpoints.configuration import read_config
from pyprefopt.modeling.checkpoints.load import DTYPES, Head, sketch_model
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.modeling.cost import Flops, MemoryEstimate, count_flops, estimate_memory
from pyprefopt.modeling.logps import LogpsModel
from pyprefopt.modeling.packed_model import PackedModel
from pyprefopt.modeling.reward_head import RewardModel
from pyprefopt.modeling.tiny_copy import parts_of, tiny_config
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.preflight import check_given, check_start, describe_scores, given_models
from pyprefopt.pipeline.summary import TRAINED, summarize
from pyprefopt.settings.config import BaseConfig, OptimConfig, OracleConfig, RunConfig
from pyprefopt.settings.rules import uses_base
from pyprefopt.stages.data import REJECTED, tokenizer_source
from pyprefopt.stages.sources import NamedSource, named_sources
from pyprefopt.storage.files import nearest, show_bytes
from pyprefopt.training.engine import init_distributed
from pyprefopt.training.schedule import total_steps

CACHE = "PYPREFOPT_CACHE"
LARGEST = {"cpu": 30_000_000, "cuda": 1_500_000_000}  # weights of a model with which a step is taken
PAIRS = 2  # of the one step
SHARE = 0.4  # of a device's speed at large products, which a training usually has


def run_check(config: RunConfig) -> dict[str, Any]:
    """Look at the run, take one micro-batch of each stage, and print what the whole run will take.

    All that is written is in a temporary folder, which is removed. Every rank calls this.

    Returns:
        The final table of the small run, and `check`: seconds and bytes that the whole run is expected to take.
    """
    began, device = time.monotonic(), init_distributed()
    with _scratch(config) as folder, only_warnings(but_of=str(folder)):
        check_given(config)
        check_start(config)
        small = _small(config, folder, LARGEST[device.type])
        pipeline = Pipeline(small)
        _ = pipeline.policy
        summary = summarize(config, pipeline.made)
        if ranks.is_main():
            summary["check"], lines = _expected(config, pipeline, device, tiny=small.model != config.model)
            print("\n".join([_seen(config, pipeline, time.monotonic() - began), *lines]))
        ranks.barrier()  # the others may still be waiting for the last stage's manifest
    return summary


@contextmanager
def _scratch(config: RunConfig) -> Iterator[Path]:
    """A folder that all ranks see, with a cache of its own; removed at the end."""
    number = ranks.from_main(secrets.randbits(40))
    one_machine = ranks.local_world_size() == ranks.world_size()
    parent = Path(tempfile.gettempdir()) if one_machine else nearest(config.output_dir)
    folder = parent / f"pyprefopt-check-{number:x}"
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder / "cache")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        os.environ.pop(CACHE)
        if before is not None:
            os.environ[CACHE] = before
        if ranks.is_main():
            shutil.rmtree(folder, ignore_errors=True)


def _small(config: RunConfig, folder: Path, largest: int) -> RunConfig:
    """The same run with one step of few pairs a stage, and with small models in place of large ones."""
    few: dict[str, Any] = {"max_steps": 1, "until_converged": None}

    def shorter(section: OptimConfig) -> dict[str, Any]:
        return few | {"global_batch_size": min(PAIRS, section.global_batch_size)}

    own = {setting: _stand_in(path, config, folder, setting, largest) for setting, path in given_models(config).items()}
    model = _stand_in(config.model, config, folder, "model", largest)
    rewards: Any = config.rewards
    if changed := {name: own[f"rewards.{name}"] for name in rewards.checkpoints if own[f"rewards.{name}"]}:
        rewards = replace(rewards, **changed)
    base = config.base  # one that is not used stays as it is, which says that an oracle starts from the model
    if uses_base(config):
        base = replace(base, **shorter(base), path=own.get("base.path"))
    small = replace(
        config, **shorter(config), base=base,
        oracle=replace(config.oracle, **shorter(config.oracle), path=own.get("oracle.path")),
        rewards=rewards, model=model, output_dir=str(folder / "run"), cache=None, save_steps=0, progress_bar=False,
    )  # fmt: skip
    if model == config.model:
        return small
    lora = replace(config.lora, load_in_4bit=False)  # random weights are not packed
    return replace(small, tokenizer=tokenizer_source(config), lora=lora)


def _stand_in(path: str, config: RunConfig, folder: Path, name: str, largest: int) -> str:
    """The model, or a tiny one of its architecture and vocabulary where it is large."""
    resolved = resolve_source(path, trust_remote_code=config.trust_remote_code)
    whole = read_config(resolved, trust_remote_code=config.trust_remote_code)
    known = type(whole).__module__.startswith("transformers.models.")
    if not known or _weights(sketch_model(path, trust_remote_code=config.trust_remote_code)) <= largest:
        return path
    tiny = tiny_config(whole)
    for part, original in zip(parts_of(tiny), parts_of(whole), strict=True):
        for size in ("vocab_size", "max_position_embeddings", "n_positions"):
            if hasattr(original, size):
                setattr(part, size, getattr(original, size))
    file = folder / f"{name}.json"
    if ranks.is_main():
        file.write_text(tiny.to_json_string(use_diff=False))
    ranks.barrier()
    return str(file)


def _weights(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _seen(config: RunConfig, pipeline: Pipeline, seconds: float) -> str:
    """What the check has looked at."""
    facts, rejects = pipeline.data.facts, pipeline.data.directory / REJECTED
    reasons = Counter(json.loads(line)["reason"] for line in rejects.open()) if rejects.exists() else Counter[str]()
    told = "".join(f", {name} {count}" for name, count in reasons.most_common())
    lines = [
        f"check passed in {show_seconds(seconds)}: {facts['rows_in']:,} rows read, {facts['rows_used']:,} used, "
        f"{facts['rows_rejected']:,} rejected{told}, {facts['responses_cut']:,} responses cut to max_tokens"
    ]
    for setting, source in named_sources(config).items():
        rows = _rows(source)
        if rows > facts["rows_in"]:
            lines.append(f"{setting} has about {counted(rows, 'row')}, of which the first were read")
    lines.append(f"one micro-batch of each stage ran: {', '.join(pipeline.made)}")
    if scored := describe_scores(config):
        lines.append(scored)
    return "\n".join(lines)


def _rows(source: NamedSource) -> int:
    """All rows of a source, not of its head."""
    if source.folder is not None:
        return int(source.store.manifest["rows"])
    return replace(source, first=None).rows.estimate_rows()


def _expected(
    config: RunConfig, pipeline: Pipeline, device: torch.device, *, tiny: bool
) -> tuple[dict[str, Any], list[str]]:
    """Time and memory of the whole run, as numbers and as lines."""
    try:
        sketch = _sketch(config)
    except Exception as error:  # code that cannot do without numbers
        told = f"time and memory are not estimated: the model cannot be looked at without its weights ({error})"
        return {}, [told]
    flops, weights, lines = count_flops(sketch), _weights(sketch), []
    if tiny:
        lines.append(
            f"that was a tiny model of the same architecture: {type(sketch.causal).__name__} has {weights:,} weights"
        )
    seconds, speed = _seconds(config, pipeline, device, flops, tiny=tiny)
    if seconds:
        parts = ", ".join(f"{name} {show_seconds(value)}" for name, value in seconds.items())
        lines.append(f"time, estimated {speed}: {show_seconds(sum(seconds.values()))} ({parts})")
    memory = estimate_memory(
        sketch, tokens=config.max_tokens_per_batch, gradient_checkpointing=config.gradient_checkpointing
    )
    own = _of_one_rank(memory, config)
    if "ref_kl" in config.loss.needs and config.lora.r == 0:
        own["reference"] = memory.parameters  # a frozen second copy, whole on every rank
    shown = ", ".join(f"{name} {show_bytes(size)}" for name, size in own.items())
    lines.append(
        f"memory of one rank, estimated for {config.max_tokens_per_batch} tokens a micro-batch: "
        f"{show_bytes(sum(own.values()))} ({shown}); this machine has {show_bytes(_memory(device))}"
    )
    return {"seconds": seconds, "memory": own}, lines


def _sketch(config: RunConfig) -> PackedModel:
    """The policy without its numbers, as it will be trained."""
    first = config.base.path if config.policy_init == "base" and config.base.path else config.model
    head: Head = "reward" if "reward_head" in config.loss.needs else "language"
    plain = sketch_model(first, trust_remote_code=config.trust_remote_code, head=head).to(DTYPES[config.dtype])
    model = add_lora(plain, config.lora) if config.lora.r > 0 else plain
    return (RewardModel if head == "reward" else LogpsModel)(model, probe=False)


def _of_one_rank(memory: MemoryEstimate, config: RunConfig) -> dict[str, int]:
    """The estimate by its parts, divided among the ranks as the ZeRO stage does it."""
    first = {"optimizer": 1, "gradients": 2, "parameters": 3, "activations": 4}  # the stage from which it is divided
    return {
        name: getattr(memory, name) // (ranks.world_size() if config.zero_stage >= first[name] else 1)
        for name in ("parameters", "gradients", "optimizer", "activations")
    }


def _memory(device: torch.device) -> int:
    """Bytes of the device that a rank has, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _seconds(
    config: RunConfig, pipeline: Pipeline, device: torch.device, flops: Flops | str, *, tiny: bool
) -> tuple[dict[str, float], str]:
    """Seconds by stage, and by which speed; none where the operations of a model are not known."""
    made, facts = pipeline.made, pipeline.data.facts
    length = facts["tokens_read"] / max(1, facts["rows_used"])  # of a row
    rows = _rows(named_sources(config)["data"]) * (1 - (config.eval_ratio if config.eval_data is None else 0))
    sections: dict[str, OptimConfig] = {"base": config.base, "oracle": config.oracle, "policy": config}
    tokens = {}  # that a stage trains on
    for name in TRAINED:
        if name in made:
            optim = sections[name]
            share = rows * (optim.fraction if isinstance(optim, BaseConfig | OracleConfig) else 1)
            tokens[name] = (
                total_steps(optim, -(-max(1, round(share)) // optim.global_batch_size))
                * optim.global_batch_size
                * length
            )
    if not tiny:
        pace = _pace(pipeline, made)
        speed = "by the step that was taken"
    elif isinstance(flops, str):
        return {}, ""
    else:
        rate = SHARE * _products(device, DTYPES[config.dtype]) * ranks.world_size()
        pace = flops.total(1, length / 2, 1) / rate
        speed = f"by {SHARE:.0%} of {device.type}'s speed at large products, {rate / SHARE / 1e12:.3g} TFLOP/s"
    found = {name: count * pace for name, count in tokens.items()}
    scored = {
        name: rows * length * pace / 3 for name in made if name.endswith(("_logps", "_ref")) and not made[name].reused
    }
    return found | scored, speed


def _pace(pipeline: Pipeline, made: dict[str, Any]) -> float:
    """Seconds a token of training in the step that was taken."""
    lines = (pipeline.output_dir / "metrics.jsonl").read_text().splitlines()
    paces = [1 / line["tokens_per_second"] for line in map(json.loads, lines) if "tokens_per_second" in line]
    return min(paces) if made else 0.0


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of products of large matrices: the best of three."""
    size = 8192 if device.type == "cuda" else 1024
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        (left @ left)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
