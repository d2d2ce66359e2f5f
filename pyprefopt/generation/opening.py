"""What a generation prompt writes of the answer itself, such as `<think>`: it belongs to the answer's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyprefopt.data.tokenization.render import apply_chat_template
from pyprefopt.errors import ConfigError

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

_ANSWER = "\ue000"  # a character that no template writes


def find_opening(
    messages: Sequence[Mapping[str, Any]], rendered: str, tokenizer: Tokenizer, options: Mapping[str, Any]
) -> str:
    """What stands at the end of a rendered prompt where the template, given an answer, would begin the answer.

    Args:
        messages: of the prompt.
        rendered: they, with what begins the assistant's turn.
        tokenizer: with the template.
        options: what else the template reads.

    Returns:
        A text that the answer begins with; empty of most templates.
    """
    try:
        whole = apply_chat_template([*messages, {"role": "assistant", "content": _ANSWER}], tokenizer, **options)
    except ConfigError:  # of a template that takes no answer
        return ""
    pairs = enumerate(zip(rendered, whole, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), len(whole))
    opening = rendered[shared:]
    return opening if opening.strip() else ""
