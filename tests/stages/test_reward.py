"""Runs whose method needs more of the model than log-probs: a reward model, and a divergence from the reference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import pyprefopt
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.modeling import RewardModel, load_model
from pyprefopt.settings.config import LoraConfig
from tests.data.frames import byte_tokenizer
from tests.pipeline.runs import losses, small, train, write_inputs
from tests.training.ranks import run_ranks

SETTINGS = {"learning_rate": 3e-3, "num_train_epochs": 6.0, "base": {"max_steps": 2}, "save_steps": 0}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_inputs(directory)
    return directory


def test_a_reward_model_learns_and_loads_as_a_classifier(inputs: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):  # rejected: one word again and again, which a tiny model can tell from a text
        word = pl.col("chosen").str.split(" ").list.first()
        pairs = pl.read_parquet(inputs / f"{split}.parquet", columns=["prompt", "chosen"])
        rejected = pl.concat_str([word] * 8, separator=" ")
        pairs.with_columns(rejected=rejected).write_parquet(tmp_path / f"{split}.parquet")
    data = {"data": str(tmp_path / "train.parquet"), "eval_data": str(tmp_path / "test.parquet")}
    settings = {**SETTINGS, "oracle": {}, "method": "reward", **data}
    result = pyprefopt.train(small(inputs, tmp_path, **settings))
    own = [loss for stage, _, loss in losses(tmp_path) if stage == "policy"]
    assert own[-1] < 0.8 * own[0]
    before, after = (result.summary["stages"]["policy"][name] for name in ("eval_before", "eval_after"))
    assert after["eval_ranking_accuracy"] > max(0.6, before["eval_ranking_accuracy"])
    assert after["eval_ranking_accuracy"] >= after["eval_rewards/accuracies"]  # the same scores; a tie counts 1/2
    assert after["eval_loss"] < before["eval_loss"]
    assert not [name for name in after if "logps" in name or "weights" in name]  # it has no log-probs
    classifier = AutoModelForSequenceClassification.from_pretrained(result.policy).eval()
    store = SegmentStore.open(next((tmp_path / "stages" / "data").rglob("eval")))
    batch = Packer(store, last_token=True).pack(groups=None, max_tokens=10_000)[0].to()
    scores = RewardModel(load_model(result.policy, head="reward"))(batch).scores
    ids = store.table["ids"].to_pylist()
    for g, r in enumerate(batch.pair_chosen.tolist()[:5]):
        prompt = ids[int(batch.response_line[r]) - 1]
        text = torch.tensor([prompt + ids[int(batch.response_line[r])]])
        assert classifier(input_ids=text).logits.item() == pytest.approx(scores[r].item(), abs=1e-4), g


ENDS = {  # how a template ends a turn
    "newline": "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
    "eos": "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "padding": "{% for m in messages %}{{ m.role }}:{{ m.content }}</s><s>{% endfor %}"  # which transformers would skip
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "nothing": "{% for m in messages %}{{ m.role }}:{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "joined": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"  # " a" is one token
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


@pytest.mark.parametrize(("ends", "more"), [(ends, {}) for ends in ENDS] + [
    ("newline", {"truncation": {"ratio": 0.5, "cut_end": "template"}, "on_error": "skip"}),
    ("newline", {"attention": "loop"}),
])  # fmt: skip
def test_users_score_what_the_run_scored(ends: str, more: dict, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    byte_tokenizer(tmp_path).rename(tmp_path / "tokenizer" / "tokenizer.json")
    named = {"eos_token": "</s>"} | ({"pad_token": "<s>"} if ends == "padding" else {})
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(named))
    words = ["ab", "a b", "ba.", "b", "a", "abba"]
    rows = [{"prompt": a + b, "chosen": b + c, "rejected": c + a + "!"} for a in words for b in words for c in words]
    pl.DataFrame(rows[:64]).write_parquet(tmp_path / "train.parquet")
    pl.DataFrame(rows[64:96]).write_parquet(tmp_path / "test.parquet")
    files = {"data": str(tmp_path / "train.parquet"), "eval_data": str(tmp_path / "test.parquet")}
    files |= {"tokenizer": str(tmp_path / "tokenizer"), "chat_template": ENDS[ends]}
    settings = {**SETTINGS, "oracle": {}, "method": "reward", "max_steps": 3, **files, **more}
    result = pyprefopt.train(small(inputs, tmp_path / "run", **settings))
    classifier = AutoModelForSequenceClassification.from_pretrained(result.policy).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.policy)
    store = SegmentStore.open(next((tmp_path / "run" / "stages" / "data").rglob("eval")))
    batch = Packer(store, last_token=True).pack(groups=None, max_tokens=10_000)[0].to()
    scores = RewardModel(load_model(result.policy, head="reward"))(batch).scores
    lines, right = store.table["ids"].to_pylist(), 0.0
    for row, (chosen, rejected) in enumerate(
        zip(batch.pair_chosen.tolist(), batch.pair_rejected.tolist(), strict=True)
    ):
        found = {}
        for side, r in (("chosen", chosen), ("rejected", rejected)):
            chat = [{"role": "user", "content": rows[64 + row]["prompt"]}]
            chat += [{"role": "assistant", "content": rows[64 + row][side]}]
            text = tokenizer.apply_chat_template(chat, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            line = int(batch.response_line[r])
            assert ids["input_ids"][0].tolist() == lines[line - 1 - (side == "rejected")] + lines[line]
            found[side] = classifier(**ids).logits.item()
            assert found[side] == pytest.approx(scores[r].item(), abs=2e-6)
        right += (found["chosen"] > found["rejected"]) + 0.5 * (found["chosen"] == found["rejected"])
    accuracy = result.summary["stages"]["policy"]["eval_after"]["eval_ranking_accuracy"]
    assert right / 32 == pytest.approx(accuracy)


def test_a_folder_must_hold_texts_as_the_method_reads_them(inputs: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path), eos_token="</s>", chat_template=ENDS["newline"])
    pairs = pl.DataFrame({"prompt": ["a", "b"], "chosen": ["a", "b"], "rejected": ["b", "ab"]})
    for boundary in ("split", "join"):
        prepare(pairs, tokenizer, tmp_path / boundary, boundary=boundary)
    settings = {**SETTINGS, "oracle": {}, "tokenizer": None, "eval_data": None, "eval_ratio": 0.0, "max_steps": 1}
    settings |= {"model": str(inputs / "config.json"), "global_batch_size": 2}
    run = small(inputs, tmp_path / "a", **settings, method="reward", data=str(tmp_path / "split"))
    with pytest.raises(ConfigError, match="a reward model reads texts whole; prepare it again with boundary join"):
        pyprefopt.train(run)
    with pytest.raises(ConfigError, match="prepared with boundary join, as reward models read texts"):
        pyprefopt.train(small(inputs, tmp_path / "b", **settings, method="dpo", data=str(tmp_path / "join")))
    pyprefopt.train(small(inputs, tmp_path / "c", **settings, method="reward", data=str(tmp_path / "join")))


def test_a_cut_response_is_read_where_it_ends(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {**SETTINGS, "oracle": {}, "method": "reward", "truncation": {"ratio": 0.5}, "max_steps": 1}
    pyprefopt.train(small(inputs, tmp_path, **settings))
    assert "a reward model reads the last token" in caplog.text
    store = SegmentStore.open(next((tmp_path / "stages" / "data").rglob("train")))
    assert store.kinds.size
    batch = Packer(store, last_token=True).pack(max_tokens=100_000)[0]
    ends = [store.table["ids"][int(line)].as_py()[-1] for line in batch.response_line]
    assert batch.input_ids[batch.last_index].tolist() == ends
    assert len(batch.input_ids) == sum(len(ids) for ids in store.table["ids"].to_pylist())


def test_a_margin_needs_scores(inputs: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "oracle": {}, "method": "reward", "loss": {"margin_scale": 1.0}, "max_steps": 1}
    with pytest.raises(DataError, match=r"row 0: a response has no score .*loss\.margin_scale"):
        pyprefopt.train(small(inputs, tmp_path / "without", **settings))
    pairs = pl.read_parquet(inputs / "train.parquet")
    scored = pairs.with_columns(score_chosen=pl.lit(2.0), score_rejected=pl.lit(0.0))
    scored.write_parquet(tmp_path / "scored.parquet")
    settings |= {"data": str(tmp_path / "scored.parquet"), "eval_data": None, "eval_ratio": 0.2}
    pyprefopt.train(small(inputs, tmp_path / "with", **settings))
    (first,) = [loss for stage, _, loss in losses(tmp_path / "with") if stage == "policy"]
    assert first > 1.5  # near log(1 + e^2): the margin is asked for


@pytest.mark.parametrize("more", [{}, {"lora": {"r": 4}}, {"zero_stage": 2, "gradient_checkpointing": True}])
def test_tdpo_learns_beside_its_reference(inputs: Path, tmp_path: Path, more: dict) -> None:
    settings = {**SETTINGS, "oracle": {}, "method": "tdpo2", "loss": {"beta": 0.5}, **more}
    result = pyprefopt.train(small(inputs, tmp_path, **settings))
    own = [loss for stage, _, loss in losses(tmp_path) if stage == "policy"]
    assert own[0] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are one
    assert own[-1] < own[0] - 0.02
    AutoModelForCausalLM.from_pretrained(result.policy)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("reward", 0), ("reward", 3), ("tdpo1", 2)])
def test_two_ranks_train_as_one_where_one_of_them_has_nothing_to_do(
    inputs: Path, tmp_path: Path, method: str, stage: int
) -> None:
    settings = {**SETTINGS, "oracle": {}, "method": method, "max_steps": 3, "max_tokens_per_batch": 4096}
    assert run_ranks(1, train, str(inputs), str(tmp_path / "one"), **settings) == [0]
    assert run_ranks(2, train, str(inputs), str(tmp_path / "two"), zero_stage=stage, **settings) == [0, 0]
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert [line[:2] for line in one] == [line[:2] for line in two]
    assert [line[2] for line in one] == pytest.approx([line[2] for line in two], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reward", "tdpo1"])
def test_a_check_takes_a_step(inputs: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    pyprefopt.train(small(inputs, tmp_path, **SETTINGS, oracle={}, method=method, check=True))
    assert "check passed" in capsys.readouterr().out


def test_adapters_are_trained_with_a_whole_head(inputs: Path, tmp_path: Path) -> None:
    """What PEFT and transformers make of the policy scores what the run scored; all else stays as it was."""
    settings = {**SETTINGS, "oracle": {}, "method": "reward", "lora": {"r": 4}, "max_steps": 4, "save_steps": 2}
    result = pyprefopt.train(small(inputs, tmp_path / "run", **settings))
    start = next((tmp_path / "run" / "stages").glob("base*/model"))
    merged, bare = load_file(result.policy / "model.safetensors"), load_file(start / "model.safetensors")
    moved = {name for name in merged if name not in bare or not torch.equal(merged[name], bare[name])}
    assert "score.weight" in moved
    assert moved - {"score.weight"} == {name for name in bare if name.endswith("_proj.weight")}
    store = SegmentStore.open(next((tmp_path / "run" / "stages" / "data").rglob("eval")))
    batch = Packer(store, last_token=True).pack(groups=None, max_tokens=10_000)[0].to()
    scores = RewardModel(load_model(result.policy, head="score"))(batch).scores
    base = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    with_adapter = PeftModel.from_pretrained(base, result.policy / "adapter").eval()
    lines = store.table["ids"].to_pylist()
    for line, segment, score in zip(
        batch.response_line.tolist(), store.segments[batch.response_line], scores, strict=True
    ):
        ids = torch.tensor([lines[line - int(segment)] + lines[line]])
        assert with_adapter(input_ids=ids).logits.item() == pytest.approx(score.item(), abs=1e-5)
    right = (scores[batch.pair_chosen] > scores[batch.pair_rejected]).float().mean().item()
    assert right == pytest.approx(result.summary["stages"]["policy"]["eval_after"]["eval_rewards/accuracies"])
    with pytest.raises(
        ConfigError, match=r"lora\.target_modules: score is the reward model's head, which is trained whole"
    ):
        load_model(start, head="reward", lora=LoraConfig(r=4, target_modules=("q_proj", "score")))
