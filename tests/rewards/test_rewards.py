"""Formulas of all providers against plain loops, and by hand."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.rewards import (
    REWARDS,
    Column,
    Contrastive,
    DPOReward,
    Random,
    SimPOReward,
    StrongWeak,
    Tokens,
    finished,
    seeded_normal,
    transformed,
)
from tests.reference import rewards as slow

LENGTHS = (1, 4, 7, 2)


@pytest.fixture
def tokens():
    """Ragged responses; the last token of each is the template's, of the third one is not in the mask."""
    count = sum(LENGTHS)
    mask, template = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    template[ends] = True
    mask[ends[2]] = False
    own = torch.tensor([1.0, 4.0, 6.0, 2.0]).repeat_interleave(torch.tensor(LENGTHS))
    return Tokens(mask, own, template)


@pytest.fixture
def columns():
    generator = torch.Generator().manual_seed(3)
    names = ("oracle", "base", "simpo", "strong", "weak", "better", "worse", "column", "noise")
    return {name: -4 * torch.rand(sum(LENGTHS), generator=generator) for name in names}


def lists(columns):
    return {name: values.double().tolist() for name, values in columns.items()}


def by_response(values):
    values, start = list(values), 0
    for length in LENGTHS:
        yield values[start : start + length]
        start += length


@pytest.mark.parametrize(
    ("provider", "upper", "lower"),
    [
        (DPOReward(beta=0.3), "oracle", "base"),
        (SimPOReward(beta=2.0), "simpo", "base"),
        (StrongWeak(strong="s", weak="w", beta=1.5), "strong", "weak"),
    ],
)
def test_log_ratios(provider, upper, lower, columns, tokens):
    given = lists(columns)
    expected = slow.log_ratio(provider.beta, given[upper], given[lower])
    assert provider.reads == (upper, lower)
    torch.testing.assert_close(
        provider.values(columns, tokens).double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6
    )


def test_simpo_by_length_counts_the_tokens_in_the_mask(columns, tokens):
    provider = SimPOReward(beta=2.0, form="length_norm")
    pairs = zip(by_response(lists(columns)["simpo"]), by_response(tokens.mask.tolist()), strict=True)
    expected = [value for logps, mask in pairs for value in slow.length_norm(2.0, logps, mask)]
    values = provider.values(columns, tokens)
    assert provider.reads == ("simpo",)
    assert (values <= 0).all()
    torch.testing.assert_close(values.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score_eos", [False, True])
def test_contrastive_is_equation_3(columns, tokens, score_eos):
    provider, given = Contrastive(score_eos=score_eos), lists(columns)
    values = transformed(provider.values(columns, tokens), provider.transform)
    expected = slow.contrastive(1.0, given["better"], given["worse"], tokens.template.tolist(), score_eos=score_eos)
    torch.testing.assert_close(values.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    assert (values.abs() <= 0.5).all()
    assert (values[tokens.template] == 0).all() != score_eos


def test_by_hand(tokens):
    one = Tokens(torch.tensor([True]), torch.ones(1), torch.tensor([False]))
    columns = {name: torch.tensor([value]) for name, value in (("oracle", -1.0), ("base", -3.0), ("column", 2.0))}
    assert DPOReward(beta=0.1).values(columns, one).item() == pytest.approx(0.2)
    assert Column(beta=0.5).values(columns, one).item() == 1.0
    assert transformed(torch.tensor([math.log(3.0)]), "sigmoid_centered").item() == pytest.approx(0.25)
    assert transformed(torch.zeros(3), "sigmoid_centered").tolist() == [0.0, 0.0, 0.0]


def test_equal_models_and_equal_prompts_give_exactly_zero(columns, tokens):
    same = dict.fromkeys(columns, columns["base"])
    for provider in (DPOReward(), SimPOReward(), StrongWeak(strong="s", weak="w"), Contrastive()):
        raw = provider.values(same, tokens)
        values = finished(raw, tokens, transform=provider.transform, noise_std=0.0, noise=None)
        assert not values.any()


def test_noise_comes_after_the_transform_and_stays_in_the_mask(columns, tokens):
    noise = seeded_normal(sum(LENGTHS), seed=5, stream=0)
    raw = DPOReward().values(columns, tokens)
    clean = finished(raw, tokens, transform="sigmoid_centered", noise_std=0.0, noise=None)
    noisy = finished(raw, tokens, transform="sigmoid_centered", noise_std=2.0, noise=noise)
    torch.testing.assert_close(noisy, torch.where(tokens.mask, clean + 2.0 * noise, 0.0))
    assert noisy[~tokens.mask].tolist() == [0.0]


def test_noise_is_standard_and_a_function_of_seed_and_stream():
    first = seeded_normal(20_000, seed=1, stream=0)
    assert torch.equal(first, seeded_normal(20_000, seed=1, stream=0))
    for other in (seeded_normal(20_000, seed=2, stream=0), seeded_normal(20_000, seed=1, stream=1)):
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 0.03
    assert first.mean().item() == pytest.approx(0, abs=0.03)
    assert first.std().item() == pytest.approx(1, abs=0.03)


def test_random_is_its_noise(columns, tokens):
    assert torch.equal(Random(beta=2.0).values(columns, tokens), 2.0 * columns["noise"])


def test_an_infinite_log_prob_is_not_hidden(columns, tokens):
    columns["oracle"][0] = columns["base"][0] = -math.inf
    assert DPOReward().values(columns, tokens)[0].isnan()


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_provider_declares_what_it_is(name):
    provider = REWARDS[name]
    assert provider.__doc__
    assert provider.transform in ("raw", "sigmoid_centered")
    assert isinstance(provider.log_ratio, bool)
    given = {f.name: "x" for f in fields(provider) if f.name in ("strong", "weak")}
    assert provider(**given).reads


@pytest.mark.parametrize(
    ("provider", "settings", "message"),
    [
        (DPOReward, {"beta": 0.0}, "rewards.beta must be > 0 and finite, got 0.0"),
        (SimPOReward, {"gamma": -1.0}, "rewards.gamma must be >= 0 and finite, got -1.0"),
        (SimPOReward, {"form": "ratio"}, "rewards.form must be 'log_ratio' or 'length_norm', got 'ratio'"),
        (StrongWeak, {"strong": "s", "weak": "w", "beta": -1.0}, "rewards.beta must be > 0"),
        (Column, {"column": "my rewards"}, "rewards.column must be the NAME of chosen_NAME and rejected_NAME"),
        (Random, {"beta": 0.0}, "rewards.beta must be > 0"),
        (Contrastive, {"wrap": "html"}, "rewards.wrap must be 'chat' or 'raw', got 'html'"),
        (Contrastive, {"prefix": "x"}, "rewards.prefix must be 'marker' or 'none', got 'x'"),
        (Contrastive, {"context": "x"}, "rewards.context must be 'full' or 'last', got 'x'"),
        (Contrastive, {"max_tokens": 0}, "rewards.max_tokens must be > 0, got 0"),
    ],
)
def test_refusals(provider, settings, message):
    with pytest.raises(ConfigError) as error:
        provider(**settings)
    assert message in str(error.value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_number_of_the_settings_is_finite(name, value):
    given = {f.name: "x" for f in fields(REWARDS[name]) if f.name in ("strong", "weak")}
    for setting in (f.name for f in fields(REWARDS[name]) if f.type == "float"):
        with pytest.raises(ConfigError, match=rf"rewards\.{setting} must be .* and finite, got"):
            REWARDS[name](**given, **{setting: value})
