from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.modeling.families import try_family

_PAGE = Path(__file__).parents[2] / "docs" / "families.md"
_ROW = re.compile(r"^\| `([^`]+)` \| (packed|unpacked|refused) \|", re.MULTILINE)
WAYS = dict(_ROW.findall(_PAGE.read_text(encoding="utf-8")))
# Sinks, chunks, windows, linear attention, states, convolutions, layers before the head, biases, no causality.
FEW = (
    "bert", "bloom", "falcon", "gpt_neo", "gpt_oss", "granitemoehybrid", "jamba", "llama4_text", "mamba",
    "modernbert-decoder", "mpt", "nemotron_h", "qwen3_next", "recurrent_gemma", "stablelm",
)  # fmt: skip


def check(name: str, directory: Path) -> None:
    family = try_family(name, directory)
    assert family.way == WAYS[name], family
    assert family.way == "refused" or family.difference < 1e-3, family


@pytest.mark.parametrize("name", FEW)
def test_a_family_is_read_as_the_page_says(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(WAYS) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FEW)))
def test_every_family_is_read_as_the_page_says(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
