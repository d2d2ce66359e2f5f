"""Oracles of other tokenizers: their log-probs on the policy's tokens, end to end and stage by stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import pyprefopt
from pyprefopt import data
from pyprefopt.data.embedded import write_candidates, write_toy
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.settings.resolve import configure
from pyprefopt.stages.data import rows_hash
from pyprefopt.stages.models import Source
from pyprefopt.stages.transfer import Tokens
from tests.pipeline.other import CHAT, write_other
from tests.pipeline.runs import MODEL, SMALL, losses, small
from tests.reference.transfer import Token, transfer

GIVEN: dict[str, Any] = {"max_steps": 1, "base": {"max_steps": 1, "learning_rate": 1e-3, "global_batch_size": 16}}


@pytest.fixture(scope="module", params=["wordpiece", "byte_bpe"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other(tmp_path_factory.mktemp("other") / request.param, request.param)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other(tmp_path_factory.mktemp("other") / "bytes", "byte_bpe")


def moved(pipeline: Pipeline, model: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Lines of train by (row, segment) with `values`: the policy's with the moved ones, the model's; its tokens."""
    source = Source.given(str(model), pipeline.config)
    artifact = pipeline.logps_of("logps", source)
    made = pipeline.made
    return (
        lines(pipeline.data.directory / "train", artifact.directory / "train"),
        lines(made["logps: tokens"].directory / "train", made["logps: own"].directory / "train"),
        made["logps: tokens"].directory,
    )


def lines(segments: Path, values: Path) -> dict[tuple[int, int], dict[str, Any]]:
    store = SegmentStore.open(segments)
    table = store.table.append_column("values", ValueStore.open(values).check(store).values)
    return {(line["row"], line["segment"]): line for line in table.to_pylist()}


def places(line: dict[str, Any]) -> list[Token]:
    columns = zip(line["starts"], line["ends"], line["turns"], line["mask"], strict=True)
    return [Token(None if start is None else (start, end), turn, mask) for start, end, turn, mask in columns]


def pipeline(inputs: Path, output_dir: Path, **settings: Any) -> Pipeline:
    return Pipeline(small(inputs, output_dir, **GIVEN | settings))


def test_sepo_with_an_oracle_of_another_tokenizer(inputs: Path, tmp_path: Path) -> None:
    other = write_other(tmp_path / "pieces", "wordpiece")
    ready = {"oracle": {"path": str(other)}, "base": {"path": str(inputs / "config.json")}}
    result = pyprefopt.train(small(inputs, tmp_path / "run", **GIVEN | ready))
    stages = result.summary["stages"]
    assert {"oracle_logps: tokens", "oracle_logps: own", "oracle_logps", "scores", "selection", "policy"} <= set(stages)
    assert stages["selection"]["chosen"]["selected_share"] == pytest.approx(0.3, abs=0.02)
    assert all(math.isfinite(loss) for *_, loss in losses(tmp_path / "run"))
    again = pyprefopt.train(small(inputs, tmp_path / "run", **GIVEN | ready))
    assert all(stage["reused"] for stage in again.summary["stages"].values())


def test_values_are_moved_as_the_twin_moves_them(inputs: Path, other: Path, tmp_path: Path) -> None:
    ours, theirs, _ = moved(pipeline(inputs, tmp_path), other)
    assert ours.keys() == theirs.keys()
    for key, line in list(ours.items())[:60]:
        if key[1] == 0:
            assert line["values"] is None
            continue
        assert line["values"] == pytest.approx(
            transfer(theirs[key]["values"], places(theirs[key]), places(line)), abs=1e-4
        )
        assert math.fsum(line["values"]) == pytest.approx(math.fsum(theirs[key]["values"]), rel=1e-6)
        assert line["values"][-1] == theirs[key]["values"][-1] != 0  # the turn's end


