"""Settings as text: strict YAML in and out, and mappings checked against the config dataclasses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, field, fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.losses import METHODS, Method
from pyprefopt.rewards import REWARDS, NoReward, Reward
from pyprefopt.settings.command_line import types_of, unknown_settings
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.foreign_names import meaning_of
from pyprefopt.settings.values import fit

# YAML 1.2's scalars. PyYAML's own rules (1.1) read `5e-7` as text, and `no`, `on` and `1:30` as something else.
_SCALARS = {
    "null": (r"null|Null|NULL|~|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


DEEPEST = 64  # levels of a file of settings
_NEAR = 0.75  # of spellings, from which on a setting is guessed


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML fills it per class)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _class in (_Loader, _Dumper):
    for _tag, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: a setting's name must be text, got {key!r}")
        if key in seen:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: {key} is given twice; keep one of the two")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, where: str = "YAML") -> dict[str, Any]:
    """Read a YAML mapping as a dict.

    Raises:
        ConfigError: duplicate keys, tags, or anything but a mapping; names `where`.
    """
    try:
        _check_depth(text)
        value = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not valid YAML: {_placed(error)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold a mapping of settings, got {value!r}; write one `name: value` a line")
    try:
        return without_dots(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def without_dots(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings, of which some are given by dotted names.

    Raises:
        ConfigError: a setting that is given twice, nested and by its dotted name.

    Example:
        >>> without_dots({"loss.beta": 0.1, "loss": {"label_smoothing": 0.2}})
        {'loss': {'label_smoothing': 0.2, 'beta': 0.1}}
    """
    found: dict[str, Any] = {}
    for name, value in sorted(settings.items(), key=lambda item: "." in item[0]):
        inner = without_dots(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for section in reversed(_sections(name)[1:]):
            inner = {section: inner}
        found = _joined(found, {_sections(name)[0]: inner}, prefix)
    return {name: found[name] for name in dict.fromkeys(_sections(name)[0] for name in settings)}


def _sections(name: str) -> list[str]:
    """The parts of a dotted name; of another one it alone."""
    parts = name.split(".")
    return parts if all(parts) else [name]


def _joined(settings: Mapping[str, Any], more: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Both; ConfigError for a setting that is in both."""
    found = dict(settings)
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(found.get(name, {}), Mapping):
            found[name] = _joined(found.get(name, {}), value, f"{prefix}{name}.")
        elif name in found:
            scalar, inside = (found[name], value) if isinstance(value, Mapping) else (value, found[name])
            if isinstance(inside, Mapping) and inside and scalar is not None:
                below = f"{prefix}{name}.{next(iter(inside))}"
                raise ConfigError(
                    f"{prefix}{name} is given as {scalar!r} and, by {below}, as a section; keep one of them"
                )
            raise ConfigError(f"{prefix}{name} is given twice, nested and by its dotted name; keep one of the two")
        else:
            found[name] = value
    return found


def _check_depth(text: str) -> None:
    """ConfigError for a text nested so deep that reading the rest of it would take long."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            place = "" if event.start_mark is None else f"line {event.start_mark.line + 1}: "
            raise ConfigError(f"{place}settings must be nested at most {DEEPEST} levels deep; write them flat")


def _placed(error: Exception) -> str:
    """What is wrong and where, in one line."""
    return " ".join(str(error).split()).replace(' in "<unicode string>",', " at")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """`parse_yaml` of a file."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config must be an existing YAML file, got '{path}'; check the path")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config must be a YAML file in UTF-8 that can be read, got '{path}': {error}") from None
    return parse_yaml(text, str(path))


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """The inverse of `parse_yaml`, in the given order."""
    text: str = yaml.dump(settings, Dumper=_Dumper, sort_keys=False, width=120)
    return text


def as_dict(config: RunConfig) -> dict[str, Any]:
    """All settings as nested plain values; tuples become lists."""
    return asdict(config, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items})


def hints(cls: type, method: str) -> dict[str, Any]:
    """Field name -> type of what is given: a run's `loss` of its method, `rewards` of any provider, some left out."""
    found = types_of(cls)
    if issubclass(cls, RunConfig):
        found |= {"loss": METHODS[method], "rewards": any_rewards()}
        found |= dict.fromkeys(("model", "output_dir"), str | None) | {"data": str | tuple[str, ...] | None}
    return found


def any_rewards() -> type:
    """What may stand below `rewards`, by the providers that are known now."""
    return _any_rewards((*REWARDS.own.items(), *REWARDS.items()))  # a setting of both is the user's


@cache
def _any_rewards(providers: tuple[tuple[str, type[Reward]], ...]) -> type:
    """What may stand below `rewards`: a provider's name, and the settings of all of them; None is left out.

    Where a field's text for --help stands, and the words around it, are in its metadata.
    """
    named = {"help": "the provider, also FILE.py:NAME of one's own; None: dpo, where a method needs token rewards"}
    names = tuple(name for name, _ in providers)
    given: dict[str, tuple[Any, dict[str, Any]]] = {"name": (Literal[names] | None, named)}
    for name, provider in providers:
        kinds, common = get_type_hints(provider), {f.name for f in fields(Reward)}
        for f in fields(provider):
            default = "" if f.default in (MISSING, None) else f"; None: {f.default}"
            own = {"declared": provider, "text": f"{name}: {{}}{default}"}
            given.setdefault(f.name, (kinds[f.name] | None, {"declared": Reward} if f.name in common else own))
    columns = [(name, hint, field(default=None, metadata=data)) for name, (hint, data) in given.items()]
    return make_dataclass("Rewards", columns, kw_only=True)


def dotted_names(cls: type, method: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting below `cls` as (`oracle.loss.beta`, its type)."""
    for name, hint in hints(cls, method).items():
        if is_dataclass(hint):
            yield from dotted_names(hint, method, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", hint


def typed(cls: type, settings: Mapping[str, Any], method: str, prefix: str = "") -> dict[str, Any]:
    """Check names and types of nested settings, and give them back in their types (1 as 1.0, a list as a tuple).

    Raises:
        ConfigError: unknown settings, all of them, or a value of another type.
    """
    if unknown := list(_unknown(cls, settings, method, prefix)):
        raise unknown_settings({name: hint_for(name, method) for name in unknown})
    known = hints(cls, method)
    values: dict[str, Any] = {}
    for name, value in settings.items():
        dotted = f"{prefix}{name}"
        kind = known[name]
        if not is_dataclass(kind):
            pairs = name == "columns" and isinstance(value, Mapping)
            values[name] = fit([f"{ours}={theirs}" for ours, theirs in value.items()] if pairs else value, kind, dotted)
        elif isinstance(value, _records(dotted, kind)):  # type: ignore[arg-type]
            values[name] = value  # from Python; whether `loss` is the method's is a row of `RULES`
        elif isinstance(value, Mapping):
            values[name] = typed(kind, value, method, f"{dotted}.")  # type: ignore[arg-type]
        else:
            raise ConfigError(
                f"{dotted} must be a mapping of settings, got {value!r}; write `{name}: {{setting: value}}`"
            )
    return values


def _unknown(cls: type, settings: Mapping[str, Any], method: str, prefix: str) -> Iterator[str]:
    """The settings that do not exist, by their dotted names."""
    known = hints(cls, method)
    for name, value in settings.items():
        if name not in known:
            yield f"{prefix}{name}"
        elif is_dataclass(known[name]) and isinstance(value, Mapping):
            yield from _unknown(known[name], value, method, f"{prefix}{name}.")


def _records(name: str, hint: type) -> Any:
    """The classes that a section's settings may come as from Python."""
    return {"loss": Method, "rewards": (Reward, NoReward)}.get(name, hint)


def build(cls: type, settings: Mapping[str, Any], method: str) -> Any:
    """`cls(**settings)` after `typed`; missing settings keep the dataclass's defaults."""
    return cls(**build_sections(cls, settings, method))


def build_sections(cls: type, settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """`settings` of `cls` with its sections built, but for `rewards`, whose class is chosen when all is known."""
    known = hints(cls, method)
    values = dict(settings)
    for name, value in settings.items():
        if is_dataclass(known[name]) and isinstance(value, Mapping) and name != "rewards":
            try:
                values[name] = build(known[name], value, method)
            except ConfigError as error:  # a section does not know where it stands: `oracle.` + `loss.beta must be …`
                where = "" if str(error).startswith(name) else f"{name}."
                raise ConfigError(f"{where}{error}") from None
    return values


def hint_for(name: str, method: str) -> str:
    """What is meant by a setting that does not exist: another trainer's name here, or a near one; else empty."""
    known = [known for known, _ in dotted_names(RunConfig, method)]
    section, _, last = name.rpartition(".")
    if foreign := meaning_of(name):
        return f"; {foreign}"
    ours = re.match(r"use (\w+)", meaning_of(last))
    if ours and f"{section}.{ours[1]}" in known:  # base.num_epochs
        return f"; {meaning_of(last).replace(ours[1], f'{section}.{ours[1]}', 1)}"
    if section == "loss":
        own = [k for k in known if k.startswith("loss.")]
        return did_you_mean(name, own, cutoff=_NEAR) or f"; method {method} has {', '.join(own)}"
    # `oracle.beta`: by spelling the nearest is `oracle.path`, but the user means the same last word
    same_word = [k for k in known if k.rpartition(".")[2] == last]
    return did_you_mean(name, same_word) or did_you_mean(name, [*known, "base", "oracle", "rewards"], cutoff=_NEAR)
