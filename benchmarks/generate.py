"""Generation beside `model.generate` of transformers, on the same model, batch and number of tokens.

    python -m benchmarks.generate [--rounds 5] [--device cpu] [--write docs/generation-speed.md]

Random Llamas. All sides run by turns in one process, the fastest round of each counts; the ratio is of tokens a second.
No sample ends early on any side. Greedy tokens must be equal, or no number is given.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pyprefopt.generation.cached_model import CachedModel
from pyprefopt.generation.decoders import Decoder, Greedy, KLThreshold, Mixing, Sample
from pyprefopt.generation.sampler import Sampling, sample_batch, wanted_of


class Size(NamedTuple):
    """A model, a batch, and how many tokens are generated."""

    name: str
    hidden: int
    layers: int
    vocabulary: int
    rows: int
    new_tokens: int


SIZES = (
    Size("3 M parameters, vocabulary 4,096", 128, 4, 4096, 32, 64),
    Size("28 M parameters, vocabulary 32,000", 384, 4, 32000, 16, 32),
)


def build(size: Size, seed: int, device: str) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=size.hidden, intermediate_size=4 * size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=8, num_key_value_heads=4, vocab_size=size.vocabulary, max_position_embeddings=2048,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device)


def prompts_of(size: Size) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(16, 65, (size.rows,), generator=generator).tolist()
    return [torch.randint(3, size.vocabulary, (length,), generator=generator).tolist() for length in lengths]


def library(model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], count: int, **options: Any) -> torch.Tensor:
    """What transformers generates to prompts that are padded on the left, [R, count]."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(own)) + list(own) for own in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in prompts], device=model.device)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, **options)
    return out[:, longest:]


def measure(size: Size, rounds: int, device: str) -> list[tuple[str, float]]:
    """Tokens a second of each side."""
    policy, ref = (build(size, seed, device) for seed in (0, 1))
    cached = [CachedModel(model, together=True) for model in (policy, ref)]
    prompts, count = prompts_of(size), size.new_tokens
    wanted = wanted_of(dict(enumerate(prompts)), 1)

    def ours(decoder: Decoder, *models: CachedModel) -> list[list[int]]:
        done = sample_batch(wanted, decoder, *models, sampling=Sampling(max_new_tokens=count), end_ids=[])
        return [sample.ids for sample in done]

    sides: dict[str, Callable[[], Any]] = {
        "`model.generate`, sampling": lambda: library(policy, prompts, count, do_sample=True, top_k=0),
        "ours, `sample`": lambda: ours(Sample(), cached[0]),
        "`model.generate`, greedy": lambda: library(policy, prompts, count, do_sample=False),
        "ours, `greedy`": lambda: ours(Greedy(), cached[0]),
        "ours, `sample`, with a reference beside it": lambda: ours(Sample(), *cached),
        "ours, `mixing`": lambda: ours(Mixing(0.5), *cached),
        "ours, `kl_threshold`": lambda: ours(KLThreshold(0.5), *cached),
    }
    if library(policy, prompts, count, do_sample=False).tolist() != ours(Greedy(), cached[0]):
        raise SystemExit(f"{size.name}: greedy tokens differ, so no time is comparable")
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - began)
    return [(name, size.rows * count / seconds) for name, seconds in best.items()]


def tables(rounds: int, device: str) -> str:
    parts = []
    for size in SIZES:
        found = measure(size, rounds, device)
        speeds = dict(found)
        against = {"ours, `sample`": "`model.generate`, sampling", "ours, `greedy`": "`model.generate`, greedy"}
        lines = [f"**{size.name}**, {size.rows} prompts, {size.new_tokens} tokens each:", ""]
        lines += ["| side | tokens/s | ratio | against |", "| --- | --- | --- | --- |"]
        for name, speed in found:
            other = against.get(name, "ours, `sample`" if name.startswith("ours") else None)
            ratio = "" if other is None else f"{speed / speeds[other]:.2f}x"
            lines.append(f"| {name} | {speed:,.0f} | {ratio} | {other or ''} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, help="a page that the tables become")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    text = tables(given.rounds, given.device)
    print(text)
    if given.write:
        command = f"python -m benchmarks.generate --rounds {given.rounds} --device {given.device}"
        given.write.write_text(f"# Speed of generation\n\nWritten by `{command} --write …`.\n\n{text}\n")


if __name__ == "__main__":
    main()