def test_the_model_reads_its_own_template_and_tokens(inputs: Path, other: Path, tmp_path: Path) -> None:
    """Ids and log-probs are those of transformers: own chat template, own tokenizer, the whole text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, theirs, _ = moved(pipeline(inputs, tmp_path), other)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(other), AutoTokenizer.from_pretrained(other)
    frame = data.read_preferences(str(inputs / "train.parquet"))
    for row, segment, side in ((0, 1, "chosen"), (5, 2, "rejected")):
        prompt, response = (
            [{k: m[k] for k in ("role", "content")} for m in frame[name][row]] for name in ("prompt", side)
        )
        ids = tokenizer.apply_chat_template(prompt + response, tokenize=True, return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        assert theirs[row, 0]["ids"] + theirs[row, segment]["ids"] == ids[0].tolist()
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert theirs[row, segment]["values"] == pytest.approx(
            logps[-len(theirs[row, segment]["ids"]) :].tolist(), abs=1e-3
        )


def test_the_policys_tokenizer_moves_nothing(inputs: Path, tmp_path: Path) -> None:
    run = pipeline(inputs, tmp_path)
    run.logps_of("logps", run.start)
    assert set(run.made) == {"data", "logps"}


def test_oracle_and_base_of_one_other_tokenizer(
    inputs: Path, bytewise: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their difference on their own tokens is what is moved; of two tokenizers it is warned."""
    base = write_other(tmp_path / "base", "byte_bpe", seed=1)
    policy = {"policy_init": "model"}
    run = pipeline(inputs, tmp_path / "run", **policy, base={"path": str(base)}, oracle={"path": str(bytewise)})
    scores = lines(run.data.directory / "train", run.scores.directory / "train")
    assert "different tokenizers" not in caplog.text
    tokens = run.made["oracle_logps: tokens"].directory / "train"
    assert tokens == run.made["base_logps: tokens"].directory / "train"
    oracle, other = (lines(tokens, run.made[f"{name}_logps: own"].directory / "train") for name in ("oracle", "base"))
    for key in [key for key in scores if key[1]][:30]:
        apart = [o - b for o, b in zip(oracle[key]["values"], other[key]["values"], strict=True)]
        wanted = transfer(apart, places(oracle[key]), places(scores[key]))
        assert scores[key]["values"] == pytest.approx(wanted, abs=1e-4)
    ready = {"base": {"path": str(inputs / "config.json")}, "oracle": {"path": str(bytewise)}}
    mixed = pipeline(inputs, tmp_path / "mixed", **policy, **ready)
    _ = mixed.scores
    assert "oracle_logps and base_logps have different tokenizers" in caplog.text


def test_revision_prompts_need_the_policys_tokens(inputs: Path, bytewise: Path, tmp_path: Path) -> None:
    rewards = {"name": "contrastive", "model": "oracle"}
    run = pipeline(inputs, tmp_path, rewards=rewards, oracle={"path": str(bytewise)})
    with pytest.raises(ConfigError, match=r"oracle\.path must be a model with the policy's vocabulary"):
        _ = run.data


def test_rewards_of_models_of_another_tokenizer(inputs: Path, bytewise: Path, tmp_path: Path) -> None:
    weak = write_other(tmp_path / "weak", "byte_bpe", seed=1)
    rewards = {"name": "strong_weak", "strong": str(bytewise), "weak": str(weak)}
    run = pipeline(inputs, tmp_path / "run", rewards=rewards, oracle={})
    assert run.rewards is not None
    values = lines(run.data.directory / "train", run.rewards.directory / "train")
    strong, weak_lines = (moved(run, model)[0] for model in (bytewise, weak))
    for key in [key for key in values if key[1]]:
        apart = [s - w for s, w in zip(strong[key]["values"], weak_lines[key]["values"], strict=True)]
        assert values[key]["values"] == pytest.approx(apart, abs=1e-5)


def test_candidates_are_read_too(inputs: Path, bytewise: Path, tmp_path: Path) -> None:
    train, test = write_candidates(tmp_path, train=16, test=16)
    rows = {"method": "rrhf", "data": str(train), "eval_data": str(test), "policy_init": None, "base": {}, "oracle": {}}
    ours, theirs, _ = moved(pipeline(inputs, tmp_path / "run", **rows), bytewise)
    assert max(segment for _, segment in ours) > 2
    for key in [key for key in ours if key[1]]:
        wanted = transfer(theirs[key]["values"], places(theirs[key]), places(ours[key]))
        assert ours[key]["values"] == pytest.approx(wanted, abs=1e-4)


