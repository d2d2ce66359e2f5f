"""Stage `on_policy_pairs`: which samples of a policy become chosen and rejected, by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.reading.pairs import REASONS, Pick, PickedPairs, pick_pairs, write_pairs
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.generation.samples import read_samples
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.types import unkeyed

if TYPE_CHECKING:
    import polars as pl

FILE = Path("pairs") / "pairs.parquet"


@dataclass(frozen=True, kw_only=True)
class OnPolicyPairs(Stage):
    """Pairs of samples: keyed by samples, scores and the rule that picks."""

    name: str = "on_policy_pairs"
    samples: Artifact
    judge: str  # hash of what the scores come from
    pick: Pick
    margin: float | None
    seed: int
    scores: Sequence[float] = unkeyed(())  # of each sample, in their order

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write the pairs, and what the samples are like.

        Raises:
            DataError: no pair is left.
        """
        samples = read_samples(self.samples)
        picked = pick_samples(samples, self.scores, pick=self.pick, margin=self.margin, seed=self.seed)
        (directory / FILE).parent.mkdir(exist_ok=True)
        write_pairs(picked, directory / FILE, overwrite=True)
        left_out = {REASONS[reason]: count for reason, count in picked.left_out.items()}
        facts = describe_samples(samples, self.scores) | describe_pairs(picked.pairs, samples)
        return {"facts": {**facts, "left_out": left_out}}


def pick_samples(samples: pl.DataFrame, scores: Sequence[float], **rule: Any) -> PickedPairs:
    """`pick_pairs` of samples; those without text, whose model ended at once, are left out and counted as such."""
    import polars as pl

    empty = samples["response"].str.strip_chars() == ""
    without = int(empty.sum())
    picked = pick_pairs(_as_candidates(samples, pl.Series(list(scores), dtype=pl.Float32).set(empty, None)), **rule)
    if not without:
        return picked
    counts = picked.left_out | {"no_score": picked.left_out.get("no_score", 0) - without, "no_text": without}
    return picked._replace(left_out={reason: count for reason, count in counts.items() if count})


def _as_candidates(samples: pl.DataFrame, scores: pl.Series) -> pl.DataFrame:
    """The samples of each prompt with their scores, as `read_candidates` gives sets."""
    import polars as pl

    said = pl.concat_list(pl.col("messages").list.last())
    further = [name for name in ("tools", "template_kwargs") if name in samples.columns]
    each = samples.select(
        "row", "prompt", *further, responses=said, scores=scores, responses_complete="response_complete"
    )  # fmt: skip
    firsts = [pl.col(name).first() for name in ("prompt", *further)]
    return each.group_by("row", maintain_order=True).agg(*firsts, "responses", "scores", "responses_complete")


def describe_samples(samples: pl.DataFrame, scores: Sequence[float]) -> dict[str, Any]:
    """What the samples are like: their number, `finished` (share), `tokens` and `reward` (means), correlation of both.

    `reward_best` and `reward_worst` are means over prompts of their best and of their worst sample. A score that is not
    finite counts nowhere.
    """
    import polars as pl

    table = samples.select("row", "finished", tokens=pl.col("ids").list.len().cast(pl.Float64)).with_columns(
        reward=pl.Series(list(scores), dtype=pl.Float64)
    )
    scored = table.with_columns(pl.when(pl.col("reward").is_finite()).then("reward").alias("reward"))
    ends = scored.group_by("row").agg(best=pl.col("reward").max(), worst=pl.col("reward").min())
    kept = scored.drop_nulls("reward")
    correlation = kept.select(pl.corr("reward", "tokens").fill_nan(None)).item() if kept.height > 1 else None
    return {
        "prompts": ends.height, "samples": table.height, "finished": table["finished"].mean(),
        "tokens": table["tokens"].mean(), "reward": scored["reward"].mean(), "reward_best": ends["best"].mean(),
        "reward_worst": ends["worst"].mean(),
        "reward_length_correlation": correlation,
    }  # fmt: skip


def describe_pairs(pairs: pl.DataFrame, samples: pl.DataFrame) -> dict[str, Any]:
    """Their number, and how many tokens chosen responses are longer than rejected ones, in the mean."""
    import polars as pl

    lengths = samples.select("row", pl.col("ids").list.len().cast(pl.Int64).alias("tokens")).with_columns(
        index=pl.int_range(pl.len(), dtype=pl.UInt32).over("row")
    )
    joined = pairs.select(row="candidates_row", chosen="chosen_index", rejected="rejected_index")
    for side in ("chosen", "rejected"):
        own = lengths.select("row", pl.col("index").alias(side), pl.col("tokens").alias(f"{side}_tokens"))
        joined = joined.join(own, on=["row", side], how="left")
    longer = (joined["chosen_tokens"] - joined["rejected_tokens"]).mean()
    return {"pairs": pairs.height, "length_difference": longer}
