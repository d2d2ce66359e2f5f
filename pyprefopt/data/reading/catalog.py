"""The formats that rows can have, from the extension's table; loads nothing else, so that `--help` can list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pyprefopt.data import _native
from pyprefopt.errors import ConfigError, did_you_mean


class Field(NamedTuple):
    """A field that a format takes."""

    name: str
    role: str  # prompt, chosen, rejected, pair, responses, response, chat, scores, other
    meaning: str  # what it is taken as, in words


@dataclass(frozen=True)
class Format:
    """One row of the table."""

    name: str
    kind: str
    fields: tuple[Field, ...]
    needed: tuple[tuple[str, ...], ...]  # the fields without which a row is not of it; one of each group
    compared: tuple[str, ...]  # fields of other formats that must say the same where they are there
    plain: bool  # the responses of a pair are `chosen` and `rejected`, texts or chats
    weights: dict[str, str]  # beside the fields: weights of tokens, and what they are of
    looks: str  # in Markdown
    example: str  # a row

    @property
    def names(self) -> tuple[str, ...]:
        """Of its fields."""
        return tuple(field.name for field in self.fields)

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The names of its fields and of those that are compared with them."""
        return (*self.names, *self.compared)

    def show_needed(self) -> str:
        """`prompt, response or completion`."""
        return ", ".join(map(" or ".join, self.needed))


TABLE = {
    row["name"]: Format(
        row["name"],
        row["kind"],
        tuple(Field(*field) for field in row["fields"]),
        tuple(map(tuple, row["needed"])),
        tuple(row["compared"]),
        row["plain"],
        dict(row["weights"]),
        row["looks"],
        row["example"],
    )
    for row in _native.format_table()
}
NEEDED = frozenset(name for row in TABLE.values() for group in row.needed for name in group)  # by any format


def names_of(*kinds: str) -> tuple[str, ...]:
    """The formats of these kinds, in the order in which they are tried."""
    return tuple(row.name for kind in kinds for row in TABLE.values() if row.kind == kind)


FORMATS = {kind: names_of(kind) for kind in dict.fromkeys(row.kind for row in TABLE.values())}


def format_of(name: str) -> Format:
    """The format of that name, or a ConfigError."""
    if name not in TABLE:
        raise ConfigError(f"format must be one of {', '.join(TABLE)}, got {name!r}{did_you_mean(name, TABLE)}")
    return TABLE[name]


def kind_of(format: str) -> str:  # noqa: A002
    """What rows of a format are: preferences, candidates, ranked or instructions."""
    return format_of(format).kind


def weight_fields(kind: str) -> tuple[str, ...]:
    """What the weights of rows of a kind are called in files."""
    return tuple(next(row.weights for row in TABLE.values() if row.kind == kind))
