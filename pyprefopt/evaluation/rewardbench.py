"""RewardBench 1 (Lambert et al. 2024) and 2 (Malik et al. 2025): their files, and their numbers of given scores.

Everything is as the published code has it, so that numbers can be compared with the leaderboards'.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pyprefopt.data.files.data_file import DataFile, find_files
from pyprefopt.data.files.parts import file_part, lines_of
from pyprefopt.errors import DataError
from pyprefopt.evaluation.intervals import SAMPLES, interval, resample_means
from pyprefopt.evaluation.ties import Scores, Ties, check_row

SECTIONS = {  # of RewardBench 1: section -> its subsets, each with its weight in the section
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 250,
        "xstest-should-respond": 154, "donotanswer": 136,
    },
    "Reasoning": {  # math-prm has 447 rows, and weighs as much as the code
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
        "hep-rust": 164,
    },
}  # fmt: skip
TIES = "ties"  # the subset of RewardBench 2 with a formula of its own
SUBSETS_2 = ("factuality", "precise if", "math", "safety", "focus", TIES)  # of RewardBench 2
BASELINES = ("longest", "shortest")  # the response of most or of fewest characters is taken as the best
_NEEDED = ("prompt", "chosen", "rejected", "subset", "id")

Version = Literal[1, 2]

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True)
class RewardBench:
    """The rows of one of the two benchmarks."""

    version: Version
    ids: list[str]
    subsets: list[str]
    prompts: list[str]
    responses: list[list[str]]  # of each row, first those that are right
    right: NDArray[np.int64]  # how many of them are
    places: list[str]  # file and row, for errors

    @classmethod
    def read(cls, files: str | Path | Sequence[str | Path]) -> RewardBench:
        """Read the published files; which benchmark they are of is known by their columns.

        Args:
            files: of any kind that reading takes; all of one benchmark.

        Raises:
            DataError: the columns are those of neither, of both, or a value is none that they have.
        """
        rows = [(place, row) for file in find_files(files)[0] for place, row in _rows(file)]
        if not rows:
            named = files if isinstance(files, list | tuple) else [files]
            raise DataError(f"{' '.join(map(str, named))}: there are no rows; give the published files")
        versions = {_version(place, row): place for place, row in rows}
        if len(versions) > 1:
            raise DataError(f"{versions[1]} is of RewardBench 1 and {versions[2]} of 2; evaluate them apart")
        (version,) = versions
        read = _read_1 if version == 1 else _read_2
        others = {row["subset"] for _, row in rows if version == 2 and row["subset"].lower() not in SUBSETS_2}
        if others:
            logger.warning("subsets that RewardBench 2 does not have count in its mean: %s", ", ".join(sorted(others)))
        responses, right = zip(*(read(place, row) for place, row in rows), strict=True)
        texts = {name: [str(row[name]) for _, row in rows] for name in ("id", "subset", "prompt")}
        return cls(
            version, texts["id"], texts["subset"], texts["prompt"], [*responses], np.array(right),
            [place for place, _ in rows],
        )  # fmt: skip

    def candidates(self) -> pl.DataFrame:
        """The rows as candidates, to be scored."""
        return pl.DataFrame(
            {
                "prompt": [[{"role": "user", "content": text}] for text in self.prompts],
                "responses": [
                    [[{"role": "assistant", "content": text}] for text in responses] for responses in self.responses
                ],
            }
        )

    def lengths(self, sign: int) -> Scores:
        """A score of each response that is its number of characters, or with sign -1 the less the longer."""
        return [sign * np.array([len(text) for text in responses], np.float64) for responses in self.responses]


def evaluate(bench: RewardBench, scores: Scores) -> pl.DataFrame:
    """The benchmark's numbers of these scores, and of the baselines.

    RewardBench 1: a row counts where the right response has the higher score; a subset has the share of its rows, a
    section the weighted mean of its subsets. RewardBench 2: a row counts 1 / n where the right response has the highest
    score together with n - 1 others; Ties has its own formula (`evaluation.ties`).

    Args:
        bench: the rows.
        scores: of each row, one for each of its responses.

    Returns:
        A line a number: `kind` (subset, section, mean), `name`, `rows`, `score` with its 95 % interval `low` to `high`
        (a bootstrap over the rows of each subset), `longest`, `shortest`, and `ties`, the rows whose best right
        response has the score of the best wrong one.

    Raises:
        DataError: a score is missing or not finite; a row of Ties has no partner.
    """
    _check(bench, scores)
    given = {"score": scores, "longest": bench.lengths(1), "shortest": bench.lengths(-1)}
    columns = {name: dict(_numbers(bench, values)) for name, values in given.items()}
    drawn = dict(_numbers(bench, scores, SAMPLES))
    counts, tied = _counts(bench), _tied(bench, scores)
    lines = []
    for kind, name in columns["score"]:
        subsets = _subsets_of(kind, name, counts)
        values = {column: float(numbers[kind, name]) for column, numbers in columns.items()}
        low, high = (float(end[0]) for end in interval(drawn[kind, name][:, None]))
        rows, ties = (sum(of_subset[subset] for subset in subsets) for of_subset in (counts, tied))
        lines.append(
            {
                "kind": kind,
                "name": name,
                "rows": rows,
                "score": values.pop("score"),
                "low": low if rows > 1 else None,
                "high": high if rows > 1 else None,
                **values,
                "ties": ties,
            }
        )
    return pl.DataFrame(lines)


def row_credits(bench: RewardBench, scores: Scores) -> NDArray[np.float64]:
    """What each row counts, [rows]; NaN for those of Ties, which count together."""
    found = np.full(len(scores), np.nan)
    for row, values in enumerate(scores):
        if bench.version == 1:
            found[row] = values[0] > values[1]
        elif bench.subsets[row].lower() != TIES:
            best = values == values.max()
            found[row] = best[0] / best.sum()
    return found


def _numbers(
    bench: RewardBench, scores: Scores, samples: int = 0
) -> Iterator[tuple[tuple[str, str], NDArray[np.float64]]]:
    """(kind, name) -> number, 0-dim: subsets, sections, means; on rows that are drawn again, [samples]."""
    values, counts = row_credits(bench, scores), _counts(bench)
    subsets = {name: _subset_number(bench, scores, values, name, samples, seed) for seed, name in enumerate(counts)}
    yield from ((("subset", name), score) for name, score in subsets.items())
    if bench.version == 2:
        yield ("mean", "subsets"), _mean(subsets, dict.fromkeys(subsets, 1.0))
        return
    sections = {}
    for section, weights in SECTIONS.items():
        there = {name: float(weight) for name, weight in weights.items() if name in subsets}
        if there:
            sections[section] = _mean(subsets, there)
    yield from ((("section", name), score) for name, score in sections.items())
    if sections:
        yield ("mean", "sections"), _mean(sections, dict.fromkeys(sections, 1.0))
    yield ("mean", "instances"), _mean(subsets, {name: float(count) for name, count in counts.items()})


def _subset_number(
    bench: RewardBench, scores: Scores, values: NDArray[np.float64], name: str, samples: int, seed: int
) -> NDArray[np.float64]:
    """The number of one subset; on its rows drawn again, [samples]."""
    own = np.flatnonzero(np.array(bench.subsets) == name).tolist()
    if not np.isnan(values[own]).any():
        return (
            resample_means(values[own][:, None], np.ones(len(own)), samples=samples, seed=seed)[:, 0]
            if samples
            else (np.asarray(values[own].mean()))
        )
    ties = Ties.of([bench.ids[row] for row in own], [scores[row] for row in own], bench.right[own].tolist())
    count = len(ties.ref)
    return ties.score(np.random.default_rng(seed).integers(0, count, (samples, count)) if samples else slice(None))


def _mean(numbers: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float]) -> NDArray[np.float64]:
    return np.asarray(sum(numbers[name] * weight for name, weight in weights.items()) / sum(weights.values()))


def _subsets_of(kind: str, name: str, counts: Mapping[str, int]) -> Iterable[str]:
    """The subsets that a number is made of."""
    if kind == "subset":
        return [name]
    if kind == "section":
        return SECTIONS[name].keys() & counts.keys()
    in_sections = {subset for weights in SECTIONS.values() for subset in weights}
    return in_sections & counts.keys() if name == "sections" else counts.keys()


def _counts(bench: RewardBench) -> dict[str, int]:
    """Subset -> rows, in the order of the sections, then as they come."""
    order = [subset for weights in SECTIONS.values() for subset in weights] if bench.version == 1 else []
    there = dict.fromkeys([*order, *bench.subsets])
    counts = {name: bench.subsets.count(name) for name in there}
    return {name: count for name, count in counts.items() if count}


def _tied(bench: RewardBench, scores: Scores) -> dict[str, int]:
    """Subset -> rows in which the best right response has the score of the best wrong one."""
    counts = dict.fromkeys(_counts(bench), 0)
    for subset, values, right in zip(bench.subsets, scores, bench.right, strict=True):
        counts[subset] += bool(values[right:].max() == values[:right].max())
    return counts


def _check(bench: RewardBench, scores: Scores) -> None:
    for place, responses, values in zip(bench.places, bench.responses, scores, strict=True):
        if len(values) != len(responses):
            raise DataError(f"{place}: {len(responses)} responses must have a score each, got {len(values)}")
        if not np.isfinite(values).all():
            raise DataError(f"{place}: scores must be finite, got {values[~np.isfinite(values)][0]}")


# -- the published files


def _rows(file: DataFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of each row."""
    number = 0
    for rows, _, _ in file_part(file).blocks():
        if hasattr(rows, "to_pylist") and hasattr(rows, "column_names"):
            found = rows.to_pylist()
        else:
            found = [json.loads(line) for line in lines_of(rows)]
        for row in found:
            yield f"{file.name}, row {number}", row
            number += 1


