"""What goes over what: files with dotted names, a file for several methods, and what base and oracle take over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyprefopt.cli.options import parse_args
from pyprefopt.data.batching.rule import Selection
from pyprefopt.errors import ConfigError
from pyprefopt.losses import DPO, METHODS
from pyprefopt.settings.config import BaseConfig, OptimConfig, OracleConfig, RunConfig
from pyprefopt.settings.resolve import configure, load_config, recipe, to_yaml
from pyprefopt.settings.typed import dump_yaml, parse_yaml
from pyprefopt.studies.catalog import STUDIES
from tests.losses.pairs import REQUIRED

OWN = {"model": "m", "data": "d"}


def file_of(directory: Path, settings: dict[str, Any], name: str = "run.yaml") -> str:
    (directory / name).write_text(dump_yaml(settings))
    return str(directory / name)


# --- dotted names in YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("loss.beta: 0.1", {"loss": {"beta": 0.1}}),
        ("loss.beta: 0.1\nloss: {label_smoothing: 0.2}", {"loss": {"beta": 0.1, "label_smoothing": 0.2}}),
        ("oracle: {loss.beta: 0.1}\noracle.path: x", {"oracle": {"path": "x", "loss": {"beta": 0.1}}}),
        ("oracle.loss.beta: 1\noracle.loss: {a: 2}", {"oracle": {"loss": {"beta": 1, "a": 2}}}),
    ],
)
def test_dotted_names(text: str, settings: dict[str, Any]) -> None:
    assert parse_yaml(text) == settings


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("loss.beta: 0.1\nloss: {beta: 0.2}", "loss.beta"),
        ("loss: {beta: 0.1}\nloss.beta: 0.1", "loss.beta"),
        ("oracle.loss: {beta: 1.0}\noracle.loss.beta: 2.0", "oracle.loss.beta"),
        ("loss: null\nloss.beta: 0.1", "loss"),
    ],
)
def test_a_setting_given_in_both_ways_is_an_error(text: str, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "run.yaml")
    assert str(error.value) == f"run.yaml: {name} is given twice, nested and by its dotted name; keep one of the two"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rewards: dpo\nrewards.beta: 0.1", "rewards is given as 'dpo' and, by rewards.beta, as a section"),
        ("method: dpo\nmethod.name: dpo", "method is given as 'dpo' and, by method.name, as a section"),
    ],
)
def test_a_value_that_is_given_as_a_section_too(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"run.yaml: {says}; keep one"):
        parse_yaml(text, "run.yaml")


def test_a_selection_that_selects_nothing_is_left_aside_in_a_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"selection": {"excluded_ids": [3], "minimum": 2}, **OWN})
    assert configure(path, method="simpo").selection == Selection()
    with pytest.raises(ConfigError, match=r"need selection\.chosen_ratio"):
        configure(method="simpo", selection={"excluded_ids": [3]}, **OWN)


def test_dotted_names_of_files_and_python(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"method": "dpo", "loss.beta": 0.3, "oracle.fraction": 1.0, **OWN})
    run = configure(method="dpo", loss={"beta": 0.3}, **OWN)
    assert load_config(path) == parse_args(["--config", path]) == run
    assert configure(method="dpo", **{"loss.beta": 0.3}, **OWN) == run
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown setting 'loss\.betta'; did you mean 'loss\.beta'\?"):
        load_config(file_of(tmp_path, {"method": "dpo", "loss.betta": 0.3}))


# --- one file for several methods ---------------------------------------------------------------------------------

FILE: dict[str, Any] = {
    "learning_rate": 1e-6, "oracle": {"learning_rate": 2e-6, "loss": {"beta": 0.3}},
    "base": {"learning_rate": 3e-6, "data": "sft.jsonl"}, "selection": {"chosen_ratio": 0.4, "rejected_ratio": 0.4},
    **OWN,
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_file_serves_every_method(method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file_of(tmp_path, FILE | {"method": method} | {"loss": REQUIRED.get(method, {})})
    config = load_config(path)
    selects = METHODS[method].trains_on == "pairs" and "reward_head" not in METHODS[method].needs
    assert config.selection.chosen_ratio == (0.4 if selects else None)
    assert config.oracle.learning_rate == (2e-6 if selects and config.rewards.name != "contrastive" else 5e-7)
    left = [name for name in ("selection.", "oracle.", "base.") if any(name in message for message in caplog.messages)]
    assert ("selection." in left) is not selects
    assert len(caplog.messages) <= 1
    if caplog.messages:
        assert caplog.messages[0].startswith(f"{path}: left aside, because method {method} does not use it here: ")
    assert parse_args(["--config", path]) == configure(config=path) == config


def test_what_is_left_aside_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file_of(tmp_path, {**FILE, "selection": {}})
    config = parse_args(["--config", path, "--method", "dpo"])
    assert (config.base, config.oracle) == (BaseConfig(), OracleConfig())
    names = "oracle.learning_rate, oracle.loss.beta, base.learning_rate, base.data"
    assert caplog.messages == [f"{path}: left aside, because method dpo does not use it here: {names}"]
    caplog.clear()
    config = parse_args(["--config", path, "--method", "sft"])  # what SFT learns from is its own
    assert config.base == BaseConfig(data="sft.jsonl")
    assert "base.data" not in caplog.text
    caplog.clear()
    assert parse_args(["--config", path, "--method", "sepo", "--base", "ready"]).base == BaseConfig(path="ready")
    assert caplog.messages[0].endswith(": base.learning_rate, base.data")
    caplog.clear()
    written = tmp_path / "config.yaml"
    written.write_text(to_yaml(configure(method="sft", **OWN)))
    load_config(str(written))  # all settings are in it, and the unused ones are what they would be without it
    assert not caplog.messages


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("dpo", ["--oracle.learning_rate", "1e-6"], r"oracle\.\* is used only by"),
        ("dpo", ["--base.learning_rate", "1e-6"], r"base\.\* is not used by method dpo"),
        ("sft", ["--selection.chosen_ratio", "0.3", "--selection.rejected_ratio", "0.3"], "selection does not apply"),
        ("rrhf", ["--selection.chosen_ratio", "0.3", "--selection.rejected_ratio", "0.3"], "selection takes other"),
        ("reward", ["--selection.chosen_ratio", "0.3", "--selection.rejected_ratio", "0.3"], "selection takes tokens"),
        ("sft", ["--base.learning_rate", "1e-6"], r"base\.\* \(but base\.data\) does not apply"),
    ],
)
def test_on_the_command_line_it_is_an_error(
    method: str, words: list[str], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for own in (["--model", "m", "--data", "d"], ["--config", file_of(tmp_path, {**FILE, "selection": {}})]):
        with pytest.raises(ConfigError, match=message):
            parse_args(["--method", method, *own, *words])


# --- what base and oracle take over -------------------------------------------------------------------------------


def test_base_and_oracle_take_over_what_is_given_for_the_policy(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "learning_rate": 1e-4, "global_batch_size": 8, "lr_scheduler_type": "constant", "warmup_ratio": 0.1,
        "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6, "max_grad_norm": 2.0,
        "num_train_epochs": 2.0,
    }  # fmt: skip
    for config in (
        configure(method="sepo", policy_init="base", **given, **OWN),
        load_config(file_of(tmp_path, {"method": "sepo", "policy_init": "base", **given, **OWN})),
        configure(method="sepo", **given),  # the embedded recipe has its own for the base
    ):
        for part in (config, config.base, config.oracle):
            assert {name: getattr(part, name) for name in given} == given
            assert part.max_steps == -1
        written = tmp_path / "config.yaml"
        written.write_text(to_yaml(config))
        assert load_config(str(written)) == config
        assert "base:\n  learning_rate: 0.0001\n" in written.read_text()


def test_what_is_given_below_a_section_stays() -> None:
    config = configure(
        method="sepo", learning_rate=1e-4, max_steps=50, global_batch_size=8, **OWN,
        base={"learning_rate": 1e-3, "num_train_epochs": 3}, oracle={"global_batch_size": 16},
    )  # fmt: skip
    assert (config.base.learning_rate, config.base.global_batch_size) == (1e-3, 8)
    assert (config.base.max_steps, config.base.num_train_epochs) == (-1, 3.0)  # the length is one choice
    assert (config.oracle.learning_rate, config.oracle.global_batch_size, config.oracle.max_steps) == (1e-4, 16, 50)
    record = configure(method="sepo", learning_rate=1e-4, oracle=OracleConfig(loss=DPO(beta=0.3)), **OWN)
    assert record.oracle == OracleConfig(loss=DPO(beta=0.3))


def test_what_is_not_trained_takes_over_nothing() -> None:
    assert configure(method="dpo", learning_rate=1e-4, **OWN).base == BaseConfig()
    ready = configure(method="sepo", learning_rate=1e-4, base={"path": "b"}, oracle={"path": "o"}, **OWN)
    assert (ready.base, ready.oracle) == (BaseConfig(path="b"), OracleConfig(path="o"))
    assert configure(method="sft", learning_rate=1e-4, **OWN).base == BaseConfig()


def test_a_bound_and_recipes_are_not_taken_over() -> None:
    """With until_converged the number of epochs is a bound; what a recipe has for the policy is the policy's."""
    until = configure(method="dpo", policy_init="base", until_converged=0.1, num_train_epochs=10, **OWN)
    assert (until.num_train_epochs, until.base.num_train_epochs, until.base.until_converged) == (10.0, 1.0, None)
    simpo = configure(method="simpo", policy_init="base", **OWN)
    assert (simpo.learning_rate, simpo.base.learning_rate) == (1e-6, BaseConfig.learning_rate)
    assert configure(method="sepo").base.learning_rate == recipe("embedded", "sepo")["base"]["learning_rate"]


def test_settings_of_optimisation_are_taken_over_or_said_why_not() -> None:
    from pyprefopt.settings.inherited import LENGTH, OF_ONE_LOSS, SHARED

    names = set(OptimConfig.__dataclass_fields__)
    assert {*SHARED, *OF_ONE_LOSS} == names < {*RunConfig.__dataclass_fields__}
    assert {*LENGTH} < names


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_studys_own_settings_are_the_policys(name: str) -> None:
    from pyprefopt.cli.study import read

    config, _ = read(name, STUDIES[name], [])
    embedded = recipe("embedded", config.method)
    assert config.base.num_train_epochs == embedded["base"]["num_train_epochs"]
