"""Stage `texts`: given responses in the tokens of one model, to be scored and not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data.parallel import in_threads
from pyprefopt.data.store.segments import SegmentStore, typed
from pyprefopt.data.store.shards import ShardWriter
from pyprefopt.data.tokenization.schema import Boundary
from pyprefopt.errors import DataError
from pyprefopt.settings.config import RunConfig
from pyprefopt.stages.data import REJECTED, skip_command
from pyprefopt.stages.scoring.limits import LIMITS
from pyprefopt.stages.stage import Stage
from pyprefopt.storage.files import content_hash
from pyprefopt.types import unkeyed
from pyprefopt.version import __version__

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.blocks import Block
    from pyprefopt.data.reading.sources import Source as Rows
    from pyprefopt.data.tokenization.segments import TokenizeResult
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

SPLIT = "train"  # the name of a set that is scored whole, as stages call it


@dataclass(frozen=True, kw_only=True)
class Texts(Stage):
    """The rows of a set in a model's own tokens, with its own template."""

    name: str = "texts"
    version: str = __version__  # another one may read, render or tokenize otherwise
    files: str  # hash of what the rows come from
    format: str
    columns: tuple[str, ...]
    on_error: str
    max_prompt_tokens: int
    prompt_overflow: str
    max_tokens: int
    score_reasoning: bool
    boundary: Boundary  # join for a reward model, which reads each text whole
    tokenizer: Tokenizer
    rows: Rows = unkeyed()

    def build(self, directory: Path, runtime: RunConfig) -> dict[str, Any]:  # noqa: ARG002
        """Write the segments, in which responses may be the same; bad rows are reported or recorded.

        Raises:
            DataError: bad rows (on_error raise), or no row that can be scored.
        """
        import polars as pl

        from pyprefopt.data.reading.rejects import DROPPED, raise_for, write_rejected
        from pyprefopt.data.tokenization.coverage import Coverage
        from pyprefopt.data.tokenization.notes import SpecialToken, add_notes, log_notes

        writer, rejects, rows_in = ShardWriter(SegmentStore, directory / SPLIT), [], 0
        results: list[TokenizeResult] = []
        for bad, count, result in in_threads(self.rows.blocks(), self._tokenize):
            rows_in += count
            rejects.append(bad)
            if result is not None:
                if result.segments.height:
                    writer.add(typed(result.segments.to_arrow()))
                results.append(result._replace(segments=result.segments.clear()))
        bad = pl.concat(rejects)
        if self.on_error == "raise":
            raise_for(bad, rows_in, command=skip_command(), recorded=REJECTED)
        source = " ".join(self.rows.files)
        if not writer.groups:
            raise DataError(f"{source}: no row is left to score; of {rows_in:,} all are bad or dropped")
        write_rejected(directory / REJECTED, bad)
        Coverage.total([result.coverage for result in results]).check(source, self.tokenizer.path)
        special = SpecialToken.first_of([result.special for result in results])
        notes = add_notes([result.notes for result in results])
        log_notes(notes, special, score_reasoning=self.score_reasoning, source=source)
        store = writer.finish(groups=writer.groups, tokens=writer.tokens)
        longest = int(store.longest_rows.argmax())
        dropped = {reason: count for reason in DROPPED if (count := bad.filter(reason=reason).height)}
        return {
            "facts": {
                "rows_in": rows_in, "rows": store.num_rows, "tokens": int(store.lengths.sum()),
                "rows_rejected": bad.height, "rows_dropped": dropped,
                "responses_cut": sum(result.responses_cut for result in results),
            },
            "fingerprint": content_hash([store.fingerprint, self.tokenizer.fingerprint]),
            "vocab_size": self.tokenizer.vocab_size,
            "longest": int(store.longest_rows[longest]), "longest_row": f"row {store.rows[longest]}",
        }  # fmt: skip

    def _tokenize(self, block: Block) -> tuple[pl.DataFrame, int, TokenizeResult | None]:
        """Bad rows of a block, the number of its rows, and the tokens of the others."""
        import polars as pl

        from pyprefopt.data.reading.blocks import parse_block
        from pyprefopt.data.tokenization.segments import tokenize_rows

        parsed = parse_block(block, self.format)
        if parsed.frame.is_empty():
            return parsed.rejects, block.rows_in, None
        limits: dict[str, Any] = {name: getattr(self, name) for name in LIMITS}
        result = tokenize_rows(
            parsed.frame.drop("scores", strict=False), self.tokenizer, boundary=self.boundary, offsets=False,
            refuse_identical=False, **limits,
        )  # fmt: skip
        bad = result.rejects.with_columns(file=pl.lit(block.file)).select(parsed.rejects.columns)
        return pl.concat([parsed.rejects, bad]).sort("row"), block.rows_in, result
