"""Token rewards as a stage: values against models run by hand, stored once, given to methods and selections."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pyprefopt
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.data.tokenization.segments import load_tokenizer
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.run import RunResult
from pyprefopt.rewards.contrastive import START
from pyprefopt.stages.training import Training, optim_of
from tests.pipeline.runs import MODEL, SMALL, small
from tests.reference import rewards as slow
from tests.training.ranks import run_ranks

BETTER, WORSE = "{conversation} says meow {answer} {start}", "{conversation} says woof {answer} {start}"
CHATS = [
    ([("user", "cat baba")], "says meow", "says woof"),
    ([("system", "dog"), ("user", "pig"), ("assistant", "oink"), ("user", "cow")], "says moo moo", "says"),
    ([("user", "owl"), ("assistant", "hoot"), ("user", "bee")], "buzz", "says hoot says hoot"),
]


@pytest.fixture(scope="module")
def chats(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs, single-turn and multi-turn, the toy tokenizer, a tiny model with a longer context."""
    directory = tmp_path_factory.mktemp("chats")
    with (directory / "pairs.jsonl").open("w") as file:
        for prompt, *responses in CHATS:
            row = {"prompt": [{"role": role, "content": text} for role, text in prompt]}
            row |= {
                n: [{"role": "assistant", "content": t}] for n, t in zip(("chosen", "rejected"), responses, strict=True)
            }
            file.write(json.dumps(row) + "\n")
    (directory / "config.json").write_text(json.dumps({**MODEL, "max_position_embeddings": 512}))
    (directory / "tokenizer").symlink_to(inputs / "tokenizer")
    (directory / "better.txt").write_text(BETTER)
    (directory / "worse.txt").write_text(WORSE)
    return directory


def pipeline(chats: Path, output_dir: Path, **settings) -> Pipeline:
    """Over the three pairs; what the policy starts from is the model itself."""
    given = {"data": str(chats / "pairs.jsonl"), "eval_data": None, "eval_ratio": 0.0, "oracle": {}, "base": {}}
    return Pipeline(small(chats, output_dir, **{**given, "policy_init": "model", **settings}))


def contrastive(chats: Path, **settings) -> dict:
    prompts = {f"{name}_prompt": str(chats / f"{name}.txt") for name in ("better", "worse")}
    return {"name": "contrastive", **prompts, **settings}


def stored(directory: Path, split: str = "train") -> list[list[float] | None]:
    return ValueStore.open(directory / split).values.to_pylist()


