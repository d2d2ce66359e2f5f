"""What the sampler reports, against forwards over everything, transformers' own generation and the log-prob engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.generation.cached_model import CachedModel
from pyprefopt.generation.decoders import (
    DECODERS,
    Decoder,
    Greedy,
    KLThreshold,
    LengthControl,
    Mixing,
    Sample,
    Step,
    kl_of,
    mix,
)  # fmt: skip
from pyprefopt.generation.draws import kl_draws, token_draws
from pyprefopt.generation.processor import DecoderProcessor
from pyprefopt.generation.sampler import (
    Generated,
    Sampling,
    Wanted,
    batches_by_tokens,
    inverse_cdf,
    nucleus,
    sample_batch,
    wanted_of,
)
from pyprefopt.modeling import LogpsModel, load_model, score_logps
from tests.generation.models import FAMILIES, NAMES, plain_logits, prompts, tiny
from tests.modeling.models import VOCAB, shake, write_config
from tests.reference.packing import Group, Response, pack_groups

ENDS = frozenset({5, 6, 7, 8, 9, 10, 11, 12})
PROMPTS = prompts(7)
WANTED = [Wanted(row, row % 2, ids) for row, ids in enumerate(PROMPTS)]
SAMPLING = Sampling(max_new_tokens=14, seed=3)


@pytest.fixture(scope="module", params=NAMES)
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, CachedModel, CachedModel]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, CachedModel(tiny(request.param, folder, 1)), CachedModel(tiny(request.param, folder, 2))


def run(decoder: Decoder, models: Any, wanted: list[Wanted] = WANTED, **settings: Any) -> list[Generated]:
    _, policy, ref = models
    return sample_batch(wanted, decoder, policy, ref, sampling=Sampling(**vars(SAMPLING) | settings), end_ids=ENDS)


def ids(samples: list[Generated]) -> list[list[int]]:
    return [sample.ids for sample in samples]


def test_greedy_is_the_argmax_of_whole_forwards_and_transformers_own(models: Any) -> None:
    name, policy, ref = models
    found = run(Greedy(), models)
    near = 1e-9 if name != "gemma2" else 1e-5  # its eager attention softens in float32
    for item, sample in zip(WANTED, found, strict=True):
        seen = list(item.ids)
        for token, ours, theirs, kl in zip(sample.ids, sample.logp_policy, sample.logp_ref, sample.kl, strict=True):
            one, other = (plain_logits(model.model, seen).log_softmax(-1) for model in (policy, ref))
            assert int(one.argmax()) == token
            assert (ours, theirs) == (
                pytest.approx(float(one[token]), abs=near),
                pytest.approx(float(other[token]), abs=near),
            )
            assert kl == pytest.approx(float((one.exp() * (one - other)).sum()), abs=near)
            seen.append(token)
        whole = policy.model.generate(
            torch.tensor([item.ids]), do_sample=False, max_new_tokens=14, eos_token_id=sorted(ENDS), pad_token_id=0
        )
        assert whole[0, len(item.ids) :].tolist() == sample.ids
        assert sample.finished == (sample.ids[-1] in ENDS)
        assert sample.finished or len(sample.ids) == 14


def test_ends_of_every_decoder_are_the_models_alone(models: Any) -> None:
    name, policy, ref = models
    ours, theirs = ids(run(Sample(), models)), ids(run(Sample(), (name, ref, policy)))
    assert ours != theirs
    for decoder in (Mixing(1), LengthControl(10**6), KLThreshold(-1.0), KLThreshold(0.0)):
        assert ids(run(decoder, models)) == ours
    for decoder in (Mixing(0), LengthControl(0), KLThreshold(math.inf), KLThreshold(math.inf, below="mixing", a=0)):
        assert ids(run(decoder, models)) == theirs
    half = KLThreshold(math.inf, below="mixing", a=0.5)
    assert ids(run(half, models)) == ids(run(Mixing(0.5), models))


def test_a_batch_is_its_rows_one_by_one(models: Any) -> None:
    for decoder in (Sample(), Mixing(0.5), KLThreshold(1.0)):
        together = run(decoder, models, top_p=0.9, temperature=0.8)
        alone = [run(decoder, models, [item], top_p=0.9, temperature=0.8)[0] for item in WANTED]
        assert ids(together) == ids(alone)
        for one, other in zip(together, alone, strict=True):
            for column in ("logp_policy", "logp_ref", "logp_sampled", "kl"):
                assert getattr(one, column) == pytest.approx(getattr(other, column), abs=1e-6)
        backwards = run(decoder, models, WANTED[::-1], top_p=0.9, temperature=0.8)
        assert ids(backwards) == ids(together)[::-1]
    ends = run(Sample(), models, max_new_tokens=60)
    assert len({len(sample.ids) for sample in ends}) > 1  # rows left the batch at different steps


def test_who_led_and_what_it_cost(models: Any) -> None:
    for sample in run(LengthControl(3), models):
        assert sample.led_by == [0] * min(3, len(sample.ids)) + [1] * max(0, len(sample.ids) - 3)
        after = zip(sample.logp_sampled[3:], sample.logp_ref[3:], strict=True)
        assert all(drawn == ref for drawn, ref in after)  # exactly no divergence from the reference after t
        assert set(sample.kl_sampled[3:]) <= {0.0}
        assert sample.kl_sampled[:3] == sample.kl[:3]
        assert sample.logp_sampled[:3] == sample.logp_policy[:3]
    threshold = float(np.median([kl for sample in run(Sample(), models) for kl in sample.kl]))
    led = run(KLThreshold(threshold), models)
    assert {leader for sample in led for leader in sample.led_by} == {0, 1}
    for sample in led:
        assert sample.led_by == [0 if kl > threshold else 1 for kl in sample.kl]
    name, policy, _ = models
    same = run(Mixing(0.3), (name, policy, CachedModel(policy.model, together=policy.together)))
    assert {kl for sample in same for kl in sample.kl} == {0.0}
    assert ids(same) == ids(run(Sample(), models))


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_the_engines(name: str, tmp_path: Path) -> None:
    """In float32: the packed log-prob engine on prompt and sample, 1e-5 nats a token."""
    path = write_config(tmp_path, FAMILIES[name])
    plain, packed = load_model(path, attention="unpacked"), load_model(path)
    for model in (plain, packed):
        shake(model, seed=1)
    found = sample_batch(WANTED, Sample(), CachedModel(plain.eval()), sampling=SAMPLING, end_ids=ENDS)
    groups = [
        Group(list(item.ids), [Response(sample.ids, kind="response")], row=item.row)
        for item, sample in zip(WANTED, found, strict=True)
    ]
    logps = score_logps(LogpsModel(packed), pack_groups(groups).to())
    assert logps.tolist() == pytest.approx([value for sample in found for value in sample.logp_policy], abs=1e-5)


def test_draws_pass_a_chi_square_test(tmp_path: Path) -> None:
    """20,000 first tokens against the distribution that they are drawn from, after temperature and top_p."""
    policy = CachedModel(tiny("llama", tmp_path, 1))
    logits = policy.start([[4, 5, 6]])
    for top_p in (1.0, 0.8):
        logps = nucleus(logits / 1.5, top_p).log_softmax(-1)
        numbers = torch.tensor([token_draws(0, row, 0, 1)[0] for row in range(20_000)])
        tokens = inverse_cdf(logps.expand(len(numbers), -1), numbers)
        counts = torch.bincount(tokens, minlength=VOCAB).double()
        expected = logps[0].exp() * len(numbers)
        assert counts[expected == 0].sum() == 0
        usual = expected >= 5
        seen, wanted = counts[usual], expected[usual]
        chi = float(((seen - wanted) ** 2 / wanted).sum())
        degrees = int(usual.sum()) - 1
        assert abs(chi - degrees) < 4 * math.sqrt(2 * degrees)


def test_monte_carlo_is_near_the_exact_divergence(models: Any) -> None:
    exact = run(Sample(), models)
    drawn = run(Sample(), models, kl="monte_carlo", kl_samples=4000)
    assert ids(exact) == ids(drawn)
    off = np.array(
        [a - b for one, other in zip(exact, drawn, strict=True) for a, b in zip(one.kl, other.kl, strict=True)]
    )
    _, policy, ref = models
    deviations = []
    for item, sample in zip(WANTED, exact, strict=True):
        for at in range(len(sample.ids)):
            seen = [*item.ids, *sample.ids[:at]]
            one, other = (plain_logits(model.model, seen).log_softmax(-1) for model in (policy, ref))
            ratio = one - other
            mean = (one.exp() * ratio).sum()
            deviations.append(float((one.exp() * (ratio - mean) ** 2).sum().sqrt()) / math.sqrt(4000))
    assert (np.abs(off) < 4.5 * np.array(deviations)).all()
    assert abs((off / deviations).mean()) < 4 / math.sqrt(len(off))


def test_inside_generate_of_transformers(models: Any) -> None:
    """Greedy decoding of the mixture, padded: the processor's and the plain way, step by step."""
    _, policy, ref = models
    if not policy.together:
        pytest.skip("padding changes what this model says")
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(own)) + own for own in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in PROMPTS])
    processor = DecoderProcessor(Mixing(0.5), ref, mask)
    out = policy.model.generate(
        padded, attention_mask=mask, do_sample=False, max_new_tokens=6, min_new_tokens=6, pad_token_id=0,
        eos_token_id=299, logits_processor=[processor],
    )  # fmt: skip
    for own, row in zip(PROMPTS, out[:, longest:].tolist(), strict=True):
        seen = list(own)
        for token in row:
            one, other = (plain_logits(model.model, seen) for model in (policy, ref))
            mixed = torch.lerp(other, one, 0.5)
            mixed[299] = -torch.inf  # min_new_tokens
            assert int(mixed.argmax()) == token
            seen.append(token)


