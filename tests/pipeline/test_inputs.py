"""Runs on real preference data, in every format, and on every tested architecture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import pyprefopt
from tests.modeling.models import ARCHITECTURES
from tests.pipeline.runs import FAST, MODEL, losses, small, write_inputs

SHARED = Path(os.environ.get("PYPREFOPT_SHARED", Path(__file__).parents[3] / "shared")) / "data"
NEOX = SHARED / "tokenizers" / "gpt-neox-20b.json"

# file -> (rows, rows that cannot be used with prompts of at most 1,024 tokens)
REAL = {
    "alpaca-pairs-test.parquet": (1540, 0),
    "hh-rlhf-harmless.jsonl.gz": (1500, 5),
    "sharegpt-dpo-en.json.gz": (300, 41),
}


@pytest.mark.skipif(not NEOX.exists(), reason=f"real preference data is not at {SHARED}; set PYPREFOPT_SHARED")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_and_trained_on(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"vocab_size": 50432, "max_position_embeddings": 2048}))
    config = pyprefopt.configure(
        method="simpo", data=str(SHARED / name), model=str(tmp_path / "config.json"), tokenizer=str(NEOX),
        eos_token="<|endoftext|>", chat_template="plain", on_error="skip", output_dir=str(tmp_path / "run"),
        max_steps=1, threads=1, **FAST | {"global_batch_size": 2},
    )  # fmt: skip
    facts = pyprefopt.train(config).summary["stages"]["data"]
    rows, bad = REAL[name]
    assert (facts["rows_in"], facts["rows_used"], facts["rows_rejected"]) == (rows, rows - bad, bad)
    rejected = tmp_path / "run" / "rejected.jsonl"
    assert (len(rejected.read_text().splitlines()) if bad else not rejected.exists()) == (bad or True)


def test_special_tokens_of_the_policy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bare configuration takes the tokenizer's; of a checkpoint that ends with another token one is told."""
    write_inputs(tmp_path)
    wrong = json.dumps(MODEL | {"eos_token_id": 7, "bos_token_id": 8})
    (tmp_path / "config.json").write_text(wrong)
    policy = pyprefopt.train(
        small(tmp_path, tmp_path / "run", method="simpo", base={}, oracle={}, policy_init=None, max_steps=1)
    ).policy
    named = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    end = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json")).token_to_id(named["eos_token"])
    for name in ("config.json", "generation_config.json"):
        assert json.loads((policy / name).read_text())["eos_token_id"] == end
    assert "ends texts with token" not in caplog.text
    for name in ("config.json", "generation_config.json"):
        (policy / name).write_text(json.dumps(json.loads((policy / name).read_text()) | {"eos_token_id": 7}))
    pyprefopt.train(
        small(
            tmp_path,
            tmp_path / "other",
            method="simpo",
            base={},
            oracle={},
            policy_init=None,
            max_steps=1,
            model=str(policy),
        )
    )
    assert f"ends texts with token 7 (eos_token_id), the tokenizer with {end}" in caplog.text


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gpt_neox_sequential"}))
def test_every_architecture_trains(architecture: str, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURES[architecture] | {"vocab_size": 512}))
    result = pyprefopt.train(
        small(tmp_path, tmp_path / "run", method="dpo", base={}, oracle={}, policy_init=None, loss={"beta": 0.5},
              num_train_epochs=5.0)
    )  # fmt: skip
    policy = result.summary["stages"]["policy"]
    assert policy["eval_before"]["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    values = [loss for _, _, loss in losses(tmp_path / "run")]
    assert len(values) == 20
    assert sum(values[-4:]) < sum(values[:4])
