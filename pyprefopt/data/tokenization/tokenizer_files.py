"""The files beside a tokenizer.json: what they name special, and what they say of added tokens.

They are read as transformers reads them: `added_tokens_decoder` of tokenizer_config.json describes tokens in full and
decides; without it special_tokens_map.json goes before tokenizer_config.json, and a token's flags are those of
tokenizer.json. A bare name describes nothing that the file has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

from pyprefopt.data import _native
from pyprefopt.data.embedded import write_tokenizer
from pyprefopt.errors import ConfigError
from pyprefopt.storage.hub import EMBEDDED_DATA, resolve

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SHOWN = 80  # characters of a value in an error


@runtime_checkable
class TransformersTokenizer(Protocol):
    """A tokenizer of transformers, in memory."""

    @property
    def all_special_tokens(self) -> list[str]:
        """What sets it apart from a model, which is saved in the same way."""

    def save_pretrained(self, save_directory: str, /) -> Any:
        """Write its files."""


@contextmanager
def files_of(tokenizer: object) -> Iterator[Path]:
    """Where a tokenizer's files are: of a path or hub name there, of another (embedded, in memory) while inside.

    Raises:
        ConfigError: it is neither, or has no tokenizer.json.
    """
    if isinstance(tokenizer, str | Path) and tokenizer != EMBEDDED_DATA:
        yield resolve(tokenizer)
        return
    if isinstance(tokenizer, str | Path):
        with TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            yield Path(folder)
        return
    if not isinstance(tokenizer, TransformersTokenizer):
        remedy = "; save it (save_pretrained) and pass its folder" if hasattr(tokenizer, "save_pretrained") else ""
        raise ConfigError(
            "tokenizer must be a folder, a tokenizer.json, a hub name, or a tokenizer of data.load_tokenizer or of "
            f"transformers, got one of type {type(tokenizer).__qualname__}{remedy}"
        )
    with TemporaryDirectory() as folder:
        save_in_memory(tokenizer, Path(folder))
        yield Path(folder)


def save_in_memory(tokenizer: TransformersTokenizer, folder: Path) -> None:
    """Write the files of a transformers tokenizer. ConfigError where it has no tokenizer.json."""
    tokenizer.save_pretrained(str(folder))
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"tokenizer must have a tokenizer.json, and one of type {type(tokenizer).__qualname__} saves none; load it "
            "as a fast one (AutoTokenizer does, where there is one)"
        )


def read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json and special_tokens_map.json in one, as transformers takes them together."""
    config, named = read_object(directory / CONFIG), read_object(directory / SPECIAL_MAP)
    if "added_tokens_decoder" in config:
        return {**named, **{name: value for name, value in config.items() if value is not None or name not in named}}
    return config | named


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file. ConfigError for anything else."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(read_text(file))
    except RecursionError:
        raise ConfigError(f"{file}: it is nested too deep to be read; save the tokenizer again") from None
    except ValueError as error:
        raise ConfigError(f"{file}: it must be JSON ({error}); save the tokenizer again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: it must hold a JSON object, got {shown(value)}; save the tokenizer again")
    return value


def read_text(file: Path) -> str:
    """The text of a file. ConfigError where it is not UTF-8 or cannot be read."""
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: it must be UTF-8, not so at byte {error.start}; save the tokenizer again") from None
    except OSError as error:
        raise ConfigError(f"{file}: it cannot be read ({error.strerror}); look at its permissions") from None


def special_tokens(config: Mapping[str, Any], source: Path) -> dict[str, str]:
    """Special tokens by name; each stands in the config as a string or as an object with `content`."""
    extra = config.get("extra_special_tokens")
    named = {**{name: config.get(name) for name in SPECIAL}, **(extra if isinstance(extra, dict) else {})}
    found = {}
    for name, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
        elif value is not None and name in SPECIAL:
            rule = f"{name} must be a text, or an object with the text as content"
            raise ConfigError(f"{source / CONFIG}: {rule}, got {shown(value)}; correct it there")
    return found


