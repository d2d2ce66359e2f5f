"""Settings: YAML in and out, layers, what is filled in, what is refused."""

from __future__ import annotations

import math
import re
import time
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.cli import main
from pyprefopt.cli.options import parse_args
from pyprefopt.data.batching.rule import Selection
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, METHODS, SePO
from pyprefopt.rewards import REWARDS, Contrastive, NoReward, Random, SimPOReward, StrongWeak
from pyprefopt.settings.config import BaseConfig, OracleConfig, RunConfig
from pyprefopt.settings.resolve import configure, load_config, recipe, to_yaml, with_settings
from pyprefopt.settings.rules import RULES
from pyprefopt.settings.typed import as_dict, dotted_names, dump_yaml, parse_yaml, read_yaml
from tests.losses.pairs import REQUIRED

# --- YAML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),  # PyYAML alone reads text
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("007", "007"),
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'5e-7'", "5e-7"),
    ],
)
def test_yaml_scalars(text, value):
    parsed = parse_yaml(f"x: {text}")["x"]
    assert parsed == value
    assert type(parsed) is type(value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)


letters = st.characters(exclude_characters=".", codec="utf-8")
names = st.text(letters, min_size=1, max_size=10) | st.sampled_from([".", "a.", ".b"])  # no dotted names


@given(st.dictionaries(names, scalars | st.lists(scalars, max_size=3), max_size=5))
def test_yaml_round_trip(values):
    assert parse_yaml(dump_yaml(values)) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "line 2: seed is given twice"),
        ("base: {path: a, path: b}", "line 1: path is given twice"),
        ("- 1", "must hold a mapping"),
        ("seed", "must hold a mapping"),
        ("1: 2", "line 1: a setting's name must be text, got 1"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"config must be an existing YAML file, got '.*nowhere\.yaml'"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("text", "message"), [("lr: 1", "unknown setting 'lr'"), ("seed: soon", "seed must be")])
def test_what_a_file_says_wrong_begins_with_its_name(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    for read in (load_config, lambda path: parse_args(["--config", str(path)])):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {message}"):
            read(path)
    with pytest.raises(ConfigError, match=r"^unknown setting 'lr'"):
        configure(lr=1)


def test_empty_yaml_is_the_default_run(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == configure()


# --- names and types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"learnin_rate": 1}, "unknown setting 'learnin_rate'; did you mean 'learning_rate'?"),
        ({"base": {"lerning_rate": 1}}, "unknown setting 'base.lerning_rate'; did you mean 'base.learning_rate'?"),
        ({"oracle": {"beta": 1}}, "unknown setting 'oracle.beta'; did you mean 'oracle.loss.beta'?"),
        ({"method": "dpo", "loss": {"gamma": 1}}, "unknown setting 'loss.gamma'"),
        ({"loss": {"zzz": 1}}, "; method sepo has loss.reward_scale, loss.normalizer"),
        ({"bf16": True}, "unknown setting 'bf16'; use dtype bfloat16"),
        ({"method": "dop"}, f"method must be one of {', '.join(METHODS)}, got 'dop'; did you mean 'dpo'?"),
        ({"method": "rto"}, "method rto is not there yet (PPO on token rewards); use dpo-reg or tgdpo"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": True}, "learning_rate must be a number, got True"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"check": 1}, "check must be true or false, got 1"),
        ({"model": 3}, "model must be a text or null, got 3"),
        ({"zero_stage": True}, "zero_stage must be one of 0, 1, 2, 3, got True"),
        ({"attention": "falsh"}, "'flex', 'unpacked', got 'falsh'; did you mean 'flash'?"),
        ({"truncation": {"cut_end": "EOS"}}, "'template', got 'EOS'; did you mean 'eos'?"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"lora": {"target_modules": "q"}}, "lora.target_modules must be a list of texts, got 'q'"),
        ({"oracle": 3}, "oracle must be a mapping of settings, got 3"),
        ({"oracle": {"loss": 3}}, "oracle.loss must be a mapping of settings, got 3"),
    ],
)
def test_unknown_names_and_wrong_types(given_settings, message):
    with pytest.raises(ConfigError) as error:
        configure(**given_settings)
    assert message in str(error.value)


