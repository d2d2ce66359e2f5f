"""From what the user gave to one complete RunConfig: layers of settings, filled gaps, rules about several settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pyprefopt.errors import ConfigError, check, did_you_mean, option
from pyprefopt.losses import METHODS
from pyprefopt.rewards import REWARDS, Contrastive, DPOReward, NoReward, Reward, SimPOReward, check_reads, load_provider
from pyprefopt.settings.config import OracleConfig, RunConfig
from pyprefopt.settings.in_memory import INPUTS, set_aside, write_aside
from pyprefopt.settings.inherited import with_inherited
from pyprefopt.settings.rules import check_compatible
from pyprefopt.settings.typed import as_dict, build_sections, dump_yaml, parse_yaml, read_yaml, typed, without_dots
from pyprefopt.settings.unused import log_unused, unused, without
from pyprefopt.storage.hub import EMBEDDED_DATA, EMBEDDED_MODEL, is_embedded
from pyprefopt.storage.user_code import is_own

DEFAULT_REWARDS: Final = "dpo"  # what a method that needs token rewards takes: the run's own oracle
WRITTEN_OUT = {"noise_std": 0, "noise_seed": 0}  # what earlier files of settings hold for rewards that are off
NOT_YET = {"rto": "(PPO on token rewards); use dpo-reg or tgdpo, which learn from token rewards without sampling"}


def load_config(path: str) -> RunConfig:
    """Make the run that a YAML file describes.

    Args:
        path: the file. Settings that it leaves out follow from others, from the method's recipe, or are defaults.

    Returns:
        The complete run, checked.

    Raises:
        ConfigError: no such file, not a mapping in YAML 1.2, an unknown setting, a value that breaks its rule, or
            settings that contradict each other; names the file.

    Example:
        >>> config = load_config("runs/sepo/config.yaml")  # doctest: +SKIP
    """
    with naming(str(path)):
        return resolve(file=read_yaml(path), where=str(path))


@contextmanager
def naming(file: str | None) -> Iterator[None]:
    """Errors in the settings of a file begin with its name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error) if file is None or file in str(error) else f"{file}: {error}") from None


def configure(file: str | os.PathLike[str] | None = None, /, **settings: Any) -> RunConfig:
    """Make a run from some of its settings.

    Args:
        file: a YAML file whose settings the others go over; also as `config`.
        **settings: by the names of RunConfig's fields; a section (`loss`, `oracle`, …) is a mapping or its dataclass.
            Paths may be `Path`s. `data` (and `eval_data`,
            `base.data`) may be rows in memory: a list of dicts, or a table as `data.open_source` takes them; and
            `tokenizer` one of transformers. They are written to `output_dir/inputs` under the hash of their content,
            and the run names these files.

    Returns:
        The complete run, checked: what is left out follows from other settings, from the method's recipe, or is the
        default.

    Raises:
        ConfigError: an unknown setting, a value that breaks its rule, or settings that contradict each other.

    Example:
        >>> config = configure(method="dpo", learning_rate=1e-6, loss={"beta": 0.05})
        >>> config.loss.beta, config.output_dir
        (0.05, 'runs/dpo')
    """
    file = file or settings.pop("config", None)
    named, held = set_aside(settings)
    config = resolve(file=read_yaml(os.fspath(file)) if file else {}, given=without_dots(named), where=str(file))
    return with_settings(config, write_aside(held, Path(config.output_dir) / INPUTS)) if held else config


def resolve(
    *,
    below: Mapping[str, Any] = MappingProxyType({}),
    file: Mapping[str, Any] = MappingProxyType({}),
    given: Mapping[str, Any] = MappingProxyType({}),
    where: str = "",
) -> RunConfig:
    """Make the run that nested settings mean, `given` over those of a `file`, over those `below`, over the recipes.

    What the run does not use of the sections base, oracle and selection of the file is left aside, with a line that
    names the file by `where`; base and oracle take over what file and `given` say of the policy's optimisation.

    Raises:
        ConfigError: as of `configure`.
    """
    config = _complete(layered(below, file, given))
    names = unused(config, file, given)
    if names:
        log_unused(names, config, where)
        file = without(file, names)
        config = _complete(layered(below, file, given))
    config = with_inherited(config, _merge(file, given))
    check_compatible(config)
    return config