def read_tokenizer(folder: Path) -> bytes:
    """The tokenizer.json of a folder, with the added tokens that the files beside it describe in full."""
    return with_added_tokens((folder / "tokenizer.json").read_bytes(), read_config(folder), folder)


def with_added_tokens(content: bytes, config: Mapping[str, Any], source: Path) -> bytes:
    """A tokenizer.json with the added tokens that the files beside it describe in full."""
    decides = "added_tokens_decoder" in config
    told = {token["content"]: token for token in (_decoder(config, source) if decides else _legacy(config, source))}
    if not told:
        return content
    try:
        own = {token["content"]: token for token in json.loads(_native.added_tokens(content))}
        known = {text: _flags(token) for text, token in own.items()}
    except (ValueError, TypeError, KeyError, RecursionError):  # to be told by those who read all of it
        return content
    new = {text: token for text, token in told.items() if known.get(text) != _flags(token)}
    if not decides:
        new = {text: token for text, token in new.items() if text not in own}
    if not new:
        return content
    try:
        file = json.loads(content)
        ids = file["model"]["vocab"]
        ids = ids if isinstance(ids, dict) else {piece[0]: index for index, piece in enumerate(ids)}
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return content
    for text, token in new.items():
        index = own.get(text, {}).get("id", ids.get(text, token["id"]))
        if index is not None:
            own[text] = token | {"id": index}
    return json.dumps(file | {"added_tokens": [*own.values()]}, ensure_ascii=False).encode()


def _flags(token: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(token[name] for name in FLAGS)


def _decoder(config: Mapping[str, Any], source: Path) -> Iterator[dict[str, Any]]:
    """The tokens of `added_tokens_decoder`, with their ids."""
    decoder, where = config["added_tokens_decoder"], f"{source / CONFIG}: added_tokens_decoder"
    if not isinstance(decoder, dict):
        raise ConfigError(f"{where} must be an object of tokens by id, got {shown(decoder)}; correct it there")
    for index, token in decoder.items():
        if not (index.isascii() and index.isdigit() and int(index[:11]) < 1 << 32):
            raise ConfigError(f"{where} must have ids from 0 to 4294967295, got {index[:SHOWN]!r}; correct it there")
        yield _token(int(index), token, f"{where}: entry {index}")


def _legacy(config: Mapping[str, Any], source: Path) -> Iterator[dict[str, Any]]:
    """What older files say of tokens: a special one as an object, and the ids of added_tokens.json."""
    named = special_tokens(config, source)
    for text, index in read_object(source / ADDED).items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 1 << 32:
            rule = "must have ids from 0 to 4294967295"
            raise ConfigError(f"{source / ADDED}: {text[:SHOWN]!r} {rule}, got {shown(index)}; correct it there")
        yield _token(index, {"content": text, "special": text in named.values()}, str(source / ADDED))
    for name in SPECIAL:
        if isinstance(config.get(name), dict):
            token = {key: value for key, value in config[name].items() if key != "__type"}
            yield _token(None, token | {"special": True}, f"{source / SPECIAL_MAP}: {name}")


def _token(index: int | None, token: Any, where: str) -> dict[str, Any]:
    """A token with all its flags."""
    flags: dict[str, Any] = dict.fromkeys(FLAGS, False) | (token if isinstance(token, dict) else {})
    if not isinstance(token, dict) or token.get("normalized") is None:
        flags["normalized"] = not flags["special"]
    text = flags.get("content")
    if not isinstance(text, str) or not all(isinstance(flags[name], bool) for name in FLAGS):
        rule = "must be an object with the token's content and flags that are true or false"
        raise ConfigError(f"{where} {rule}, got {shown(token)}; correct it there")
    return {"id": index, "content": text} | {name: flags[name] for name in FLAGS}


def shown(value: object) -> str:
    """A value of a file as an error shows it."""
    kinds = {dict: "an object", list: "a list", bool: "a truth value", type(None): "null"}
    for kind, words in kinds.items():
        if isinstance(value, kind) and len(repr(value)[: SHOWN + 1]) > SHOWN:
            return words
    return repr(value)[:SHOWN]
