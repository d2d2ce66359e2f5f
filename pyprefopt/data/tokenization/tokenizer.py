"""The tokenizer: a `tokenizer.json` with special tokens and a chat template, thin over the Rust handle."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import to_series
from pyprefopt.data.tokenization.render import (
    SHIPPED,
    TOOL_USE,
    check_compiles,
    check_messages,
    local_seconds,
    read_chat_template,
    reference_renderer,
    to_json,
)
from pyprefopt.data.tokenization.tokenizer_files import (
    TransformersTokenizer,
    files_of,
    read_config,
    read_tokenizer,
    shown,
    special_tokens,
)
from pyprefopt.errors import ConfigError, DataError, option
from pyprefopt.storage.files import atomic_write
from pyprefopt.storage.hub import ADDITIONAL_TEMPLATES, EMBEDDED_DATA, resolve

PROVED_ROWS = 64  # rows of the user's whose messages the fast engine is compared on; Rust takes a sample of them
_CHATML = ("<|im_start|>", "<|im_end|>")
_PROVING = Lock()

logger = logging.getLogger("pyprefopt")


@dataclass(frozen=True)
class Tokenizer:
    """A Tokenizer is a tokenizer with its chat template; `load_tokenizer` makes it.

    Special tokens are written by the template, never added behind its back.
    """

    path: Path  # the directory or file that it came from
    json: bytes = field(repr=False)  # the content of tokenizer.json
    special_tokens: Mapping[str, str]  # `eos_token` and, where there are, `bos_token`, `pad_token`, …
    chat_template: str = field(repr=False)
    native: _native.Tokenizer = field(repr=False, compare=False)
    other_templates: Mapping[str, str] = field(repr=False, default_factory=dict)  # tool_use: for rows with tools

    @property
    def eos_token(self) -> str:
        """The token that ends a text."""
        return self.special_tokens["eos_token"]

    @property
    def eos_token_id(self) -> int:
        """The id of `eos_token`."""
        return self._id(self.eos_token)

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text, if there is one."""
        return self.special_tokens.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        """The id of `bos_token`, if there is one."""
        return None if self.bos_token is None else self._id(self.bos_token)

    @property
    def vocab_size(self) -> int:
        """The largest token id plus one: the rows that an embedding needs."""
        return self.native.vocab_size

    @property
    def engine(self) -> str:
        """`fast` where our own engine makes the ids, `tokenizers` where the library does; `why` is the reason."""
        return self.native.engine

    @property
    def why(self) -> str:
        """Why the library makes the ids: a component of tokenizer.json unknown to the fast engine, or a difference."""
        return self.native.why

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over tokenizer.json, template and special tokens, in hex."""
        digest = hashlib.sha256()
        tokens = json.dumps(dict(self.special_tokens), sort_keys=True).encode()
        for part in (self.json, self.chat_template.encode(), tokens, *self._others):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    @property
    def template_hash(self) -> str:
        """SHA-256 over the chat templates, in hex."""
        return hashlib.sha256(b"\0".join([self.chat_template.encode(), *self._others])).hexdigest()

    @property
    def _others(self) -> list[bytes]:
        return [part.encode() for pair in sorted(self.other_templates.items()) for part in pair]

    def encode(self, texts: Any) -> pl.Series:
        """Encode texts, without adding special tokens.

        Args:
            texts: strings, in a list or any column.

        Returns:
            list<u32>, the token ids of each text; null of null.

        Raises:
            DataError: one text alone, or a column of another type.

        Example:
            >>> load_tokenizer("embedded:toy").encode(["cat says meow"]).to_list()
            [[37, 310, 200]]
        """
        column = _texts(texts)
        self.prove(column)
        return encoded(self.native, column)

    def prove(self, texts: Any, *, all: bool = False) -> bool:  # noqa: A002
        """Compare the fast engine with `tokenizers` on a sample of texts, the first time that there are any.

        On a difference the library makes all further ids, and a warning names the text.

        Args:
            texts: a column of strings, or a list of them.
            all: compare every text in full, every time.

        Returns:
            False where they differed.
        """
        difference = self.native.prove(_texts(texts), all=all)
        if difference is not None:
            logger.warning("%s: %s; the tokenizers library makes all further ids", self.path, difference)
        return difference is None

    def prove_on_rows(self, rows: Callable[[], pl.DataFrame]) -> None:
        """`prove`, once, on the messages of these rows; other threads wait for the answer."""
        with _PROVING:
            if self.native.proved:
                return
            first = rows()
            names = [name for name in ("prompt", "chosen", "rejected", "response", "responses") if name in first]
            contents = [text for name in names if (text := _contents(first[name])) is not None]
            self.prove(pl.concat([*contents, pl.Series("content", [], pl.String)]))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> str:
        """Render one chat as text.

        Args:
            messages: dicts with `role` and `content`, and what else the template reads.
            add_generation_prompt: end with what begins the assistant's turn.
            tools: the tools' JSON schemas, for the template.
            **template_kwargs: what else the template reads.

        Returns:
            The text.

        Raises:
            ConfigError: the template refuses (with its own words), or the messages are none.
        """
        check_messages(messages)
        try:
            return self.native.render(
                to_json("messages", list(messages)) or "",
                add_generation_prompt=add_generation_prompt,
                tools=to_json("tools", tools),
                template_kwargs=to_json("variables", template_kwargs),
            )
        except ValueError as error:
            raise ConfigError(f"chat_template: {error}") from None

    @cached_property
    def ends_in_space(self) -> bool:
        """Whether the template writes spaces or newlines behind a finished chat."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = self.render(chat)
        except ConfigError:  # it asks for more than this
            return True
        return text != text.rstrip()

    def save(self, directory: str | Path) -> None:
        """Write the files from which transformers' AutoTokenizer and `load_tokenizer` load the same tokenizer."""
        target = Path(directory)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "pad_token": self.eos_token,
            **self.special_tokens,
        }
        atomic_write(target / "tokenizer.json", self.json)
        atomic_write(target / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
        atomic_write(target / "chat_template.jinja", self.chat_template.encode())
        for name, template in self.other_templates.items():
            atomic_write(target / ADDITIONAL_TEMPLATES / f"{name}.jinja", template.encode())

    def _id(self, token: str) -> int:
        index = self.native.token_to_id(token)
        if index is None:  # load_tokenizer has looked
            raise ConfigError(f"the token {token!r} is not in the vocabulary of {self.path}")
        return index


GivenTokenizer: TypeAlias = Tokenizer | str | Path | TransformersTokenizer


def as_tokenizer(given: GivenTokenizer) -> Tokenizer:
    """A Tokenizer as it is, or the one that `load_tokenizer` makes of what was given."""
    if isinstance(given, Tokenizer):
        return given
    try:
        return load_tokenizer(given)
    except ConfigError as error:
        if "eos_token" in str(error) or "chat_template" in str(error):  # what only load_tokenizer takes
            raise ConfigError(f"{error} (to data.load_tokenizer; what it gives is taken here too)") from None
        raise


def load_tokenizer(
    path: str | Path | TransformersTokenizer,
    *,
    eos_token: str | None = None,
    chat_template: str | Path | None = None,
    trust_remote_code: bool = False,  # noqa: ARG001  (no code is ever executed here; models take the same arguments)
) -> Tokenizer:
    """Load a tokenizer from a directory with tokenizer.json, from a bare tokenizer.json, or by its hub name.

    Args:
        path: where it is; `embedded:toy` is that of the embedded set. Or a tokenizer of transformers, in memory.
        eos_token: the text of the token that ends a turn or text; None: the one that the files name.
        chat_template: `plain`, `chatml`, a Jinja file, a template's source, or the name of one of several in the files;
            None: the one in the files. Of several it is `default`, and `tool_use` for rows with tools, as in
            transformers.
        trust_remote_code: has no effect: no code is ever executed here.

    Returns:
        The tokenizer, with its chat template.

    Raises:
        ConfigError: there is no tokenizer.json, no EOS token or no chat template.

    Example:
        >>> tokenizer = load_tokenizer("embedded:toy")
        >>> tokenizer.eos_token, tokenizer.vocab_size
        ('<|end|>', 420)
        >>> tokenizer.encode(["cat says meow"]).to_list()
        [[37, 310, 200]]
    """
    name = path if isinstance(path, str | Path) else getattr(path, "name_or_path", "") or type(path).__name__
    with files_of(path) as source:
        stays = isinstance(path, str | Path) and path != EMBEDDED_DATA
        made = _load(source, None if stays else str(name), eos_token, chat_template)
    return made if stays else replace(made, path=Path(name))


def _load(source: Path, name: str | None, eos_token: str | None, chat_template: str | Path | None) -> Tokenizer:
    """The tokenizer of a directory or file, which messages call `name` where the user does not know that place."""
    there = source / "tokenizer.json" if source.is_dir() else source
    if not there.is_file():
        raise ConfigError(f"tokenizer {source}: there is no tokenizer.json; save the tokenizer as a fast one first")
    file = there if name is None else Path(name)
    config = read_config(source) if source.is_dir() else {}
    tokens = special_tokens(config, source)
    if eos_token is not None:
        tokens["eos_token"] = eos_token
    if "eos_token" not in tokens:
        raise ConfigError(f"{file} names no EOS token; pass {option('eos_token', '</s>')}, or whichever ends its texts")
    own = _own_templates(source, config)
    template, others = _choose_template(file, own, chat_template)
    content = read_tokenizer(source) if source.is_dir() else there.read_bytes()
    of_file = None if chat_template in own else _file_of_template(chat_template)
    native = open_native(file, content, tokens, template, others.get(TOOL_USE), template_file=of_file)
    if native.engine != "fast":
        once = {"once": f"ids by the tokenizers library: {native.why}"}  # a run has copies of it
        logger.warning("%s: the tokenizers library makes the ids, slowly: %s", file, native.why, extra=once)
    unknown = [marker for marker in _CHATML if chat_template == "chatml" and native.token_to_id(marker) is None]
    if unknown:
        logger.warning(
            "%s has no token %s, which chatml ends and begins turns with: it is cut up like other text, and may merge "
            "with what stands before; add the markers as special tokens, or take %s",
            file, " and no ".join(unknown), option("chat_template", "plain"),
        )  # fmt: skip
    return Tokenizer(source, content, _known(native, tokens, file), template, native, others)


def encoded(native: _native.Tokenizer, texts: pl.Series) -> pl.Series:
    """list<u32> of each text's tokens, under its name; null stays null."""
    ids = to_series("ids", native.encode(texts), pl.List(pl.UInt32))
    columns = pl.DataFrame([ids, texts.is_not_null().alias("there")])
    return columns.select(pl.when("there").then("ids").alias(texts.name)).to_series()


def _texts(texts: Any) -> pl.Series:
    """Strings of any library as a column, a column as it is; DataError for anything else."""
    if isinstance(texts, pl.Series):
        return texts
    rule = "texts must be strings, as a list or a column, got {}; for one text write [text]"
    if isinstance(texts, str | bytes):
        raise DataError(rule.format("one text"))
    try:
        column = pl.Series("ids", texts)
    except (TypeError, pl.exceptions.PolarsError):
        raise DataError(rule.format(f"one of type {type(texts).__name__}")) from None
    if column.dtype not in (pl.String, pl.Null):
        raise DataError(rule.format(f"a column of {column.dtype}"))
    return column


def load_own_tokenizer(path: str | Path, *, chat_template: Path) -> Tokenizer:
    """A model's own tokenizer, from the files of its folder; `chat_template` is the Jinja file where it has none.

    Raises ConfigError where it names no EOS token.
    """
    source = resolve(path)
    config = read_config(source)
    if "eos_token" not in special_tokens(config, source):
        raise ConfigError(f"{path} names no EOS token; write eos_token into its tokenizer_config.json")
    return load_tokenizer(path, chat_template=None if _own_templates(source, config) else chat_template)


def _file_of_template(chat_template: str | Path | None) -> str | Path | None:
    """The name that the user gave for a template; None for a source and for the tokenizer's own."""
    source = isinstance(chat_template, str) and ("{{" in chat_template or "{%" in chat_template)
    return None if source else chat_template


def open_native(
    file: Path,
    content: bytes,
    special_tokens: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    tool_template: str | None = None,
    *,
    template_file: str | Path | None = None,
) -> _native.Tokenizer:
    """The Rust handle of a tokenizer.json, with or without a template, and one for chats with tools.

    Errors name `template_file` too.
    """
    templates = (chat_template, tool_template)
    renderers = [None if source is None else reference_renderer(source, special_tokens or {}) for source in templates]
    try:
        native = _native.Tokenizer(
            content,
            special_tokens=list((special_tokens or {}).items()),
            chat_template=chat_template,
            tool_template=tool_template,
            now=local_seconds(),
            reference=renderers[0],
            tool_reference=renderers[1],
        )
    except ValueError as error:
        of_template = template_file is not None and "template" in str(error)
        shown = f"{file} with the chat template {template_file}" if of_template else file
        raise ConfigError(f"{shown}: {error}") from None
    for source, refusal in zip(templates, native.template_refusals, strict=True):
        if refusal is not None and source is not None:
            check_compiles(source, refusal)
    return native


def _known(native: _native.Tokenizer, tokens: Mapping[str, str], file: Path) -> dict[str, str]:
    """The special tokens that the vocabulary has; it must have EOS and BOS."""
    unknown = [name for name, token in tokens.items() if native.token_to_id(token) is None]
    for name in unknown:
        if name in ("eos_token", "bos_token"):
            raise ConfigError(
                f"{name} {shown(tokens[name])} is not in the vocabulary of {file}; pass {option(name)}: a token that is"
                if name == "eos_token"
                else f"{name} {shown(tokens[name])} is not in the vocabulary of {file}; correct tokenizer_config.json"
            )
        logger.info("%s %r is not in the vocabulary of %s and is not used", name, tokens[name], file)
    return {name: token for name, token in tokens.items() if name not in unknown}


def _contents(chats: pl.Series) -> pl.Series | None:
    """The contents of a column of chats, or of lists of chats; None for any other column."""
    while isinstance(chats.dtype, pl.List):
        chats = chats.drop_nulls().explode()
    if not isinstance(chats.dtype, pl.Struct) or chats.dtype.to_schema().get("content") != pl.String:
        return None
    return chats.struct.field("content").drop_nulls()


def _own_templates(source: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates that come along by name, as transformers finds them: files, else the config's entry."""
    found = {path.stem: path for path in sorted(source.glob(f"{ADDITIONAL_TEMPLATES}/*.jinja"))}
    if (source / "chat_template.jinja").is_file():
        found["default"] = source / "chat_template.jinja"
    if found:
        return {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    own = config.get("chat_template")
    if isinstance(own, str):
        return {"default": own}
    entries = own if isinstance(own, list) else []
    return {entry["name"]: entry["template"] for entry in entries if _is_named(entry)}


def _is_named(entry: object) -> bool:
    """Whether this is a template with a name that a file can have."""
    if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
        return False
    name = entry.get("name")
    if not isinstance(name, str) or Path(name).name != name:
        raise ConfigError(f"a chat template's name must be one that a file can have, got {name!r}; rename it")
    return True


def _choose_template(file: Path, own: Mapping[str, str], chosen: str | Path | None) -> tuple[str, dict[str, str]]:
    """The template of chats, and the others that stay with it: those of the files, where none is given."""
    if chosen is not None:
        named = isinstance(chosen, str) and chosen not in SHIPPED and chosen in own
        return own[str(chosen)] if named else read_chat_template(chosen, own), {}
    names = " or ".join(SHIPPED)
    if not own:
        raise ConfigError(f"{file} has no chat template; pass {option('chat_template')}: {names}, or a Jinja file")
    if "default" not in own:
        raise ConfigError(
            f"{file} has several chat templates and none named default; pass {option('chat_template')}: "
            f"{' or '.join(sorted(own))}"
        )
    return own["default"], {name: template for name, template in own.items() if name != "default"}
