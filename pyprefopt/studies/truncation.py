"""The study of truncation: runs that train on the beginning of each response, compared on the same test pairs.

Source: shallow preference signals, Tables 1 to 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.errors import ConfigError, check
from pyprefopt.evaluation.accuracy import prompts_of
from pyprefopt.evaluation.intervals import interval, resample_means
from pyprefopt.modeling.checkpoints.configuration import read_config
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.pipeline.evaluations.rewardbench import OpenBench
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import TEST_SPLITS, open_tokenizer
from pyprefopt.stages.models import Source
from pyprefopt.stages.scoring.limits import WHOLE
from pyprefopt.stages.training import TEST_PAIRS
from pyprefopt.studies.study import Options, Study, Values

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.stages.stage import Artifact
    from pyprefopt.studies.study import Cell

PRESETS = {  # what --as stands for
    "paper": {"truncation.unit": "tokens", "truncation.rounding": "ceil", "truncation.cut_end": "none"},
    "code": {"truncation.unit": "characters", "truncation.rounding": "floor", "truncation.cut_end": "template"},
}
TESTS = dict(zip(TEST_SPLITS, ("whole", "cut"), strict=True))  # split -> what the accuracy table calls it
POINT = ("ratio", "length")
OF_RATIOS = {"truncation.rounding": "ceil", "truncation.ratio_base": "own"}  # settings that a length does not have


@dataclass(frozen=True)
class TruncationOptions:
    """What the study of truncation takes besides the settings of its runs."""

    # what ratios and lengths count: short for --truncation.unit
    unit: Literal["tokens", "characters", "words", "sentences"] | None = None
    # paper: tokens, and nothing after the cut; code, as the authors ran it: int(len * ratio) characters of the text,
    # and the chat template closes the turn
    as_: Literal["paper", "code"] | None = field(default=None, metadata={"option": "as"})
    common_pairs: bool = False  # accuracies also on the test pairs that no cell's cut has made equal
    # published files of RewardBench 1 or 2, by which every policy is measured too
    rewardbench: tuple[str, ...] = field(default=(), metadata={"metavar": "FILE"})


@dataclass(frozen=True)
class TruncationStudy(Study):
    """Ratios and lengths are taken one after the other, each with the same runs."""

    options: type = TruncationOptions

    def settings_of(self, options: Options) -> dict[str, Any]:
        """The settings that `--as` and `--unit` stand for."""
        settings: dict[str, Any] = dict(PRESETS[options["as"]] if options.get("as") else {})
        unit = options.get("unit")
        if unit is not None and settings.get("truncation.unit", unit) != unit:
            raise ConfigError(
                f"unit must be {settings['truncation.unit']} with as {options['as']}; leave one of them out"
            )
        return settings | ({} if unit is None else {"truncation.unit": unit})

    def points(self, values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """Every ratio, then every length."""
        for name in POINT:
            yield from (dict.fromkeys(POINT) | {name: value} for value in values[name])

    def settings_at(self, cell: Values) -> dict[str, Any]:
        """The settings of one cell; a length has no rounding."""
        return super().settings_at(cell) | ({} if cell["length"] is None else OF_RATIOS)

    def check(self, config: RunConfig, options: Options) -> None:
        """Check the settings; runs are compared on whole test pairs."""
        super().check(config, options)
        tests = config.eval_truncation
        check("none" in tests, "eval_truncation", " ".join(tests), "none, or none same", "whole pairs compare all")
        if options.get("rewardbench"):  # before anything is trained
            OpenBench.read(options["rewardbench"]).check(open_tokenizer(config), _limits(config))
        common = options.get("common_pairs") and "same" not in tests
        check(
            not common, "common_pairs", True, "left out with eval_truncation none", "equal pairs are those of the cut"
        )

    def measure(self, root: Path, config: RunConfig, made: Mapping[str, Artifact], options: Options) -> dict[str, Any]:
        """The numbers of RewardBench of the cell's policy, where files of it are given."""
        if not options.get("rewardbench"):
            return {}
        numbers = score_bench(OpenBench.read(options["rewardbench"]), root, config, made)
        found = {"rewardbench": numbers}
        return found | {
            f"rewardbench_{line['name'].lower().replace(' ', '_')}": line["score"]
            for line in numbers.iter_rows(named=True)
            if line["kind"] != "subset"
        }

    def tables(self, cells: Sequence[Cell], options: Options) -> dict[str, pl.DataFrame]:
        """`accuracy`, and `rewardbench` where files of it are given."""
        import polars as pl

        kinds = {"seed": pl.Int64(), "ratio": pl.Float64(), "length": pl.Int64()}
        tables = {"accuracy": accuracy_table(cells, common=bool(options.get("common_pairs")))}
        benches = [
            cell.measured["rewardbench"].select(
                *(pl.lit(cell.values[name], kind).alias(name) for name, kind in kinds.items()), pl.all()
            )
            for cell in cells
            if "rewardbench" in cell.measured
        ]
        return tables | ({"rewardbench": pl.concat(benches)} if benches else {})


