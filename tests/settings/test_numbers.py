"""Every numeric setting, by every way in: what is no number, is not finite or is too large is refused by name."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace

import numpy as np
import polars as pl
import pytest

from pyprefopt.cli.options import parse_args
from pyprefopt.data import load_tokenizer, tokenize
from pyprefopt.data.batching.rule import Selection
from pyprefopt.errors import ConfigError
from pyprefopt.losses import METHODS
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.resolve import configure, load_config
from pyprefopt.settings.typed import dotted_names, dump_yaml
from pyprefopt.settings.values import fit, from_words, kinds_of

REQUIRED = {"temporal": {"loss": {"scale": 10.0, "decay": 0.9}}}


def numbers(method):
    """Dotted name -> int or float, of every setting that is a number."""
    for name, hint in dotted_names(RunConfig, method):
        for kind in (int, float):
            if kind in kinds_of(hint):
                yield name, kind


ALL = sorted({(name, kind.__name__) for method in METHODS for name, kind in numbers(method)})
METHOD_OF = {name: method for method in METHODS for name, _ in numbers(method)}


def nested(name, value):
    *sections, last = name.split(".")
    found = {last: value}
    for section in reversed(sections):
        found = {section: found}
    return found


def given(name, value):
    """Settings of a run that has this one."""
    method = METHOD_OF[name]
    settings = {"method": method, **REQUIRED.get(method, {})}
    for section, inner in nested(name, value).items():
        settings[section] = settings.get(section, {}) | inner if isinstance(inner, dict) else inner
    return settings


BAD = [math.inf, -math.inf, math.nan, True, False, "1", 10**400, -(10**400), 1e400, [1], complex(1)]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_from_python(name, kind):
    for value in [*BAD, np.float64("inf"), np.float32("nan"), np.bool_(True), *([1.5] if kind == "int" else [])]:
        with pytest.raises(ConfigError, match=rf"^{name} must be ") as error:
            configure(**given(name, value))
        assert "number" in str(error.value)


WORDS = [".inf", "-.inf", "+.inf", ".nan", "1e400", "-1e400", "true", "1" + "0" * 400, "9" * 5000, "1_000"]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_from_a_file(name, kind, tmp_path):
    path = tmp_path / "run.yaml"
    for word in WORDS:
        path.write_text(dump_yaml(given(name, "HERE")).replace("HERE", word))
        with pytest.raises(ConfigError, match=r"must be|not valid YAML"):
            load_config(str(path))


LINE = ["inf", "-inf", "nan", "infinity", "1e400", "true", "1" + "0" * 400, "1_000", "\u0661"]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_from_words(name, kind):
    hint = dict(dotted_names(RunConfig, METHOD_OF[name]))[name]
    for word in LINE:
        with pytest.raises(ConfigError, match=rf"^{name} must be .*number"):
            from_words([word], hint, name)


@pytest.mark.parametrize("name", ["learning_rate", "seed", "oracle.loss.beta", "rewards.beta"])
def test_from_the_command_line(name):
    for word in LINE:
        with pytest.raises(ConfigError, match=rf"^{name} must be .*number"):
            parse_args(["--method", "sepo", f"--{name}", word])


def replaced(section, name, value):
    head, _, rest = name.partition(".")
    return replace(section, **{head: replaced(getattr(section, head), rest, value) if rest else value})


@pytest.mark.parametrize("method", METHODS)
def test_in_a_made_run(method):
    """With `replace`, where no reader stands before the dataclasses."""
    config = configure(method=method, **REQUIRED.get(method, {}))

    def names(section, prefix=""):
        for f in fields(section):
            value = getattr(section, f.name)
            if is_dataclass(value):
                yield from names(value, f"{prefix}{f.name}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{prefix}{f.name}", value

    found = dict(names(config))
    assert {"learning_rate", "seed", "lora.r", "zero_stage", "base.learning_rate", "oracle.fraction"} <= set(found)
    for name in found:
        infinite = name == "loss.alpha" and method in ("dpo-reg", "simpo-reg")  # the regulariser alone
        for value in (*([] if infinite else [math.inf]), -math.inf, math.nan, True):
            with pytest.raises(ConfigError):
                replaced(config, name, value)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [(np.float64(1e-6), float, 1e-6), (np.float32(0.5), float, 0.5), (np.int64(3), int, 3), (np.int64(3), float, 3.0),
     (3, float, 3.0), (2**64 - 1, int, 2**64 - 1), (-(2**63), int, -(2**63)), (1.7e308, float, 1.7e308)],
)  # fmt: skip
def test_numbers_of_other_libraries_are_numbers(value, hint, expected):
    found = fit(value, hint, "x")
    assert (found, type(found)) == (expected, hint)


@pytest.mark.parametrize(
    ("word", "hint", "message"),
    [
        ("inf", float, "x must be a finite number, got 'inf'"),
        ("1e400", float | None, "x must be a finite number or null, got '1e400'"),
        ("18446744073709551616", int, "x must be a whole number from -2^63 up to 2^64, got '18446744073709551616'"),
        ("1_000", int, "x must be a whole number, got '1_000'"),
    ],
)
def test_the_words_of_the_error(word, hint, message):
    with pytest.raises(ConfigError) as error:
        from_words([word], hint, "x")
    assert str(error.value) == message


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**400])
def test_what_kernels_cannot_take_is_refused_from_python(value):
    frame = pl.DataFrame({"prompt": ["cat says"], "chosen": [" meow"], "rejected": [" woof"]})
    tokenizer = load_tokenizer("embedded:toy")
    for name in ("max_tokens", "max_prompt_tokens"):
        with pytest.raises(ConfigError, match=rf"^{name} must be a whole number from -2\^63 up to 2\^64, got"):
            tokenize(frame, tokenizer, **{name: value})
    with pytest.raises(ConfigError, match=r"^minimum must be a whole number from"):
        Selection(minimum=value)
