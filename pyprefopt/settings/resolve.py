"""From what the user gave to one complete RunConfig: layers of settings, filled gaps, rules about several settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final

from pyprefopt.errors import ConfigError, check, did_you_mean
from pyprefopt.losses import METHODS
from pyprefopt.rewards import REWARDS, Contrastive
from pyprefopt.settings import command_line
from pyprefopt.settings.config import RewardsConfig, RunConfig
from pyprefopt.settings.rules import check_compatible
from pyprefopt.settings.typed import as_dict, build, dump_yaml, parse_yaml, read_yaml, typed
from pyprefopt.storage.hub import EMBEDDED_DATA, EMBEDDED_MODEL

DEFAULT_REWARDS: Final = "dpo"  # what a method that needs token rewards takes: the run's own oracle
NOT_YET = {"rto": "(PPO on token rewards); use dpo-reg or tgdpo, which learn from token rewards without sampling"}


def parse_args(argv: Sequence[str]) -> RunConfig:
    """The resolved settings of a command line. `--help` prints and raises SystemExit(0)."""
    given = command_line.split(argv)
    file = given.pop("config", None)
    if file is not None and len(file) != 1:
        raise ConfigError(f"config must have one value, got {file!r}; write --config FILE")
    from_file = read_yaml(file[0]) if file else {}
    # Method, model and data decide which layers lie below, so they are looked up before the full parse.
    words = {name: given[name][0] for name in ("method", "model", "data") if given.get(name)}
    early = {name: None if word == "None" else word for name, word in words.items()}
    method = _method(_merge(from_file, early))
    with _naming(file[0] if file else None):
        from_file = typed(RunConfig, from_file, method)
    from_line = command_line.parse(given, layered(from_file, early), method)
    return resolve(_build(layered(from_file, from_line)))


def load_config(path: str) -> RunConfig:
    """The resolved settings of a YAML file."""
    with _naming(str(path)):
        return resolve(_build(layered(read_yaml(path))))


@contextmanager
def _naming(file: str | None) -> Iterator[None]:
    """Errors of what a file says begin with its name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error) if file is None or file in str(error) else f"{file}: {error}") from None


def configure(**settings: Any) -> RunConfig:
    """The same from Python: `configure(method="dpo", learning_rate=1e-6, loss={"beta": 0.05})`.

    `config` is a YAML file whose settings the others go over.
    """
    file = settings.pop("config", None)
    return resolve(_build(layered(read_yaml(file) if file else {}, settings)))


def to_yaml(config: RunConfig) -> str:
    """All settings as YAML; `load_config` of it gives the same config back."""
    return dump_yaml(as_dict(resolve(config)))