def test_cut_candidates_are_cut_at_the_same_byte(inputs: Path, bytewise: Path, tmp_path: Path) -> None:
    train, test = write_candidates(tmp_path, train=16, test=16)
    rows = {"method": "rrhf", "data": str(train), "eval_data": str(test), "policy_init": None, "base": {}, "oracle": {}}
    texts = data.read_candidates(str(train))["responses"].to_list()
    tokenizer = data.load_tokenizer(bytewise)
    for number, cut in enumerate(CUTS):
        ours, theirs, _ = moved(pipeline(inputs, tmp_path / str(number), **rows, **cut), bytewise)
        assert any(line["cut"] for line in ours.values())
        check_cut_alike(ours, theirs, tokenizer, lambda row, segment: texts[row][segment - 1])


def test_the_embedded_set(tmp_path: Path, bytewise: Path) -> None:
    run = Pipeline(configure(method="dpo", output_dir=str(tmp_path)))
    assert run.data.facts["train"]["rows"] == 2000
    tokenizer = data.load_tokenizer(bytewise)
    directory = tmp_path / "tokens"
    directory.mkdir()
    stage = Tokens(data=run.data, rows=rows_hash(run.data), tokenizer=tokenizer, model=str(bytewise))
    facts = stage.build(directory, run.config)["facts"]
    assert {split: facts[split]["rows"] for split in facts} == {"train": 2000, "eval": 400}


CUTS = [
    {"truncation": {"ratio": 0.5}},
    {"truncation": {"ratio": 0.4, "cut_end": "eos"}},
    {"truncation": {"tokens": 7, "cut_end": "template"}},
    {"max_tokens": 40, "max_prompt_tokens": 39},
    {"truncation": {"ratio": 0.3, "unit": "characters", "rounding": "floor"}},
    {"truncation": {"length": 25, "unit": "characters", "cut_end": "template"}},
]


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_response_is_cut_at_the_same_byte(
    inputs: Path, bytewise: Path, tmp_path: Path, cut: dict[str, Any]
) -> None:
    run = pipeline(inputs, tmp_path, **cut)
    ours, theirs, _ = moved(run, bytewise)
    assert any(line["cut"] for line in ours.values())
    tokenizer = data.load_tokenizer(bytewise)
    texts = data.read_preferences(str(inputs / "train.parquet"))
    check_cut_alike(ours, theirs, tokenizer, lambda row, segment: texts[("chosen", "rejected")[segment - 1]][row])


def check_cut_alike(ours: dict[str, Any], theirs: dict[str, Any], tokenizer: Any, chat: Any) -> None:
    """Every response of both ends at the same byte, with an end of turn or without."""
    for (row, segment), line in ours.items():
        if segment == 0:
            continue
        content = chat(row, segment)[-1]["content"].encode()
        end = max(end for end in line["ends"] if end is not None)
        ended = line["ends"][-1] is None
        wanted = tokenizer.encode([content[:end].decode()])[0].to_list() + [tokenizer.eos_token_id] * ended
        assert theirs[row, segment]["ids"] == wanted
        assert math.fsum(line["values"]) == pytest.approx(math.fsum(theirs[row, segment]["values"]), rel=1e-6)


def test_a_cut_within_a_character_keeps_it(inputs: Path, bytewise: Path, tmp_path: Path) -> None:
    """The policy's bytes end inside a character; the other tokenizer reads the whole of it."""
    policy = write_other(tmp_path / "policy", "byte_bpe", seed=1)
    wide = write_other(tmp_path / "wide", "wordpiece")
    rows = {"prompt": ["why"] * 8, "chosen": ["日本語の文", "meow"] * 4, "rejected": ["ab é", "woof"] * 4}
    pl.DataFrame(rows).write_parquet(tmp_path / "pairs.parquet")
    settings = {"data": str(tmp_path / "pairs.parquet"), "eval_data": None, "eval_ratio": 0.0, "model": str(policy)}
    run = pipeline(inputs, tmp_path / "run", **settings, tokenizer=None, truncation={"tokens": 4})
    ours, theirs, _ = moved(run, wide)
    for key, line in ours.items():
        if key[1]:
            assert math.fsum(line["values"]) == pytest.approx(math.fsum(theirs[key]["values"]), rel=1e-6)
    content = [end for end in theirs[0, 1]["ends"] if end is not None]
    assert max(content) == 6  # four of the tokens of 日本語: one character and a part of the next


