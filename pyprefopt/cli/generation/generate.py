"""`pyprefopt generate PROMPTS --policy P --out FILE.parquet`; `scripts/generate.py` runs it on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from pyprefopt.cli.options import read_some, start_command
from pyprefopt.errors import ConfigError, check
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import loose_words, nested
from pyprefopt.stages.scoring.limits import UNTRAINED

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.settings.config import RunConfig

FIXED = {"method": "dpo", **UNTRAINED}
NAMES = (
    "tokenizer", "eos_token", "chat_template", "trust_remote_code", "columns", "on_error", "output_dir", "overwrite",
    "seed", "dtype", "max_tokens_per_batch", "threads", "log_level", "progress_bar",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Answers to prompts: pyprefopt generate PROMPTS --policy P --out FILE.parquet [settings]."""

    input: tuple[str, ...] = loose_words("PROMPTS")  # a file of prompts, or of pairs or candidates, whose prompts count
    policy: str = field(metadata={"metavar": "P"})  # checkpoint or config.json
    ref: str | None = field(default=None, metadata={"metavar": "R"})  # the policy's reference, of the same vocabulary
    # sample or greedy: of the policy; mixing, length_control, kl_threshold: of policy and reference
    decode: Literal["sample", "greedy", "mixing", "length_control", "kl_threshold"] = "sample"
    a: tuple[float, ...] = (0.5,)  # of mixing: softmax(a log pi_policy + (1 - a) log pi_ref); several: a grid
    t: tuple[int, ...] = (10,)  # of length_control: tokens of the policy, before those of the reference
    b: tuple[float, ...] = (0.5,)  # of kl_threshold: the policy leads where KL(policy || ref) > b, nats
    below: Literal["ref", "mixing"] = "ref"  # of kl_threshold: what leads elsewhere
    temperature: float = 1.0  # the logits that are drawn from are divided by it
    top_p: float = 1.0  # tokens are drawn from the most probable ones that together have so much
    samples: int = 1  # of each prompt
    max_new_tokens: int = 512  # of a sample
    kl: Literal["exact", "monte_carlo"] = "exact"  # of a step: over the whole vocabulary, or of tokens drawn
    kl_samples: int = 1000  # tokens of such an estimate
    engine: Literal["own", "vllm"] = "own"  # vllm: plain sampling of one model, by vLLM where it is installed
    out: str = field(metadata={"metavar": "FILE"})  # a .parquet file: a line a sample


USAGE = f"""{Generate.__doc__} For example:
  pyprefopt generate prompts.jsonl --policy runs/dpo/policy --samples 5 --temperature 0.8 --out samples.parquet
  pyprefopt generate prompts.jsonl --policy P --ref R --decode mixing --a 0 0.25 0.5 0.75 1 --out mixing.parquet

and, as for pyprefopt train (pyprefopt train --help explains each):
  {", ".join(NAMES)}"""


def run(argv: Sequence[str]) -> None:
    """Generate by the options, and print what was made."""
    config, (out, given) = start_command(Generate, USAGE, argv, parse)

    from pyprefopt.generation.sampler import Sampling
    from pyprefopt.pipeline.generation.generate import generate_file

    names = ("temperature", "top_p", "max_new_tokens", "kl", "kl_samples")
    sampling = Sampling(seed=config.seed, **{name: given.pop(name) for name in names if name in given})
    decoders = make_decoders(given)
    found = generate_file(config, out, decoders=decoders, sampling=sampling, **given)
    if is_main():
        print(summarize(found, out))


def parse(argv: Sequence[str]) -> tuple[RunConfig, tuple[str, dict[str, Any]]]:
    """The run's settings; where the samples go, and the other options that were given."""
    from pyprefopt.settings.resolve import configure

    given = read_some("generate", argv, Generate, names=NAMES, fixed=FIXED)
    own = {name: given.pop(name) for name in Generate.__dataclass_fields__ if name in given}
    source, policy, out = own.pop("input"), own.pop("policy"), own.pop("out")
    settings = {"output_dir": "runs/generate", **given, **FIXED, "data": source, "model": policy}
    return configure(**nested(settings)), (out, own)


def make_decoders(given: dict[str, Any]) -> list[Any]:
    """The decoders of the options, which are taken out: one, or those of a grid."""
    from itertools import product

    from pyprefopt.generation.decoders import DECODERS

    decode = given.pop("decode", "sample")
    own = [setting.name for setting in fields(DECODERS[decode])]
    for name in ("a", "t", "b", "below"):
        if name in given and name not in own:
            takes = f"takes {', '.join(own)}" if own else "takes none of a, t, b"
            raise ConfigError(f"{name} does not apply to decode {decode}, which {takes}; leave it out")
    if decode == "kl_threshold" and "a" in given and given.get("below") != "mixing":
        raise ConfigError(
            "a applies to decode kl_threshold with below mixing alone; add --below mixing, or leave a out"
        )
    values = {name: given.pop(name) for name in own if name in given}
    for name, listed in values.items():
        check(listed != (), name, "nothing", "at least one value", f"write --{name} VALUE …")
    lists = {name: listed if isinstance(listed, tuple) else (listed,) for name, listed in values.items()}
    return [DECODERS[decode](**dict(zip(lists, point, strict=True))) for point in product(*lists.values())]


def summarize(samples: pl.DataFrame, out: str) -> str:
    """How many samples there are, how many ended, how long they are and what they cost: a line a point of a grid."""
    import polars as pl

    from pyprefopt.tables import show_table

    points = samples.columns[1 : samples.columns.index("sample")]
    numbers = [
        pl.len().alias("samples"),
        pl.col("finished").mean().round(4),
        pl.col("ids").list.len().mean().round(1).alias("tokens"),
    ]
    if samples["logp_ref"].null_count() < samples.height:
        cost = pl.col("logp_sampled").list.sum() - pl.col("logp_ref").list.sum()
        numbers += [cost.mean().round(3).alias("logratio"), pl.col("kl").list.sum().mean().round(3)]
    told = samples.group_by(points, maintain_order=True).agg(numbers) if points else samples.select(numbers)
    return f"{show_table(told)}\n{out}: {samples.height:,} samples"
