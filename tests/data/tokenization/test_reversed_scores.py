"""Pairs whose chosen response has the lower score are taken, counted, and told once with the first of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.preparation.report import inspect
from pyprefopt.data.reading.frames import read_preferences
from pyprefopt.data.tokenization.segments import tokenize
from pyprefopt.data.tokenization.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).parents[3] / "rust/fuzz/tiny-tokenizer.json"
SCORES = [(2, 1), (1, 9), (None, 3), (3, 3), (0, 1)]
TOLD = (
    "2 rows have a chosen response whose score is below the rejected one's (first in row 1): chosen is learned all the "
    "same; see which of the two is meant"
)


@pytest.mark.parametrize("way", ["path", "frame", "prepare"])
@pytest.mark.parametrize("scores", [SCORES, [SCORES[0], SCORES[1]]])
def test_lower_scores_of_chosen_are_told_once(tmp_path, caplog, way, scores):
    rows = [
        {"prompt": f"Q{at}", "chosen": "a", "rejected": "b", "score_chosen": won, "score_rejected": lost}
        for at, (won, lost) in enumerate(scores)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template="plain")
    told = TOLD if len(scores) > 2 else TOLD.replace("2 rows have", "1 row has")
    if way == "prepare":
        prepare(path, tokenizer, tmp_path / "out")
        assert told in inspect(tmp_path / "out")
    else:
        tokenize(path if way == "path" else read_preferences(path), tokenizer)
    assert [message for message in caplog.messages if "score" in message] == [told]