def test_whole_numbers_pass_as_numbers():
    rate = configure(learning_rate=1).learning_rate
    assert rate == 1.0
    assert type(rate) is float


@pytest.mark.parametrize(
    ("cls", "setting", "bad", "dotted"),
    [
        (RunConfig, "learning_rate", 0.0, "learning_rate"),
        (RunConfig, "max_steps", 0, "max_steps"),
        (RunConfig, "warmup_ratio", 1.0, "warmup_ratio"),
        (RunConfig, "eval_ratio", 1.0, "eval_ratio"),
        (RunConfig, "max_tokens", 100, "max_tokens"),
        (RunConfig, "threads", 0, "threads"),
        (RunConfig, "per_device_train_batch_size", 0, "per_device_train_batch_size"),
        (RunConfig, "max_tokens_per_batch", 0, "max_tokens_per_batch"),
        (RunConfig, "logging_steps", 0, "logging_steps"),
        (BaseConfig, "learning_rate", -1.0, "base.learning_rate"),
        (OracleConfig, "fraction", 0.0, "oracle.fraction"),
    ],
)
def test_ranges_are_checked_at_birth(cls, setting, bad, dotted):
    with pytest.raises(ConfigError, match=rf"^{dotted} must be .*, got {bad!r}"):
        cls(**{setting: bad})


@pytest.mark.parametrize(
    ("cls", "section", "setting", "bad"),
    [
        (Truncation, "truncation", "ratio", 1.5),
        (Truncation, "truncation", "tokens", 0),
        (Truncation, "truncation", "ratio_base", "min"),
        (Truncation, "truncation", "cut_end", "bos"),
        (Selection, "selection", "chosen_ratio", 0.0),
        (Selection, "selection", "method", "best"),
        (Selection, "selection", "chosen_threshold", math.nan),
        (Selection, "selection", "rounding", "up"),
        (Selection, "selection", "minimum", -1),
    ],
)
def test_sections_of_the_data_path_are_checked_at_birth_and_say_where_they_stand(cls, section, setting, bad):
    with pytest.raises(ConfigError, match=rf"^{setting} must be .*, got {bad!r}"):
        cls(**{setting: bad})
    with pytest.raises(ConfigError, match=rf"^{section}\.{setting} must be .*, got {bad!r}"):
        configure(**{section: {setting: bad}})


@pytest.mark.parametrize(("setting", "bad"), [("chosen_threshold", math.inf), ("minimum", 0)])
def test_a_run_asks_more_of_its_selection(setting, bad):
    with pytest.raises(ConfigError, match=rf"^selection\.{setting} must be .*, got {bad!r}"):
        configure(selection={setting: bad})


