"""`pyprefopt pairs PROMPTS --model M`: pairs of what a policy generates, ranked by a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprefopt import ranks
from pyprefopt.data.files.writing import check_new, known_file
from pyprefopt.data.reading.frames import read_preferences
from pyprefopt.data.reading.pairs import PickedPairs, write_pairs
from pyprefopt.errors import counted
from pyprefopt.generation.decoders import Sample
from pyprefopt.generation.sampler import Sampling
from pyprefopt.pipeline.generation.generate import files_named, sample
from pyprefopt.pipeline.generation.judging import check_judge, judge_samples
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.work_folder import work_folder
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.generation.pairs import FILE, OnPolicyPairs
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import atomic_write
from pyprefopt.tables import show_table

TABLE = (  # facts of the stage that are shown, with what they are called
    ("prompts", "prompts"), ("samples", "samples"), ("finished", "finished"), ("tokens", "tokens"),
    ("reward", "reward"), ("reward_best", "best"), ("reward_worst", "worst"), ("pairs", "pairs"),
    ("length_difference", "longer by"), ("reward_length_correlation", "reward/length r"),
)  # fmt: skip


@dataclass(frozen=True)
class OnPolicyResult:
    """Pairs of a policy's own samples."""

    out: Path
    facts: dict[str, Any]  # of `stages.generation.pairs`

    def __str__(self) -> str:
        left = [f"  left out: {count:,} {reason}" for reason, count in self.facts["left_out"].items()]
        return "\n".join([format_facts([self.facts]), f"{self.out}: {counted(self.facts['pairs'], 'pair')}", *left])


def make_on_policy_pairs(
    config: RunConfig, out: str | Path, *, scores: str | Path | None = None, overwrite: bool = False
) -> OnPolicyResult:
    """Generate samples to the prompts of `config.data` with `config.model`, rank them, and write pairs to `out`.

    Samples and scores are kept in `output_dir`: a killed call goes on, and another pick generates nothing anew.

    Args:
        config: prompts, model, and in `on_policy` how samples are drawn, ranked and picked.
        out: the file of pairs, of any kind that reading takes.
        scores: a file of `row`, `sample` and `score` in the place of a reward model.
        overwrite: replace `out` where it is there.

    Returns:
        Where the pairs are, and what the samples are like.

    Raises:
        ConfigError: a setting breaks its rule, or nothing ranks the samples. DataError: bad prompts, or no pair.
    """
    target = known_file(Path(out))
    if ranks.is_main():
        inputs = [*files_named(config.data), *([] if scores is None else [Path(scores)])]
        check_new(target, *inputs, overwrite=overwrite)
    check_judge(config, config.on_policy.reward_model, scores)
    with work_folder(config):
        made = on_policy_pairs(Pipeline(config), config.model, scores=scores)
        if ranks.is_main():
            if target.path.suffix == ".parquet":
                target.path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(target.path, (made.directory / FILE).read_bytes())
            else:
                pairs: Any = read_preferences(made.directory / FILE)
                write_pairs(PickedPairs(pairs, {}), out, overwrite=overwrite)
    return OnPolicyResult(Path(out), made.facts)


def on_policy_pairs(pipeline: Pipeline, policy: str, *, scores: str | Path | None = None) -> Artifact:
    """The pairs of a policy's samples to the run's prompts, found or made, by the run's settings `on_policy`."""
    settings, seed = pipeline.config.on_policy, pipeline.config.seed
    drawn = sampling_of(pipeline.config)
    samples, _ = sample(pipeline, policy, None, [Sample()], drawn, settings.samples)
    judged = judge_samples(pipeline, samples, settings.reward_model, scores)
    stage = OnPolicyPairs(
        samples=samples, judge=judged.fingerprint, pick=settings.pick, margin=settings.margin, seed=seed,
        scores=judged.scores,
    )  # fmt: skip
    return pipeline.run(stage)


def sampling_of(config: RunConfig) -> Sampling:
    """How the run's settings draw tokens."""
    own = config.on_policy
    return Sampling(
        temperature=own.temperature, top_p=own.top_p, max_new_tokens=own.max_new_tokens, seed=config.seed
    )  # fmt: skip


def format_facts(lines: list[dict[str, Any]], **first: list[Any]) -> str:
    """A table of what samples and pairs are like, behind further columns."""
    import polars as pl

    columns = {title: [facts.get(name) for facts in lines] for name, title in TABLE}
    shown = pl.DataFrame({**first, **columns}).with_columns(pl.col(pl.Float64).round(4))
    return show_table(shown)