def _version(place: str, row: Any) -> Version:
    """Which benchmark the row is of."""
    names = [*row] if isinstance(row, dict) else []
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise DataError(
            f"{place}: RewardBench has the columns {', '.join(_NEEDED)}, and 2 also num_correct; missing here: "
            f"{', '.join(missing)}; the columns are {', '.join(names) or 'none'}"
        )
    if not isinstance(row["subset"], str) or not row["subset"].strip():
        raise DataError(f"{place}: subset must be the name of one, got {row['subset']!r}")
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        return 1
    if isinstance(row["chosen"], list) and isinstance(row["rejected"], list) and "num_correct" in names:
        return 2
    raise DataError(
        f"{place}: chosen and rejected must be texts (RewardBench 1), or lists of texts beside num_correct (2)"
    )


def _read_1(place: str, row: Mapping[str, Any]) -> tuple[list[str], int]:  # noqa: ARG001
    return [row["chosen"], row["rejected"]], 1


def _read_2(place: str, row: Mapping[str, Any]) -> tuple[list[str], int]:
    chosen, rejected, count = row["chosen"], row["rejected"], row["num_correct"]
    responses = [*chosen, *rejected]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"{place}: num_correct must be a whole number > 0, got {count!r}; it counts the chosen texts")
    if len(chosen) != count or not rejected or not all(isinstance(text, str) for text in responses):
        raise DataError(
            f"{place}: chosen must have as many texts as num_correct says ({count}) and rejected one or more, got "
            f"{len(chosen)} and {len(rejected)}"
        )
    if count != 1 and str(row["subset"]).lower() != TIES:
        raise DataError(f"{place}: one response must be right in subset {row['subset']}, got {count} (num_correct)")
    if str(row["subset"]).lower() == TIES:
        try:
            check_row(str(row["id"]), int(count), len(responses))
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    return responses, int(count)
