"""Are the token ids, masks and splits of two sides equal?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

SPACE = 209  # GPT-NeoX's token of a single space: what a template puts before an answer, where it stays alone


def tables(folder: Path, reference: str, side: str, rows: int) -> str:
    """What was found equal. SystemExit where something differs that is not explained."""
    theirs, ours = (pa.ipc.open_file(str(folder / f"{name}.arrow")).read_all() for name in (reference, side))
    lone = 0
    for name in theirs.column_names:
        one, two = (table[name].combine_chunks() for table in (theirs, ours))
        if len(one) != rows or not one.value_lengths().equals(two.value_lengths()):
            raise SystemExit(f"{side}: {name} has other lists than {reference} (of {rows} rows)")
        differ = np.asarray(one.flatten()) != np.asarray(two.flatten())
        if name.endswith("_mask") and name != "prompt_mask":
            ids = np.asarray(theirs[name.replace("_mask", "_ids")].combine_chunks().flatten())
            first = np.zeros(len(differ), np.bool_)
            first[np.asarray(one.offsets)[:-1] - one.offsets[0].as_py()] = True
            explained = differ & first & (ids == SPACE)
            lone += int(explained.sum())
            differ &= ~explained
        if differ.any():
            raise SystemExit(f"{side}: {int(differ.sum())} entries of {name} differ from {reference}")
    if not lone:
        return "ids, masks and splits equal"
    return f"ids, masks and splits equal, but for {lone} answers whose first token is the template's space alone"
