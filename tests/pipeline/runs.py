"""Small whole runs, some of them killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from pyprefopt.data.embedded import ToyPaths, write_toy
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure

MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "vocab_size": 512,
}  # fmt: skip
FAST = {"learning_rate": 1e-3, "global_batch_size": 16}
SMALL = {
    **FAST, "base": FAST, "oracle": {**FAST, "loss": {"beta": 0.5}}, "policy_init": "base", "max_prompt_tokens": 64,
    "max_tokens": 128, "max_tokens_per_batch": 512, "save_steps": 2, "threads": 1,
}  # fmt: skip


def write_inputs(directory: Path) -> ToyPaths:
    """The toy set in small, and a model's config.json."""
    paths = write_toy(directory, train=64, test=32, sft=64)
    (directory / "config.json").write_text(json.dumps(MODEL))
    return paths


def small(directory: Path, output_dir: Path, **settings: Any) -> RunConfig:
    """A run of seconds over `write_inputs(directory)`."""
    toy = {"data": "train.parquet", "eval_data": "test.parquet", "model": "config.json", "tokenizer": "tokenizer"}
    given = {name: str(directory / path) for name, path in toy.items()}
    return configure(**{"method": "sepo", **given, **SMALL, "output_dir": str(output_dir), **settings})


def digest(output_dir: Path) -> str:
    """Hash of the policy's weights."""
    return hashlib.sha256((output_dir / "policy" / "model.safetensors").read_bytes()).hexdigest()


def losses(output_dir: Path) -> list[tuple[str, int, float]]:
    """Every training loss of the run, in order."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"]) for line in lines if "loss" in line]


def train(directory: str, output_dir: str, die: tuple[str, str, int] | None = None, **settings: Any) -> None:
    """Run; `die`: (module, name, n): the process kills itself at the n-th call of that function."""
    import importlib

    import pyprefopt
    from pyprefopt import ranks

    if die is not None and ranks.rank() == ranks.world_size() - 1:
        module_name, path, count = die
        owner: Any = importlib.import_module(module_name)
        *classes, name = path.split(".")
        for part in classes:
            owner = getattr(owner, part)
        original, calls = getattr(owner, name), [0]

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, deadly)
    pyprefopt.train(small(Path(directory), Path(output_dir), **settings))
