"""Scores of generated samples: by a reward model, by the rule of the embedded set, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.embedded import score_response
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.rank import GivenSet
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.generation.pairs import pick_samples
from pyprefopt.stages.generation.samples import FILE, read_samples
from pyprefopt.stages.models import Source
from pyprefopt.stages.scoring.limits import WHOLE
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import content_hash, sha256_file
from pyprefopt.storage.hub import EMBEDDED_RULE

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.pairs import PickedPairs

KEYS = ("row", "sample", "score")  # of a file of scores
WRITTEN = ("row", "sample", "prompt", "response", "messages", "response_complete")  # by generate, read here


@dataclass(frozen=True)
class Judged:
    """Scores of samples, one a sample, in their order; NaN where there is none."""

    scores: Sequence[float]
    fingerprint: str  # of what they come from


def judge_samples(
    pipeline: Pipeline, samples: Artifact, reward_model: str | None, scores: str | Path | None = None
) -> Judged:
    """Score samples by a reward model (`embedded:rule`: by the embedded set's rule), or take their scores from a file.

    Args:
        pipeline: of the run in whose folder the scores are kept.
        samples: of the stage `samples`.
        reward_model: directory or hub name, with its own tokenizer and template.
        scores: a file of `row`, `sample` and `score`, in the place of a reward model.

    Raises:
        ConfigError: neither is given, or both; a model that is none. DataError: samples without a score in the file.
    """
    if (reward_model is None) == (scores is None):
        what = "nothing ranks the samples" if scores is None else "two things rank the samples"
        raise ConfigError(f"{what}; give either reward_model (a reward model) or scores (a file)")
    table = read_samples(samples)
    if scores is not None:
        return Judged(read_scores_file(Path(scores), table), sha256_file(Path(scores)))
    assert reward_model is not None  # noqa: S101  (one of both)
    if reward_model == EMBEDDED_RULE:
        return Judged(score_by_rule(table), EMBEDDED_RULE)
    config = without_tokenizer(pipeline.config)
    model = Source.given(reward_model, config, setting="reward_model")
    given = GivenSet.of_file(samples.directory / FILE, config)
    found = given.score(Pipeline(config, pipeline.shared), model)
    lines = dict(zip(found["row"].to_list(), found["score"].to_list(), strict=True))
    values = [lines.get(line, float("nan")) for line in range(table.height)]  # those without text have none
    return Judged(values, content_hash([model.fingerprint, config.dtype]))


def without_tokenizer(config: RunConfig) -> RunConfig:
    """The settings with which a model of its own tokenizer scores samples, whole."""
    plain: dict[str, Any] = {"tokenizer": None, "eos_token": None, "chat_template": None, "columns": (), "aspect": None}
    return replace(config, **plain | {"format": "auto", "on_error": "skip", **WHOLE})


def score_by_rule(samples: pl.DataFrame) -> list[float]:
    """The rule of the embedded set, of each sample and what the user said last."""
    chats, texts = samples["prompt"].to_list(), samples["response"].to_list()
    return [score_response(chat[-1]["content"], text) for chat, text in zip(chats, texts, strict=True)]


def read_scores_file(path: Path, samples: pl.DataFrame) -> list[float]:
    """Scores of a file that has `row`, `sample` and `score`, for each sample; DataError where one has none."""
    import polars as pl

    table = _read_table(path)
    lost = [name for name in KEYS if name not in table.columns]
    if lost:
        raise DataError(f"{path}: there is no column {lost[0]}; it must have row, sample and score, a line a sample")
    try:
        keyed = table.select(
            pl.col("row").cast(pl.UInt64), pl.col("sample").cast(pl.UInt32), pl.col("score").cast(pl.Float64)
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: row, sample and score must be numbers: {str(error).splitlines()[0]}") from None
    twice = keyed.filter(keyed.select("row", "sample").is_duplicated()).head(1)
    if twice.height:
        raise DataError(f"{path}: row {twice['row'][0]}, sample {twice['sample'][0]} is there twice; keep one of them")
    joined = samples.select("row", "sample").join(keyed, on=["row", "sample"], how="left", maintain_order="left")
    missing = joined.filter(pl.col("score").is_null()).head(1)
    if missing.height:
        raise DataError(
            f"{path}: row {missing['row'][0]}, sample {missing['sample'][0]} has no score; give one to every sample of "
            "pyprefopt generate (NaN: it is left out)"
        )
    return [float(value) for value in joined["score"].to_list()]


def pick_scored_samples(source: Sequence[str], scores: str | Path, **rule: Any) -> PickedPairs:
    """Pairs of the samples in a file of `pyprefopt generate`, by the scores of another file."""
    if len(source) != 1 or Path(source[0]).suffix != ".parquet":
        raise DataError(f"scores go with one .parquet file of pyprefopt generate, got {' '.join(source)}")
    samples = _read_table(Path(source[0]))
    lost = [
        name
        for name in ("row", "sample", "prompt", "response", "messages", "response_complete")
        if name not in samples.columns
    ]
    if lost:
        raise DataError(f"{source[0]}: there is no column {lost[0]}; scores go with a file of pyprefopt generate")
    if samples.select("row", "sample").is_duplicated().any():
        raise DataError(f"{source[0]}: a grid of decoders, whose samples have one number each; write one point a file")
    return pick_samples(samples, read_scores_file(Path(scores), samples), **rule)


def _read_table(path: Path) -> pl.DataFrame:
    import polars as pl

    readers: dict[str, Any] = {
        ".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".json": pl.read_json,
        ".arrow": pl.read_ipc,
    }  # fmt: skip
    if path.suffix not in readers:
        raise DataError(f"{path}: scores must be a file of {', '.join(readers)}")
    try:
        found: pl.DataFrame = readers[path.suffix](path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file of scores") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0][:200]}") from None
    return found