def by_hand(chats: Path, run: Pipeline, directions: dict[str, str], **settings) -> list[list[float]]:
    """Rewards of all responses, from texts and whole logits."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chats / "tokenizer")
    model = pyprefopt.modeling.load_model(run.start.path, dtype="float32", seed=0, vocab_size=len(tokenizer))
    model = model.eval()
    model.set_attn_implementation("eager")
    table = SegmentStore.open(run.data.directory / "train").table.to_pylist()
    found = []
    for line in table:
        if line["segment"] == 0:
            continue
        prompt, *responses = CHATS[line["row"]]
        logps = {}
        for direction, template in directions.items():
            if settings.get("context") == "last":
                history = prompt[-1][1]
            elif len(prompt) == 1:
                history = prompt[0][1]
            else:
                history = "\n\n".join(f"{role.capitalize()}: {text}" for role, text in prompt)
            text = template.replace("{start}", START).replace("{answer}", responses[line["segment"] - 1])
            text = text.replace("{conversation}", history)
            if settings.get("wrap") == "raw":
                text += "\n"
            else:
                text = f"<|user|>\n{text}<|end|>\n<|assistant|>\n"
            if settings.get("prefix") != "none":
                text += START + "\n"
            logps[direction] = slow.forced_logps(model, tokenizer(text)["input_ids"], line["ids"])
        template_written = [start is None for start in line["starts"]]
        eos = settings.get("score_eos", False)
        found.append(slow.contrastive(1.0, logps["better"], logps["worse"], template_written, score_eos=eos))
    return found


@pytest.mark.parametrize(
    "settings",
    [{}, {"wrap": "raw"}, {"prefix": "none"}, {"context": "last"}, {"score_eos": True}],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_contrastive_is_two_forced_readings_of_the_response(chats, tmp_path, settings):
    run = pipeline(chats, tmp_path, rewards=contrastive(chats, **settings))
    values = [line for line in stored(run.rewards.directory) if line is not None]
    expected = by_hand(chats, run, {"better": BETTER, "worse": WORSE}, **settings)
    for ours, theirs in zip(values, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert max(abs(value) for line in expected for value in line) > 1e-4  # else the comparison says nothing


def test_prompts_of_the_same_tokens_are_refused(chats, tmp_path):
    """The toy tokenizer knows no word of the shipped prompts."""
    with pytest.raises(ConfigError, match=r"rewards.better_prompt and rewards.worse_prompt must differ"):
        _ = pipeline(chats, tmp_path, rewards={"name": "contrastive"}).rewards


def test_long_revisions_are_an_error_or_zero(chats, tmp_path):
    """The prompt `worse` has a token more here, so that one response is too long under it alone."""
    (tmp_path / "worse.txt").write_text("purr " + WORSE)
    worse = {"worse_prompt": str(tmp_path / "worse.txt")}
    whole = pipeline(chats, tmp_path / "whole", rewards=contrastive(chats, **worse))
    sizes = SegmentStore.open(whole.revision("worse").directory / "train").longest_rows
    limit = int(sizes.max()) - 1
    with pytest.raises(
        DataError, match=rf"at most rewards.max_tokens = {limit} tokens, got {limit + 1}.*overflow to zero"
    ):
        _ = pipeline(chats, tmp_path / "cut", rewards=contrastive(chats, **worse, max_tokens=limit)).rewards
    cut = pipeline(chats, tmp_path / "cut", rewards=contrastive(chats, **worse, max_tokens=limit, overflow="zero"))
    full, part = stored(whole.rewards.directory), stored(cut.rewards.directory)
    responses = [line for line, values in enumerate(full) if values is not None]
    for line, size in zip(responses, sizes, strict=True):
        assert part[line] == (full[line] if size <= limit else [0.0] * len(full[line]))
    assert cut.revision("worse").facts["train"]["left_out"] == int((sizes > limit).sum()) > 0
    assert cut.revision("better").facts["train"]["left_out"] == 0


def test_the_context_of_the_model_bounds_the_revision(chats, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "max_position_embeddings": 16}))
    run = pipeline(chats, tmp_path / "run", rewards=contrastive(chats), model=str(tmp_path / "config.json"))
    with pytest.raises(ConfigError, match=r"rewards.max_tokens must be at most 16, the context of"):
        _ = run.rewards


def test_a_prompt_file_that_is_not_there_is_told_before_anything_is_trained(chats, tmp_path):
    run = pipeline(chats, tmp_path, rewards=contrastive(chats, worse_prompt="nowhere.txt"))
    with pytest.raises(ConfigError, match=r"rewards.worse_prompt must be an existing text file, got 'nowhere.txt'"):
        _ = run.base


def test_prompts_are_keyed_by_what_they_say(chats, tmp_path):
    first = pipeline(chats, tmp_path / "run", rewards=contrastive(chats))
    made = first.rewards
    (tmp_path / "moved.txt").write_text(BETTER)
    same = pipeline(chats, tmp_path / "run", rewards=contrastive(chats, better_prompt=str(tmp_path / "moved.txt")))
    assert same.rewards.reused
    (tmp_path / "moved.txt").write_text(BETTER + " purr")
    other = pipeline(chats, tmp_path / "run", rewards=contrastive(chats, better_prompt=str(tmp_path / "moved.txt")))
    assert not other.rewards.reused
    assert other.revision("worse").reused
    assert stored(other.rewards.directory) != [] != made.facts


def test_a_prepared_folder_leads_back_to_its_texts(chats, tmp_path):
    prepare(str(chats / "pairs.jsonl"), load_tokenizer(chats / "tokenizer"), tmp_path / "folder")
    given = {"rewards": contrastive(chats), "data": str(tmp_path / "folder")}
    run, raw = pipeline(chats, tmp_path / "run", **given), pipeline(chats, tmp_path / "raw", rewards=contrastive(chats))
    assert stored(run.rewards.directory) == stored(raw.rewards.directory)


# --- models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewarded(inputs: Path, sepo: RunResult, tmp_path_factory: pytest.TempPathFactory):
    """Pipelines that go on from the small SePO run's base and oracle."""
    stages = sepo.output_dir / "stages"

    def make(**settings) -> Pipeline:
        given = {"base": {"path": str(stages / "base" / "model")}, "oracle": {"path": str(stages / "oracle" / "model")}}
        return Pipeline(small(inputs, tmp_path_factory.mktemp("rewarded"), **{**given, **settings}))

    return make


