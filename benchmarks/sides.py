"""One side of a comparison in its own process: `python -m benchmarks.sides SIDE FILE [--save OUT] [--memory]`.

Every side does what lies between a preference file and token ids with masks and the split of prompt and response.
Imports, the tokenizer's loading and a warm-up on two rows come before the clock starts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.memory import Peak
from benchmarks.sets import TOKENIZER

EOS = "<|endoftext|>"
SEGMENTS = ("prompt", "chosen", "rejected")
Work = Callable[[Path], Callable[[], pa.Table]]  # does the work, gives what makes the table that is compared


def table_of(ids: list[Any], masks: list[Any]) -> pa.Table:
    """large_list<uint32> of ids and large_list<bool> of masks, for prompt, chosen, rejected."""
    columns = {f"{name}_ids": column for name, column in zip(SEGMENTS, ids, strict=True)}
    columns |= {f"{name}_mask": column for name, column in zip(SEGMENTS, masks, strict=True)}
    return pa.table(columns)


def trl() -> Work:
    """TRL's own `DPOTrainer._prepare_dataset` with two processes, from messages that are parsed already."""
    from types import SimpleNamespace

    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    from pyprefopt.data.tokenization.render import read_chat_template

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token=EOS, pad_token=EOS)
    tokenizer.chat_template = read_chat_template("plain")
    folder = tempfile.mkdtemp()
    arguments = DPOConfig(
        output_dir=folder, dataset_num_proc=2, max_length=None, use_cpu=True, bf16=False, report_to=[]
    )
    holder = SimpleNamespace(_tokenizer=tokenizer)

    def work(path: Path) -> Callable[[], pa.Table]:
        made = DPOTrainer._prepare_dataset(
            holder, datasets.load_from_disk(str(messages(path))), tokenizer, arguments, "x"
        )

        def table() -> pa.Table:
            columns = made.with_format("arrow")[:]
            ids = [columns[f"{name}_ids"].combine_chunks().cast(pa.large_list(pa.uint32())) for name in SEGMENTS]
            return table_of(
                ids, [constant(column, name != "prompt") for name, column in zip(SEGMENTS, ids, strict=True)]
            )

        return table

    return work


def constant(lists: pa.LargeListArray, value: bool) -> pa.LargeListArray:
    """Lists of the same lengths that hold `value`; TRL's collator makes its completion mask so."""
    return pa.LargeListArray.from_arrays(lists.offsets, pa.array(np.full(len(lists.values), value)))


def messages(path: Path) -> Path:
    """The set as a `datasets` folder of messages, made beside it once: what TRL's users bring."""
    folder = path.with_suffix(".messages")
    if not folder.exists():
        import datasets

        from pyprefopt.data import read_preferences

        frame = read_preferences(path).select(SEGMENTS)
        rows = datasets.Dataset.from_list(
            [
                {k: [{"role": m["role"], "content": m["content"]} for m in row[k]] for k in SEGMENTS}
                for row in frame.to_dicts()
            ]
        )
        rows.save_to_disk(folder)
    return folder


def expressions(path: Path) -> Any:
    """Texts of prompt, chosen and rejected, in one Arrow column: the template filled in by Polars."""
    import polars as pl

    def hh() -> pl.DataFrame:
        parts = pl.col("chosen").str.split("\n\nAssistant:")
        head = parts.list.slice(0, parts.list.len() - 1).list.join("\n\nAssistant:")
        turns = head.str.strip_prefix("\n\nHuman:").str.replace_all("\n\nHuman:", EOS + "\n\nUser:", literal=True)
        return pl.read_ndjson(path).select(
            prompt=pl.format("User:{}\n\nAssistant:", turns),
            chosen=parts.list.last() + EOS,
            rejected=pl.col("rejected").str.split("\n\nAssistant:").list.last() + EOS,
        )

    def chats() -> pl.DataFrame:
        role, content = (pl.element().struct.field(name) for name in ("role", "content"))
        name = role.replace_strict({"user": "User: ", "assistant": "Assistant: ", "system": "System: "})
        turn = pl.concat_str(name, content, pl.when(role == "assistant").then(pl.lit(EOS)).otherwise(pl.lit("")))
        answer = [(" " + pl.col(n).list.last().struct.field("content") + EOS).alias(n) for n in SEGMENTS[1:]]
        prompt = pl.col("prompt").list.eval(turn).list.join("\n\n") + "\n\nAssistant:"
        return pl.read_ndjson(path).select(prompt.alias("prompt"), *answer)

    frame = hh() if "hh" in path.name else chats()
    return pl.concat([frame[name] for name in SEGMENTS]).to_arrow()


