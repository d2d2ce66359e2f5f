from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pyprefopt.errors import ConfigError
from pyprefopt.modeling import LogpsModel, RewardModel, load_model
from pyprefopt.modeling.attention.packed import WAY_SETTING
from pyprefopt.modeling.checkpoints import load
from pyprefopt.modeling.checkpoints.load import sketch_model
from pyprefopt.modeling.packed_model import is_unpacked
from pyprefopt.modeling.proof import prove
from pyprefopt.modeling.tiny_copy import tiny_config
from tests.modeling.made_up import ALONE, BROKEN, EXACT, made_up
from tests.modeling.models import (
    _BASE,
    ARCHITECTURES,
    LAYOUTS,
    eager_twin,
    make_groups,
    plain_logps,
    shake,
    write_config,
)
from tests.reference.packing import pack_groups

_GROUPED = {**_BASE, "num_key_value_heads": 2}
_OLD = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4}
_STATES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
# Architectures that transformers may change its mind about: they are exact, packed or not.
OPEN: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {**_OLD, "rotary_dim": 4, "n_positions": 128},
    "deepseek_v3": {
        **_GROUPED, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 2,
        "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    },
    "falcon": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "gpt_bigcode": {**_OLD, "n_positions": 128},
    "gpt_oss": {**_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8},
    "gptj": {**_OLD, "rotary_dim": 4, "n_positions": 128},
    "jamba": {**_GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"]},
    "mamba": {**_STATES, "state_size": 4},
    "mpt": {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "qwen3_moe": {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "recurrent_gemma": {**_GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "head_dim": 8},
    "rwkv": {**_STATES, "context_length": 128},
    "stablelm": _GROUPED,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYPREFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Builds models, and counts them."""

    def __init__(self) -> None:
        self.built: list[PreTrainedConfig] = []

    def __call__(self, config: PreTrainedConfig) -> PreTrainedModel:
        self.built.append(config)
        return AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation)


def configuration(**settings: Any) -> PreTrainedConfig:
    """As `load_model` prepares it."""
    random = ("attention_dropout", "hidden_dropout", "resid_pdrop")
    return AutoConfig.for_model(**settings | {name: 0.0 for name in random if name in settings} | {WAY_SETTING: "auto"})


def compare(model: LogpsModel) -> None:
    """Both layouts against transformers' own model on each document alone."""
    groups = make_groups()
    expected = plain_logps(eager_twin(model.causal), groups)
    for layout in LAYOUTS:
        assert (model(pack_groups(groups, layout).to()) - expected).abs().max() < 2e-5


@pytest.mark.parametrize("habit", EXACT)
def test_what_computes_documents_alone_is_taken(habit: str, tmp_path: Path) -> None:
    model = load_model(write_config(tmp_path, made_up(habit)))
    shake(model)
    compare(LogpsModel(model))


@pytest.mark.parametrize("habit", BROKEN)
def test_what_breaks_packing_is_refused_before_its_weights_are_read(habit: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, made_up(habit))
    for head in ("language", "reward"):
        with pytest.raises(ConfigError, match=rf"{BROKEN[habit]}.*; (set attention auto or unpacked|use a model)"):
            load_model(config, attention="loop", head=head)


@pytest.mark.parametrize("habit", ALONE)
def test_what_cannot_be_packed_runs_unpacked_and_that_is_said_once(
    habit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config(tmp_path, made_up(habit))
    load._warn_of_unpacked.cache_clear()
    with caplog.at_level(logging.WARNING):
        model = load_model(config)
        for again in (load_model, sketch_model):
            again(config)
    said = [record.getMessage() for record in caplog.records if "attention: unpacked" in record.getMessage()]
    assert len(said) == 1
    assert re.search(rf"of model_type 'made_up' goes through transformers' own forward.*{BROKEN[habit]}", said[0])
    assert "set attention" not in said[0]
    shake(model)
    compare(LogpsModel(model))
    assert is_unpacked(load_model(config, attention="unpacked"))


@pytest.mark.parametrize("habit", ["sees what follows", "follows the length of a batch"])
def test_what_is_not_causal_is_refused_in_every_way(habit: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, made_up(habit))
    for attention in ("auto", "unpacked"):
        with pytest.raises(ConfigError, match=r"MadeUpFor\w+ is no causal language model: .*; use a model of another"):
            load_model(config, attention=attention)


@pytest.mark.parametrize("name", OPEN)
def test_an_architecture_is_exact_packed_or_not(name: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, OPEN[name] | {"model_type": name})
    model = load_model(config)
    shake(model)
    compare(LogpsModel(model))


@pytest.mark.parametrize("kind", ["conv", "hybrid"])
def test_layers_of_a_kind_that_does_not_show_are_not_packed(kind: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, made_up("", layer_types=["full_attention", kind]))
    with pytest.raises(
        ConfigError, match=rf"model_type 'made_up' has layers of type \['{kind}'\].*; set attention auto"
    ):
        load_model(config, attention="loop")
    assert is_unpacked(load_model(config))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_proof_is_made_once(name: str, cache: Path) -> None:
    build, config = Builder(), configuration(**ARCHITECTURES[name])
    state = torch.get_rng_state()
    prove(config, build)
    assert torch.equal(torch.get_rng_state(), state)
    assert [c._attn_implementation for c in build.built] == ["eager", "pyprefopt_packed"]
    assert len(list(cache.glob("proofs/*.json"))) == 1
    for again in (config, configuration(**ARCHITECTURES[name])):
        prove(again, build)
    assert len(build.built) == 2


def test_sizes_do_not_count_but_what_is_computed_does() -> None:
    build, llama = Builder(), ARCHITECTURES["llama"]
    prove(configuration(**llama), build)
    large = {"hidden_size": 320, "num_attention_heads": 40, "num_hidden_layers": 40, "intermediate_size": 99_999}
    prove(configuration(**llama | large | {"vocab_size": 200_000, "eos_token_id": 7}), build)
    assert len(build.built) == 2
    for change in ({"hidden_act": "gelu"}, {"rms_norm_eps": 0.1}, {"num_key_value_heads": 4}, {"head_dim": 16}):
        before = len(build.built)
        prove(configuration(**llama | change), build)
        assert len(build.built) == before + 2, change


def test_a_tiny_copy_has_every_kind_of_layer_and_short_windows() -> None:
    kinds = ["sliding_attention"] * 20 + ["full_attention"] * 4
    settings = {"sliding_window": 4096, "num_hidden_layers": 24, "layer_types": kinds}
    tiny = tiny_config(configuration(**ARCHITECTURES["gemma2"] | settings))
    assert tiny.layer_types == ["sliding_attention", "full_attention"]
    assert (tiny.num_hidden_layers, tiny.sliding_window, tiny.num_attention_heads) == (2, 4, 2)
    assert (tiny.head_dim, tiny.final_logit_softcapping) == (8, 3.0)


def test_code_that_may_change_is_proved_every_time(cache: Path) -> None:
    build = Builder()
    for _ in range(2):
        prove(configuration(**made_up("")), build)
    assert len(build.built) == 4
    assert not cache.exists()


def test_proofs_are_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYPREFOPT_CACHE")
    for name, value, folder in (("HOME", "a", "a/.cache"), ("XDG_CACHE_HOME", "b", "b")):
        monkeypatch.setenv(name, str(tmp_path / value))
        prove(configuration(**ARCHITECTURES["llama"]), Builder())
        assert len(list((tmp_path / folder / "pyprefopt/proofs").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.write_text("")
    build = Builder()
    for _ in range(2):
        prove(configuration(**ARCHITECTURES["llama"]), build)
    assert len(build.built) == 4


def test_where_no_tiny_copy_runs_the_weights_decide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exact, broken = (
        write_config(tmp_path / habit, made_up(habit, needs_room=True)) for habit in ("has a gate", "keeps a state")
    )
    with caplog.at_level(logging.INFO):
        LogpsModel(load_model(exact, attention="loop"))
    assert "model_type 'made_up': no tiny copy of it runs (ValueError: the vocabulary is too small)" in caplog.text
    RewardModel(load_model(exact, head="reward", attention="loop"))
    for head, kind in (("language", LogpsModel), ("reward", RewardModel)):
        model = kind(load_model(broken, head=head))
        assert is_unpacked(model.causal)
    words = r"cannot be packed.*differ by \d+% in the separate layout and .*, in the model itself"
    with pytest.raises(ConfigError, match=rf"MadeUpForCausalLM {words}"):
        LogpsModel(load_model(broken, attention="loop"))
    with pytest.raises(ConfigError, match=rf"MadeUpForSequenceClassification {words}"):
        RewardModel(load_model(broken, head="reward", attention="loop"))
