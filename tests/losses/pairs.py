"""Random ragged pairs, as the reference's records and as a packed batch, and a run of a method on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pyprefopt.losses import METHODS, Method, weighted_sums
from pyprefopt.types import PackedBatch, Sums
from tests.reference.losses import Response
from tests.reference.packing import Group, pack_groups
from tests.reference.packing import Response as Packed

# Settings that have no default, because no value is published.
REQUIRED = {"temporal": {"scale": 3.0, "decay": 0.9}}

Pair = tuple[Response, Response]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def made(name: str) -> Method:
    """The method with its defaults, and something for what has none."""
    return METHODS[name](**REQUIRED.get(name, {}))


def random_pairs(seed: int, pairs: int = 6, *, select: bool = False, longest: int = 40) -> list[Pair]:
    rng = np.random.default_rng(seed)

    def response() -> Response:
        length = int(rng.integers(1, longest))
        ratio = float(rng.uniform(0.1, 1.0)) if select else 1.0
        count = max(1, int(np.floor(ratio * length + 0.5)))
        kept = set(rng.permutation(length)[:count].tolist())
        policy, ref = -rng.exponential(2.0, length), -rng.exponential(2.0, length)
        rewards, kl = rng.normal(0.0, 1.0, length), rng.exponential(0.3, length)
        return Response(
            policy.tolist(), ref.tolist(), [t in kept for t in range(length)], ratio, rewards.tolist(), kl.tolist()
        )

    return [(response(), response()) for _ in range(pairs)]


def batch_of(pairs: list[Pair], dtype: torch.dtype, layout: str = "shared") -> tuple[PackedBatch, torch.Tensor]:
    """The packed batch (its floats in `dtype`, reference log-probs in it) and the policy's log-probs [M], a leaf."""
    groups = [
        Group([1, 2], [Packed([7] * len(r.policy), selected=r.selected, kind=kind, ratio=r.ratio)
                       for kind, r in zip(("chosen", "rejected"), pair, strict=True)])
        for pair in pairs
    ]  # fmt: skip
    batch = pack_groups(groups, layout).to().map(lambda array: array.to(dtype) if array.is_floating_point() else array)
    flat = [response for pair in pairs for response in pair]
    ratio = torch.tensor([r.ratio for r in flat], dtype=dtype)  # exact: pack_groups has rounded it to float32

    def scored(name: str) -> torch.Tensor:
        values = [value for r in flat for value, s in zip(getattr(r, name), r.selected, strict=True) if s]
        return torch.tensor(values, dtype=dtype)

    batch = replace(batch, selection_ratio=ratio, ref_logps=scored("ref"))
    if all(r.rewards for r in flat):
        batch = replace(batch, token_rewards=scored("rewards"))
    return batch, scored("policy").requires_grad_()


def kl_of(pairs: list[Pair], dtype: torch.dtype) -> torch.Tensor:
    """The sums over scored positions of each response's divergence, [R]."""
    sums = [sum(k for k, s in zip(r.kl, r.selected, strict=True) if s) for pair in pairs for r in pair]
    return torch.tensor(sums, dtype=dtype)


def sums_of(method: Method, batch: PackedBatch, logps: torch.Tensor, kl: torch.Tensor | None = None) -> Sums:
    """What the trainer hands to `loss`. `kl` [R] stands in for the engine's, which reads the vocabulary."""
    weights = method.token_weights(batch, logps.detach())
    if batch.user_weights is not None:
        weights = weights * batch.user_weights
    ref = weighted_sums(weights, batch.ref_logps, batch) if "ref_logps" in method.needs else None
    if "ref_kl" in method.needs and kl is None:
        kl = weighted_sums(batch.token_mask[None], (logps - batch.ref_logps).square(), batch)[0]
    return Sums(policy=weighted_sums(weights, logps, batch), ref=ref, kl=kl)


def losses(method: Method, batch: PackedBatch, logps: torch.Tensor, kl: torch.Tensor | None = None) -> torch.Tensor:
    """What the trainer computes: [units]."""
    return method.loss(sums_of(method, batch, logps, kl), batch)


def scored_only(gradients: list[list[float]], pairs: list[Pair]) -> torch.Tensor:
    """The reference's gradients [tokens of each response] as the batch has them: selected tokens only, [M]."""
    flat = [response for pair in pairs for response in pair]
    return torch.tensor(
        [g for gs, r in zip(gradients, flat, strict=True) for g, s in zip(gs, r.selected, strict=True) if s],
        dtype=torch.float64,
    )


def assert_like_reference(method: Method, reference, dtype: torch.dtype, *, select: bool) -> None:
    """Value and gradient of every pair against `reference(chosen, rejected)`, on several random batches.

    In float32 a gradient is right to the tolerance of the batch's largest: a small one is a difference of large sums.
    """
    for seed in range(5):
        pairs = random_pairs(seed, select=select)
        batch, logps = batch_of(pairs, dtype)
        got = losses(method, batch, logps, kl_of(pairs, dtype) if "ref_kl" in method.needs else None)
        (gradient,) = torch.autograd.grad(got.sum(), logps)
        expected = [reference(*pair) for pair in pairs]
        values = torch.tensor([e[0] for e in expected], dtype=torch.float64)
        gradients = scored_only([g for e in expected for g in e[1:]], pairs)
        tolerance = TOLERANCE[dtype]
        largest = gradients.abs().max().item() if dtype == torch.float32 else 1e-2
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), values, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradient.double(), gradients, rtol=tolerance, atol=tolerance * largest)