def responses(directory: Path, split: str = "train") -> np.ndarray:
    """All values of a store, flat."""
    return np.array([value for line in stored(directory, split) if line is not None for value in line])


def test_dpo_is_beta_times_the_scores(sepo, rewarded):
    run = rewarded(rewards={"name": "dpo", "beta": 0.5})
    for split in ("train", "eval"):
        scores = responses(sepo.output_dir / "stages" / "scores", split)
        np.testing.assert_allclose(responses(run.rewards.directory, split), 0.5 * scores, atol=2e-6)
    facts = run.rewards.facts
    assert facts["chosen"]["std_reward"] > 0
    assert facts["rejected"]["mean_reward"] < facts["chosen"]["mean_reward"]


def test_the_selection_goes_by_the_rewards(sepo, rewarded):
    run = rewarded(rewards={"name": "dpo", "beta": 0.5})
    same = [
        stored(where / "selection")
        for where in (sepo.output_dir / "stages", run.output_dir / "stages")
        if run.selection
    ]
    assert same[0] == same[1]
    assert "scores" not in run.made
    chance = rewarded(rewards={"name": "random"}, oracle={})
    assert stored(chance.selection.directory) != same[0]
    assert not {"oracle", "oracle_logps", "base_logps"} & set(chance.made)


def test_transform_and_noise(rewarded):
    clean = responses(rewarded(rewards={"name": "dpo", "beta": 0.5}).rewards.directory)
    given = {"name": "dpo", "beta": 0.5, "noise_std": 0.1}
    noisy, again, other = (
        responses(rewarded(rewards=given | more).rewards.directory) for more in ({}, {}, {"noise_seed": 1})
    )
    assert (noisy == again).all()
    assert (noisy != other).mean() > 0.99
    assert np.std(noisy - clean) == pytest.approx(0.1, rel=0.05)
    centred = responses(
        rewarded(rewards={"name": "dpo", "beta": 0.5, "transform": "sigmoid_centered"}).rewards.directory
    )
    np.testing.assert_allclose(centred, [slow.sigmoid_centered(value) for value in clean], atol=1e-6)


def test_train_and_eval_get_other_noise(rewarded):
    run = rewarded(rewards={"name": "random"}, oracle={})
    train, evaluation = (responses(run.rewards.directory, split) for split in ("train", "eval"))
    count = min(len(train), len(evaluation))
    assert (train[:count] != evaluation[:count]).mean() > 0.99


def test_simpo_trains_its_own_oracle_and_has_two_forms(rewarded):
    run = rewarded(rewards={"name": "simpo", "beta": 2.0, "gamma": 0.5}, oracle=SMALL["base"])
    ratio = responses(run.rewards.directory)
    trained_by = run.made["oracle"].reads["method"]
    assert (trained_by["method"], trained_by["beta"], trained_by["gamma"]) == ("simpo", 2.0, 0.5)
    logps = {n: responses(run.made[n].directory) for n in ("oracle_logps", "base_logps")}
    np.testing.assert_allclose(ratio, 2.0 * (logps["oracle_logps"] - logps["base_logps"]), atol=1e-6)
    given = {"name": "simpo", "beta": 2.0, "form": "length_norm"}
    other = rewarded(rewards=given, oracle={"path": str(run.output_dir / "stages" / "oracle" / "model")})
    store = SegmentStore.open(other.data.directory / "train")
    values = iter(stored(other.rewards.directory))
    at = 0
    for mask, line in zip(store.table["mask"].to_pylist(), values, strict=True):
        if line is not None:
            own = logps["oracle_logps"][at : at + len(line)]
            np.testing.assert_allclose(line, slow.length_norm(2.0, own, mask), atol=1e-6)
            at += len(line)


