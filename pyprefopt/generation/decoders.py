"""Decoders: which distribution the next token is drawn from, given what policy and reference say.

Source: shallow preference signals, section 3.3. Each is a logits processor in transformers' form beside that
(`generation.processor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprefopt.errors import ConfigError, check, check_number

POLICY, REF, MIXTURE = range(3)  # `led_by`: whose distribution a token was drawn from
LEADERS = ("policy", "ref", "mixing")

Below = Literal["ref", "mixing"]


class Step(NamedTuple):
    """What is known before one token of each row."""

    policy: Tensor  # [R, V] log-probs
    ref: Tensor | None  # [R, V] log-probs; None where the decoder needs none
    kl: Tensor | None  # [R] KL(policy || ref) of the two distributions, nats
    position: Tensor  # [R] tokens generated before


class Choice(NamedTuple):
    """What the next token of each row is drawn from."""

    logits: Tensor  # [R, V]
    led_by: Tensor  # [R] index into LEADERS
    normal: bool = False  # whether the logits are log-probs, which add up to 1; a model's own are


@dataclass(frozen=True)
class Decoder:
    """A rule of decoding. Its fields are its settings."""

    needs_ref: ClassVar[bool] = True
    greedy: ClassVar[bool] = False  # the most probable token, whatever the random numbers are

    def check_ref(self, ref: object) -> None:
        """ConfigError where the reference that is needed is None."""
        if self.needs_ref and ref is None:
            raise ConfigError(f"decode {type(self).__name__} draws from two models; give ref, the reference")

    def choose(self, step: Step) -> Choice:
        """The distributions of the next tokens."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sample(Decoder):
    """Tokens are drawn from the policy."""

    needs_ref: ClassVar[bool] = False

    def choose(self, step: Step) -> Choice:
        """The policy's own."""
        return Choice(step.policy, torch.full_like(step.position, POLICY), normal=True)


@dataclass(frozen=True)
class Greedy(Sample):
    """The policy's most probable token is taken; of equal ones the first."""

    greedy: ClassVar[bool] = True


@dataclass(frozen=True)
class Mixing(Decoder):
    """Tokens are drawn from softmax(a log pi_policy + (1 - a) log pi_ref)."""

    a: float = 0.5  # 1: the policy, 0: the reference, between them both; above 1 away from the reference

    def __post_init__(self) -> None:
        check_number("a", self.a)
        check(self.a >= 0, "a", self.a, ">= 0", "usual 0 to 1; above 1 goes beyond the policy")

    def choose(self, step: Step) -> Choice:
        """The mixture."""
        return Choice(mix(step, self.a), torch.full_like(step.position, MIXTURE), normal=self.a in (0, 1))


@dataclass(frozen=True)
class LengthControl(Decoder):
    """The first t tokens are drawn from the policy, the others from the reference."""

    t: int = 10  # tokens

    def __post_init__(self) -> None:
        check_number("t", self.t, whole=True)
        check(self.t >= 0, "t", self.t, ">= 0", "usual 5 to 15")

    def choose(self, step: Step) -> Choice:
        """The policy's or the reference's, by position."""
        return _switch(step, step.position < self.t, _ref_of(step), REF)


@dataclass(frozen=True)
class KLThreshold(Decoder):
    """Tokens are drawn from the policy where KL(policy || ref) > b at that step, else from the reference.

    With `below` mixing from the mixture of `a` there, as the authors' code does.
    """

    b: float = 0.5  # nats
    below: Below = "ref"  # what leads where the divergence is not above b
    a: float = 0.5  # of the mixture

    def __post_init__(self) -> None:
        check_number("b", self.b)
        check(self.below in ("ref", "mixing"), "below", self.below, "ref or mixing")
        Mixing(self.a)

    def choose(self, step: Step) -> Choice:
        """The policy's where the models differ by more than b."""
        assert step.kl is not None  # noqa: S101  (there with a reference)
        below, leader = (_ref_of(step), REF) if self.below == "ref" else (mix(step, self.a), MIXTURE)
        return _switch(step, step.kl > self.b, below, leader)


def mix(step: Step, a: float) -> Tensor:
    """Logits of softmax(a log pi_policy + (1 - a) log pi_ref), [R, V]: exactly a model's own where a is 0 or 1.

    A token that either model excludes (a logit of minus infinity) is excluded where both count.
    """
    ref = _ref_of(step)
    if a in (0, 1):
        return step.policy if a == 1 else ref
    mixed = torch.lerp(ref, step.policy, a)
    if torch.isfinite(mixed.sum()):
        return mixed
    return mixed.masked_fill(torch.isneginf(step.policy) | torch.isneginf(ref), -torch.inf)


def _switch(step: Step, by_policy: Tensor, other: Tensor, leader: int) -> Choice:
    led_by = torch.where(by_policy, POLICY, leader)
    return Choice(torch.where(by_policy[:, None], step.policy, other), led_by, normal=leader == REF)


def _ref_of(step: Step) -> Tensor:
    assert step.ref is not None  # noqa: S101  (needs_ref)
    return step.ref


def kl_of(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL(p || ref) of distributions by their log-probs [R, V], over the whole vocabulary, nats: [R]."""
    sums = F.kl_div(ref_logps, logps, log_target=True, reduction="none").sum(-1, dtype=torch.float64)
    if torch.isnan(sums).any():  # what p excludes counts nothing
        terms = torch.where(torch.isneginf(logps), 0.0, logps.exp() * (logps - ref_logps))
        sums = terms.sum(-1, dtype=torch.float64)
    return sums.clamp(min=0)


DECODERS: dict[str, type[Decoder]] = {
    "sample": Sample, "greedy": Greedy, "mixing": Mixing, "length_control": LengthControl, "kl_threshold": KLThreshold,
}  # fmt: skip
