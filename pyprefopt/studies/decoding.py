"""The study of decoding: reward against divergence for the decoders of two models.

Source: shallow preference signals, Fig. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.errors import check
from pyprefopt.evaluation.decoding import LENGTHS, MIXING, THRESHOLDS, tradeoff_table
from pyprefopt.generation.decoders import Below, Decoder, KLThreshold, LengthControl, Mixing
from pyprefopt.generation.sampler import Sampling
from pyprefopt.pipeline.generation.generate import sample
from pyprefopt.pipeline.generation.judging import check_judge, judge_samples
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.work_folder import work_folder
from pyprefopt.plots import require_matplotlib, save
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.generation.samples import read_samples
from pyprefopt.storage.files import atomic_write
from pyprefopt.tables import show_table, write_csv

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Decoders:
    """The points of the study: settings of each decoder."""

    a: Sequence[float] = MIXING  # of mixing, the curve to which the others are compared
    t: Sequence[int] = LENGTHS  # of length control
    b: Sequence[float] = THRESHOLDS  # of the KL threshold
    below: Below = "ref"  # what leads below the threshold
    rules: tuple[Decoder, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("a", "t", "b"):
            values = list(getattr(self, name))
            check(len({*values}) == len(values), name, values, "different values", "leave out the repeated")
        check(len(self.a) > 1, "a", list(self.a), "two values or more", "the others are compared with their curve")
        mixing, lengths = [Mixing(a) for a in self.a], [LengthControl(t) for t in self.t]
        object.__setattr__(self, "rules", (*mixing, *lengths, *(KLThreshold(b, self.below) for b in self.b)))

    @property
    def table(self) -> pl.DataFrame:
        """`point`, `decoder`, `setting` (a, t, b) and its `value`."""
        import polars as pl

        named = [("mixing", "a", self.a), ("length_control", "t", self.t), ("kl_threshold", "b", self.b)]
        lines = [(decoder, name, float(value)) for decoder, name, values in named for value in values]
        table = pl.DataFrame(lines, {"decoder": pl.String, "setting": pl.String, "value": pl.Float64}, orient="row")
        return table.with_row_index("point")


@dataclass(frozen=True)
class DecodingResult:
    """What the study leaves behind."""

    output_dir: Path  # decoding.csv, samples.parquet, decoding.png and .svg
    table: pl.DataFrame  # of `evaluation.decoding.tradeoff_table`

    def __str__(self) -> str:
        import polars as pl

        shown = self.table.drop("samples").with_columns(
            pl.format("{} {}", "setting", pl.col("value").map_elements("{:g}".format, pl.String)).alias("at")
        )
        for name, digits in (("reward", 3), ("kl", 3), ("tokens", 1), ("gain", 3)):
            ends = [pl.col(column).round(digits) + 0.0 for column in (name, f"{name}_low", f"{name}_high")]
            alone = ends[0].cast(pl.String)
            shown = shown.with_columns(pl.coalesce(pl.format("{} ({} to {})", *ends), alone).alias(name))
        if (shown["unscored"] == 0).all():
            shown = shown.drop("unscored")
        columns = ["decoder", "at", "reward", "kl", "kl_exact", "tokens", "finished", "gain"]
        columns += [name for name in ("unscored",) if name in shown.columns]
        return show_table(shown.select(columns).with_columns(pl.col("kl_exact", "finished").round(3)))


def run_decoding(
    config: RunConfig,
    *,
    ref: str,
    reward_model: str,
    decoders: Decoders | None = None,
    sampling: Sampling | None = None,
    samples: int = 1,
    plots: bool = True,
) -> DecodingResult:
    """Generate with every decoder, score what came out, and compare rewards at equal divergence.

    All samples of a prompt share their random numbers between decoders. Stages are kept in `output_dir` and used again.

    Args:
        config: the prompts, the policy (`model`), and `output_dir`, which becomes the study's folder.
        ref: the reference, of the same vocabulary.
        reward_model: gives the rewards; `embedded:rule`: the rule of the embedded set.
        decoders: the points; None: those of the defaults.
        sampling: how tokens are drawn; None: as they are, 512 at most.
        samples: of each prompt and point.
        plots: write the figure too, which needs matplotlib.

    Returns:
        The table, and where the files are.

    Raises:
        ConfigError: a setting that breaks its rule, or models that do not fit. DataError: bad prompts.

    Example:
        >>> config = configure(method="dpo", data="prompts.jsonl", model="runs/dpo/policy")  # doctest: +SKIP
        >>> run_decoding(config, ref="models/base", reward_model="runs/reward/policy").table  # doctest: +SKIP
    """
    decoders = decoders or Decoders()
    sampling = sampling or Sampling(seed=config.seed)
    if plots:
        require_matplotlib("plots false for tables alone")
    with work_folder(config) as root:
        check_judge(config, reward_model)
        pipeline = Pipeline(config)
        made, _ = sample(pipeline, config.model, ref, decoders.rules, sampling, samples)
        judged = judge_samples(pipeline, made, reward_model)
        if not ranks.is_main():  # which has no scores
            return DecodingResult(root, decoders.table)
        scored = _scored(read_samples(made), decoders, judged.scores)
        atomic_write(root / "samples.parquet", scored.write_parquet)
        table = tradeoff_table(decoders.table, _numbers(scored), range(len(decoders.a)))
        result = DecodingResult(root, table)
        write_csv(table, root / "decoding.csv")
        if plots:
            from pyprefopt.evaluation.figures import decoding_figure

            save(decoding_figure(table), root / "decoding", ("png", "svg"))
    return result


def _scored(samples: pl.DataFrame, decoders: Decoders, scores: Sequence[float]) -> pl.DataFrame:
    """The samples with `decoder`, `setting`, `value` and `reward` before their other columns."""
    import polars as pl

    named = samples.rename({"decoder": "point"}).join(decoders.table, on="point", how="left", maintain_order="left")
    first = ["row", "sample", "point", "decoder", "setting", "value", "reward"]
    return named.with_columns(reward=pl.Series(list(scores), dtype=pl.Float64)).select(*first, pl.exclude(first))


def _numbers(samples: pl.DataFrame) -> pl.DataFrame:
    """What the table is made of, a line a sample; `kl` is the log-ratio of what was drawn from and the reference."""
    import polars as pl

    numbers: dict[str, Any] = {
        "kl": pl.col("logp_sampled").list.sum() - pl.col("logp_ref").list.sum(),
        "kl_exact": pl.col("kl_sampled").list.sum(),
        "tokens": pl.col("ids").list.len().cast(pl.Float64),
        "finished": pl.col("finished").cast(pl.Float64),
    }
    return samples.select("row", "point", "reward", **numbers)