def test_strong_weak_of_any_two_checkpoints(sepo, rewarded):
    models = {name: str(sepo.output_dir / "stages" / name / "model") for name in ("oracle", "base")}
    run = rewarded(rewards={"name": "strong_weak", "strong": models["oracle"], "weak": models["base"]}, oracle={})
    scores = responses(sepo.output_dir / "stages" / "scores")
    np.testing.assert_allclose(responses(run.rewards.directory), scores, atol=2e-6)
    swapped = rewarded(rewards={"name": "strong_weak", "strong": models["base"], "weak": models["oracle"]}, oracle={})
    np.testing.assert_allclose(responses(swapped.rewards.directory), -scores, atol=2e-6)


def test_a_checkpoint_that_is_not_there(rewarded):
    run = rewarded(rewards={"name": "strong_weak", "strong": "nowhere", "weak": "nowhere"}, oracle={})
    with pytest.raises(ConfigError, match=r"rewards\.strong: .*nowhere"):
        _ = run.data


def test_rewards_are_made_once(rewarded):
    run = rewarded(rewards={"name": "random"}, oracle={})
    assert not run.rewards.reused
    again = Pipeline(run.config)
    assert again.rewards.reused
    before = responses(again.rewards.directory)
    rewards = replace(run.config.rewards, beta=2.0)
    changed = Pipeline(replace(run.config, rewards=rewards))
    assert not changed.rewards.reused
    np.testing.assert_allclose(responses(changed.rewards.directory), 2.0 * before)


# --- methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tgdpo", "dpo-reg", "simpo-reg", "tis-dpo"])
def test_a_method_that_needs_rewards_gets_those_of_the_runs_oracle(sepo, rewarded, method):
    run = rewarded(method=method, policy_init="base", rewards={"name": "dpo", "beta": 0.5}, max_steps=1)
    config = run.config
    assert config.rewards.transform == ("sigmoid_centered" if method.endswith("-reg") else "raw")
    policy = run.policy
    assert Path(policy.path).is_dir()
    values = stored(run.rewards.directory)
    training = Training(
        name="policy", data=run.data, start=run.base, method=config.loss, optim=optim_of(config), dtype=config.dtype,
        lora=config.lora, seed=config.seed, token_rewards=run.rewards,
    )  # fmt: skip
    store = SegmentStore.open(run.data.directory / "train")
    masks = store.table["mask"].to_pylist()
    for batch in training.train_loader(config).step(0):
        for response, line in enumerate(batch.response_line.tolist()):
            given = batch.token_rewards[batch.response_index == response].tolist()
            own = [value for value, own in zip(values[line], masks[line], strict=True) if own]
            assert given == pytest.approx(own, abs=0)


def test_rewards_reach_the_loss_and_its_key(sepo, rewarded):
    """Two seeds of a random reward: two policies; the same seed: the same key."""
    first, second, again = (
        rewarded(
            method="tgdpo",
            policy_init="base",
            oracle={},
            max_steps=1,
            rewards={"name": "random", "noise_seed": seed},
        )
        for seed in (0, 1, 0)
    )
    keys = []
    for run in (first, second, again):
        _ = run.policy
        keys.append(run.made["policy"].manifest)
    assert keys[0]["key"] == keys[2]["key"] != keys[1]["key"]
    assert keys[0]["fingerprint"] == keys[2]["fingerprint"] != keys[1]["fingerprint"]


# --- columns of the data ------------------------------------------------------------------------------------------


