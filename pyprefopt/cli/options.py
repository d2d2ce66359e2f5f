"""What commands share: reading their options, and those of a run; names of formats."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pyprefopt.errors import ConfigError, PyprefoptError, did_you_mean
from pyprefopt.log import show_log
from pyprefopt.settings.command_line import dotted, nested, peek, read, unknown_settings
from pyprefopt.settings.values import from_words

if TYPE_CHECKING:
    from pyprefopt.settings.config import RunConfig

T = TypeVar("T")

FIRST = ("method", "model", "data", "output_dir")  # of a run's settings in --help; then optimisation, then the rest


def read_given(cls: type, argv: Sequence[str], about: str | None = None) -> dict[str, Any]:
    """Read what the words give, nested, of the options that `cls` declares.

    The command has the name of `cls`, and its docstring where `about` is None.
    """
    return nested(read(f"pyprefopt {_command(cls)}", [cls], argv, about=about or inspect.getdoc(cls)))


def _command(cls: type) -> str:
    """Its name in lower case, with dashes; of an evaluation behind `evaluate`."""
    own = re.sub("(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
    return f"evaluate {own.replace('-', '')}" if ".evaluations." in cls.__module__ else own


def read_options(cls: type[T], argv: Sequence[str], about: str | None = None) -> T:
    """Read the options as an instance of `cls`, which has no sections."""
    return cls(**read_given(cls, argv, about))


@dataclass(frozen=True)
class _Line:
    config: str | None = None  # YAML file with settings; options given here win
    local_rank: int | None = None  # what launchers add; it changes nothing


@dataclass(frozen=True)
class RunLine:
    """What a command line gives of a run, by dotted name."""

    method: str
    path: str | None  # of --config
    file: dict[str, Any]  # the settings of --config
    given: dict[str, Any]  # the options, and those of the command itself


def read_run(
    command: str,
    argv: Sequence[str],
    *own: type,
    about: str | None = None,
    names: Sequence[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    unknown: Callable[[Sequence[str]], ConfigError] | None = None,
) -> RunLine:
    """Read options of a run, all of them or those in `names`, beside a command's `own`.

    Raises:
        ConfigError: what is wrong in the file or the words, that of the file first.
    """
    from pyprefopt.settings.config import RunConfig
    from pyprefopt.settings.resolve import layered, load_own, naming
    from pyprefopt.settings.typed import hint_for, hints, read_yaml, typed

    # Method, model and data decide which other settings there are, and their defaults.
    early = peek([_Line, RunConfig], argv, ("config", "method", "model", "data"))
    path = from_words(early.pop("config"), str, "config") if "config" in early else None
    file = {} if path is None else read_yaml(path)
    first = {name: from_words(words[:1], str | None, name) for name, words in early.items() if words}
    method = {"method": RunConfig.method, **defaults, **file, **first}["method"]
    load_own({"rewards": file.get("rewards")})
    for name in _rewards_named(argv):
        load_own({"rewards": {"name": name}})
    layered({"method": method})  # ConfigError for one that is not there
    with naming(path):
        file = typed(RunConfig, file, method)
    shown = dotted(layered(nested({**defaults, **dotted(file), **first})))

    def types(cls: type) -> dict[str, Any]:
        found = hints(cls, method)
        order = dict.fromkeys((*FIRST, *found)) if cls is RunConfig else found
        wanted = {*names, "local_rank"} if names and cls in (RunConfig, _Line) else {*found}
        return {name: found[name] for name in order if name in wanted}

    given = read(
        f"pyprefopt {command}", [*own, RunConfig, _Line], argv, about=about, types=types, shown=shown,
        unknown=unknown or (lambda names: unknown_settings({name: hint_for(name, method) for name in names})),
    )  # fmt: skip
    settings = {name: value for name, value in given.items() if name not in ("config", "local_rank")}
    return RunLine(method, path, dotted(file), settings)


def read_some(
    command: str,
    argv: Sequence[str],
    own: type,
    *,
    names: Sequence[str],
    sections: Sequence[str] = (),
    fixed: Mapping[str, Any],
) -> dict[str, Any]:
    """Read a command's own options beside some of a run's settings; other settings are refused with those there are.

    Args:
        command: its name.
        argv: the words.
        own: the class that declares its options.
        names: the settings of a run that it takes.
        sections: the sections of settings that it takes whole.
        fixed: the settings that the command decides, method among them.

    Returns:
        What was given, by dotted name.

    Raises:
        ConfigError: an option that is none of these, or a value that breaks its rule.
    """
    from pyprefopt.settings.typed import hint_for

    method, options = str(fixed["method"]), [f.name for f in fields(own) if "loose" not in f.metadata]

    def unknown(given: Sequence[str]) -> ConfigError:
        known = {name: name.partition(".")[0] in (*sections, *names) for name in given}
        near = {name: did_you_mean(name, (*sections, *options, *names)) for name in given}
        error = unknown_settings({name: hint_for(name, method) if known[name] else near[name] for name in given})
        whole = f", and those of {', '.join(sections)}" if sections else ""
        takes = f"; {command} takes {', '.join(names)}{whole}"
        return error if all(known.values()) else ConfigError(f"{error}{takes}")

    return read_run(command, argv, own, names=(*sections, *names), defaults=fixed, unknown=unknown).given


def start_command(
    own: type, about: str, argv: Sequence[str], parse: Callable[[Sequence[str]], tuple[RunConfig, T]]
) -> tuple[RunConfig, T]:
    """The run's settings and what a command takes besides, parsed on all ranks; the log is shown from here on.

    --help prints the options of `own` and ends, without what loads the settings of a run.
    """
    if {"-h", "--help"} & set(argv):
        read_options(own, ["--help"], about=about)
    show_log()
    with on_all_ranks():
        config, besides = parse(argv)
    show_log(config.log_level)
    return config, besides


def _rewards_named(argv: Sequence[str]) -> Iterator[str]:
    """The names of token rewards in the words, which decide what other settings there are."""
    for word, following in pairwise([*argv, ""]):
        option, equals, value = word.partition("=")
        if option in ("--rewards", "--rewards.name"):
            yield value if equals else following


def parse_args(argv: Sequence[str]) -> RunConfig:
    """The resolved settings of `pyprefopt train`. `--help` prints and raises SystemExit(0)."""
    from pyprefopt.settings.resolve import resolve

    about = (
        "Train a policy from preference data. Defaults are those of this very call: with --model or --data, of the "
        "method's recipe (configs/method); without, of the embedded run (configs/embedded)."
    )
    line = read_run("train", argv, about=about)
    return resolve(file=nested(line.file), given=nested(line.given), where=str(line.path))


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Around what every rank does in the same way, such as reading options: rank 0 alone prints its errors."""
    try:
        yield
    except PyprefoptError as error:
        error.same_on_all_ranks = True
        raise
