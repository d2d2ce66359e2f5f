"""Scores of generated samples: by a reward model, by the rule of the embedded set, or from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.data.embedded import score_response
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling.checkpoints.load import sketch_model
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.rank import GivenSet
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.generation.pairs import pick_samples
from pyprefopt.stages.generation.samples import FILE, read_samples
from pyprefopt.stages.models import Source
from pyprefopt.stages.scoring.limits import WHOLE
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import sha256_file
from pyprefopt.storage.hub import EMBEDDED_RULE

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.pairs import PickedPairs

KINDS = (".parquet", ".arrow", ".csv", ".jsonl", ".json")  # of files of scores
KEYS = ("row", "sample", "score")  # that they have
WRITTEN = ("row", "sample", "prompt", "response", "messages", "response_complete")  # by generate, read here


@dataclass(frozen=True)
class Judged:
    """Scores of samples, one a sample, in their order; NaN where there is none. On rank 0 alone, which writes."""

    scores: Sequence[float]
    fingerprint: str  # of what they come from


def judge_samples(
    pipeline: Pipeline, samples: Artifact, reward_model: str | None, scores: str | Path | None = None
) -> Judged:
    """Score samples by a reward model (`embedded:rule`: by the embedded set's rule), or take their scores from a file.

    `check_judge` has looked at both.

    Args:
        pipeline: of the run in whose folder the scores are kept.
        samples: of the stage `samples`.
        reward_model: directory or hub name, with its own tokenizer and template.
        scores: a file of `row`, `sample` and `score`, in the place of a reward model.

    Raises:
        DataError: samples without a score in the file.
    """
    main = ranks.is_main()
    if scores is not None:
        found = read_scores_file(Path(scores), read_samples(samples, ["row", "sample"])) if main else ()
        return Judged(found, sha256_file(Path(scores)))
    assert reward_model is not None  # noqa: S101  (check_judge)
    if reward_model == EMBEDDED_RULE:
        return Judged(score_by_rule(read_samples(samples, ["prompt", "response"])) if main else (), EMBEDDED_RULE)
    config = without_tokenizer(pipeline.config)
    given = GivenSet.of_file(samples.directory / FILE, config)
    scored = Pipeline(config, pipeline.shared)
    table = given.score(scored, Source.given(reward_model, config, setting="reward_model"))
    lines = dict(zip(table["row"].to_list(), table["score"].to_list(), strict=True)) if main else {}
    count = read_samples(samples, ["row"]).height if main else 0
    values = [lines.get(line, float("nan")) for line in range(count)]  # those without text have none
    return Judged(values, scored.made["scores"].fingerprint)


def check_judge(config: RunConfig, reward_model: str | None, scores: str | Path | None = None) -> None:
    """Look at what is to rank the samples, before there are any.

    Raises:
        ConfigError: nothing is given, or both; no reward model. DataError: there is no such file of scores.
    """
    if (reward_model is None) == (scores is None):
        what = "nothing ranks the samples" if scores is None else "two things rank the samples"
        raise ConfigError(f"{what}; give either reward_model (a reward model) or scores (a file)")
    if scores is not None:
        check_file(Path(scores))
    elif reward_model != EMBEDDED_RULE:
        trusted = config.trust_remote_code
        resolve_source(str(reward_model), setting="reward_model", trust_remote_code=trusted)
        sketch_model(str(reward_model), head="score", trust_remote_code=trusted)


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
    for name in KEYS[:2]:
        if table.schema[name].is_float() and (broken := table.filter(pl.col(name) != pl.col(name).floor())).height:
            raise DataError(f"{path}: {name} must be a whole number, got {broken[name][0]}; mend that line")
    try:
        keyed = table.select(
            pl.col("row").cast(pl.UInt64), pl.col("sample").cast(pl.UInt32), pl.col("score").cast(pl.Float64)
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: row, sample and score must be numbers: {str(error).splitlines()[0]}") from None
    twice = keyed.filter(keyed.select("row", "sample").is_duplicated()).head(1)
    if twice.height:
        raise DataError(f"{path}: row {twice['row'][0]}, sample {twice['sample'][0]} is there twice; keep one of them")
    other = keyed.join(samples.select("row", "sample"), on=["row", "sample"], how="anti").head(1)
    if other.height:
        raise DataError(
            f"{path}: row {other['row'][0]}, sample {other['sample'][0]} is no sample here; take the scores of this set"
        )
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
    lost = [name for name in WRITTEN if name not in samples.columns]
    if lost:
        raise DataError(f"{source[0]}: there is no column {lost[0]}; scores go with a file of pyprefopt generate")
    if samples.select("row", "sample").is_duplicated().any():
        raise DataError(f"{source[0]}: a grid of decoders, whose samples have one number each; write one point a file")
    return pick_samples(samples, read_scores_file(Path(scores), samples), **rule)


def check_file(path: Path) -> None:
    """DataError where a file of scores is not there, or of no kind that is read."""
    if path.suffix not in KINDS:
        raise DataError(f"{path}: scores must be a file of {', '.join(KINDS)}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of scores")


def _read_table(path: Path) -> pl.DataFrame:
    import polars as pl

    check_file(path)
    try:
        if path.suffix == ".parquet":
            found = pl.read_parquet(path)
        elif path.suffix == ".arrow":
            found = pl.read_ipc(path)
        elif path.suffix == ".csv":
            found = pl.read_csv(path, infer_schema_length=None)
        else:
            text = path.read_text("utf-8")
            each = [line for line in text.splitlines() if line.strip()]
            found = _of_rows(json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in each])
    except (pl.exceptions.PolarsError, OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0][:200]}") from None
    return found


def _of_rows(rows: list[Any]) -> pl.DataFrame:
    """A table of JSON objects, in which NaN may stand."""
    import polars as pl

    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line must be an object of row, sample and score")
    names = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame({name: pl.Series([row.get(name) for row in rows], strict=False) for name in names})
