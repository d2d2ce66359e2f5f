"""Options of the data commands: underscored names, typed values, the nearest known name for an unknown one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pyprefopt.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ConfigErrors of one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            f"pyprefopt {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def option(self, name: str, text: str, **settings: Any) -> None:
        """Add `--name`, described by `text`."""
        self.add_argument(f"--{name}", help=text, **settings)

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values by name. `--name-with-dashes` is taken too. `--help` prints and raises SystemExit(0)."""
        values, unknown = self.parse_known_args([_underscored(word) for word in argv])
        for word in unknown:
            if word.startswith("--"):
                name = word[2:].partition("=")[0]
                known = [action.dest for action in self._actions if action.option_strings]
                raise ConfigError(f"unknown setting '{name}'{did_you_mean(name, known)}; see --help")
            raise ConfigError(f"unexpected argument '{word}'; options are written --name value, see --help")
        return vars(values)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def limit(word: str) -> int | None:
    """A whole number, or `none`."""
    return None if word.lower() == "none" else int(word)


def boolean(word: str) -> bool:
    """`true` or `false`."""
    if word.lower() not in ("true", "false"):
        raise ValueError(word)
    return word.lower() == "true"


def flag(*, default: bool = False) -> dict[str, Any]:
    """Settings of an option that is true when it is named: `--name`, `--name true`, `--name=false`."""
    return {"type": boolean, "nargs": "?", "const": True, "default": default, "metavar": "true|false"}
