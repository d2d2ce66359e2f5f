"""The loop of generation: batches of prompts, one token a row at a time, until each row has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyprefopt.errors import ConfigError, check, check_number
from pyprefopt.generation.cached_model import CachedModel
from pyprefopt.generation.decoders import MIXTURE, POLICY, Decoder, Step, kl_of
from pyprefopt.generation.draws import kl_draws, prompt_number, token_draws


class Wanted(NamedTuple):
    """One sample that is asked for."""

    row: int  # of the prompt, in the input
    sample: int  # its number among those of the prompt
    ids: Sequence[int]  # the prompt's tokens
    again: int = 0  # how many rows before hold the same prompt

    @property
    def stream(self) -> tuple[int, int]:
        """What its random numbers follow from, beside the seed: the prompt, and the number of the sample."""
        return prompt_number(self.ids), self.again << 32 | self.sample


def wanted_of(prompts: Mapping[int, Sequence[int]], samples: int) -> list[Wanted]:
    """So many samples of each prompt, row -> its tokens."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for row, ids in prompts.items():
        found += [Wanted(row, number, ids, seen[tuple(ids)]) for number in range(samples)]
        seen[tuple(ids)] += 1
    return found


@dataclass
class Generated:
    """One sample, token by token."""

    row: int
    sample: int
    ids: list[int] = field(default_factory=list)  # the end token too
    finished: bool = False  # ended by an end token
    logp_policy: list[float] = field(default_factory=list)  # nats, of the policy's own distribution
    logp_ref: list[float] = field(default_factory=list)  # empty without a reference
    logp_sampled: list[float] = field(default_factory=list)  # of the distribution that was drawn from
    kl: list[float] = field(default_factory=list)  # KL(policy || ref) at each step; empty without a reference
    kl_sampled: list[float] = field(default_factory=list)  # KL(what was drawn from || ref), exact; likewise
    led_by: list[int] = field(default_factory=list)  # index into decoders.LEADERS


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from a decoder's distributions."""

    temperature: float = 1.0  # logits are divided by it
    top_p: float = 1.0  # the most probable tokens that together have so much are drawn from
    max_new_tokens: int = 512  # of a sample
    seed: int = 0
    kl: Literal["exact", "monte_carlo"] = "exact"  # of a step: over the whole vocabulary, or of tokens drawn
    kl_samples: int = 1000  # tokens drawn of the policy, each step, for monte_carlo

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            check_number(name, getattr(self, name))
        check(self.temperature > 0, "temperature", self.temperature, "> 0", "decode greedy takes the best token")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]", "1 draws from all tokens")
        check_number("max_new_tokens", self.max_new_tokens, whole=True)
        check(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "> 0")
        check(0 <= self.seed < 2**64, "seed", self.seed, "in [0, 2^64)")
        check(self.kl in ("exact", "monte_carlo"), "kl", self.kl, "exact or monte_carlo")
        check_number("kl_samples", self.kl_samples, whole=True)
        check(self.kl_samples > 0, "kl_samples", self.kl_samples, "> 0")

    def keeps(self, decoder: Decoder) -> bool:
        """Whether temperature and top_p leave a decoder's distribution as it is."""
        return decoder.greedy or (self.temperature == 1 and self.top_p == 1)


