"""Chat templates, rendered in Rust as transformers renders them; a template is a shipped name or a Jinja file."""

from __future__ import annotations

import json
import time
from calendar import timegm
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pyprefopt.data import _native
from pyprefopt.errors import ConfigError, did_you_mean

SHIPPED = ("plain", "chatml")


def read_chat_template(name_or_path: str | Path) -> str:
    """The source of a shipped template, or of a file.

    Raises ConfigError where there is neither.
    """
    if name_or_path in SHIPPED:
        return files("pyprefopt.data").joinpath("templates", f"{name_or_path}.jinja").read_text(encoding="utf-8")
    path = Path(name_or_path)
    if not path.is_file():
        near = did_you_mean(str(name_or_path), SHIPPED)
        raise ConfigError(
            f"--chat_template must be one of {', '.join(SHIPPED)} or a Jinja file, got '{name_or_path}'{near}"
        )
    return path.read_text(encoding="utf-8")


def local_seconds() -> int:
    """Seconds since 1970 of the local wall clock: what `strftime_now` shows."""
    return timegm(time.localtime())


def to_json(value: Any) -> str | None:
    """`value` as JSON, or None for None."""
    return None if value is None else json.dumps(value, ensure_ascii=False)


def render_chat(
    chat_template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special_tokens: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **template_kwargs: Any,
) -> str:
    """One chat as text, by the template's source; byte-identical to transformers' `apply_chat_template`.

    Raises ConfigError with the template's own words where it refuses.
    """
    try:
        return _native.render_chat(
            chat_template,
            json.dumps(messages, ensure_ascii=False),
            special_tokens=list((special_tokens or {}).items()),
            add_generation_prompt=add_generation_prompt,
            tools=to_json(tools),
            template_kwargs=to_json(template_kwargs),
            now=local_seconds(),
        )
    except ValueError as error:
        raise ConfigError(f"chat_template: {error}") from None