def as_config(config: Any = None, settings: Mapping[str, Any] = MappingProxyType({})) -> RunConfig:
    """The run that is given whole, or that a YAML file, settings by name, or settings over a file describe.

    Raises:
        ConfigError: it is none of these, or as in `configure`.
    """
    if isinstance(config, RunConfig):
        if settings:
            names = ", ".join(settings)
            raise ConfigError(f"a RunConfig is complete, and {names} came beside it; write replace(config, {names}=…)")
        return config
    if config is None or isinstance(config, Mapping):
        return configure(**{**(config or {}), **settings})
    if not isinstance(config, str | os.PathLike):
        kind = type(config).__name__
        raise ConfigError(f"config must be a RunConfig, a YAML file or settings by name, got one of type {kind}")
    return configure(config=config, **settings) if settings else load_config(os.fspath(config))


def to_yaml(config: RunConfig) -> str:
    """All settings as YAML; `load_config` of it gives the same config back."""
    return dump_yaml(as_dict(config))


def layered(*user: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by precedence: dataclass defaults < configs/method/NAME < configs/embedded/NAME < `user`, left to right.

    The embedded layer lies in only where the tiny model meets the toy data: no other model or data given. Defaults of
    the dataclasses are not written out here; they hold for whatever no layer names. A method without an embedded recipe
    of its own takes configs/embedded/default.yaml.
    """
    given = _merge(*user)
    load_own(given)
    method = _method(given)
    layers = [recipe("method", method)]
    if is_embedded(given.get("model"), given.get("data")):
        own = (files("pyprefopt") / "configs" / "embedded" / f"{method}.yaml").is_file()
        layers.append(recipe("embedded", method if own else "default"))
    merged = _merge(*layers, *user)
    return _merge(*(_fitting(layer, merged) for layer in layers), *user)


def load_own(settings: Mapping[str, Any]) -> None:
    """Take in the method and the provider that settings name by FILE.py:NAME, as these files are now.

    Raises:
        ConfigError: a file that does not run, or that has no such class.
    """
    method, provider = settings.get("method"), _section(settings, "rewards").get("name")
    if isinstance(method, str) and is_own(method):
        METHODS.load(method)
    if isinstance(provider, str) and is_own(provider):
        load_provider(provider)


def _fitting(layer: Mapping[str, Any], merged: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that apply to what was chosen."""
    provider, selecting = _provider(merged), _section(merged, "selection").get("method")
    reads_oracle = provider in ("dpo", "simpo") or _section(merged, "rewards").get("model") == "oracle"
    scores = provider is None and selecting != "random"
    applies = {
        "base": _section(merged, "base").get("path") is None,  # a ready checkpoint is not trained
        "oracle": _section(merged, "oracle").get("path") is None and (reads_oracle or scores),
        "selection": selecting != "threshold",  # a recipe's ratios are for top_k and random
        "rewards": _section(layer, "rewards").get("name") == provider,
    }
    kept = {name: value for name, value in layer.items() if applies.get(name, True)}
    if provider == "simpo" and "oracle" in kept:  # trained by SimPO, whose settings are those of the rewards
        kept["oracle"] = {name: value for name, value in kept["oracle"].items() if name != "loss"}
    return kept


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings below `name`, given as a mapping or as a record."""
    section = settings.get(name)
    if is_dataclass(section):
        return {f.name: getattr(section, f.name) for f in fields(section)}
    return section if isinstance(section, Mapping) else {}


def _provider(settings: Mapping[str, Any]) -> str | None:
    """The name of the token rewards that are chosen, or that the method takes where none are."""
    needed = "token_rewards" in METHODS[_method(settings)].needs
    name: str | None = _section(settings, "rewards").get("name")
    return DEFAULT_REWARDS if name is None and needed else name


def _complete(settings: Mapping[str, Any]) -> RunConfig:
    """The run that merged settings mean, with what follows from others filled in."""
    method = _method(settings)
    values = _single_files(build_sections(RunConfig, typed(RunConfig, settings, method), method))
    values["rewards"] = _rewards(values)
    if "loss" not in values:
        values["loss"] = METHODS[method]()
    filled = {**_model_and_data(values), "output_dir": f"runs/{method.rpartition(':')[2]}"}
    values |= {name: value for name, value in filled.items() if values.get(name) is None}
    if values.get("policy_init") is None and METHODS[method].trains_on != "responses":
        values["policy_init"] = "base" if values["model"] == EMBEDDED_MODEL else "model"
    config = RunConfig(**values)
    if config.selection.method != "threshold":
        for name in recipe("method", method).get("selection", {}):
            value = getattr(config.selection, name)
            check(value is not None, f"selection.{name}", value, "in (0, 1]", "1 takes all tokens")
    return config


def _single_files(values: dict[str, Any]) -> dict[str, Any]:
    """The settings with a list of one file as that file.

    Raises:
        ConfigError: a list of none.
    """
    for name in ("data", "eval_data"):
        if isinstance(given := values.get(name), tuple):
            check(len(given) > 0, name, list(given), "a file, or a list of files")
            values[name] = given[0] if len(given) == 1 else given
    return values


def _model_and_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model and the data: both as given, or both of the embedded run; one alone was forgotten.

    Raises:
        ConfigError: one without the other; says how either is given.
    """
    model, data = settings.get("model"), settings.get("data")
    if model is None and data is None:
        return {"model": EMBEDDED_MODEL, "data": EMBEDDED_DATA}
    if data is None:
        raise ConfigError(
            f"data must be given with model {model!r}; name your pairs, as {option('data', 'pairs.jsonl')}, or take "
            f"the embedded toy set by {option('data', EMBEDDED_DATA)}"
        )
    if model is None:
        raise ConfigError(
            f"model must be given with data {data!r}; name what is trained, as {option('model', 'DIR_OR_HUB_NAME')}, "
            f"or take the embedded model of random weights by {option('model', EMBEDDED_MODEL)}"
        )
    return {"model": model, "data": data}


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The run with settings replaced, by their dotted names (`loss.alpha`), and checked again."""
    changed = config
    for name, value in settings.items():
        changed = _replaced(changed, name, value)
    check_compatible(changed)
    return changed


def _replaced(section: Any, name: str, value: Any) -> Any:
    first, dot, rest = name.partition(".")
    return replace(section, **{first: _replaced(getattr(section, first), rest, value) if dot else value})


def _rewards(settings: Mapping[str, Any]) -> Reward | NoReward:
    """The provider that is chosen, with its settings and what of them follows from others.

    Raises:
        ConfigError: a setting of another provider, one that is missing, or one that breaks its rule.
    """
    if isinstance(settings.get("rewards"), Reward | NoReward):
        chosen: Reward | NoReward = settings["rewards"]
        return chosen
    name = _provider(settings)
    given = {n: value for n, value in _section(settings, "rewards").items() if n != "name" and value is not None}
    if name is None:
        if any(WRITTEN_OUT.get(setting) != value for setting, value in given.items()):
            remedy = "set rewards to dpo (or another provider), or leave rewards.* out"
            raise ConfigError(f"rewards.* needs rewards.name, got None; {remedy}")
        return NoReward()
    provider = REWARDS[name]
    own = {f.name: f for f in fields(provider) if f.init}
    for setting in given:
        if setting not in own:
            where = f"is a setting of another provider than rewards {name}"
            raise ConfigError(f"rewards.{setting} {where}; leave it out")
    for setting, f in own.items():
        if f.default is MISSING and setting not in given:
            raise ConfigError(f"rewards.{setting} must be set for rewards {name}; set rewards.{setting}")
    made = provider(**_following(provider, settings, given) | given)
    check_reads(made)
    return made


def _following(provider: type[Reward], settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a provider's settings follows from the run's, where the user gives none."""
    oracle = settings.get("oracle", OracleConfig())
    if provider in (DPOReward, SimPOReward) and oracle.path is not None and "beta" not in given:
        raise ConfigError(
            "rewards.beta must be set with oracle.path: a checkpoint does not say which beta it was trained with; set "
            "rewards.beta (of rewards dpo usual 0.01 to 0.5, of simpo 2 to 20)"
        )
    follows: dict[str, Any] = {}
    if provider is DPOReward:
        follows["beta"] = oracle.loss.beta
    if provider is Contrastive:
        longest = settings.get("max_tokens_per_batch", RunConfig.max_tokens_per_batch)
        follows["max_tokens"] = min(Contrastive.max_tokens, max(1, longest))
    transform = METHODS[_method(settings)].reward_transform
    if transform is not None and provider.log_ratio:
        follows["transform"] = transform
    return follows


def recipe(kind: str, method: str) -> dict[str, Any]:
    """The shipped settings configs/KIND/METHOD.yaml; none of a method of the user's."""
    if is_own(method):
        return {}
    file = files("pyprefopt") / "configs" / kind / f"{method}.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"), f"configs/{kind}/{method}.yaml")


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("method", RunConfig.method)
    if method in NOT_YET:
        raise ConfigError(f"method {method} is not there yet {NOT_YET[method]}")
    if method not in METHODS:
        known = ", ".join(METHODS)
        hint = did_you_mean(str(method).lower(), METHODS)
        hint = "; write FILE.py:NAME, NAME being the class" if str(method).endswith(".py") else hint
        raise ConfigError(f"method must be one of {known}, got {method!r}{hint}")
    return str(method)


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, setting by setting."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            below = merged.get(name)
            merged[name] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