@torch.no_grad()
def sample_batch(
    wanted: Sequence[Wanted],
    decoder: Decoder,
    policy: CachedModel,
    ref: CachedModel | None = None,
    *,
    sampling: Sampling,
    end_ids: Collection[int],
    context: int | None = None,
) -> list[Generated]:
    """Generate one batch of samples; a row leaves the batch when it has ended.

    What a sample becomes depends on its prompt, its number and the seed (of equal prompts also on which it is), and on
    nothing else of the batch.

    Args:
        wanted: the samples.
        decoder: what tokens are drawn from.
        policy: the policy.
        ref: its reference; needed by a decoder that reads it. Where it is given, log-probs and KL are recorded.
        sampling: how tokens are drawn.
        end_ids: the tokens that end a sample.
        context: the most tokens of prompt and sample together; None: no limit.

    Returns:
        The samples, in the order in which they were asked for.

    Raises:
        ConfigError: the decoder needs a reference, or a prompt leaves no room in the context.
    """
    if decoder.needs_ref and ref is None:
        raise ConfigError(f"{type(decoder).__name__} reads a reference; give ref")
    for item in wanted:
        if context is not None and len(item.ids) >= context:
            raise ConfigError(
                f"prompt {item.row} has {len(item.ids)} tokens, the model reads {context}; shorten it, or leave it out"
            )
    done = [Generated(item.row, item.sample) for item in wanted]
    streams = [item.stream for item in wanted]
    draws = np.stack([token_draws(sampling.seed, *stream, sampling.max_new_tokens) for stream in streams])
    live = list(range(len(wanted)))
    models = [policy] if ref is None else [policy, ref]
    logits = [model.start([item.ids for item in wanted]) for model in models]
    for position in range(sampling.max_new_tokens):
        tokens = _draw(done, live, position, decoder, logits, streams, draws, sampling)
        going = []
        for place, (index, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            done[index].finished = token in end_ids
            room = context is None or len(wanted[index].ids) + position + 1 < context
            if not done[index].finished and room and position + 1 < sampling.max_new_tokens:
                going.append(place)
        if not going:
            break
        if len(going) < len(live):
            rows = torch.tensor(going, device=policy.device)
            for model in models:
                model.keep(rows)
            live, tokens = [live[place] for place in going], tokens[rows]
        logits = [model.step(tokens) for model in models]
    return done


def _draw(
    done: Sequence[Generated],
    live: Sequence[int],
    position: int,
    decoder: Decoder,
    logits: Sequence[Tensor],
    streams: Sequence[tuple[int, int]],
    draws: NDArray[np.float64],
    sampling: Sampling,
) -> Tensor:
    """Draw the next token of every live row, and record what is known of it; [R]."""
    precision = torch.promote_types(logits[0].dtype, torch.float32)
    policy = logits[0].to(precision).log_softmax(-1)
    ref = logits[1].to(precision).log_softmax(-1) if len(logits) > 1 else None
    own = [streams[index] for index in live]
    kl = None if ref is None else _divergence(policy, ref, own, position, sampling)
    places = torch.full((len(live),), position, device=policy.device)
    choice = decoder.choose(Step(policy, ref, kl, places))
    kept = sampling.keeps(decoder)
    normal = kept and choice.normal
    drawn = choice.logits if kept else nucleus(choice.logits / sampling.temperature, sampling.top_p)
    drawn = drawn if normal else drawn.log_softmax(-1)
    if decoder.greedy:
        tokens = drawn.argmax(-1)
    else:
        tokens = inverse_cdf(drawn, torch.from_numpy(draws[list(live), position]).to(policy.device))
    columns = {"logp_policy": policy, "logp_sampled": drawn} | ({} if ref is None else {"logp_ref": ref})
    found = {name: values.gather(1, tokens[:, None])[:, 0].tolist() for name, values in columns.items()}
    found["led_by"] = choice.led_by.tolist()
    if kl is not None and ref is not None:
        known = normal and sampling.kl == "exact" and not bool((choice.led_by == MIXTURE).any())
        cost = torch.where(choice.led_by == POLICY, kl, 0.0) if known else kl_of(drawn, ref)
        found |= {"kl": kl.tolist(), "kl_sampled": cost.tolist()}
    for place, (index, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
        done[index].ids.append(token)
        for name, values in found.items():
            getattr(done[index], name).append(values[place])
    return tokens


def _divergence(
    policy: Tensor, ref: Tensor, streams: Sequence[tuple[int, int]], position: int, sampling: Sampling
) -> Tensor:
    """KL(policy || ref) before a token of each row, of log-probs [R, V], [R] nats: exact, or of tokens drawn."""
    if sampling.kl == "exact":
        return kl_of(policy, ref)
    count = sampling.kl_samples
    numbers = [kl_draws(sampling.seed, *stream, position, count) for stream in streams]
    sums = policy.exp().cumsum(-1, dtype=torch.float64)
    at = torch.from_numpy(np.stack(numbers)).to(policy.device) * sums[:, -1:]
    tokens = torch.searchsorted(sums, at, right=True).clamp(max=policy.shape[1] - 1)
    return (policy.gather(1, tokens) - ref.gather(1, tokens)).double().mean(-1)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The logits of the most probable tokens that together have `top_p`, the others minus infinity: [R, V].

    The token that reaches `top_p` is among them. Of equal ones the first come first.
    """
    if top_p >= 1:
        return logits
    probs, order = torch.sort(logits.softmax(-1), dim=-1, descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= top_p)
    return logits.masked_fill(dropped, -torch.inf)


def inverse_cdf(logps: Tensor, numbers: Tensor) -> Tensor:
    """The tokens at numbers in [0, 1) of the summed distributions [R, V], in the order of their ids: [R]."""
    sums = logps.exp().cumsum(-1, dtype=torch.float64)
    at = numbers[:, None] * sums[:, -1:]
    tokens = torch.searchsorted(sums, at, right=True)[:, 0].clamp(max=logps.shape[1] - 1)
    if torch.isneginf(logps.gather(1, tokens[:, None])).any():  # rounding may leave the sum below the number
        last = (logps > -torch.inf).long().mul(torch.arange(1, logps.shape[1] + 1, device=logps.device)).amax(-1) - 1
        tokens = torch.minimum(tokens, last)
    return tokens


def batches_by_tokens(wanted: Sequence[Wanted], *, max_new_tokens: int, budget: int) -> Iterator[list[Wanted]]:
    """The samples in batches of at most `budget` tokens, were all as long as they may be; like prompts together."""
    batch: list[Wanted] = []
    for item in sorted(wanted, key=lambda item: (len(item.ids), item.row, item.sample)):
        size = len(item.ids) + max_new_tokens
        if batch and size * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
