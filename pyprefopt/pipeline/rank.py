"""`pyprefopt rank`: what a reward model gives each response of a set, as further columns of its rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt import ranks
from pyprefopt.data.tokenization.schema import Boundary
from pyprefopt.errors import ConfigError, DataError, counted
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.work_folder import work_folder
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import show_rejected
from pyprefopt.stages.logps import Logps
from pyprefopt.stages.models import Source
from pyprefopt.stages.scoring.limits import LIMITS
from pyprefopt.stages.scoring.scores import ResponseScores, read_scores, summed_logps
from pyprefopt.stages.scoring.texts import Texts
from pyprefopt.stages.stage import Artifact
from pyprefopt.storage.files import content_hash, sha256_file
from pyprefopt.storage.hub import is_bare

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.sources import Source as Rows

logger = logging.getLogger("pyprefopt")

WRITTEN = {"preferences": ("score_chosen", "score_rejected"), "candidates": ("scores",)}  # by kind; else one score
REMEDY = "give --prefix NAME_, which goes before the names of what is written, or drop the column"


@dataclass(frozen=True)
class GivenSet:
    """Rows whose responses are scored as they are: an open source, and the hash of what it was opened from."""

    rows: Rows
    files: str

    @classmethod
    def of_file(cls, path: Path, config: RunConfig) -> GivenSet:
        """Pairs, candidates, or rows of one response, of one file."""
        from pyprefopt.data.reading.pairs import on_policy_columns
        from pyprefopt.data.reading.sources import open_source

        kinds = ("preferences", "candidates", "ranked", "instructions")
        columns = config.columns or on_policy_columns(path) or ()
        rows = open_source(path, format=config.format, kind=kinds, columns=columns)
        return cls(rows, content_hash([[file.kind for file in rows.data_files], sha256_file(path)]))

    def score(self, pipeline: Pipeline, model: Source) -> pl.DataFrame:
        """The score that a reward model gives each response: `row`, `segment` from 1, `score`."""
        if is_bare(model.path):
            raise ConfigError(f"a reward model must have weights, got '{model.path}'; give the folder of a trained one")
        texts, dtype = self._tokens(pipeline, model.path, "join"), pipeline.config.dtype
        return read_scores(pipeline.run(ResponseScores(label="scores", data=texts, model=model, dtype=dtype)))

    def sum_logps(self, pipeline: Pipeline, model: Source, name: str) -> pl.DataFrame:
        """The sum of the log-probs that a language model gives each response, in nats, in its own tokens."""
        texts = self._tokens(pipeline, model.path, "split")
        logps = pipeline.run(Logps(label=f"{name}_logps", data=texts, model=model, dtype=pipeline.config.dtype))
        return summed_logps(texts, logps)

    def _tokens(self, pipeline: Pipeline, model: str, boundary: Boundary) -> Artifact:
        from pyprefopt.data.tokenization.segments import load_tokenizer

        config = pipeline.config
        tokenizer = load_tokenizer(
            config.tokenizer or model, eos_token=config.eos_token, chat_template=config.chat_template
        )
        limits: dict[str, Any] = {name: getattr(config, name) for name in LIMITS}
        stage = Texts(
            label=f"texts of {model}", files=self.files, format=self.rows.format, columns=config.columns,
            on_error=config.on_error, boundary=boundary, tokenizer=tokenizer, rows=self.rows, **limits,
        )  # fmt: skip
        texts = pipeline.run(stage)
        if ranks.is_main():
            show_rejected(texts, pipeline.target)
            if count := texts.facts["responses_cut"]:
                logger.warning("%s cut to fit max_tokens = %d", counted(count, "response"), config.max_tokens)
        return texts


def rank(config: RunConfig, out: str | Path, *, prefix: str = "") -> dict[str, Any]:
    """Score the responses of `config.data` with the reward model `config.model`; write the rows with the scores.

    Stages are kept in `output_dir` and used again, as in a training run. A row that could not be scored has null.

    Args:
        config: the file of pairs, candidates or single responses, the reward model, and how texts are read.
        out: the file to write: the rows of the data with `score_chosen` and `score_rejected`, `scores` or `score`.
        prefix: goes before these names.

    Returns:
        `rows`, `scored`, `columns`; of pairs `accuracy`, the share whose chosen response has the higher score (a tie
        counts 1/2), `ties`, and `mean_margin`; of candidates and single responses `responses`.

    Raises:
        ConfigError: a setting breaks a rule, the model has no trained head of one output, or `out` or a column of the
            names is there already.
        DataError: bad rows, or a score that is not finite.
    """
    from pyprefopt.data.files.added_columns import add_columns, check_columns_free, check_target

    if not isinstance(config.data, str) or not Path(config.data).expanduser().is_file():
        raise DataError(
            f"rank takes one file of pairs, candidates or single responses, and there is none called {config.data!r}; "
            "name a file, and call rank once for each of several"
        )
    path, target = Path(config.data).expanduser(), Path(out)
    if ranks.is_main():  # it is rank 0 that writes
        check_target(path, target, overwrite=config.overwrite)
    given = GivenSet.of_file(path, config)
    names = [f"{prefix}{name}" for name in WRITTEN.get(given.rows.kind, ("score",))]
    check_columns_free(path, names, REMEDY)
    with work_folder(config):
        pipeline = Pipeline(config)
        scores = given.score(pipeline, Source.given(config.model, config, setting="reward_model"))
        count = next(artifact.facts["rows_in"] for artifact in pipeline.made.values() if "rows_in" in artifact.facts)
        columns = _as_columns(scores, count, names, given.rows.kind)
        if ranks.is_main():
            add_columns(path, target, columns, overwrite=config.overwrite, remedy=REMEDY)
    return {"rows": count, "columns": names, **_facts(columns)}


def _as_columns(scores: pl.DataFrame, count: int, names: list[str], kind: str) -> pl.DataFrame:
    """A line a row of the input: its scores, or the list of those of candidates; null where none are."""
    import polars as pl

    rows = pl.DataFrame({"row": pl.Series(range(count), dtype=pl.UInt64)})
    lists = scores.group_by("row", maintain_order=True).agg("score")
    columns = rows.join(lists, on="row", how="left", maintain_order="left").drop("row")
    if kind == "candidates":
        return columns.rename({"score": names[0]})
    return columns.select(pl.col("score").list.get(side).alias(name) for side, name in enumerate(names))


def _facts(columns: pl.DataFrame) -> Mapping[str, Any]:
    import polars as pl

    there = columns.drop_nulls()
    if len(columns.columns) == 1:
        scores = there.to_series().explode()  # lists of candidates, or a score a row
        return {"scored": there.height, "responses": scores.len()}
    margin = there.select(pl.nth(0).cast(pl.Float64) - pl.nth(1)).to_series()
    right, ties = int((margin > 0).sum()), int((margin == 0).sum())
    share = (right + ties / 2) / there.height
    return {"scored": there.height, "accuracy": share, "ties": ties, "mean_margin": margin.mean()}