def test_streams_are_their_own() -> None:
    first = token_draws(1, 2, 3, 50)
    assert first.tolist() == token_draws(1, 2, 3, 80)[:50].tolist()
    others = [token_draws(0, 2, 3, 50), token_draws(1, 3, 3, 50), token_draws(1, 2, 2, 50), kl_draws(1, 2, 3, 0, 50)]
    assert all(not np.isin(first, other).any() for other in others)
    assert ((first >= 0) & (first < 1)).all()
    high = [token_draws(2**64 - 1, 2**64 - 1 - place, 2**63 + 5, 5).tolist() for place in (0, 0, 1)]
    assert high[0] == high[1] != high[2]


def test_a_stream_is_of_the_prompt_wherever_it_stands() -> None:
    asked = wanted_of({4: [1, 2], 5: [3], 6: [1, 2]}, 2)
    assert [(item.row, item.sample, item.again) for item in asked] == [
        (4, 0, 0), (4, 1, 0), (5, 0, 0), (5, 1, 0), (6, 0, 1), (6, 1, 1)
    ]  # fmt: skip
    assert len({item.stream for item in asked}) == 6
    assert [item.stream for item in wanted_of({0: [3]}, 2)] == [item.stream for item in asked[2:4]]


def test_nucleus_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64).log()
    kept = {p: torch.isfinite(nucleus(logits, p))[0].tolist() for p in (0.4, 0.5, 0.6, 0.75, 0.95, 1.0)}
    assert kept[0.4] == [True, False, False, False]
    assert kept[0.6] == [True, True, False, False]  # of equal ones the first
    assert kept[0.75] == [True, True, True, False]
    assert kept[0.95] == kept[1.0] == [True] * 4
    logps = torch.tensor([[0.25, 0.0, 0.5, 0.25]], dtype=torch.float64).log().expand(5, 4)
    assert inverse_cdf(logps, torch.tensor([0.0, 0.2499, 0.25, 0.75, 1 - 1e-16])).tolist() == [0, 0, 2, 3, 3]


