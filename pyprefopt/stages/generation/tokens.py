"""Stage `sample_tokens`: generated samples as segments, so that models score the very tokens that were drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.generation.samples import read_samples
from pyprefopt.stages.stage import Artifact, Stage
from pyprefopt.storage.files import content_hash
from pyprefopt.types import unkeyed

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.tokenization.tokenizer import Tokenizer

SPLIT = "train"  # the name of a set that is scored whole, as stages call it


@dataclass(frozen=True, kw_only=True)
class SampleTokens(Stage):
    """Each sample behind its prompt, in the tokens in which it was drawn."""

    name: str = "sample_tokens"
    samples: Artifact
    tokenizer: Tokenizer = unkeyed()
    rows: pl.DataFrame = unkeyed()  # the prompts, of `read_prompts`

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write the segments; `row` counts the samples."""
        from pyprefopt.generation.generate import encode_prompts

        table = _segments(read_samples(self.samples), encode_prompts(self.rows, self.tokenizer)[0])
        store = SegmentStore.write(table, directory / SPLIT)
        longest = int(store.longest_rows.argmax())
        return {
            "facts": {"rows": store.num_rows, "tokens": int(store.lengths.sum())},
            "fingerprint": content_hash([store.fingerprint, self.tokenizer.fingerprint]),
            "vocab_size": self.tokenizer.vocab_size,
            "longest": int(store.longest_rows[longest]), "longest_row": f"sample {longest}",
        }  # fmt: skip


def _segments(samples: pl.DataFrame, prompts: dict[int, list[int]]) -> pl.DataFrame:
    import polars as pl

    ids = pl.List(pl.UInt32)
    numbered = samples.select("row", "ids").with_row_index("number")
    said = numbered.select(row="number", segment=1, kind=pl.lit("response"), ids="ids")
    asked = numbered.select(
        row="number", segment=0, kind=pl.lit("prompt"),
        ids=pl.Series([prompts[row] for row in numbered["row"].to_list()], dtype=ids),
    )  # fmt: skip
    both = pl.concat([asked, said]).sort("row", "segment")
    mask = pl.col("ids").list.eval(pl.element().is_not_null())
    return both.select(
        pl.col("row").cast(pl.UInt64), pl.col("segment").cast(pl.UInt16), "kind", "ids",
        mask=pl.when(pl.col("segment") == 1).then(mask).otherwise(pl.col("ids").list.eval(pl.lit(value=False))),
    )  # fmt: skip
