"""Tiny models with tokenizers of their own: WordPiece, which drops spaces, and byte-level BPE with few merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pyprefopt.data.embedded import ANIMALS, SOUNDS, filler_words
from tests.pipeline.runs import MODEL

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<unk>", "<end>", "<|user|>", "<|assistant|>"]


def words() -> str:
    return " ".join((*ANIMALS, *SOUNDS, *filler_words()))


def wordpiece() -> Any:
    """Letters, some beginnings and ends of words. Not trained: the library's trainer makes another one every time."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    found = words().lower().split()
    letters, begins, ends = sorted(set("".join(found))), {word[:3] for word in found}, {word[-2:] for word in found}
    pieces = [
        *SPECIAL,
        *letters,
        *(f"##{x}" for x in letters),
        *sorted(begins)[::8],
        *(f"##{x}" for x in sorted(ends)[::8]),
    ]
    vocabulary = {piece: k for k, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_bpe() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([words()], trainer)
    return tokenizer


KINDS = {"wordpiece": wordpiece, "byte_bpe": byte_bpe}


def write_other(directory: Path, kind: str, *, seed: int = 0, template: str | None = CHAT, **settings: Any) -> Path:
    """A model of random weights with its tokenizer, as transformers writes one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory.mkdir(parents=True)
    tokenizer = KINDS[kind]()
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    config = {**MODEL, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 1024, **settings}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    with torch.no_grad():  # far from uniform, so that tokens differ
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(directory)
    return directory
