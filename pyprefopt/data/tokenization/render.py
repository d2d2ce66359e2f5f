"""Chat templates, rendered in Rust as transformers renders them; a template is a shipped name or Jinja source."""

from __future__ import annotations

import json
import logging
import time
from calendar import timegm
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from pyprefopt.data import _native
from pyprefopt.data.tokenization.reference import OutOfBoundsError, Renderer
from pyprefopt.errors import ConfigError, check, did_you_mean

SHIPPED = ("plain", "chatml")
TOOL_USE = "tool_use"  # the template of chats with tools, where there are several

logger = logging.getLogger("pyprefopt")


class TemplateOwner(Protocol):
    """What brings a chat template and its special tokens: a Tokenizer."""

    @property
    def chat_template(self) -> str:
        """The template's source."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Such as `{"eos_token": "</s>"}`."""

    @property
    def other_templates(self) -> Mapping[str, str]:
        """Further templates by name; `tool_use` is that of chats with tools."""


def read_chat_template(name_or_path: str | Path, own: Collection[str] = ()) -> str:
    """The source of a shipped template or of a file; a source (which holds a `{{` or `{%`) is itself.

    Raises ConfigError where there is neither; it lists `own`, the names that the tokenizer has, too.
    """
    if name_or_path in SHIPPED:
        return (
            files("pyprefopt.data.tokenization")
            .joinpath("templates", f"{name_or_path}.jinja")
            .read_text(encoding="utf-8")
        )
    if isinstance(name_or_path, str) and ("{{" in name_or_path or "{%" in name_or_path):
        return name_or_path
    path = Path(name_or_path)
    if not path.is_file():
        names = (*SHIPPED, *sorted(own))
        near = did_you_mean(str(name_or_path), names)
        raise ConfigError(
            f"chat_template must be one of {', '.join(names)}, a Jinja file or a template's source, got "
            f"'{name_or_path}'{near}"
        )
    return path.read_text(encoding="utf-8")


def local_seconds() -> int:
    """Seconds since 1970 of the local wall clock: what `strftime_now` shows."""
    return timegm(time.localtime())


def to_json(name: str, value: Any) -> str | None:
    """`value` as JSON, or None for None. Raises ConfigError where it has no JSON form."""
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:  # a lone surrogate is a ValueError too
        raise ConfigError(f"{name} must have a JSON form (dicts, lists, text, numbers): {error}") from None
    return text


def apply_chat_template(
    messages: Sequence[Mapping[str, Any]],
    chat_template: str | Path | TemplateOwner,
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    **variables: Any,
) -> str:
    """Render one chat as text, byte-identical to transformers' `apply_chat_template(tokenize=False)`.

    What the engine cannot render goes to transformers' renderer, with one warning per template.

    Args:
        messages: dicts with `role` and `content`, and what else the template reads (`name`, `tool_calls`, …). A key
            that is None counts as absent, as in transformers.
        chat_template: a template's source, a shipped name (`plain`, `chatml`), a Path to a Jinja file, or a Tokenizer,
            which brings its own special tokens.
        add_generation_prompt: end with what begins the assistant's turn.
        tools: the tools' JSON schemas, for the template.
        special_tokens: such as `{"eos_token": "</s>"}`; left out with a Tokenizer.
        **variables: what else the template reads (`enable_thinking=False`, `documents=[…]`, …).

    Returns:
        The text.

    Raises:
        ConfigError: the template refuses (with its own words), asks for too much work or memory, or is not there; or
            the messages are none.

    Example:
        >>> apply_chat_template([{"role": "user", "content": "Hi"}], "chatml", add_generation_prompt=True)
        '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    source, tokens = _source(chat_template, special_tokens, with_tools=tools is not None)
    check_messages(messages)
    try:
        return _native.render_chat(
            source,
            to_json("messages", [_without_nones(message) for message in messages]) or "",
            special_tokens=list(tokens.items()),
            add_generation_prompt=add_generation_prompt,
            tools=to_json("tools", tools),
            template_kwargs=to_json("variables", variables),
            now=local_seconds(),
            reference=reference_renderer(source, tokens),
        )
    except ValueError as error:
        raise ConfigError(f"chat_template: {error}") from None


def check_messages(messages: object) -> None:
    """ConfigError for what is no list of messages."""
    one = isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable)
    rule = "a list of at least one {role, content}"
    check(not one and messages not in ([], ()), "messages", messages, rule, "write [{'role': 'user', 'content': …}]")


def _without_nones(message: Any) -> Any:
    return {k: v for k, v in message.items() if v is not None} if isinstance(message, Mapping) else message


def _source(
    chat_template: str | Path | TemplateOwner, special_tokens: Mapping[str, str] | None, *, with_tools: bool
) -> tuple[str, Mapping[str, str]]:
    if not isinstance(chat_template, (str, Path)):
        known = hasattr(chat_template, "chat_template")
        check(known, "chat_template", chat_template, "a template's source, a shipped name, a Path or a Tokenizer")
        rule = "left out where a Tokenizer brings its own"
        check(special_tokens is None, "special_tokens", special_tokens, rule)
        of_tools = chat_template.other_templates.get(TOOL_USE) if with_tools else None
        return of_tools or chat_template.chat_template, chat_template.special_tokens
    named = isinstance(chat_template, Path) or chat_template in SHIPPED
    if not named and "{" not in str(chat_template):  # a literal text for every chat: a name that is misspelt
        raise ConfigError(
            f"chat_template must be a template's source (which holds a {{), a Path to a Jinja file, a Tokenizer, or "
            f"one of {', '.join(SHIPPED)}, got {chat_template!r}{did_you_mean(str(chat_template), SHIPPED)}"
        )
    return read_chat_template(chat_template) if named else str(chat_template), special_tokens or {}


_warned: set[str] = set()  # templates whose notice has been given


_renderer = Renderer()


def reference_renderer(source: str, special_tokens: Mapping[str, str]) -> Callable[..., str]:
    """What renders a chat where the Rust engine cannot: transformers, in a process that the first call starts.

    It is called with JSON texts: messages, add_generation_prompt, tools or None, variables or None, and why.
    Its sandbox reaches no files; time and memory are bounded. Raises ValueError in the template's words.
    """
    exceeded = 0

    def render(messages: str, add_generation_prompt: bool, tools: str | None, variables: str | None, why: str) -> str:
        nonlocal exceeded
        if source not in _warned:
            _warned.add(source)
            logger.warning("this chat template is rendered by transformers, which is slower: %s", why)
        if exceeded > 1:
            raise OutOfBoundsError("transformers' renderer took too much time or memory for the chats before")
        try:
            text = _renderer.render(
                source=source,
                messages=json.loads(messages),
                add_generation_prompt=add_generation_prompt,
                tools=None if tools is None else json.loads(tools),
                variables={**special_tokens, **(json.loads(variables) if variables else {})},
            )
        except OutOfBoundsError:
            exceeded += 1
            raise
        exceeded = 0
        return text

    return render


def check_compiles(source: str, why: str) -> None:
    """Raise ConfigError unless the reference compiles a template that the engine refuses for the reason `why`."""
    try:
        from jinja2.exceptions import TemplateError
    except ImportError:  # without jinja2 there is no other renderer
        raise ConfigError(why) from None
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(source)
    except (
        TemplateError,
        RecursionError,
        MemoryError,
        SyntaxError,
        ValueError,
    ):  # Jinja's own, or of Python's compiler
        raise ConfigError(why) from None