def test_without_a_template_of_its_own_it_reads_the_policys(inputs: Path, tmp_path: Path) -> None:
    plain = write_other(tmp_path / "plain", "byte_bpe", template=None)
    _, theirs, folder = moved(pipeline(inputs, tmp_path / "run"), plain)
    tokenizer = data.load_tokenizer(plain, chat_template=inputs / "tokenizer" / "chat_template.jinja")
    prompt = data.read_preferences(str(inputs / "train.parquet"))["prompt"][0].to_list()
    text = tokenizer.render(prompt, add_generation_prompt=True)
    assert theirs[0, 0]["ids"] == tokenizer.encode([text])[0].to_list()
    assert (folder / "manifest.json").exists()


def test_a_prepared_folder_is_read_through_its_inputs(inputs: Path, bytewise: Path, tmp_path: Path) -> None:
    raw = tmp_path / "pairs.parquet"
    raw.write_bytes((inputs / "train.parquet").read_bytes())
    tokenizer = data.load_tokenizer(inputs / "tokenizer")
    prepare(str(raw), tokenizer, tmp_path / "folder", max_prompt_tokens=64, max_tokens=128)
    folder = pipeline(inputs, tmp_path / "prepared", data=str(tmp_path / "folder"))
    assert moved(folder, bytewise)[0] == moved(pipeline(inputs, tmp_path / "raw"), bytewise)[0]
    raw.write_bytes(raw.read_bytes() + b" ")
    changed = pipeline(inputs, tmp_path / "changed", data=str(tmp_path / "folder"))
    with pytest.raises(
        ConfigError, match=r"data .* holds tokens, and .*pairs\.parquet is not there as it was; pass the raw"
    ):
        moved(changed, bytewise)


def test_a_row_that_is_too_long_for_it_is_named(inputs: Path, tmp_path: Path) -> None:
    short = write_other(tmp_path / "short", "byte_bpe", max_position_embeddings=100)
    with pytest.raises(
        ConfigError, match=r"short reads at most 100 tokens .*, and train row \d+ has \d+ of its tokens"
    ):
        moved(pipeline(inputs, tmp_path / "run"), short)


def test_a_row_that_its_tokenizer_cannot_read_is_named(inputs: Path, tmp_path: Path) -> None:
    refusing = (
        "{% for m in messages %}{% if 'meow' in m.content %}{{ raise_exception('no cats') }}{% endif %}{% endfor %}"
    )
    strict = write_other(tmp_path / "strict", "byte_bpe", template=refusing + CHAT)
    with pytest.raises(DataError, match=r"train row 1, rejected: the tokenizer of .*strict cannot read it: .*no cats"):
        moved(pipeline(inputs, tmp_path / "run"), strict)


def test_a_pair_that_is_the_same_to_the_model_is_scored_by_it(inputs: Path, tmp_path: Path) -> None:
    """Its tokenizer writes all letters small: the responses have one sum, on the policy's different tokens too."""
    frame = data.read_preferences(str(inputs / "train.parquet")).head(8)
    rows = [
        {"prompt": prompt[0]["content"], "chosen": chosen[0]["content"], "rejected": chosen[0]["content"].upper()}
        for prompt, chosen in frame.select("prompt", "chosen").iter_rows()
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "cases.parquet")
    run = pipeline(inputs, tmp_path / "run", data=str(tmp_path / "cases.parquet"), eval_data=None, eval_ratio=0.0)
    policy, theirs, _ = moved(run, write_other(tmp_path / "small", "wordpiece"))
    assert len(policy) == 3 * len(rows)
    for row in range(len(rows)):
        assert theirs[row, 1]["ids"] == theirs[row, 2]["ids"]
        assert policy[row, 1]["ids"] != policy[row, 2]["ids"]
        sums = [math.fsum(v for v in policy[row, side]["values"] if v is not None) for side in (1, 2)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-5)
        assert sums[0] < 0