def score_bench(bench: OpenBench, root: Path, config: RunConfig, made: Mapping[str, Artifact]) -> pl.DataFrame:
    """The numbers of a cell's policy: a reward model's scores, or log-ratios against what it started from."""
    plain = replace(
        config, tokenizer=str(made["data"].directory / "tokenizer"), eos_token=None, chat_template=None, columns=(),
        format="auto", aspect=None, truncation=Truncation(), eval_truncation=("none",), on_error="skip",
        prompt_overflow="error", output_dir=str(root / "rewardbench"), **_limits(config),
    )  # fmt: skip
    policy = Source(str(made["policy"].directory / "model"), made["policy"].fingerprint)
    pipeline = Pipeline(plain, root / "stages")
    if "reward_head" in config.loss.needs:
        return bench.measure(pipeline, reward_model=policy)[0]
    start = Pipeline(config, root / "stages").reference
    return bench.measure(pipeline, policy=policy, ref=start)[0]


def _limits(config: RunConfig) -> dict[str, Any]:
    """How long the benchmark's texts may be: whole, as far as the model reads; what is behind is cut off."""
    path = resolve_source(config.model, trust_remote_code=config.trust_remote_code)
    text = read_config(path, trust_remote_code=config.trust_remote_code).get_text_config()
    context = getattr(text, "max_position_embeddings", None) or WHOLE["max_tokens"]
    longest = min(WHOLE["max_tokens"], context)
    return {"max_tokens": longest, "max_prompt_tokens": min(WHOLE["max_prompt_tokens"], longest - 1)}


@dataclass(frozen=True)
class _Pairs:
    """What the test pairs of one cell got: a line a pair."""

    point: tuple[float | None, int | None]  # ratio, length
    seed: int
    rows: NDArray[np.uint64]
    prompts: NDArray[np.int64]  # numbered over all cells
    margins: NDArray[np.float64]  # of the rewards

    @property
    def right(self) -> NDArray[np.float64]:
        """1 where the chosen response has the higher reward, a tie 1/2."""
        return (np.sign(self.margins) + 1) / 2

    def only(self, rows: NDArray[np.uint64]) -> _Pairs:
        """Of the pairs those of these rows."""
        keep = np.isin(self.rows, rows)
        return replace(self, rows=self.rows[keep], prompts=self.prompts[keep], margins=self.margins[keep])


