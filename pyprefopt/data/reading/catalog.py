"""The formats that rows can have, from the extension's table; loads nothing else, so that `--help` can list them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyprefopt.data import _native
from pyprefopt.data.renaming import as_mapping
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
NAMES = tuple(dict.fromkeys(name for row in TABLE.values() for name in (*row.names, *row.weights)))  # by any format
NEEDED = frozenset(name for row in TABLE.values() for group in row.needed for name in group)  # by any format


def names_of(*kinds: str) -> tuple[str, ...]:
    """The formats of these kinds, in the order in which they are tried."""
    return tuple(row.name for kind in kinds for row in TABLE.values() if row.kind == kind)


FORMATS = {kind: names_of(kind) for kind in dict.fromkeys(row.kind for row in TABLE.values())}


OTHER_WORDS = {  # for a format -> it
    **dict.fromkeys(("trl", "dpo", "pair", "pairs", "binarized", "preferences", "conversational"), "preference"),
    **dict.fromkeys(("hh-rlhf", "hh_rlhf", "anthropic"), "hh"),
    **dict.fromkeys(("vicuna", "llama-factory", "llamafactory"), "sharegpt"),
    **dict.fromkeys(("ultrafeedback_binarized", "ultra_feedback"), "ultrafeedback"),
    **dict.fromkeys(("openai", "chatml", "chat", "conversations"), "messages"),
    **dict.fromkeys(("sft", "instruct", "instructions", "completion"), "prompt_response"),
    **dict.fromkeys(("stanford", "alpaca_dpo"), "alpaca"),
    **dict.fromkeys(("ranking", "rrhf", "responses"), "candidates"),
}


def unknown_format(name: str, known: Collection[str]) -> ConfigError:
    """The error for a format that is none of `known`, with the one that is meant."""
    word = str(name).lower()
    meant = OTHER_WORDS.get(word, word if word in TABLE else "")
    near = f"; did you mean '{meant}'?" if meant in known else did_you_mean(word, known)
    suffix = word.removeprefix(".")
    if not near and suffix in ("json", "jsonl", "csv", "tsv", "parquet", "arrow", "feather"):
        near = "; the kind of file is known by its name, leave format out"
    return ConfigError(f"format must be auto or one of {', '.join(known)}, got {name!r}{near}")


def format_of(name: str) -> Format:
    """The format of that name, or a ConfigError."""
    if name not in TABLE:
        raise unknown_format(name, TABLE)
    return TABLE[name]


def kind_of(format: str) -> str:  # noqa: A002
    """What rows of a format are: preferences, candidates, ranked or instructions."""
    return format_of(format).kind


def mapping_of(columns: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """The setting `columns`: a name that a format has -> the column of the data that is meant.

    Raises:
        ConfigError: an entry of another form, a name that no format has, or a column that is named twice.
    """
    return as_mapping(columns, NAMES)


def takes_field(kind: str, name: str) -> bool:
    """Whether a format of such rows has a field of that name; candidates also come one response a row."""
    kinds = (kind, "ranked") if kind == "candidates" else (kind,)
    return any(name in (*row.names, *row.weights) for row in TABLE.values() if row.kind in kinds)


def weight_fields(kind: str) -> tuple[str, ...]:
    """What the weights of rows of a kind are called in files."""
    return tuple(next(row.weights for row in TABLE.values() if row.kind == kind))
