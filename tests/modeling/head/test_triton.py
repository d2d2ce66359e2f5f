"""The head's Triton kernels: through Triton's interpreter against PyTorch's operators, and compiled for two cards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.head import choice
from pyprefopt.modeling.head.choice import check_kernel, race
from pyprefopt.modeling.head.outputs import Readout, token_logps
from pyprefopt.modeling.head.transform import HeadTransform
from pyprefopt.settings.resolve import configure

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}  # in bfloat16 a block's gradient is rounded before the products, as ever


def test_the_interpreted_kernels_agree_with_the_operators() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.modeling.head.kernels_script"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("RESULT ")[1])
    assert found["calls"] == ["add_block", "to_gradient"]
    assert len(found["results"]) == 18
    for one in found["results"]:
        assert max(one["apart"]) <= BOUNDS[one["dtype"]], one
    assert [one["taken"] for one in found["auto"]] == [["triton"], ["torch"]]
    assert all(one["repeated"] and one["left"] == 0 for one in found["auto"])


@pytest.mark.parametrize(
    ("off", "seconds", "taken", "reason"),
    [
        (0.0, 0.02, "torch", "triton takes .* times as long here"),
        (0.0, -0.02, "triton", "torch takes .* times as long here"),
        (0.1, -0.02, "torch", "triton differs from it by 0.1 nats and 0.1 of the gradient, more than 0.001 and 0.001"),
        (float("nan"), -0.02, "torch", "triton differs from it by nan nats"),
        (None, -0.02, "torch", "triton failed with RuntimeError: no such kernel"),
    ],
)
def test_auto_takes_the_faster_that_gives_the_same(off: float | None, seconds: float, taken: str, reason: str) -> None:
    def run(kernel: str) -> tuple[torch.Tensor, torch.Tensor]:
        if kernel == "torch":
            time.sleep(max(0.0, -seconds))
            return torch.zeros(3), torch.eye(3)
        if off is None:
            raise RuntimeError("no such kernel\nand where")
        time.sleep(max(0.0, seconds))
        return torch.full((3,), off), torch.eye(3) * (1 + off)

    found, because = race(run, torch.float32)
    assert found == taken
    assert re.fullmatch(f"{reason}.*", because)


def test_auto_is_torch_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "race", lambda *_: pytest.fail("measured"))
    readout = Readout(torch.nn.Linear(4, 9), torch.randn(3, 4), HeadTransform())
    assert readout.kernel == "auto"
    targets = torch.tensor([0, 8, 3])
    assert torch.equal(token_logps(readout, targets), token_logps(readout._replace(kernel="torch"), targets))


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_card(capability: int) -> None:
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pyprefopt.modeling.head import triton as kernels

    numbers = {"first": "i32", "count": "i32", "stride": "i32", "scale": "fp32", "cap": "fp32"}
    columns = {"raw": "*bf16", "targets": "*i64", "logsumexp": "*fp32", "mean": "*fp32", "target_logit": "*fp32"}
    for kernel, names in ((kernels._add, [*columns]), (kernels._gradient, ["raw", "targets", "logsumexp"])):
        fixed = {"CAPPED": True, "COLUMNS": 1024}
        types = {name: columns[name] for name in names} | numbers | dict.fromkeys(fixed, "constexpr")
        made = build(ASTSource(kernel, types, constexprs=fixed), target=GPUTarget("cuda", capability, 32))
        assert made.asm["cubin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_they_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_kernel triton needs a CUDA device, and there is none; set"):
        check_kernel("triton")
    with pytest.raises(ConfigError, match="head_kernel must be one of 'auto', 'torch', 'triton', got 'cuda'"):
        configure(method="dpo", head_kernel="cuda")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyprefopt.modeling.head.triton", raising=False)
    monkeypatch.delattr("pyprefopt.modeling.head.triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    readout = Readout(torch.nn.Linear(4, 9), torch.randn(3, 4), HeadTransform(), "triton")
    for use in (lambda: check_kernel("triton"), lambda: token_logps(readout, torch.tensor([0, 8, 3]))):
        with pytest.raises(ConfigError, match="head_kernel triton needs the package triton"):
            use()