def layered(*user: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by precedence: dataclass defaults < configs/method/NAME < configs/embedded/NAME < `user`, left to right.

    The embedded layer lies in only where the tiny model meets the toy data: no other model or data given. Defaults of
    the dataclasses are not written out here; they hold for whatever no layer names. A method without an embedded recipe
    of its own takes configs/embedded/default.yaml.
    """
    given = _merge(*user)
    method = _method(given)
    layers = [recipe("method", method)]
    _check_ratios(given, layers[0])
    if given.get("model") in (None, EMBEDDED_MODEL) and given.get("data") in (None, EMBEDDED_DATA):
        own = (files("pyprefopt") / "configs" / "embedded" / f"{method}.yaml").is_file()
        layers.append(recipe("embedded", method if own else "default"))
    for section in ("base", "oracle"):
        if isinstance(given.get(section), Mapping) and given[section].get("path") is not None:
            for layer in layers:  # a ready checkpoint is not trained: the recipes for training it do not apply
                layer.pop(section, None)
    selection = given.get("selection")
    how = selection.get("method") if isinstance(selection, Mapping) else None
    for layer in layers:  # a recipe's ratios are for top_k and random
        if how == "threshold":
            layer.pop("selection", None)
    rewards = given.get("rewards")
    provider = rewards.get("name") if isinstance(rewards, Mapping) else None
    for layer in layers:  # a recipe's rewards are of the provider that it names
        if provider is not None and layer.get("rewards", {}).get("name") != provider:
            layer.pop("rewards", None)
    merged = _merge(*layers, *user)
    for layer in layers:  # a recipe's oracle is for what reads one
        _drop_oracle(layer, merged, scored=how != "random")
    return _merge(*layers, *user)


def _check_ratios(given: Mapping[str, Any], method: Mapping[str, Any]) -> None:
    """ConfigError where a ratio that the method has is set to none: that all tokens count is said by 1."""
    selection = given.get("selection")
    if not isinstance(selection, Mapping) or selection.get("method", "top_k") == "threshold":
        return
    for name in ("chosen_ratio", "rejected_ratio"):
        wanted = name not in selection or selection[name] is not None or name not in method.get("selection", {})
        check(wanted, f"selection.{name}", None, "in (0, 1]", "1 takes all tokens")


def _drop_oracle(layer: dict[str, Any], merged: Mapping[str, Any], *, scored: bool) -> None:
    """Take out of a recipe what the token rewards of `merged` do not read; without rewards, where nothing is scored."""
    rewards = merged.get("rewards")
    given = rewards if isinstance(rewards, Mapping) else {}
    name = given.get("name")
    if name is None and "token_rewards" in METHODS[_method(merged)].needs:
        name = DEFAULT_REWARDS
    if name == "simpo" and "oracle" in layer:
        layer["oracle"] = {setting: value for setting, value in layer["oracle"].items() if setting != "loss"}
    elif (name not in ("dpo", "simpo", None) and given.get("model") != "oracle") or (name is None and not scored):
        layer.pop("oracle", None)


def resolve(config: RunConfig) -> RunConfig:
    """Fill what is None and follows from other settings, then apply the rules about several settings."""
    filled: dict[str, Any] = {"model": config.model or EMBEDDED_MODEL, "data": config.data or EMBEDDED_DATA}
    if config.loss is None:
        filled["loss"] = METHODS[config.method](**recipe("method", config.method).get("loss", {}))
    if config.output_dir is None:
        filled["output_dir"] = f"runs/{config.method}"
    if config.policy_init is None and METHODS[config.method].trains_on != "responses":
        filled["policy_init"] = "base" if filled["model"] == EMBEDDED_MODEL else "model"
    selection = recipe("method", config.method).get("selection", {})
    if not config.selection.active and config.selection.method != "threshold":
        filled["selection"] = replace(config.selection, **selection)
    config = replace(config, **filled)
    config = replace(config, rewards=_rewards(config))
    check_compatible(config)
    return config


def _rewards(config: RunConfig) -> RewardsConfig:
    """The provider of a method that needs one, and what of its settings follows from others."""
    rewards = config.rewards
    if rewards.name is None and "token_rewards" in METHODS[config.method].needs:
        rewards = replace(rewards, name=DEFAULT_REWARDS)
    if rewards.name == "dpo" and rewards.beta is None and config.oracle.path is None:
        rewards = replace(rewards, beta=config.oracle.loss.beta)
    if rewards.name == "contrastive" and rewards.max_tokens is None:
        rewards = replace(rewards, max_tokens=min(Contrastive.max_tokens, config.max_tokens_per_batch))
    if rewards.name is not None and rewards.transform is None:
        provider = REWARDS[rewards.name]
        wanted = METHODS[config.method].reward_transform if provider.log_ratio else None
        rewards = replace(rewards, transform=wanted or provider.transform)
    return rewards


def recipe(kind: str, method: str) -> dict[str, Any]:
    """The shipped settings configs/KIND/METHOD.yaml."""
    file = files("pyprefopt") / "configs" / kind / f"{method}.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"), f"configs/{kind}/{method}.yaml")


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("method", RunConfig.method)
    if method in NOT_YET:
        raise ConfigError(f"method {method} is not there yet {NOT_YET[method]}")
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise ConfigError(f"method must be one of {known}, got {method!r}{did_you_mean(str(method).lower(), METHODS)}")
    return str(method)


def _build(settings: Mapping[str, Any]) -> RunConfig:
    method = _method(settings)
    config: RunConfig = build(RunConfig, typed(RunConfig, settings, method), method)
    return config


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, setting by setting."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            below = merged.get(name)
            merged[name] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
