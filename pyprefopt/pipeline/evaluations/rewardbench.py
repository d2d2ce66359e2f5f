"""`pyprefopt evaluate rewardbench`: the benchmark's responses scored by a reward model, or by a policy's rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pyprefopt import ranks
from pyprefopt.data.reading.sources import open_source
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.evaluation.rewardbench import RewardBench, evaluate, row_credits
from pyprefopt.evaluation.ties import Scores
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.rank import GivenSet
from pyprefopt.pipeline.work_folder import check_own_folder, work_folder
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.models import Source
from pyprefopt.storage.files import atomic_write, content_hash, sha256_file

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

NUMBERS, ROWS = "rewardbench.csv", "rewardbench.jsonl"


def evaluate_rewardbench(
    config: RunConfig,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    reward_model: str | None = None,
    policy: str | None = None,
    ref: str | None = None,
) -> pl.DataFrame:
    """Score RewardBench and write its numbers, `rewardbench.csv`, and the scores of its rows, `rewardbench.jsonl`.

    The reward of a policy is the sum of log pi_policy - log pi_ref over a response's tokens. Each model reads the texts
    with its own tokenizer and template. Stages are kept in `output_dir` and used again.

    Args:
        config: how texts are read, and where stages are kept; its data and model are not looked at.
        files: of RewardBench 1 or of 2.
        out: the folder.
        reward_model: a sequence classifier with one output.
        policy: in its place, a language model.
        ref: the policy's reference.

    Returns:
        The numbers, as `evaluation.rewardbench.evaluate` gives them.

    Raises:
        ConfigError: neither a reward model nor a policy with its reference, or both.
        DataError: the files are of no RewardBench, or a response cannot be scored.
    """
    if (reward_model is None) == (policy is None and ref is None) or (policy is None) != (ref is None):
        raise ConfigError("rewardbench scores with a reward model, or with policy and ref: give one of the two")
    opened = OpenBench.read(files)
    target = Path(out)
    check_own_folder(out, "out")
    with work_folder(config):
        named = {"reward_model": reward_model, "policy": policy, "ref": ref}
        models = {name: Source.given(path, config, setting=name) for name, path in named.items() if path is not None}
        numbers, scores = opened.measure(Pipeline(config), **models)
        if ranks.is_main():
            target.mkdir(parents=True, exist_ok=True)
            atomic_write(target / NUMBERS, numbers.write_csv().encode())
            atomic_write(target / ROWS, _rows(opened.bench, scores).write_ndjson().encode())
    return numbers


@dataclass(frozen=True)
class OpenBench:
    """A benchmark, and its responses as they are scored."""

    bench: RewardBench
    given: GivenSet

    @classmethod
    def read(cls, files: Sequence[str | Path]) -> OpenBench:
        """Read the published files, all of one benchmark."""
        paths = [str(Path(file).expanduser()) for file in files]
        bench = RewardBench.read(paths)
        identity = content_hash(["rewardbench", bench.version, [sha256_file(path) for path in paths]])
        return cls(bench, GivenSet(open_source(bench.candidates(), kind="candidates"), identity))

    def check(self, tokenizer: Tokenizer, limits: Mapping[str, Any]) -> None:
        """DataError for a row that these limits leave out, before anything is scored."""
        from pyprefopt.data.reading.frames import scan_source
        from pyprefopt.data.tokenization.segments import tokenize_rows

        parsed = scan_source(self.given.rows)
        made = tokenize_rows(parsed.frame.drop("scores", strict=False), tokenizer, refuse_identical=False, **limits)
        for bad in (parsed.rejects, made.rejects):
            if bad.height:
                first = bad.sort("row").row(0, named=True)
                raise DataError(
                    f"{self.bench.places[first['row']]}, {first['field']}: {first['rule']}; {first['remedy']}"
                )

    def measure(
        self,
        pipeline: Pipeline,
        *,
        reward_model: Source | None = None,
        policy: Source | None = None,
        ref: Source | None = None,
    ) -> tuple[pl.DataFrame, Scores]:
        """The benchmark's numbers, and the scores that they are of; of a reward model, or of a policy and its ref."""
        if reward_model is not None:
            frame = self.given.score(pipeline, reward_model)
        else:
            assert policy is not None  # noqa: S101  (one of the two is given)
            assert ref is not None  # noqa: S101
            frame = _log_ratios(self.given, pipeline, policy, ref)
        scores = _by_row(self.bench, frame)
        return evaluate(self.bench, scores), scores


def _log_ratios(given: GivenSet, pipeline: Pipeline, policy: Source, ref: Source) -> pl.DataFrame:
    """The policy's reward of each response: its log-probs less the reference's, summed."""
    ours, theirs = (given.sum_logps(pipeline, model, name) for model, name in ((policy, "policy"), (ref, "ref")))
    both = ours.join(theirs, on=["row", "segment"], suffix="_ref", maintain_order="left")
    return both.select("row", "segment", score=pl.col("score") - pl.col("score_ref"))


def _by_row(bench: RewardBench, frame: pl.DataFrame) -> Scores:
    lists = dict(frame.group_by("row", maintain_order=True).agg("score").iter_rows())
    missing = next((row for row in range(len(bench.ids)) if row not in lists), None)
    if missing is not None:
        raise DataError(
            f"{bench.places[missing]}: it could not be scored, and the benchmark's numbers are of all rows; see the "
            "reasons in rejected.jsonl, and raise max_prompt_tokens and max_tokens where it is too long"
        )
    return [np.array(lists[row], np.float64) for row in range(len(bench.ids))]


def _rows(bench: RewardBench, scores: Scores) -> pl.DataFrame:
    counted = [None if np.isnan(credit) else float(credit) for credit in row_credits(bench, scores)]
    return pl.DataFrame(
        {"id": bench.ids, "subset": bench.subsets, "scores": [values.tolist() for values in scores], "credit": counted},
        schema_overrides={"credit": pl.Float64},
    )
