"""A prepared folder whose shards lie, with a manifest that agrees with them."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pyprefopt.data.store.shards import to_ipc
from tests.data.mutated.mutate import mutate


def lie(folder: Path, seed: int) -> None:
    """Change one shard, its size and its hash."""
    chance = random.Random(seed)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    shard = chance.choice(manifest["shards"])
    path = folder / shard["file"]
    if chance.random() < 0.5:
        content = mutate(path.read_bytes(), seed)
    else:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        content = to_ipc(chance.choice(LIES)(table, chance))
    path.write_bytes(content)
    shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _put(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _unknown_ids(table: pa.Table, chance: random.Random) -> pa.Table:
    ids = [[2**32 - 1 if chance.random() < 0.1 else i for i in line] for line in table["ids"].to_pylist()]
    return _put(table, "ids", pa.array(ids, table["ids"].type))


def _null_elements(table: pa.Table, chance: random.Random) -> pa.Table:
    name = chance.choice(("ids", "mask"))
    lists = [[None, *line[1:]] if line else line for line in table[name].to_pylist()]
    return _put(table, name, pa.array(lists, table[name].type))


def _null_lines(table: pa.Table, chance: random.Random) -> pa.Table:
    name = chance.choice(("row", "segment", "kind", "ids", "mask", "starts"))
    values = [None if chance.random() < 0.3 else value for value in table[name].to_pylist()]
    return _put(table, name, pa.array(values, table[name].type))


def _other_type(table: pa.Table, chance: random.Random) -> pa.Table:
    name, kind = chance.choice(table.column_names), chance.choice((pa.int8(), pa.float64()))
    return _put(table, name, pa.array([1] * table.num_rows, kind))


def _fewer_columns(table: pa.Table, chance: random.Random) -> pa.Table:
    return table.drop_columns([chance.choice(table.column_names)])


def _more_lines(table: pa.Table, _: random.Random) -> pa.Table:
    return pa.concat_tables([table, table])


def _shorter_lists(table: pa.Table, chance: random.Random) -> pa.Table:
    name = chance.choice(("mask", "starts", "ends", "turns"))
    return _put(table, name, pa.array([line[1:] for line in table[name].to_pylist()], table[name].type))


def _shuffled(table: pa.Table, chance: random.Random) -> pa.Table:
    return table.take(pa.array(chance.sample(range(table.num_rows), table.num_rows)))


def _wild_offsets(table: pa.Table, chance: random.Random) -> pa.Table:
    lists = table["ids"].combine_chunks()
    offsets = np.array(lists.offsets, np.int64)
    offsets[chance.randrange(1, len(offsets) - 1)] = chance.choice((-1, 2**40, 2**62, 0))
    buffers = [None, pa.py_buffer(offsets.tobytes())]
    return _put(table, "ids", pa.Array.from_buffers(lists.type, len(lists), buffers, children=[lists.values]))


LIES = (
    _unknown_ids, _null_elements, _null_lines, _other_type, _fewer_columns, _more_lines, _shorter_lists, _shuffled,
    _wild_offsets,
)  # fmt: skip