def fstrings(path: Path) -> Any:
    """The same column: Polars reads, Python's f-strings fill the template in, row by row."""
    import polars as pl

    names = {"user": "User: ", "assistant": "Assistant: ", "system": "System: "}
    marker = "\n\nAssistant:"
    prompts, chosen, rejected = [], [], []
    for row in pl.read_ndjson(path).iter_rows(named=True):
        if "hh" in path.name:
            head, _, answer = row["chosen"].rpartition(marker)
            turns = head.removeprefix("\n\nHuman:").replace("\n\nHuman:", f"{EOS}\n\nUser:")
            prompts.append(f"User:{turns}{marker}")
            chosen.append(f"{answer}{EOS}")
            rejected.append(f"{row['rejected'].rpartition(marker)[2]}{EOS}")
            continue
        turns = "\n\n".join(
            f"{names[m['role']]}{m['content']}{EOS if m['role'] == 'assistant' else ''}" for m in row["prompt"]
        )
        prompts.append(f"{turns}{marker}")
        chosen.append(f" {row['chosen'][-1]['content']}{EOS}")
        rejected.append(f" {row['rejected'][-1]['content']}{EOS}")
    return pa.array(prompts + chosen + rejected, pa.large_string())


def glued(texts: Callable[[Path], Any]) -> Work:
    """By hand: `texts` reads and fills the template in, gigatoken tokenizes, numba and NumPy make masks and splits."""
    import awkward as ak
    import gigatoken
    import numba

    tokenizer = gigatoken.Tokenizer(TOKENIZER)

    @numba.njit(cache=True)  # type: ignore[untyped-decorator]
    def response_mask(offsets: np.ndarray, prompts: int) -> np.ndarray:
        mask = np.ones(offsets[-1], np.bool_)
        mask[: offsets[prompts]] = False
        return mask

    def work(path: Path) -> Callable[[], pa.Table]:
        column = texts(path)
        layout = tokenizer.encode_batch(ak.from_arrow(column)).layout
        ids, offsets = np.asarray(layout.content.data), np.asarray(layout.offsets)
        rows = len(column) // 3
        mask = response_mask(offsets, rows)
        starts = [offsets[i * rows : (i + 1) * rows + 1] for i in range(3)]
        return lambda: table_of(
            *[
                [pa.LargeListArray.from_arrays(pa.array(s, pa.int64()), pa.array(v)) for s in starts]
                for v in (ids, mask)
            ]
        )

    return work


def load() -> Any:
    from pyprefopt import data

    return data.load_tokenizer(TOKENIZER, eos_token=EOS, chat_template="plain")


def segments_table(table: pa.Table) -> pa.Table:
    """The segments as the three columns of the others."""
    lines = [table.slice(0).filter(pa.array(np.asarray(table["segment"].to_numpy()) == i)) for i in range(3)]
    ids, masks = (
        [one[name].combine_chunks().cast(kind) for one in lines]
        for name, kind in (("ids", pa.large_list(pa.uint32())), ("mask", pa.large_list(pa.bool_())))
    )
    return table_of(ids, masks)


def memory() -> Work:
    """Ours in memory: `tokenize` of the file, ids, masks and splits."""
    from pyprefopt import data

    tokenizer = load()

    def work(path: Path) -> Callable[[], pa.Table]:
        segments = data.tokenize(path, tokenizer, offsets=False)
        return lambda: segments_table(segments.to_arrow())

    return work


def disk(*, offsets: bool = False) -> Work:
    """Ours on disk: `prepare`, a folder of shards with a manifest, hashed and synced."""
    from pyprefopt.data.preparation.job import prepare

    tokenizer = load()
    folder = Path(tempfile.mkdtemp())
    limits = {"max_prompt_tokens": None, "max_tokens": None}

    def work(path: Path) -> Callable[[], pa.Table]:
        store = prepare(path, tokenizer, folder / path.stem, offsets=offsets, **limits)
        return lambda: segments_table(store.table)

    return work


PEERS = {"trl": trl, "glued": partial(glued, fstrings), "expressions": partial(glued, expressions)}
SIDES = {**PEERS, "memory": memory, "disk": disk, "offsets": partial(disk, offsets=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--save", type=Path, help="write what was made, for the comparison")
    parser.add_argument("--memory", action="store_true", help="sample the memory of this process and its children")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    tempfile.tempdir = tempfile.mkdtemp()  # all temporary files of this side
    work = SIDES[given.side]()
    if given.side == "trl":
        messages(given.file)
    work(warm_up(given.file))
    with Peak(enabled=given.memory) as peak:
        start = time.perf_counter()
        table = work(given.file)
        seconds = time.perf_counter() - start
    if given.save:
        with pa.ipc.new_file(str(given.save), table().schema) as writer:
            writer.write_table(table())
    shutil.rmtree(tempfile.tempdir)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak.bytes, "before_bytes": peak.before}))


def warm_up(path: Path) -> Path:
    """The first two rows, under a name of the same kind."""
    small = Path(tempfile.mkdtemp()) / f"{path.stem.split('-')[0]}-warm.jsonl"
    with path.open(encoding="utf-8") as file:
        small.write_text(file.readline() + file.readline(), encoding="utf-8")
    return small


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