@pytest.fixture
def credited(chats: Path, tmp_path: Path):
    """Write the three pairs with rewards of their own, and give a run over them."""

    def make(chosen: list, rejected: list, name: str = "rewards", **settings) -> Pipeline:
        rows = [json.loads(line) for line in (chats / "pairs.jsonl").read_text().splitlines()]
        for row, one, other in zip(rows, chosen, rejected, strict=True):
            row |= {f"chosen_{name}": one, f"rejected_{name}": other}
        (tmp_path / "credited.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"data": str(tmp_path / "credited.jsonl"), "rewards": {"name": "column"}}
        return pipeline(chats, tmp_path / "run", **{**given, **settings})

    return make


def test_a_reward_per_token(credited):
    """Contents: says meow | says moo moo | buzz; says woof | says | says hoot says hoot. The turn's end gets 0."""
    run = credited([[1, -2.5], [0.5, 0, -0.5], [3]], [[-1, 0], None, [1, 2, -3, 4]])
    found = [line for line in stored(run.rewards.directory) if line is not None]
    assert found == [[1, -2.5, 0], [-1, 0, 0], [0.5, 0, -0.5, 0], [0, 0], [3, 0], [1, 2, -3, 4, 0]]


def test_spans_of_characters_and_a_name_of_ones_own(credited):
    span = [{"start": 5, "end": 9, "weight": -2.0}]
    rewards = {"name": "column", "column": "credits", "beta": 0.5}
    run = credited([span, [], []], [[], [], span], name="credits", rewards=rewards)
    found = [line for line in stored(run.rewards.directory) if line is not None]
    assert found == [[0, -1, 0], [0, 0, 0], [0, 0, 0, 0], [0, 0], [0, 0], [0, -1, 0, 0, 0]]


def test_rewards_of_a_truncated_response(credited):
    given = [[1, -2.5], [0.5, 0, -0.5], [3]], [[-1, 0], [7], [1, 2, -3, 4]]
    run = credited(*given, truncation={"tokens": 2, "cut_end": "template"})
    found = [line for line in stored(run.rewards.directory) if line is not None]
    assert found == [[1, -2.5, 0], [-1, 0, 0], [0.5, 0, 0], [7, 0], [3, 0], [1, 2, 0]]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            [[1, 2, 3], [0, 0, 0], [1]],
            r"credited.jsonl, train, row 0, chosen_rewards: there must be one reward for each of the 2 tokens",
        ),
        (
            [[1, None], [0, 0, 0], [1]],
            r"credited.jsonl, train, row 0, chosen_rewards\[1\]: a reward must be a finite number, got None",
        ),
        (["no", "no", "no"], r"credited.jsonl, train: column 'chosen_rewards' must hold"),
    ],
)
def test_bad_columns(credited, chosen, message):
    with pytest.raises(DataError, match=message):
        _ = credited(chosen, [[0, 0], [0], [0, 0, 0, 0]]).rewards


def test_a_column_that_is_not_there(chats, tmp_path):
    with pytest.raises(DataError, match=r"has no 'chosen_rewards', got 'rewards'; set rewards.column to NAME"):
        _ = pipeline(chats, tmp_path, rewards={"name": "column"}).rewards


def make_rewards(chats: str, output_dir: str) -> None:
    """In a process of its own: the rewards of the revision prompts."""
    run = pipeline(Path(chats), Path(output_dir), rewards=contrastive(Path(chats)), max_tokens_per_batch=256)
    assert run.rewards is not None


@pytest.mark.slow
def test_two_ranks_score_as_one(chats, tmp_path):
    one = pipeline(chats, tmp_path / "one", rewards=contrastive(chats))
    assert run_ranks(2, make_rewards, str(chats), str(tmp_path / "two")) == [0, 0]
    for ours, theirs in zip(stored(tmp_path / "two/stages/rewards"), stored(one.rewards.directory), strict=True):
        assert (ours is None) == (theirs is None)
        np.testing.assert_allclose(ours or [], theirs or [], atol=1e-5)
