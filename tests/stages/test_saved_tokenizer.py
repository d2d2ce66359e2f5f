"""What is saved is loaded as its users will: AutoTokenizer gives the run's ids, apply_chat_template its texts."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import polars as pl
import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import pyprefopt
from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.tokenizer import CLASS_FILE, Expected, write_tokenizer
from pyprefopt.settings.resolve import configure
from tests.data.frames import SHARED, byte_tokenizer, needs_shared
from tests.pipeline.runs import MODEL

QWEN2 = {**MODEL, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 50304}
KINDS = ("qwen2", "qwen3_5", "llama", "gemma", "gpt2", "phi3", "mistral")


def dpo(folder: Path, **settings: object) -> pyprefopt.RunConfig:
    own = {"method": "dpo", "model": str(folder / "config.json"), "data": str(folder / "train.parquet")}
    own |= {"output_dir": str(folder / "run"), "eval_ratio": 0.0, "max_steps": 1, "learning_rate": 1e-3, "threads": 1}
    own |= {"global_batch_size": 2, "max_prompt_tokens": 64, "max_tokens": 128, "max_tokens_per_batch": 512}
    return configure(**own, **settings)


def texts(rows: int = 24) -> list[str]:
    with gzip.open(SHARED / "hh-rlhf-harmless.jsonl.gz", "rt") as file:
        found = [json.loads(line)["chosen"] for line in itertools.islice(file, rows)]
    with gzip.open(SHARED / "sharegpt-dpo-zh.json.gz", "rt") as file:
        chats = json.load(file)[:rows]
    return found + [turn["value"] for chat in chats for turn in chat["conversations"]]


@needs_shared
def test_every_kind_of_model_keeps_the_tokenizer(tmp_path: Path) -> None:
    file = SHARED / "tokenizers" / "gpt-neox-20b.json"
    tokenizer = load_tokenizer(file, eos_token="<|endoftext|>", chat_template="plain")
    tokenizer.save(tmp_path / "own")
    sample = texts()
    expected = Expected(dict(zip(sample, tokenizer.encode(sample).to_list(), strict=True)))
    files = sorted((tmp_path / "own").iterdir())
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        assert write_tokenizer(folder, files, expected) is None, kind
        for trust in (False, True) if (folder / CLASS_FILE).exists() else (False,):
            loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
            assert {text: loaded(text, add_special_tokens=False)["input_ids"] for text in sample} == expected.ids, kind
            loaded.save_pretrained(tmp_path / f"{kind}_{trust}")
            again = AutoTokenizer.from_pretrained(tmp_path / f"{kind}_{trust}")
            assert {text: again(text, add_special_tokens=False)["input_ids"] for text in sample} == expected.ids, kind
    PreTrainedTokenizerFast.from_pretrained(tmp_path / "own").save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())


@needs_shared
def test_a_policy_of_qwen2_keeps_the_tokenizer_of_gpt_neox(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2))
    pairs = [{"prompt": text[:60], "chosen": f"{text[60:90]} 1234", "rejected": text[90:120] + "!"} for text in texts()]
    pairs = [pair for pair in pairs if all(text.strip() for text in pair.values())][:64]
    pl.DataFrame(pairs[:32]).write_parquet(tmp_path / "train.parquet")
    file = str(SHARED / "tokenizers" / "gpt-neox-20b.json")
    named = {"tokenizer": file, "eos_token": "<|endoftext|>", "chat_template": "chatml"}
    result = pyprefopt.train(dpo(tmp_path, **named, on_error="skip"))
    ours = load_tokenizer(file, eos_token="<|endoftext|>", chat_template="chatml")
    theirs = AutoTokenizer.from_pretrained(result.policy)
    for pair in pairs:
        text = pair["prompt"] + pair["chosen"]
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode([text]).to_list()[0]
        chat = [{"role": "user", "content": pair["prompt"]}]
        assert theirs.apply_chat_template(chat, tokenize=False) == ours.render(chat)


def test_what_cannot_be_written_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    pairs = pl.DataFrame({"prompt": ["a", "b"], "chosen": ["ab", "b"], "rejected": ["b", "ab"]})
    pairs.write_parquet(tmp_path / "train.parquet")
    named = {"tokenizer": str(byte_tokenizer(tmp_path)), "eos_token": "</s>", "chat_template": "plain"}
    original = AutoTokenizer.from_pretrained

    def other(path: Path, **options: object) -> object:
        loaded = original(path, **options)
        loaded.backend_tokenizer.normalizer = normalizers.Lowercase()
        return loaded

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", other)
    with pytest.raises(ConfigError, match=r"there AutoTokenizer takes .*, which gives .* the ids .* instead of"):
        pyprefopt.train(dpo(tmp_path, **named))
    assert not (tmp_path / "run" / "policy").exists()
