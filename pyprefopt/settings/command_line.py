"""The command line: options with dotted names, read and documented by tyro."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_args, get_origin

from pyprefopt.errors import ConfigError
from pyprefopt.settings.config import RunConfig
from pyprefopt.settings.typed import comments, dotted_names, hints, misfit, unknown_setting

ALIASES = {"base": "base.path", "oracle": "oracle.path", "rewards": "rewards.name"}


def split(argv: Sequence[str]) -> dict[str, list[str]]:
    """Command-line words -> {dotted name: values}; aliases applied, --local_rank dropped, the last wins."""
    given: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if word in ("-h", "--help"):
            given["help"] = []
        elif word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            name = ALIASES.get(name, name)
            given[name] = [value] if equals else []
        elif name is None:
            raise ConfigError(f"unexpected argument '{word}'; options are written --name value, see --help")
        else:
            given[name].append(word)
    given.pop("local_rank", None)
    return given


def parse(given: Mapping[str, list[str]], shown: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The given options as a nested dict of typed values. `shown` are the values that --help prints as defaults."""
    import tyro

    words = ["--help"] if "help" in given else _words(given, method)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            result: Any = tyro.cli(
                _shape(RunConfig, shown, method),
                prog="pyprefopt train",
                description=f"One run of {method}. Defaults are those of this very call: with --model or --data, of "
                f"configs/method/{method}.yaml; without, of the embedded run (configs/embedded/{method}.yaml).",
                args=words,
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _in_our_words(_first_line(messages.getvalue()), given, method) from None
    sys.stderr.write(messages.getvalue())
    values: dict[str, Any] = {}
    for name in given:
        *sections, last = name.split(".")
        source, target = result, values
        for section in sections:
            source, target = getattr(source, section), target.setdefault(section, {})
        target[last] = getattr(source, last)
    return values


def _words(given: Mapping[str, list[str]], method: str) -> list[str]:
    """Checked names and canonical spelling for tyro: `--name=value`, and `--flag` as `--flag=True`."""
    known = dict(dotted_names(RunConfig, method))
    words: list[str] = []
    for name, values in given.items():
        if name not in known:
            raise unknown_setting(name, method)
        if known[name] is bool and not values:
            words.append(f"--{name}=True")
        elif get_origin(known[name]) is tuple:
            words += [f"--{name}", *values]
        elif len(values) == 1:
            words.append(f"--{name}={_spelled(values[0], known[name])}")
        else:
            raise ConfigError(f"{name} must have one value, got {values!r}; write --{name} value")
    return words


def _spelled(value: str, hint: Any) -> str:
    """YAML's `true`, `false` and `null` as Python writes them, where the setting takes them and no free text."""
    kinds = get_args(hint) or (hint,)
    python = {"true": "True", "false": "False"} if bool in kinds else {}
    if type(None) in kinds and str not in kinds:
        python["null"] = "None"
    return python.get(value.lower(), value)


def _in_our_words(message: str, given: Mapping[str, list[str]], method: str) -> ConfigError:
    """Setting, rule and value, where tyro names an option that was given."""
    known = dict(dotted_names(RunConfig, method))
    found = re.search(r"--([\w.]+)", message)
    name = found[1] if found else ""
    if name not in known or not given.get(name):
        return ConfigError(message)
    return misfit(name, known[name], " ".join(given[name]))


def _first_line(box: str) -> str:
    """The message out of tyro's framed error text."""
    lines = [line.strip(" │╭╮╰╯─") for line in box.splitlines()[1:]]
    return " ".join(lines[: lines.index("")]) if "" in lines else " ".join(lines)


def _shape(cls: type, shown: Mapping[str, Any], method: str) -> type:
    """A plain copy of a config class for tyro: no checks (they run once, on the final values), comments as help."""
    help_of = comments(cls)
    defaults = {f.name: f for f in fields(cls)}
    columns: list[tuple[str, Any, Any]] = []
    if cls is RunConfig:
        columns.append(("config", _documented(str | None, "YAML file with settings; options given here win"), None))
    for name, hint in hints(cls, method).items():
        if is_dataclass(hint):
            section = _shape(hint, shown.get(name) or {}, method)  # type: ignore[arg-type]
            columns.append((name, section, field(default_factory=section)))
        else:
            columns.append((name, _documented(hint, help_of.get(name, "")), shown.get(name, defaults[name].default)))
    doc = cls.__doc__ if cls is not RunConfig else "Train a policy from preference data."
    return make_dataclass(cls.__name__, columns, kw_only=True, namespace={"__doc__": doc})


def _documented(hint: Any, text: str) -> Any:
    import tyro

    return Annotated[hint, tyro.conf.arg(help=text)]
