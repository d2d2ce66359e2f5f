"""Stage `samples`: answers that a policy, or a policy and its reference, generate to prompts; once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyprefopt import ranks
from pyprefopt.errors import ConfigError
from pyprefopt.generation.decoders import Decoder
from pyprefopt.generation.sampler import Generated, Sampling, Wanted, batches_by_tokens, wanted_of
from pyprefopt.log import Bar
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.models import Source
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import atomic_write
from pyprefopt.training.engine import init_distributed
from pyprefopt.types import unkeyed
from pyprefopt.version import __version__

if TYPE_CHECKING:
    import polars as pl
    import torch

    from pyprefopt.data.tokenization.tokenizer import Tokenizer

FILE = Path("samples") / "samples.parquet"
PART_SAMPLES = 64  # of a part, which a killed run generates again at most
PART_OF_VLLM = 4096  # likewise: vLLM fills its batches from a part

Engine = Literal["own", "vllm"]
Draw = Callable[[Sequence[Wanted], Decoder], list[Generated]]


@dataclass(frozen=True, kw_only=True)
class Samples(Stage):
    """Samples of a set of prompts: keyed by prompts, models, decoders and random numbers."""

    name: str = "samples"
    version: str = __version__  # another one may read, render or tokenize otherwise
    prompts: str  # hash of what the prompts come from
    tokenizer: Tokenizer
    policy: Source
    ref: Source | None
    decoders: tuple[dict[str, Any], ...]  # name and settings of each
    sampling: Sampling
    samples: int  # of each prompt and decoder
    engine: Engine = "own"
    dtype: str
    rows: pl.DataFrame = unkeyed()  # the prompts, of `read_prompts`
    rules: tuple[Decoder, ...] = unkeyed()  # the decoders themselves

    collective = True

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:
        """Write the samples in parts, a part a file, which the ranks take in turn; rank 0 puts them together.

        Raises:
            DataError: a prompt that cannot be rendered. ConfigError: a prompt that is longer than the models read.
        """
        import polars as pl

        from pyprefopt.generation.generate import as_table, encode_prompts

        if (directory / FILE).exists():
            return {}
        device = init_distributed()  # by every rank, also those that find nothing to do
        size = PART_SAMPLES if self.engine == "own" else PART_OF_VLLM
        ids, openings = encode_prompts(self.rows, self.tokenizer)
        asked = [(index, item) for index in range(len(self.rules)) for item in wanted_of(ids, self.samples)]
        parts = [asked[first : first + size] for first in range(0, len(asked), size)]
        files = [directory / f"part-{number:06d}-of-{len(parts)}.parquet" for number in range(len(parts))]
        own = range(ranks.rank(), len(parts), ranks.world_size())
        missing = [number for number in own if not files[number].exists()]
        draw: Draw | None = None
        began, tokens = time.monotonic(), 0
        with Bar(self.title, len(own), unit="part", done=len(own) - len(missing), shown=runtime.progress_bar) as bar:
            for number in missing:
                draw = draw or self._open(runtime, device, ids)
                tables = []
                for index in sorted({index for index, _ in parts[number]}):
                    wanted = [item for decoder, item in parts[number] if decoder == index]
                    done = draw(wanted, self.rules[index])
                    tokens += sum(len(sample.ids) for sample in done)
                    table = as_table(done, self.rows, self.tokenizer, openings)
                    tables.append(table.insert_column(0, pl.lit(index, pl.UInt32).alias("decoder")))
                atomic_write(files[number], pl.concat(tables).write_parquet)
                bar.advance(1, speed=f"{tokens / (time.monotonic() - began):,.0f} tokens/s")
        if ranks.is_main():
            found = [ranks.wait_until(lambda file=file: _read(file), file) for file in files]  # type: ignore[misc]
            (directory / FILE).parent.mkdir(exist_ok=True)
            atomic_write(directory / FILE, pl.concat(found).write_parquet)
            for file in files:
                file.unlink(missing_ok=True)
        return {}

    def _open(self, runtime: RunConfig, device: torch.device, prompts: dict[int, list[int]]) -> Draw:
        """Load what generates."""
        if self.engine == "vllm":
            return self._open_vllm(runtime, prompts)
        from pyprefopt.generation.generate import generate_batch
        from pyprefopt.generation.models import open_models

        models = open_models(
            self.policy.path, None if self.ref is None else self.ref.path, tokenizer=self.tokenizer, dtype=self.dtype,
            trust_remote_code=runtime.trust_remote_code, device=device, seed=self.policy.seed,
        )  # fmt: skip
        _check_longest(prompts, models.context)
        budget = {"max_new_tokens": self.sampling.max_new_tokens, "budget": runtime.max_tokens_per_batch}

        def draw(wanted: Sequence[Wanted], decoder: Decoder) -> list[Generated]:
            batches = batches_by_tokens(wanted, **budget)
            return [sample for batch in batches for sample in generate_batch(batch, decoder, models, self.sampling)]

        return draw

    def _open_vllm(self, runtime: RunConfig, prompts: dict[int, list[int]]) -> Draw:
        from pyprefopt.generation.vllm_engine import VllmEngine, find_limits

        trusted = {"trust_remote_code": runtime.trust_remote_code}
        end_ids, context = find_limits(self.policy.path, self.tokenizer, **trusted)
        _check_longest(prompts, context)
        engine = VllmEngine(self.policy.path, dtype=self.dtype, end_ids=end_ids, **trusted)
        return lambda wanted, decoder: engine.sample(wanted, decoder, self.sampling)


def _check_longest(prompts: dict[int, list[int]], context: int | None) -> None:
    row = max(prompts, key=lambda row: len(prompts[row]))
    if context is not None and len(prompts[row]) >= context:
        raise ConfigError(
            f"row {row}: the prompt has {len(prompts[row])} tokens, and the models read {context}; shorten it, or "
            "leave it out"
        )


def _read(file: Path) -> pl.DataFrame | None:
    import polars as pl

    return pl.read_parquet(file) if file.exists() else None


def read_samples(artifact: Artifact, columns: list[str] | None = None) -> pl.DataFrame:
    """The samples, a line each: `decoder` (its place among the stage's), and the columns of `generation.generate`.

    None of `columns`: all.
    """
    import polars as pl

    return pl.read_parquet(artifact.directory / FILE, columns=columns)


def describe_decoders(rules: Sequence[Decoder]) -> tuple[dict[str, Any], ...]:
    """The decoders as the key of the stage has them."""
    return tuple({"name": type(rule).__name__, **vars(rule)} for rule in rules)