def test_mixing_and_divergence_by_hand() -> None:
    policy, ref = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.8, 0.2], [0.5, 0.5]))
    step = Step(policy, ref, kl_of(policy.log_softmax(-1), ref.log_softmax(-1)), torch.zeros(1))
    root = math.sqrt(0.8 * 0.5), math.sqrt(0.2 * 0.5)
    assert mix(step, 0.5).softmax(-1)[0].tolist() == pytest.approx([root[0] / sum(root), root[1] / sum(root)])
    parts = 0.8**0.75 * 0.5**0.25, 0.2**0.75 * 0.5**0.25  # a is the policy's share
    assert mix(step, 0.75).softmax(-1)[0].tolist() == pytest.approx([parts[0] / sum(parts), parts[1] / sum(parts)])
    assert kl_of(policy, ref).item() == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    masked = Step(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[1.0, 2.0]]), None, torch.zeros(1))
    assert mix(masked, 0.5)[0].tolist() == [0.5, -math.inf]
    assert mix(masked, 0)[0].tolist() == [1, 2]
    halves = torch.tensor([[0.5, 0.5]]).log()
    assert kl_of(masked.policy.log_softmax(-1), halves).item() == pytest.approx(math.log(2))


def test_batches_hold_what_was_asked_once() -> None:
    batches = list(batches_by_tokens(WANTED, max_new_tokens=14, budget=60))
    assert sorted(item for batch in batches for item in batch) == sorted(WANTED)
    for batch in batches:
        assert max(len(item.ids) + 14 for item in batch) * len(batch) <= 60 or len(batch) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixing(a=-0.1), "a must be >= 0, got -0.1"),
        (lambda: LengthControl(t=2.5), "t must be a whole number"),
        (lambda: KLThreshold(below="policy"), "below must be ref or mixing"),
        (lambda: Sampling(temperature=0), "temperature must be > 0, got 0; decode greedy"),
        (lambda: Sampling(top_p=1.5), "top_p must be in"),
        (lambda: Sampling(max_new_tokens=0), "max_new_tokens must be > 0"),
        (lambda: Sampling(kl="approx"), "kl must be exact or monte_carlo"),
    ],
)
def test_settings_break_their_rules_at_once(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_cannot_be_generated_is_said(tmp_path: Path) -> None:
    policy = CachedModel(tiny("llama", tmp_path, 1), together=True)
    with pytest.raises(ConfigError, match="Mixing reads a reference; give ref"):
        sample_batch(WANTED, Mixing(), policy, sampling=SAMPLING, end_ids=ENDS)
    with pytest.raises(ConfigError, match=r"prompt 0 has 11 tokens, .*reads 11; shorten it"):
        sample_batch(WANTED[:1], Sample(), policy, sampling=SAMPLING, end_ids=ENDS, context=11)
    (sample,) = sample_batch(WANTED[:1], Sample(), policy, sampling=SAMPLING, end_ids=[], context=13)
    assert (len(sample.ids), sample.finished) == (2, False)
    assert set(DECODERS) == {"sample", "greedy", "mixing", "length_control", "kl_threshold"}


def test_the_ends_of_mixing_cost_exactly_what_they_are(models: Any) -> None:
    """a = 0 is the reference bit for bit, whose divergence from itself is 0; a = 1 costs what the policy does."""
    for sample in run(Mixing(0), models):
        assert sample.logp_sampled == sample.logp_ref
        assert set(sample.kl_sampled) == {0.0}
    for sample in run(Mixing(1), models):
        assert sample.logp_sampled == sample.logp_policy
        assert sample.kl_sampled == pytest.approx(sample.kl, abs=1e-12)
