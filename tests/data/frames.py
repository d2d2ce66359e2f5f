"""Small preference frames and tokenizers for the data tests; real ones where they are at hand."""

from __future__ import annotations

import importlib.util
import json
import os
from functools import cache
from pathlib import Path

import polars as pl
import pytest

SHARED = Path(os.environ.get("PYPREFOPT_SHARED", Path(__file__).parents[2] / ".." / "shared")) / "data"
REAL_TOKENIZERS = ("gpt-neox-20b", "phi-2", "falcon")
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String, "extra": pl.String}))

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data is not at {SHARED}")


def chat(*turns: tuple[str, str] | tuple[str, str, str]) -> list[dict[str, str | None]]:
    return [{"role": turn[0], "content": turn[1], "extra": turn[2] if len(turn) > 2 else None} for turn in turns]


def preferences(*rows: tuple[str, str, str], **columns) -> pl.DataFrame:
    """One row a (prompt, chosen, rejected) of single turns."""
    frame = {
        "row": pl.Series(range(len(rows)), dtype=pl.UInt64),
        "prompt": pl.Series([chat(("user", row[0])) for row in rows], dtype=MESSAGES),
        "chosen": pl.Series([chat(("assistant", row[1])) for row in rows], dtype=MESSAGES),
        "rejected": pl.Series([chat(("assistant", row[2])) for row in rows], dtype=MESSAGES),
        "chosen_complete": pl.Series([True] * len(rows), dtype=pl.Boolean),
        "rejected_complete": pl.Series([True] * len(rows), dtype=pl.Boolean),
    }
    return pl.DataFrame(frame | columns)


@cache
def alpaca(rows: int = 60) -> pl.DataFrame:
    """Real pairs: their chats hold the user's turn, which is the prompt."""
    frame = pl.read_parquet(SHARED / "alpaca-pairs-test.parquet", n_rows=rows)
    message = pl.struct(
        pl.element().struct.field("role"), pl.element().struct.field("content"), pl.lit(None, pl.String).alias("extra")
    )
    chosen, rejected = (pl.col(name).list.eval(message) for name in ("chosen", "rejected"))
    return frame.with_columns(chosen, rejected).select(
        pl.row_index("row").cast(pl.UInt64),
        pl.col("chosen").list.head(1).alias("prompt"),
        pl.col("chosen").list.tail(1),
        pl.col("rejected").list.tail(1),
        chosen_complete=pl.lit(value=True),
        rejected_complete=pl.lit(value=True),
        score_chosen=pl.col("score_chosen").cast(pl.Float32),
        score_rejected=pl.col("score_rejected").cast(pl.Float32),
    )


def byte_tokenizer(directory: Path) -> Path:
    """A byte-level BPE without merges but a few: multi-byte characters are spread over several tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("a", "b"), ("\u010a", "\u010a")]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return _save(tokenizer, directory / "bytes.json")


def word_tokenizer(directory: Path) -> Path:
    """Words and spaces together, not byte-level: a token can lie across the boundary, and cannot be taken apart."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = ["</s>", "[UNK]", "User", "Assistant", ":", "\n\n", " yes", " no", " why", ": yes", "yes"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(": yes| ?\\w+|\n\n|."), "isolated")
    tokenizer.add_special_tokens(["</s>"])
    return _save(tokenizer, directory / "words.json")


def _save(tokenizer, path: Path) -> Path:
    path.write_text(json.dumps(json.loads(tokenizer.to_str())))
    return path


def trl_templates() -> list[Path]:
    """The chat templates that the installed TRL ships; none without it."""
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else Path("absent")
    return sorted(folder.glob("*.jinja"))
