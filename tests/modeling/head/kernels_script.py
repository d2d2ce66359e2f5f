"""What test_triton.py starts under TRITON_INTERPRET=1, which Triton must see before it is imported."""

from __future__ import annotations

import json

import torch
from torch import nn

from pyprefopt.modeling.head import choice, outputs
from pyprefopt.modeling.head import triton as kernels
from pyprefopt.modeling.head.outputs import Readout, token_outputs
from pyprefopt.modeling.head.transform import HeadTransform

TRANSFORMS = {"plain": HeadTransform(), "scaled": HeadTransform(0.3), "capped": HeadTransform(0.7, 4.0)}


def outcome(kernel: str, dtype: torch.dtype, transform: HeadTransform, bias: bool, rows: int) -> list[torch.Tensor]:
    """Log-probs, entropies, and the gradients of hidden, weight and bias."""
    torch.manual_seed(0)
    head = nn.Linear(16, 2_500, bias=bias)
    with torch.no_grad():
        head.weight.mul_(8)
    hidden = torch.randn(rows, 16).to(dtype).requires_grad_()
    head, targets = head.to(dtype), torch.randint(0, 2_500, (rows,))
    found = token_outputs(Readout(head, hidden, transform, kernel), targets, entropy=True)
    (found.logps * torch.linspace(-1, 1, rows, dtype=found.logps.dtype)).sum().backward()
    gradients = [hidden.grad, *(p.grad for p in head.parameters())]
    return [t.detach().double() for t in (found.logps, found.entropy, *gradients)]


def main() -> None:
    calls = []
    for name in ("add_block", "to_gradient"):
        own = getattr(kernels, name)
        setattr(kernels, name, lambda *a, own=own, name=name: calls.append(name) or own(*a))
    results = []
    for dtype in ("float32", "bfloat16"):
        for name, transform in TRANSFORMS.items():
            for bias, rows in ((False, 3), (True, 3), (False, 0)):
                case = getattr(torch, dtype), transform, bias, rows
                pairs = zip(outcome("triton", *case), outcome("torch", *case), strict=True)
                apart = [((a - b).norm() / max(b.norm(), 1.0)).item() for a, b in pairs]
                results.append({"case": f"{dtype} {name} {bias} {rows}", "dtype": dtype, "apart": apart})
    print("RESULT " + json.dumps({"results": results, "calls": sorted(set(calls)), "auto": auto()}))


def auto() -> list[dict[str, object]]:
    """What `auto` takes where the clock shows each kernel the faster, and how often it looked at the clock."""
    found: list[dict[str, object]] = []
    choice._on_gpu = lambda _: True
    outputs.SAMPLE = 4
    for slower in ("torch", "triton"):
        choice.chosen_kernels.clear()
        times = iter([2.0, 1.0] if slower == "torch" else [1.0, 2.0])
        choice._seconds = lambda run, times=times: run() and next(times)
        case = torch.bfloat16, HeadTransform(0.7, 4.0), True, 3
        pairs = zip(outcome("auto", *case), outcome("auto", *case), strict=True)  # the second does not measure
        repeated = all(torch.equal(a, b) for a, b in pairs)
        found.append({"taken": [*choice.chosen_kernels.values()], "repeated": repeated, "left": len([*times])})
    return found


if __name__ == "__main__":
    main()
