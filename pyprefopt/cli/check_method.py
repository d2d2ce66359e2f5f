"""`pyprefopt check-method FILE.py:NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from pyprefopt.cli.options import read_options
from pyprefopt.errors import ConfigError
from pyprefopt.settings.command_line import loose_words, nested, read


@dataclass(frozen=True, kw_only=True)
class CheckMethod:
    """Try a loss or a provider of token rewards: gradient, packing, order, edges; and print what was found.

    Its settings are given as in training, --loss.NAME or --rewards.NAME.
    """

    name: str = loose_words("FILE.py:NAME")  # a class derived from Method or Reward; or the name of one that ships


def run(argv: Sequence[str]) -> None:
    """Check by the options, and print the table."""
    names = [word for word in argv if not word.startswith("-")]
    if not names or {"-h", "--help"} & set(argv[:1]):
        read_options(CheckMethod, argv)

    from pyprefopt.losses import Method
    from pyprefopt.pipeline.trials.check import check_method, find_class

    cls = find_class(names[0])
    section = "loss" if issubclass(cls, Method) else "rewards"
    of_class = make_dataclass("Settings", [(section, cls, field(default=None))], kw_only=True)
    given: dict[str, Any] = nested(read("pyprefopt check-method", [CheckMethod, of_class], argv))
    report = check_method(given["name"], **given.get(section, {}))
    print(report)
    if report.failed:
        found = ", ".join(check.name for check in report.failed)
        raise ConfigError(f"{given['name']} does not hold what every {section} must: {found}; mend it and check again")