def test_oracle_loss_errors_name_the_oracle():
    with pytest.raises(ConfigError, match=r"^oracle\.loss\.beta must be > 0 and finite, got -1\.0"):
        configure(oracle={"loss": {"beta": -1.0}})


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        configure().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_setting_is_documented(method, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # one column of boxes
    with pytest.raises(SystemExit):
        parse_args(["--method", method, "--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, _ in dotted_names(RunConfig, method):
        text = re.search(rf"--{re.escape(name)} (?:\[.*?\]\]|\S+) (.*?)\(default: ", printed)
        assert text, name
        assert text[1], f"{name}: a comment with meaning, unit and usual range"


# --- layers -------------------------------------------------------------------------------------------------------


def test_layers(tmp_path):
    assert configure(method="simpo", model="m", data="d").learning_rate == recipe("method", "simpo")["learning_rate"]
    assert configure(model="m", data="d").learning_rate == RunConfig.learning_rate  # sepo's recipe names none
    assert configure().learning_rate == recipe("embedded", "sepo")["learning_rate"]
    assert (configure().data, configure().model) == ("embedded:toy", "embedded:tiny")
    assert configure() == configure(data="embedded:toy", model="embedded:tiny")
    assert configure(model="m", data="embedded:toy").learning_rate == RunConfig.learning_rate  # asked for
    assert configure(learning_rate=0.5).learning_rate == 0.5


@pytest.mark.parametrize("method", ["sepo", "sft", "rrhf", "reward"])
@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"model": "m"}, "data must be given with model 'm'; name your pairs, as "),
        ({"model": "embedded:tiny"}, "data must be given with model 'embedded:tiny'"),
        ({"model": "m", "eval_data": "test.jsonl"}, "data must be given with model 'm'"),
        ({"data": "d.jsonl"}, "model must be given with data 'd.jsonl'; name what is trained"),
        ({"data": "embedded:toy"}, "model must be given with data 'embedded:toy'"),
        ({"data": "d.jsonl", "tokenizer": "t"}, "model must be given with data 'd.jsonl'"),
    ],
)
def test_what_was_forgotten_is_not_filled(method, given, missing, tmp_path):
    message = re.escape(missing)
    with pytest.raises(ConfigError, match=message):
        configure(method=method, **given)
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    with pytest.raises(ConfigError, match=message):
        parse_args(["--method", method, *words])
    (tmp_path / "run.yaml").write_text(dump_yaml({"method": method, **given}))
    with pytest.raises(ConfigError, match=message):
        parse_args(["--config", str(tmp_path / "run.yaml")])
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "run.yaml"))


def test_the_remedy_is_written_as_the_user_writes(capsys):
    assert main(["train", "--model", "m"]) == 2
    assert "as --data pairs.jsonl, or take the embedded toy set by --data embedded:toy" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"as data='pairs\.jsonl', or take the embedded toy set by data="):
        configure(model="m")


def test_records_pass_from_python():
    assert configure(method="dpo", loss=DPO(beta=0.3)).loss == DPO(beta=0.3)
    assert configure(oracle=OracleConfig(fraction=0.5)).oracle == OracleConfig(fraction=0.5)
    with pytest.raises(ConfigError, match="oracle must be a mapping of settings, got BaseConfig"):
        configure(oracle=BaseConfig())


def test_nested_settings_merge_one_by_one():
    config = configure(selection={"chosen_ratio": 0.5}, oracle={"loss": {"label_smoothing": 0.1}})
    assert config.selection == Selection(chosen_ratio=0.5, rejected_ratio=0.3)
    assert config.oracle.loss == DPO(beta=recipe("embedded", "sepo")["oracle"]["loss"]["beta"], label_smoothing=0.1)


def test_other_selections_drop_the_recipes_for_top_k():
    threshold = {"method": "threshold", "chosen_threshold": 0.1, "rejected_threshold": 0.1}
    config = configure(selection=threshold, loss={"normalizer": "selected"})
    assert config.selection == Selection(**threshold)
    chance = configure(selection={"method": "random"})
    assert chance.selection == Selection(method="random", chosen_ratio=0.3, rejected_ratio=0.3)
    assert chance.oracle == OracleConfig()


def test_ready_checkpoints_drop_the_recipes_for_training_them():
    config = configure(oracle={"path": "o"}, base={"path": "b"})
    assert config.oracle == OracleConfig(path="o")
    assert config.base == BaseConfig(path="b")


def test_gaps_are_filled():
    config = configure(model="m", data="d")
    assert (config.policy_init, config.output_dir, config.loss) == ("model", "runs/sepo", SePO())
    assert configure().policy_init == "base"
    assert configure(method="sft").policy_init is None
    assert configure(method="dpo").selection == Selection()
    assert configure(method="sepo", model="m", data="d").selection == Selection(chosen_ratio=0.3, rejected_ratio=0.3)


def test_a_run_is_complete_or_says_how_to_make_it():
    with pytest.raises(ConfigError, match=r"^loss must be given, got None; make a RunConfig with pyprefopt\.configure"):
        RunConfig(method="sepo", model="m", data="d")
    with pytest.raises(ConfigError, match=r"^data must be given, got None; make a RunConfig with"):
        RunConfig(method="sepo", model="m", loss=SePO())