def accuracy_table(cells: Sequence[Cell], *, common: bool = False) -> pl.DataFrame:
    """How often each point of the grid ranks the test pairs right, with intervals over prompts.

    Args:
        cells: of the study.
        common: also on the pairs that are there in every cell of a seed.

    Returns:
        A line a point, test (`whole` or `cut` pairs) and set of pairs (`all` or `common`): `accuracy` (a tie counts
        1/2) with the 95 % interval of a bootstrap over prompts, `low` and `high`; `change` against ratio 1 on the pairs
        that both have, seed by seed, with `change_low` and `change_high` (null where there is no ratio 1); `ties`,
        `pairs` and `mean_margin`, over all seeds. Seeds are averaged: an interval says how far the test pairs may
        mislead, not how far another seed may.
    """
    import polars as pl

    seen: dict[bytes, int] = {}
    tests = {split: [_read_pairs(cell, split, seen) for cell in cells] for split in TESTS}
    lines = []
    for split, test in TESTS.items():
        sets = {"all": [found for found in tests[split] if found is not None]}
        if common:
            shared = _shared_rows(cells, tests["eval_cut"])
            sets["common"] = [pairs.only(shared[pairs.seed]) for pairs in sets["all"]]
        for name, own in sets.items():
            full = [pairs for pairs in own if pairs.point[0] == 1]
            for point in dict.fromkeys(pairs.point for pairs in own):
                where = dict(zip(POINT, point, strict=True)) | {"test": test, "pairs_of": name}
                lines.append(where | _line([pairs for pairs in own if pairs.point == point], full))
    return pl.DataFrame(lines, infer_schema_length=None)


def _read_pairs(cell: Cell, split: str, seen: dict[bytes, int]) -> _Pairs | None:
    """What the test pairs of a split got; None where the split is not there."""
    import polars as pl

    folder = cell.made["data"].directory / split
    if not folder.exists():
        return None
    table = pl.read_parquet(cell.made["policy"].directory / TEST_PAIRS).filter(split=split)
    store = SegmentStore.open(folder)
    places = np.searchsorted(store.rows, table["row"].to_numpy())
    point = (cell.values["ratio"], cell.values["length"])
    return _Pairs(
        point, cell.values["seed"], table["row"].to_numpy(), prompts_of(store, seen)[places],
        table["reward_margin"].to_numpy(),
    )  # fmt: skip


def _shared_rows(cells: Iterable[Cell], tests: Iterable[_Pairs | None]) -> dict[int, NDArray[np.uint64]]:
    """Seed -> the rows that every cell of it has; a cell whose cut left no pair has none."""
    shared: dict[int, NDArray[np.uint64]] = {}
    for cell, pairs in zip(cells, tests, strict=True):
        seed, rows = cell.values["seed"], np.empty(0, np.uint64) if pairs is None else pairs.rows
        shared[seed] = np.intersect1d(shared.get(seed, rows), rows)
    return shared


def _line(members: Sequence[_Pairs], full: Sequence[_Pairs]) -> dict[str, Any]:
    """The numbers of one point; `full` is the same test of ratio 1."""
    margins = np.concatenate([pairs.margins for pairs in members])
    accuracy = _mean_over_prompts([(pairs.prompts, pairs.right) for pairs in members])
    whole = {pairs.seed: pairs for pairs in full}
    differences = []
    for pairs in members:
        if pairs.seed in whole:
            one, other = pairs.only(whole[pairs.seed].rows), whole[pairs.seed].only(pairs.rows)
            differences.append((one.prompts, one.right - other.right))
    change = _mean_over_prompts(differences)
    return {
        **dict(zip(("accuracy", "low", "high"), accuracy, strict=True)),
        **dict(zip(("change", "change_low", "change_high"), change, strict=True)),
        "ties": int((margins == 0).sum()), "pairs": len(margins),
        "mean_margin": float(margins.mean()) if len(margins) else None,
    }  # fmt: skip


def _mean_over_prompts(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]],
) -> tuple[float | None, float | None, float | None]:
    """Mean of values, and its interval where the prompts are drawn again; None where there is no value (of one
    prompt no interval).
    """
    if not sum(len(values) for _, values in parts):
        return None, None, None
    prompts, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    _, numbers = np.unique(prompts, return_inverse=True)
    if not numbers.any():  # one prompt says nothing of others
        return float(values.mean()), None, None
    sums, counts = np.bincount(numbers, values).astype(np.float64), np.bincount(numbers).astype(np.float64)
    low, high = interval(resample_means(sums[:, None], counts))
    return float(values.mean()), float(low[0]), float(high[0])