def test_a_model_whose_tokenizer_knows_nothing_of_the_texts_is_refused(inputs: Path, tmp_path: Path) -> None:
    rows = {"prompt": ["猫"] * 8, "chosen": ["你好世界"] * 8, "rejected": ["一二三四五六"] * 8}
    pl.DataFrame(rows).write_parquet(tmp_path / "foreign.parquet")
    settings = {"data": str(tmp_path / "foreign.parquet"), "eval_data": None, "eval_ratio": 0.0, "tokenizer": None}
    run = pipeline(inputs, tmp_path / "run", **settings, model=str(write_other(tmp_path / "policy", "byte_bpe")))
    with pytest.raises(DataError, match=r"train, read by .*small: of the responses, .* of the tokens are its unknown"):
        moved(run, write_other(tmp_path / "small", "wordpiece"))


def test_tokenizers_that_cannot_be_read_are_told_before_anything_is_trained(inputs: Path, tmp_path: Path) -> None:
    slow = write_other(tmp_path / "slow", "byte_bpe")
    (slow / "tokenizer.json").rename(slow / "tokenizer.model")
    nameless = write_other(tmp_path / "nameless", "byte_bpe")
    (nameless / "tokenizer_config.json").write_text(json.dumps({}))
    base = {"path": str(inputs / "config.json")}
    for model, words in (
        (slow, r"has tokenizer\.model and no tokenizer\.json"),
        (nameless, "names no EOS token; write"),
    ):
        run = pipeline(inputs, tmp_path / f"run-{model.name}", oracle={"path": str(model)}, base=base)
        with pytest.raises(ConfigError, match=words):
            _ = run.data
        assert set(run.made) == {"data"}


@pytest.mark.slow
def test_an_oracle_of_another_tokenizer_finds_the_planted_tokens(tmp_path: Path) -> None:
    """Chance finds 0.29 of each side; against its own base the oracle finds more than against the policy's."""
    toy = write_toy(tmp_path / "toy", train=1024, test=128, sft=1024)
    common = {**SMALL, "max_tokens": 512, "max_prompt_tokens": 256, "max_tokens_per_batch": 4096, "save_steps": 0}
    common |= {"data": str(toy.train), "eval_data": str(toy.test), "adam_beta2": 0.999, "global_batch_size": 32}
    base = {"learning_rate": 5e-3, "num_train_epochs": 3, "adam_beta2": 0.999, "global_batch_size": 16}
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    untrained = write_other(tmp_path / "other", "wordpiece", **size, num_key_value_heads=4)
    dpo = common | {"method": "dpo", "learning_rate": 5e-4, "loss": {"beta": 1.0}, "oracle": {}}
    given = {"model": str(untrained / "config.json"), "tokenizer": str(untrained)}
    oracle = pyprefopt.train(
        configure(**dpo | given | {"base": base | {"data": str(toy.sft)}}, output_dir=str(tmp_path / "oracle"))
    )
    own = oracle.output_dir / "stages/base/model"
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, **size}))
    sepo = common | {"method": "sepo", "policy_init": "model", "max_steps": 1, "oracle": {"path": str(oracle.policy)}}
    sepo |= {"model": str(tmp_path / "config.json"), "tokenizer": str(toy.tokenizer)}
    sft = common | base | {"method": "sft", "base": {"data": str(toy.sft)}, "oracle": {}, "policy_init": None}
    policys = pyprefopt.train(
        configure(**sft, **{k: sepo[k] for k in ("model", "tokenizer")}, output_dir=str(tmp_path / "sft"))
    )
    found = {}
    for name, reference in (("own", own), ("policy's", policys.policy)):
        run = pyprefopt.train(configure(**sepo | {"base": {"path": str(reference)}}, output_dir=str(tmp_path / name)))
        sides = run.summary["stages"]["selection"]
        found[name] = [sides[side]["planted_recall"] for side in ("chosen", "rejected")]
    print(found)
    assert min(found["own"]) > 0.4
    assert sum(found["own"]) > sum(found["policy's"]) + 0.1
