"""Positions whose frequencies follow the longest document of a call: each document gets its own."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, load_model, save_policy
from pyprefopt.modeling.rotary import longest_alike
from pyprefopt.settings.resolve import configure
from tests.modeling.made_up import made_up
from tests.modeling.models import eager_twin, plain_logps, shake, write_config
from tests.pipeline.runs import losses, write_inputs
from tests.reference.packing import Group, Response, pack_groups

_BASE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
_CONTEXT = {"original_max_position_embeddings": 64, "max_position_embeddings": 256}
# Name -> a config, and the longest document whose positions are rotated as those of short ones.
FOLLOWING: dict[str, tuple[dict[str, Any], int]] = {
    "longrope": ({**_BASE, **_CONTEXT, "model_type": "phi3", "rope_scaling": _LONG}, 64),
    "longrope with two scales": (
        {
            **_BASE, **_CONTEXT, "model_type": "phimoe", "num_local_experts": 4,
            "rope_scaling": {**_LONG, "short_mscale": 1.1, "long_mscale": 1.3, "original_max_position_embeddings": 64},
        },
        64,
    ),
    "dynamic NTK": (
        {
            **_BASE, "model_type": "llama", "max_position_embeddings": 40,
            "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
        },
        40,
    ),
}  # fmt: skip


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed + count)
    return torch.randint(3, 300, (count,), generator=generator).tolist()


def documents(*lengths: tuple[int, int, int]) -> list[Group]:
    """Groups of a prompt with two responses."""
    return [
        Group(ids(prompt), [Response(ids(first, 1)), Response(ids(second, 2), kind="rejected")], row=row)
        for row, (prompt, first, second) in enumerate(lengths)
    ]


def opened(name: str, directory: Path, attention: str = "auto") -> LogpsModel:
    model = load_model(write_config(directory, FOLLOWING[name][0]), attention=attention)
    shake(model)
    return LogpsModel(model)


def expected(model: LogpsModel, groups: list[Group]) -> torch.Tensor:
    """Each document through a transformers model of its own, which remembers nothing."""
    alone = [Group(g.prompt, [r], row=g.row) for g in groups for r in g.responses]
    return torch.cat([plain_logps(eager_twin(model.causal), [group]) for group in alone])


@pytest.mark.parametrize("attention", ["auto", "unpacked"])
@pytest.mark.parametrize("name", FOLLOWING)
def test_each_document_of_a_pack_comes_out_as_alone(name: str, attention: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path, attention)
    assert longest_alike(model) == FOLLOWING[name][1]
    groups = documents((10, 12, 90), (5, 7, 9), (30, 60, 38), (1, 66, 5), (20, 45, 44), (20, 44, 20))
    wanted = expected(model, groups)
    for order in (groups, groups[::-1]):
        assert (model(pack_groups(order, "separate", last_token=True).to()) - expected(model, order)).abs().max() < 2e-5
    model.eval()
    with torch.no_grad():  # a reference scores so
        assert (model(pack_groups(groups, "separate", last_token=True).to()) - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("attention", ["auto", "unpacked"])
@pytest.mark.parametrize("name", FOLLOWING)
def test_calls_leave_nothing_behind(name: str, attention: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path, attention)
    sizes = ((10, 90, 60), (5, 35, 34))
    long, short = (pack_groups(documents(one), "separate", last_token=True).to() for one in sizes)
    before = model(short)
    model(long)
    assert torch.equal(model(short), before)
    assert (before - expected(model, documents(sizes[1]))).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["longrope", "longrope with two scales"])
def test_a_prompt_is_shared_by_responses_of_one_side(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    groups = documents((10, 60, 90), (5, 7, 9), (30, 60, 38), (2, 1, 3))
    assert (model(pack_groups(groups, "shared", last_token=True).to()) - expected(model, groups)).abs().max() < 2e-5
    mixed = pack_groups(documents((10, 12, 90)), "shared", last_token=True).to()
    with pytest.raises(
        ConfigError, match=r"layout must be separate for documents of more than 64 tokens, .* 22 and 100"
    ):
        model(mixed)


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    for scaling in (None, {"rope_type": "linear", "factor": 2.0}, yarn):
        settings = {**_BASE, "model_type": "llama", "max_position_embeddings": 256, "rope_scaling": scaling}
        model = load_model(write_config(tmp_path, settings))
        assert longest_alike(model) is None
        assert type(model.model.rotary_emb).__mro__[1].__name__ == "Module"


@pytest.mark.parametrize(
    "habit",
    [
        "follows the longest position", "follows the longest position far away", "follows the length of a batch",
        "remembers the longest position",
    ],
)  # fmt: skip
def test_what_follows_the_longest_document_elsewhere_is_not_packed(habit: str, tmp_path: Path) -> None:
    settings = made_up(habit, original_max_position_embeddings=64)
    with pytest.raises(ConfigError, match=r"MadeUpForCausalLM cannot be packed: .*set attention auto or unpacked"):
        load_model(write_config(tmp_path, settings), attention="loop")


def long_among_short(directory: Path) -> None:
    """Rows of about 20 tokens, and every eighth of 60 to 110, of which one response alone is long."""
    write_inputs(directory)
    lines = []
    for row, given in enumerate(pq.read_table(directory / "train.parquet").to_pylist()):
        texts = {name: str(given[name]).split() for name in ("prompt", "chosen", "rejected")}
        texts["chosen"] *= 1 + row % 3 if row % 8 == 0 else 1
        for side in ("chosen", "rejected"):
            texts[side] = texts[side][: 96 if side == "chosen" and row % 8 == 0 else 8]
        lines.append(json.dumps({name: " ".join(words) for name, words in texts.items()}))
    (directory / "rows.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_a_policy_that_does_not_move_stays_at_its_reference(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Documents on both sides of an original length of 40, scored in other batches than they are trained in."""
    from pyprefopt import train

    long_among_short(tmp_path)
    settings = {**FOLLOWING["longrope"][0], "original_max_position_embeddings": 40, "vocab_size": 512}
    model = load_model(write_config(tmp_path, settings))
    shake(model)
    save_policy(model, tmp_path / "model", (tmp_path / "tokenizer").iterdir())
    config = configure(
        method="dpo", model=str(tmp_path / "model"), data=str(tmp_path / "rows.jsonl"), layout=layout, threads=1,
        output_dir=str(tmp_path / "run"), learning_rate=1e-12, global_batch_size=8, max_tokens=128,
        max_prompt_tokens=32, max_tokens_per_batch=256,
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        train(config)
    told = "layout: separate, because Phi3ForCausalLM reads documents of more than 40 tokens"
    assert (told in caplog.text) == (layout == "shared")
    found = [loss for _, _, loss in losses(tmp_path / "run")]
    assert len(found) == 8
    assert all(abs(loss - math.log(2)) < 1e-5 for loss in found)
