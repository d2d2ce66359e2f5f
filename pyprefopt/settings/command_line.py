"""The command line: what its words give of some settings, and `--help`, by tyro over the settings' own dataclasses.

tyro splits the words and reads the comments beside the fields. It is told two things: a section becomes a mapping of
what was given, not an instance with defaults; and an option keeps its words, so that values and errors are those of
`settings.values`, as for YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.settings.values import from_words, kinds_of, words_wanted

if TYPE_CHECKING:
    from tyro.constructors import StructConstructorSpec, StructFieldSpec, StructTypeInfo

Types = Callable[[type], Mapping[str, Any]]  # a settings class -> its options with their types, in the order of --help
Words = tuple[str, ...]  # after one option
ALIASES = {"base.path": "--base", "oracle.path": "--oracle", "rewards.name": "--rewards"}
_NAMES = {int: "INT", float: "FLOAT", str: "STR", bool: "true|false"}


def loose_words(name: str, **settings: Any) -> Any:
    """The field that takes the words of no option; `name` is what --help calls them."""
    return field(metadata={"loose": name}, **settings)


def types_of(cls: type) -> dict[str, Any]:
    """Field name -> type."""
    found = get_type_hints(cls)
    return {f.name: found[f.name] for f in fields(cls)}


def is_section(hint: Any) -> TypeGuard[type]:
    """Whether a type is a class of settings, whose fields are options of their own."""
    return isinstance(hint, type) and is_dataclass(hint)


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
    unknown: Callable[[str], ConfigError] | None = None,
) -> dict[str, Any]:
    """Dotted name -> value of every option that the words give; nothing is filled in.

    Args:
        prog: the command, for --help.
        classes: the dataclasses whose settings stand side by side.
        argv: the words. `--help` prints and raises SystemExit(0).
        about: what the command does, for --help.
        types: the options of a class.
        shown: values by dotted name that --help names as defaults; the others are the classes' own.
        unknown: the error for an option that does not exist, by its name.

    Raises:
        ConfigError: an option that does not exist, a value that is not of its type, a word too many, or too few.
    """
    found, rest = _split(prog, classes, argv, types, shown or {}, about=about)
    options = list(_options(classes, types))
    for word in rest:
        if word.startswith("--") and len(word) > 2:
            name = word[2:].partition("=")[0].replace("-", "_")
            near = did_you_mean(name, [option.name for option in options if option.loose is None])
            raise unknown(name) if unknown else ConfigError(f"unknown setting '{name}'{near}; see --help")
    taker = next((option for option in options if option.loose), None)
    loose = [*(found.pop(taker.name, ()) if taker else ()), *rest]
    values: dict[str, Any] = {}
    for option in options:
        if option.name in found:
            words = found[option.name]
            own = words_wanted(words, option.hint) if taker else len(words)
            values[option.name] = from_words(words[:own], option.hint, option.name)
            loose += words[own:]
    if taker and loose:
        own = words_wanted(loose, taker.hint)
        values[taker.name] = from_words(loose[:own], taker.hint, taker.name)
        loose = loose[own:]
    if loose:
        raise ConfigError(f"unexpected argument '{loose[0]}'; options are written --name value, see --help")
    missing = [o.loose or f"--{o.name}" for o in options if o.required and o.name not in values]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given; see {prog} --help")
    return values


def peek(classes: Sequence[type], argv: Sequence[str], names: Collection[str]) -> dict[str, Words]:
    """The words after each of these options, whatever else is given: they decide which other options there are."""

    def types(cls: type) -> dict[str, Any]:
        return {f.name: str for f in fields(cls) if f.name in names}

    return _split("", classes, argv, types, {}, add_help=False)[0]


@dataclass(frozen=True)
class _Option:
    name: str  # dotted
    hint: Any
    field: Field[Any]

    @property
    def loose(self) -> str | None:
        """What --help calls the words that it takes, if these stand at no option."""
        return self.field.metadata.get("loose")

    @property
    def required(self) -> bool:
        return self.field.default is MISSING and self.field.default_factory is MISSING


def _options(classes: Sequence[type], types: Types, prefix: str = "") -> Iterator[_Option]:
    for cls in classes:
        of = {f.name: f for f in fields(cls)}
        for name, hint in types(cls).items():
            if is_section(hint):
                yield from _options([hint], types, f"{prefix}{name}.")
            else:
                yield _Option(f"{prefix}{name}", hint, of[name])


class _Section:
    """Stands before tyro for the settings of some classes; each section is a subclass of its own."""

    classes: Sequence[type]
    prefix: str

    @classmethod
    def of(cls, classes: Sequence[type], prefix: str = "") -> type:
        """The section whose settings are those of `classes`."""
        return type("Section", (cls,), {"classes": classes, "prefix": prefix, "__doc__": classes[0].__doc__})


def _split(
    prog: str, classes: Sequence[type], argv: Sequence[str], types: Types, shown: Mapping[str, Any], **settings: Any
) -> tuple[dict[str, Words], list[str]]:
    """Dotted name -> words of each option that is given, and the words that belong to none."""
    import tyro
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    registry = ConstructorRegistry()

    @registry.struct_rule
    def section(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not (isinstance(info.type, type) and issubclass(info.type, _Section)):
            return None
        specs: list[StructFieldSpec] = []
        for cls in info.type.classes:
            own = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(cls, tyro.MISSING_NONPROP, False))
            assert isinstance(own, StructConstructorSpec)  # noqa: S101  (of a dataclass)
            of, texts = {f.name: f for f in fields(cls)}, {spec.name: spec.helptext for spec in own.fields}
            for name, hint in types(cls).items():
                option = _Option(f"{info.type.prefix}{name}", hint, of[name])
                specs.append(_as_section(option) if is_section(hint) else _as_option(option, texts[name], shown))
        return StructConstructorSpec(lambda **found: found, tuple(specs))

    about = settings.pop("about", None)
    found, rest = tyro.cli(
        _Section.of(classes), prog=prog, description=about, args=argv, use_underscores=True, return_unknown_args=True,
        registry=registry, **settings,
    )  # fmt: skip
    return {name: words for name, words in dotted(found).items() if words is not None}, rest


def _as_section(option: _Option) -> StructFieldSpec:
    from tyro import MISSING_NONPROP
    from tyro.constructors import StructFieldSpec

    section = _Section.of([option.hint], f"{option.name}.")
    return StructFieldSpec(option.name.rpartition(".")[2], section, MISSING_NONPROP)


def _as_option(option: _Option, text: Any, shown: Mapping[str, Any]) -> StructFieldSpec:
    """An option that keeps its words; None where it is not given."""
    from tyro import conf
    from tyro.constructors import PrimitiveConstructorSpec, StructFieldSpec

    default = shown.get(option.name, option.field.default)
    if isinstance(default, tuple | list):
        default = " ".join(map(str, default)) or "()"
    words = PrimitiveConstructorSpec("*", _metavar(option.hint), tuple, lambda _: True, lambda _: [])
    known = conf.arg(
        metavar=option.loose or option.field.metadata.get("metavar"),
        aliases=[ALIASES[option.name]] if option.name in ALIASES else None,
        help_behavior_hint="(required)" if option.required else f"(default: {default})",
    )
    marks = [conf.Positional] if option.loose else []
    hint: Any = Annotated[(Words | None, words, known, *marks)]
    return StructFieldSpec(option.name.rpartition(".")[2], hint, None, text)


def _metavar(hint: Any) -> str:
    """A type as --help shows it."""
    shown = []
    for kind in kinds_of(hint):
        if get_origin(kind) is Literal:
            shown.append("{" + ",".join(map(str, get_args(kind))) + "}")
        elif get_origin(kind) is tuple:
            shown.append(f"[{_metavar(get_args(kind)[0])} ...]")
        elif kind is not type(None):
            shown.append(_NAMES[kind])
    return "|".join(shown)
