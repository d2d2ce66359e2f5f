"""The command line of settings: its words as values, and `--help`.

tyro splits the words and reads the comments beside the dataclasses' fields. Two rules are our own: a section becomes a
mapping of what was given, not an instance with defaults; and an option keeps its words, so that values and errors are
those of `settings.values`, as for YAML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.settings.foreign_names import meaning_of
from pyprefopt.settings.values import from_words, words_wanted

if TYPE_CHECKING:
    from tyro.constructors import StructConstructorSpec, StructTypeInfo

Types = Callable[[type], Mapping[str, Any]]  # a settings class -> its options with their types, in the order of --help
Words = tuple[str, ...]  # after one option
ALIASES = {"base.path": "--base", "oracle.path": "--oracle", "rewards.name": "--rewards"}


def loose_words(name: str) -> Any:
    """The field that takes the words of no option; `name` is what --help calls them."""
    return field(metadata={"loose": name, "metavar": name})


def option_name(of: Field[Any]) -> str:
    """What an option is called; a field cannot have the name of a keyword."""
    return str(of.metadata.get("option", of.name))


def types_of(cls: type) -> dict[str, Any]:
    """Field name -> type."""
    found = get_type_hints(cls)
    return {f.name: found[f.name] for f in fields(cls)}


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names.

    >>> dotted({"seed": 1, "loss": {"beta": 0.1}})
    {'seed': 1, 'loss.beta': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `dotted`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        target = found
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return found


def read(
    prog: str,
    classes: Sequence[type],
    argv: Sequence[str],
    *,
    about: str | None = None,
    types: Types = types_of,
    shown: Mapping[str, Any] | None = None,
    unknown: Callable[[Sequence[str]], ConfigError] | None = None,
) -> dict[str, Any]:
    """Read the settings that the words give; nothing is filled in.

    Args:
        prog: the command, for --help.
        classes: the dataclasses whose settings stand side by side.
        argv: the words. `--help` prints and raises SystemExit(0).
        about: what the command does, for --help.
        types: the options of a class.
        shown: values by dotted name that --help names as defaults; the others are the classes' own.
        unknown: the error for the options that do not exist, by their names.

    Returns:
        Dotted name -> value.

    Raises:
        ConfigError: options that do not exist, a value that is not of its type, a word too many, or too few.
    """
    line = _Line(classes, types, shown or {})
    found, rest = line.split(argv, prog=prog, description=about)
    strange = [w[2:].partition("=")[0].replace("-", "_") for w in rest if w.startswith("--") and len(w) > 2]
    if strange and unknown:
        raise unknown(list(dict.fromkeys(strange)))
    if strange:
        known = [name for name, (_, f) in line.options.items() if "loose" not in f.metadata]
        hints = {name: meaning_of(name) for name in strange}
        ours = {name: re.match(r"use (\w+)", hint) for name, hint in hints.items()}
        near = {n: f"; {hints[n]}" if (m := ours[n]) and m[1] in known else did_you_mean(n, known) for n in strange}
        raise unknown_settings({name: f"{near[name]}; see --help" for name in strange})
    taker = next((name for name, (_, f) in line.options.items() if "loose" in f.metadata), "")
    values: dict[str, Any] = {}

    def take(name: str, words: Words) -> Words:
        hint, _ = line.options[name]
        own = words_wanted(words, hint) if taker else len(words)
        values[name] = from_words(words[:own], hint, name)
        return words[own:]

    loose = (*found.pop(taker, ()), *rest)
    for name, words in found.items():
        loose += take(name, words)
    if taker and loose:
        loose = take(taker, loose)
    if loose:
        raise ConfigError(f"unexpected argument '{loose[0]}'; options are written --name value, see --help")
    needed = {name: f for name, (_, f) in line.options.items() if _required(f) and name not in values}
    if needed:
        missing = " and ".join(f.metadata.get("loose", f"--{name}") for name, f in needed.items())
        raise ConfigError(f"{missing} must be given; see {prog} --help")
    return values


def unknown_settings(hints: Mapping[str, str]) -> ConfigError:
    """The error for settings that do not exist, all of them, by name, each with what is said about it.

    >>> print(unknown_settings({"lr": "; use learning_rate", "foo": ""}))
    2 settings are unknown
      'lr'; use learning_rate
      'foo'
    """
    if len(hints) == 1:
        return ConfigError("".join(f"unknown setting '{name}'{hint}" for name, hint in hints.items()))
    return ConfigError("\n".join([f"{len(hints)} settings are unknown", *(f"  '{n}'{h}" for n, h in hints.items())]))


def peek(classes: Sequence[type], argv: Sequence[str], names: Collection[str]) -> dict[str, Words]:
    """The words after each of these options, which decide what other options there are; nothing else is checked."""
    line = _Line(classes, lambda cls: {f.name: str for f in fields(cls) if f.name in names}, {})
    return line.split(argv, add_help=False)[0]


class _Line:
    """Settings classes as tyro sees them."""

    def __init__(self, classes: Sequence[type], types: Types, shown: Mapping[str, Any]) -> None:
        self.classes, self.types, self.shown = classes, types, shown
        self.options: dict[str, tuple[Any, Field[Any]]] = {}  # dotted name -> type, field

    def split(self, argv: Sequence[str], **settings: Any) -> tuple[dict[str, Words], list[str]]:
        """Dotted name -> words of each option that is given, and the words that belong to none."""
        import tyro
        from tyro.constructors import ConstructorRegistry

        registry = ConstructorRegistry()
        registry.struct_rule(self._expand)
        root = _section(self.classes)
        found, rest = tyro.cli(
            root, args=argv, use_underscores=True, return_unknown_args=True, registry=registry, **settings
        )
        return {name: words for name, words in dotted(found).items() if words is not None}, rest

    def _expand(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        """tyro's rule for a section: the fields of its classes, as tyro finds them, with our types."""
        from tyro import MISSING_NONPROP
        from tyro.constructors import StructConstructorSpec, StructFieldSpec

        if not hasattr(info.type, "settings_classes"):
            return None
        specs: list[StructFieldSpec] = []
        for cls in info.type.settings_classes:
            of = {f.name: f for f in fields(cls)}
            for field_name, hint in self.types(cls).items():
                name = option_name(of[field_name])
                full = f"{info.type.prefix}{name}"
                if is_dataclass(hint):
                    specs.append(StructFieldSpec(name, _section([hint], f"{full}."), MISSING_NONPROP))  # type: ignore[list-item]
                else:
                    self.options[full] = hint, of[field_name]
                    text = partial(_text, of[field_name].metadata.get("declared", cls), of[field_name])
                    specs.append(StructFieldSpec(name, self._keeping_words(full), None, text))
        return StructConstructorSpec(lambda **found: found, tuple(specs))

    def _keeping_words(self, name: str) -> Any:
        """The type of an option whose value is its words; None where it is not given."""
        from tyro import conf
        from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

        hint, of = self.options[name]
        default = self.shown.get(name, of.default)
        if isinstance(default, tuple | list):
            default = " ".join(map(str, default)) or "()"
        own = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(hint, set()))
        assert isinstance(own, PrimitiveConstructorSpec)  # noqa: S101  (settings have types that tyro knows)
        words = PrimitiveConstructorSpec("*", own.metavar, tuple, lambda _: True, lambda _: [])
        known = conf.arg(
            metavar=of.metadata.get("metavar"),
            aliases=[ALIASES[name]] if name in ALIASES else None,
            help_behavior_hint="(required)" if _required(of) else f"(default: {default})",
        )
        marks = [conf.Positional] if "loose" in of.metadata else []
        return Annotated[(Words | None, words, known, *marks)]


def _section(classes: Sequence[type], prefix: str = "") -> type:
    """A class that stands for the settings of `classes`, whose docstring --help prints."""
    return type("Section", (), {"settings_classes": classes, "prefix": prefix, "__doc__": classes[0].__doc__})


def _text(cls: type, of: Field[Any]) -> str:
    """What stands beside the field where `cls` declares it, as tyro finds it."""
    from tyro import MISSING_NONPROP
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    spec = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(cls, MISSING_NONPROP, False))
    assert isinstance(spec, StructConstructorSpec)  # noqa: S101  (of a dataclass)
    text = next(found.helptext for found in spec.fields if found.name == of.name)
    return str(of.metadata.get("text", "{}")).format((text() if callable(text) else text) or "")


def _required(of: Field[Any]) -> bool:
    return of.default is MISSING and of.default_factory is MISSING
