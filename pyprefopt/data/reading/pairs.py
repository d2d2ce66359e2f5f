"""Candidates to pairs: which of a prompt's responses become chosen and rejected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pyprefopt.data.columns import check_flag_counts, check_flags
from pyprefopt.data.files.writing import check_new, known_file, new_file, write_rows
from pyprefopt.data.reading.detection import columns_of
from pyprefopt.data.reading.frames import CHAT, plain_messages, read_candidates
from pyprefopt.data.reading.rejects import OnError
from pyprefopt.errors import DataError, check, check_number, did_you_mean

Pick = Literal["best_worst", "best_random", "all", "margin"]
REASONS = {  # why a pair, or a prompt, is left out
    "no_score": "responses without a score",
    "no_text": "responses without text",  # of samples: a model that ended at once
    "one_response": "prompts with fewer than two responses that have scores",
    "tie": "pairs of equal scores",
    "equal_texts": "pairs of equal texts",
    "below_margin": "pairs whose scores are nearer than the margin",
}
ON_POLICY = {"responses": "all_generated_responses", "scores": "all_rm_scores"}  # as on-policy sets name them

_ROUNDING = 2.0**-23  # of a float32, which scores are
_COMPLETE = "responses_complete"  # false: a response was cut, and no end of turn follows it
_Choice = tuple[int, int]  # positions of the chosen and of the rejected response


class PickedPairs(NamedTuple):
    """Pairs, and what was left out."""

    pairs: pl.DataFrame
    left_out: dict[str, int]  # reason -> how many; see REASONS


def pick_pairs(
    candidates: Any,
    *,
    pick: Pick = "best_worst",
    margin: float | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    aspect: str | None = None,
    on_error: OnError = "raise",
) -> PickedPairs:
    """Make pairs of candidates by their scores.

    Args:
        candidates: a frame of `read_candidates`, or what that takes. The columns `all_generated_responses` and
            `all_rm_scores` of on-policy sets are taken where there are no others.
        pick: best_worst: the highest score against the lowest; best_random: the highest against one of those below it,
            drawn at random; all: every two responses of other scores; margin: those of them that are `margin` apart.
            Of equal scores the first response counts as the best, and as the worst.
        margin: least difference of the scores of a pair; needed for pick margin; None: any but 0.
        seed: of best_random; the draw of a row depends on seed and row alone.
        columns: as in `read_candidates`.
        aspect: as in `read_candidates`.
        on_error: as in `read_candidates`.

    Returns:
        `pairs`: `row` u64 from 0, `prompt`, `chosen`, `rejected` list<message>, `score_chosen`, `score_rejected` f32,
        `candidates_row` u64 (the row of the candidates), `chosen_index`, `rejected_index` u32 (positions in
        `responses`), where given `chosen_complete`, `rejected_complete`, and every other column of the candidates.
        `left_out`: reason -> count.

    Raises:
        ConfigError: a setting breaks its rule.
        DataError: as `read_candidates`; no candidate has a score.

    Example:
        >>> rows = pl.DataFrame({"prompt": ["Hi"], "responses": [["No.", "Hello!", "Hey."]], "scores": [[0, 2, 1]]})
        >>> pairs, left_out = pick_pairs(rows, pick="best_worst")
        >>> pairs.select(pl.col("chosen").list.first().struct.field("content"), "score_rejected").row(0)
        ('Hello!', 0.0)
    """
    check(
        pick in get_args(Pick),
        "pick",
        pick,
        f"one of {', '.join(get_args(Pick))}",
        did_you_mean(str(pick), get_args(Pick)),
    )
    if margin is not None:
        check_number("margin", margin)
        check(margin > 0, "margin", margin, "> 0", "leave it out to take all pairs but ties")
    check(margin is not None or pick != "margin", "margin", None, "given for pick margin", "a difference of scores")
    check_number("seed", seed, whole=True)
    check(0 <= seed < 2**64, "seed", seed, "in [0, 2^64)")
    frame = candidates if _is_read(candidates) else _read(candidates, columns, aspect, on_error)
    if "scores" not in frame.columns or frame["scores"].null_count() == frame.height:
        raise DataError("pairs are picked by scores, and no row has any; score the candidates first: pyprefopt rank")
    made = _Picker(frame, pick, 0.0 if margin is None else margin, seed)
    return PickedPairs(made.pairs(), {reason: made.left_out[reason] for reason in REASONS if made.left_out[reason]})


def write_pairs(picked: PickedPairs, out: str | Path, *, overwrite: bool = False) -> None:
    """Write pairs of `pick_pairs` as a file of any kind that reading takes; messages keep their further fields.

    Args:
        picked: of `pick_pairs`.
        out: the file.
        overwrite: replace a file that is there.

    Raises:
        ConfigError: `out` is there and not to be replaced, or is of no known kind.
        DataError: there is no pair, or the kind cannot hold lists.
        ArtifactError: the disk takes no more.
    """
    target = known_file(Path(out))
    check_new(target, overwrite=overwrite)
    if picked.pairs.is_empty():
        why = ", ".join(f"{REASONS[reason]}: {count:,}" for reason, count in picked.left_out.items())
        raise DataError(
            f"no pair is left to write ({why}); choose another pick or margin, or score the responses: pyprefopt rank"
        )
    rows = (_plain(row) for row in picked.pairs.drop("row").iter_rows(named=True))
    with new_file(target) as parts:
        write_rows(str(out), rows, target, parts).replace(target.path)


def _plain(row: dict[str, Any]) -> bytes:
    """A pair as JSON, its messages as they were read."""
    for name in ("prompt", "chosen", "rejected"):
        row[name] = plain_messages(row[name])
    return json.dumps(row, ensure_ascii=False, default=str).encode()


def _is_read(candidates: Any) -> bool:
    """Whether it is a frame of `read_candidates`."""
    is_frame = isinstance(candidates, pl.DataFrame) and {"row", "prompt", "responses"} <= set(candidates.columns)
    return is_frame and candidates.schema["prompt"] == CHAT


def _read(candidates: Any, columns: Any, aspect: str | None, on_error: OnError) -> pl.DataFrame:
    if columns is None and aspect is None:
        columns = on_policy_columns(candidates)
    frame = read_candidates(candidates, columns=columns, aspect=aspect, on_error=on_error)
    return frame.collect() if isinstance(frame, pl.LazyFrame) else frame


def on_policy_columns(source: Any) -> dict[str, str] | None:
    """The columns of an on-policy set, where `source` is one; else None."""
    entries = source if isinstance(source, list | tuple) else [source]
    if all(isinstance(entry, str | Path) for entry in entries):
        names = columns_of(source)
    else:
        names = {*(getattr(source, "columns", None) or getattr(source, "column_names", []))}
    return ON_POLICY if set(ON_POLICY.values()) <= names and not {"responses", "scores"} & names else None


class _Picker:
    """The pairs of a frame of candidates, row by row."""

    def __init__(self, frame: pl.DataFrame, pick: Pick, margin: float, seed: int) -> None:
        self.frame, self.pick, self.margin, self.seed = frame, pick, margin, seed
        self.left_out: Counter[str] = Counter()

    def pairs(self) -> pl.DataFrame:
        """All pairs, in the order of the rows."""
        frame = self.frame.with_row_index("_place")
        flags = [name for name in (_COMPLETE,) if name in frame.columns]
        long = frame.select("_place", "row", "responses", "scores", *flags).filter(pl.col("responses").list.len() > 0)
        empty = pl.col("responses").list.eval(pl.lit(None, pl.Float32))
        long = long.with_columns(pl.coalesce("scores", empty))
        if flags:
            check_flags(_COMPLETE, frame.schema[_COMPLETE])
            long = long.with_columns(pl.col(_COMPLETE).cast(pl.List(pl.Boolean)))
            check_flag_counts(long[_COMPLETE], long["responses"], long["row"])
            ends = pl.col("responses").list.eval(pl.lit(value=True))
            long = long.with_columns(pl.coalesce(_COMPLETE, ends))
        long = long.explode("responses", "scores", *flags)
        texts = long.select(pl.struct("responses").struct.json_encode().rank("dense")).to_series().to_numpy()
        scores = long["scores"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        places, rows = long["_place"].to_numpy(), long["row"].to_numpy()
        starts = np.flatnonzero(np.append(True, places[1:] != places[:-1])) if len(places) else np.empty(0, np.int64)
        self.left_out["one_response"] += frame.height - len(starts)  # those without any
        chosen, rejected = [], []
        for start, end in zip(starts, np.append(starts[1:], len(places)), strict=True):
            for best, worst in self._choose(scores[start:end], texts[start:end], int(rows[start])):
                chosen.append(start + best)
                rejected.append(start + worst)
        return self._table(frame, long, np.array(chosen, np.int64), np.array(rejected, np.int64))

    def _choose(self, scores: NDArray[np.float64], texts: NDArray[Any], row: int) -> Iterator[_Choice]:
        there = np.flatnonzero(np.isfinite(scores))
        self.left_out["no_score"] += len(scores) - len(there)
        if len(there) < 2:
            self.left_out["one_response"] += 1
            return
        for best, worst in self._wanted(scores, there, row):
            reason = self._fault(scores[best], scores[worst], equal=texts[best] == texts[worst])
            if reason is None:
                yield best, worst
            else:
                self.left_out[reason] += 1

    def _wanted(self, scores: NDArray[np.float64], there: NDArray[np.int64], row: int) -> Iterator[_Choice]:
        if self.pick in ("all", "margin"):
            for one, other in combinations(there.tolist(), 2):
                yield (one, other) if scores[one] >= scores[other] else (other, one)
            return
        best = int(there[scores[there].argmax()])
        below = there[scores[there] < scores[best]]
        if not len(below):  # all have one score
            yield best, int(there[there != best][0])
        elif self.pick == "best_worst":
            yield best, int(below[scores[below].argmin()])
        else:
            yield best, int(np.random.default_rng([self.seed, row]).choice(below))

    def _fault(self, best: float, worst: float, *, equal: bool) -> str | None:
        if equal:
            return "equal_texts"
        if best == worst:
            return "tie"
        rounding = _ROUNDING * (abs(best) + abs(worst))  # 0.9 and 0.8 are 0.1 apart
        return "below_margin" if best - worst < self.margin - rounding else None

    def _table(
        self, frame: pl.DataFrame, long: pl.DataFrame, chosen: NDArray[np.int64], rejected: NDArray[np.int64]
    ) -> pl.DataFrame:
        index = long.select(pl.int_range(pl.len(), dtype=pl.UInt32).over("_place")).to_series()
        sets = frame.select(pl.all().gather(long["_place"].gather(chosen)))
        own = ("_place", "row", "prompt", "responses", "scores", _COMPLETE)
        further = [name for name in frame.columns if name not in own]
        ends = {"chosen_complete": chosen, "rejected_complete": rejected} if _COMPLETE in long.columns else {}
        return pl.DataFrame(
            {
                "row": pl.Series(range(len(chosen)), dtype=pl.UInt64),
                "prompt": sets["prompt"],
                "chosen": long["responses"].gather(chosen),
                "rejected": long["responses"].gather(rejected),
                "score_chosen": long["scores"].gather(chosen),
                "score_rejected": long["scores"].gather(rejected),
                "candidates_row": sets["row"],
                "chosen_index": index.gather(chosen),
                "rejected_index": index.gather(rejected),
                **{name: long[_COMPLETE].gather(places) for name, places in ends.items()},
            }
        ).hstack(sets.select(name for name in further))
