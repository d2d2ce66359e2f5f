"""Rewards from two opposite revision prompts to one model (T-REG, Eq. 3), and the prompts themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pyprefopt.errors import ConfigError, check
from pyprefopt.rewards.provider import Reward, Tokens, Transform
from pyprefopt.types import unkeyed

if TYPE_CHECKING:
    from torch import Tensor

Prefix = Literal["marker", "none"]
Context = Literal["full", "last"]
Wrap = Literal["chat", "raw"]
Overflow = Literal["raise", "zero"]

DIRECTIONS = ("better", "worse")
START, END = "[[NEW ANSWER]]", "[[END OF NEW ANSWER]]"
_FIELDS = ("conversation", "answer", "start", "end")
_PLACES = ", ".join(f"{{{name}}}" for name in _FIELDS)


@dataclass(frozen=True, kw_only=True)
class Contrastive(Reward):
    """Two opposite revision prompts to one model give a token reward.

    Reward of a token: beta (log pi_eval(y_t | better prompt, y_<t) - log pi_eval(y_t | worse prompt, y_<t)), through
    sigmoid - 0.5 (`transform`). A revision prompt holds the conversation and the whole answer and asks to write it
    again, better or worse; then the answer's own tokens are forced, and their log-probs under the two prompts compared.

    Source: T-REG (Zhou et al. 2024), Eq. 3.
    """

    name: str = field(default="contrastive", init=False)
    beta: float = 1.0  # scale of the log-ratio, before the sigmoid; the paper has none
    transform: Transform = "sigmoid_centered"
    model: str = unkeyed("reference")  # pi_eval: reference (what the policy starts from), base, oracle, or a checkpoint
    better_prompt: str | None = unkeyed(None)  # text file with {conversation}, {answer}, {start}; None: the shipped one
    worse_prompt: str | None = unkeyed(None)  # the same for the opposite direction
    prefix: Prefix = "marker"  # the answer is forced after the start marker, or right away
    context: Context = "full"  # the whole conversation, or the last user message alone
    wrap: Wrap = "chat"  # the prompt as a user's message of the chat template, or as bare text
    score_eos: bool = False  # score the turn's end too; the model expects the end marker there, so it gets 0
    max_tokens: int = 4096  # revision prompt and answer, about prompt + 2 answers + 150 tokens
    overflow: Overflow = "raise"  # of responses whose revision is longer: stop, or give them 0

    log_ratio: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = DIRECTIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.max_tokens > 0, "rewards.max_tokens", self.max_tokens, "> 0", "usual 2 times max_tokens")
        for name, kind in (("prefix", Prefix), ("context", Context), ("wrap", Wrap), ("overflow", Overflow)):
            value, known = getattr(self, name), get_args(kind)
            check(value in known, f"rewards.{name}", value, " or ".join(map(repr, known)))

    @property
    def asks(self) -> frozenset[str]:
        """The base or the oracle, where it puts its prompts to that."""
        return frozenset({"base", "oracle"} & {self.model})

    @property
    def checkpoints(self) -> dict[str, str]:
        """The model, where it is none of the run's own."""
        return {} if self.model in ("reference", "base", "oracle") else {"model": self.model}

    def values(self, columns: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
        """Compute the rewards, [T] f32; 0 where the template wrote the token, unless `score_eos`."""
        ratio = self.beta * (columns["better"] - columns["worse"])
        return ratio if self.score_eos else ratio.masked_fill(tokens.template, 0.0)

    def prompt(self, direction: str) -> str:
        """Read a revision prompt.

        Args:
            direction: one of `DIRECTIONS`.

        Returns:
            The prompt's text, with its placeholders.

        Raises:
            ConfigError: the file is not there, a placeholder that it must have is missing, or one is unknown.
        """
        setting, path = f"rewards.{direction}_prompt", getattr(self, f"{direction}_prompt")
        if path is None:
            return files("pyprefopt.rewards").joinpath("prompts", f"{direction}.txt").read_text(encoding="utf-8")
        check(Path(path).is_file(), setting, path, "an existing text file")
        text = Path(path).read_text(encoding="utf-8")
        wanted = ["conversation", "answer", *(["start"] if self.prefix == "marker" else [])]
        missing = [name for name in wanted if f"{{{name}}}" not in text]
        if missing:
            remedy = "" if missing != ["start"] else ", or set rewards.prefix none"
            raise ConfigError(
                f"{setting} must hold {{{missing[0]}}}, got a text without it in '{path}'; add it{remedy}"
            )
        for found in re.findall(r"\{(\w+)\}", text):
            check(found in _FIELDS, setting, f"{{{found}}}", f"a text with the places {_PLACES} only", f"mend '{path}'")
        return text

    def revision(self, prompt: str, conversation: Sequence[Mapping[str, Any]], answer: str) -> str:
        """Fill the places of a revision prompt, once: braces in the user's texts stay as they are.

        Args:
            prompt: of `prompt`.
            conversation: the messages before the answer, each with role and content.
            answer: the response as text.

        Returns:
            The text that the model is given.
        """
        filling = {"conversation": transcript(conversation, self.context), "answer": answer, "start": START, "end": END}
        return re.sub(rf"\{{({'|'.join(_FIELDS)})\}}", lambda match: filling[match[1]], prompt)

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A response as text."""
        return transcript(messages)

    @property
    def forced(self) -> str:
        """What the assistant's turn begins with before the answer."""
        return f"{START}\n" if self.prefix == "marker" else ""


def transcript(messages: Sequence[Mapping[str, Any]], context: str = "full") -> str:
    """A conversation as text: one user message as it stands, several messages with their roles.

    `last`: the last message of the user alone.
    """
    if context == "last":
        messages = [message for message in messages if message["role"] == "user"][-1:]
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{str(message['role']).capitalize()}: {message['content']}" for message in messages)
