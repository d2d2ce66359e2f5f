"""The head's Triton kernels: through Triton's interpreter against PyTorch's operators, and compiled for two cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.head import check_kernel
from pyprefopt.train.resolve import configure

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}  # in bfloat16 a block's gradient is rounded before the products, as ever


def test_the_interpreted_kernels_agree_with_the_operators() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.modeling.kernels_script"], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("RESULT ")[1])
    assert found["calls"] == ["add_block", "to_gradient"]
    assert len(found["results"]) == 18
    for one in found["results"]:
        assert max(one["apart"]) <= BOUNDS[one["dtype"]], one


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_card(capability: int) -> None:
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pyprefopt.modeling import kernels

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
    with pytest.raises(ConfigError, match="head_kernel must be one of 'torch', 'triton', got 'cuda'"):
        configure(method="dpo", head_kernel="cuda")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyprefopt.modeling.kernels", raising=False)
    monkeypatch.delattr("pyprefopt.modeling.kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match="head_kernel triton needs the package triton"):
        check_kernel("triton")