def test_replaced_settings_are_checked_again():
    config = configure(method="dpo", model="m", data="d")
    assert with_settings(config, {"loss.beta": 0.5, "seed": 3}) == configure(
        method="dpo", model="m", data="d", loss={"beta": 0.5}, seed=3
    )
    with pytest.raises(ConfigError, match="dtype bfloat16 needs zero_stage >= 1"):
        with_settings(config, {"dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="zero_stage must be one of 0, 1, 2, 3, got 4"):
        with_settings(config, {"zero_stage": 4})


# --- a resolved config reruns the run -----------------------------------------------------------------------------


def values_of(name: str, hint: object) -> st.SearchStrategy[object]:
    """Values of a setting that its own rule allows; rules about several settings are met in `complete`."""
    positive = st.floats(1e-9, 0.9, exclude_max=True)
    special = {
        **dict.fromkeys(
            ("data", "eval_data", "base.data"), st.text(min_size=1) | st.lists(st.text(min_size=1), min_size=1)
        ),
        "max_tokens": st.integers(2000, 9000),
        "max_prompt_tokens": st.integers(1, 1999),
        "oracle.loss.label_smoothing": st.floats(0, 0.49),
        "loss.label_smoothing": st.floats(0, 0.49),
    }
    if name in special:
        return special[name]
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    options = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            options.append(st.sampled_from(get_args(kind)))
        elif get_origin(kind) is tuple:
            items = st.text(min_size=1) if get_args(kind)[0] is str else st.integers(0, 1000)
            options.append(st.lists(items, max_size=3))
        else:
            by_type = {int: st.integers(1, 10**6), float: positive, bool: st.booleans(), type(None): st.none()}
            options.append(by_type.get(kind, st.text(min_size=1)))
    return st.one_of(options)


@st.composite
def some_settings(draw):
    method = draw(st.sampled_from(sorted(METHODS)))
    names = [(n, h) for n, h in dotted_names(RunConfig, method) if n not in ("method", "format", "columns")]
    chosen = draw(st.lists(st.sampled_from(names), unique_by=lambda item: item[0], max_size=12))
    values: dict = {"method": method}
    for name, hint in chosen:
        *sections, last = name.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = draw(values_of(name, hint))
    if {"model", "data"} & {*values}:  # one alone is refused
        values = {"model": "m", "data": "d"} | values
    return values


@settings(max_examples=100, deadline=None)
@given(some_settings())
def test_resolved_yaml_reruns_the_run(tmp_path_factory, values):
    try:
        config = configure(**values)
    except ConfigError:  # a combination that the table refuses
        return
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert asdict(again) == asdict(config)
    assert to_yaml(again) == to_yaml(config)


def test_resolved_yaml_names_every_setting():
    written = parse_yaml(to_yaml(configure()))
    assert list(written) == [f.name for f in fields(RunConfig)]
    assert list(written["oracle"]) == [f.name for f in fields(OracleConfig)]


# --- rules about several settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.message.split()[0] + "-" + rule.culprit)
def test_every_rule_fires_only_through_its_culprit(rule):
    with pytest.raises(ConfigError) as error:
        configure(**rule.example)
    assert str(error.value) == rule.message.format(c=_unchecked(rule.example))
    configure(**_without(rule.example, rule.culprit))


def _without(example, culprit):
    """The settings but for one, given by its dotted name."""
    *sections, last = culprit.split(".")
    harmless = {k: dict(v) if isinstance(v, dict) else v for k, v in example.items()}
    target = harmless
    for section in sections:
        target = target[section]
    del target[last]
    return harmless


def _unchecked(example):
    """The config that the example means, with the gaps filled and the rules not applied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyprefopt.settings.resolve.check_compatible", lambda config: None)
        return configure(**example)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("source", [{}, {"model": "m", "data": "d.jsonl"}, {"model": "m", "data": "embedded:toy"}])
def test_shipped_recipes_break_no_rule(method, source):
    configure(method=method, loss=REQUIRED.get(method, {}), **source)


# --- token rewards ------------------------------------------------------------------------------------------------

PROVIDERS = {"strong_weak": {"strong": "large", "weak": "small"}}


@pytest.mark.parametrize("source", [{}, {"model": "m", "data": "d.jsonl"}], ids=["embedded", "given"])
@pytest.mark.parametrize("provider", sorted(REWARDS))
@pytest.mark.parametrize("method", [*sorted(m for m in METHODS if "token_rewards" in METHODS[m].needs), "sepo"])
def test_every_provider_goes_with_every_recipe(method, provider, source):
    config = configure(method=method, rewards={"name": provider, **PROVIDERS.get(provider, {})}, **source)
    assert config.rewards.name == provider
    ratio = REWARDS[provider].log_ratio and method in ("dpo-reg", "simpo-reg")
    plain = REWARDS[provider].transform if method != "tis-dpo" else "raw"
    assert config.rewards.transform == ("sigmoid_centered" if ratio else plain)
    assert configure(**{**as_dict(config), "loss": config.loss}) == config


def test_the_scale_of_dpo_rewards_is_the_oracles_own():
    assert configure(method="tgdpo", oracle={"loss": {"beta": 0.3}}).rewards.beta == 0.3
    assert configure(method="tgdpo", oracle={"loss": {"beta": 0.3}}, rewards={"beta": 0.7}).rewards.beta == 0.7
    assert configure(method="sepo").rewards.name is None


@pytest.mark.parametrize(
    ("example", "culprit", "message"),
    [
        (
            {"rewards": {"noise_std": 0.5}},
            "rewards",
            "rewards.* needs rewards.name, got None; set rewards to dpo (or another provider), or leave rewards.* out",
        ),
        (
            {"rewards": {"name": "dpo", "gamma": 1.0}},
            "rewards.gamma",
            "rewards.gamma is a setting of another provider than rewards dpo; leave it out",
        ),
        (
            {"rewards": {"name": "strong_weak", "strong": "large"}},
            "rewards",
            "rewards.weak must be set for rewards strong_weak; set rewards.weak",
        ),
        (
            {"rewards": {"name": "dpo"}, "oracle": {"path": "oracle"}},
            "oracle.path",
            "rewards.beta must be set with oracle.path: a checkpoint does not say which beta it was trained with; set "
            "rewards.beta (of rewards dpo usual 0.01 to 0.5, of simpo 2 to 20)",
        ),
    ],
)
def test_a_provider_takes_its_own_settings(example, culprit, message):
    with pytest.raises(ConfigError) as error:
        configure(method="sepo", **example)
    assert str(error.value) == message
    configure(method="sepo", **_without(example, culprit))


def test_what_is_null_is_left_out():
    """As files of settings were written out, with the settings of all providers."""
    given = {"gamma": None, "column": None, "noise_std": 0.0, "noise_seed": 0}
    assert configure(method="sepo", rewards={"name": None, **given}).rewards == NoReward()
    assert configure(method="tgdpo", rewards={"name": "random", **given}).rewards == Random()


def test_records_of_rewards_pass_from_python():
    assert configure(method="sepo", rewards=StrongWeak(strong="a", weak="b")).rewards.strong == "a"
    assert configure(method="sepo", rewards=NoReward()) == configure(method="sepo")


def test_recipes_of_other_rewards_do_not_apply():
    """Tis-dpo's names dpo and its scale."""
    assert configure(method="tis-dpo", model="m", data="d").rewards.beta == 1.0
    other = configure(method="tis-dpo", model="m", data="d", rewards={"name": "simpo"})
    assert other.rewards == SimPOReward(transform="raw")
    other = configure(method="tis-dpo", model="m", data="d", rewards={"name": "contrastive"})
    assert (other.rewards, other.oracle) == (Contrastive(transform="raw"), OracleConfig())


def test_rewards_on_the_command_line():
    config = parse_args(["--method", "tgdpo", "--rewards", "random", "--rewards.noise_seed", "3"])
    assert (config.rewards.name, config.rewards.noise_seed) == ("random", 3)


@pytest.mark.parametrize(
    ("given_rewards", "message"),
    [
        ({"name": "rando"}, "rewards.name must be one of 'dpo', 'simpo'"),
        ({"noise_std": -1.0}, "rewards.noise_std must be >= 0 and finite, got -1.0"),
        ({"noise_std": float("inf")}, "rewards.noise_std must be a finite number or null, got inf"),
        ({"noise_seed": -1}, "rewards.noise_seed must be in [0, 2^32), got -1"),
        ({"transform": "sigmoid"}, "rewards.transform must be one of 'raw', 'sigmoid_centered'"),
        ({"name": "simpo", "beta": -1.0}, "rewards.beta must be > 0 and finite, got -1.0"),
    ],
)
def test_bad_rewards(given_rewards, message):
    with pytest.raises(ConfigError) as error:
        configure(method="tgdpo", rewards=given_rewards)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "two"], r"^max_steps must be a whole number, got 'two'$"),
        (["--oracle.learning_rate", "abc"], r"^oracle\.learning_rate must be a number, got 'abc'$"),
        (["--attention", "falsh"], r"^attention must be one of 'auto', .*, got 'falsh'; did you mean 'flash'\?$"),
        (["--zero_stage=7"], r"^zero_stage must be one of 0, 1, 2, 3, got '7'$"),
        (["--check", "maybe"], r"^check must be true or false, got 'maybe'$"),
        (["--method", "DPO"], r"got 'DPO'; did you mean 'dpo'\?$"),
        (["--reward", "random"], r"^unknown setting 'reward'; did you mean 'rewards'\?$"),
    ],
)
def test_words_of_the_command_line_are_told_in_ours(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_args(words)


def test_words_as_yaml_writes_them():
    words = [
        "--gradient_checkpointing",
        "true",
        "--trust_remote_code",
        "false",
        "--model",
        "x",
        "--data",
        "y",
        "--peak_tflops",
        "null",
    ]
    config = parse_args(["--method", "dpo", *words])
    assert config.gradient_checkpointing is True
    assert config.trust_remote_code is False
    assert config.peak_tflops is None
    assert parse_args(["--method", "ipo", "--loss.length_normalized", "false"]).loss.length_normalized is False
    assert parse_args(["--method", "dpo", "--model", "none", "--data", "x"]).model == "none"  # a text stays one


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_no_ratio_is_no_way_to_take_all_tokens(side):
    with pytest.raises(
        ConfigError, match=rf"selection\.{side}_ratio must be in \(0, 1\], got None; 1 takes all tokens"
    ):
        parse_args(["--method", "sepo", f"--selection.{side}_ratio", "None"])
    assert configure(method="dpo", selection={f"{side}_ratio": None}).selection == Selection()


def test_a_file_and_settings_over_it_from_python(tmp_path):
    (tmp_path / "run.yaml").write_text("method: dpo\nlearning_rate: 1.0e-6\nloss:\n  beta: 0.3\n")
    config = configure(config=str(tmp_path / "run.yaml"), learning_rate=2e-6)
    assert (config.method, config.learning_rate, config.loss.beta) == ("dpo", 2e-6, 0.3)


def test_bad_yaml_is_told_by_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("method: [dpo\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not valid YAML: while parsing a flow sequence at line 1, col"):
        parse_args(["--config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 50_000 + "]" * 50_000, "a: " + "{b: " * 50_000, "a:\n " + "- " * 50_000 + "1"]
)
def test_yaml_nested_beyond_reason_is_refused_at_once(tmp_path, text):
    (tmp_path / "deep.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"deep\.yaml, line [12]: settings must be nested at most 64 levels deep"):
        read_yaml(tmp_path / "deep.yaml")
    assert time.process_time() - began < 2
