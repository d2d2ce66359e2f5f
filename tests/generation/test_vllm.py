"""`--engine vllm`, against a stand-in with the interface of vLLM 0.33: what it is asked, and what comes of it."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch

from pyprefopt.cli.main import main
from pyprefopt.modeling import load_model

QUICK = ["--max_new_tokens", "30", "--threads", "1", "--log_level", "warning"]


class Stand:
    """Greedy answers of the model that it is given, in the form in which vLLM gives them."""

    calls: list[Any] = []  # noqa: RUF012  (of the one test that looks)

    def __init__(self, model: str, **options: Any) -> None:
        assert options.pop("skip_tokenizer_init")
        assert options.pop("generation_config") == "vllm"  # no defaults of the model's own
        assert options.pop("logprobs_mode") == "raw_logprobs"
        assert {*options} == {"dtype", "trust_remote_code", "seed"}
        self.model = load_model(model, attention="unpacked").eval()

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, list[int]]], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.calls += params
        return [
            SimpleNamespace(outputs=[self._answer(prompt["prompt_token_ids"], own)])
            for prompt, own in zip(prompts, params, strict=True)
        ]

    def _answer(self, prompt: list[int], own: Any) -> Any:
        ids, seen = list(prompt), []
        while len(seen) < own.max_tokens:
            logps = self.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(logps.argmax()))
            seen.append({ids[-1]: SimpleNamespace(logprob=float(logps[ids[-1]]))})
            if ids[-1] in own.stop_token_ids:
                break
        reason = "stop" if ids[-1] in own.stop_token_ids else "length"
        return SimpleNamespace(token_ids=tuple(ids[len(prompt) :]), logprobs=seen, finish_reason=reason)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = Stand, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(Stand, "calls", [])


def generate(prompts: Path, policy: Path, out: Path, *words: str) -> int:
    given = ["--policy", str(policy), "--out", str(out), "--output_dir", str(out.with_suffix(""))]
    return main(["generate", str(prompts), *given, *QUICK, *words])


@pytest.mark.usefixtures("vllm")
def test_greedy_samples_are_our_own(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    for engine in ("vllm", "own"):
        assert (
            generate(prompts, models[0], tmp_path / f"{engine}.parquet", "--engine", engine, "--decode", "greedy") == 0
        )
    theirs, ours = (pl.read_parquet(tmp_path / f"{engine}.parquet") for engine in ("vllm", "own"))
    same = ["row", "sample", "prompt", "response", "response_complete", "messages", "ids", "finished", "led_by", "kl"]
    assert theirs.select(same).equals(ours.select(same))
    for name in ("logp_policy", "logp_sampled"):
        assert theirs[name].explode().to_list() == pytest.approx(ours[name].explode().to_list(), abs=1e-5)
    assert {(own.temperature, own.top_p) for own in Stand.calls} == {(0.0, 1.0)}


@pytest.mark.usefixtures("vllm")
def test_what_vllm_is_asked_for(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    words = ["--samples", "2", "--temperature", "0.8", "--top_p", "0.9", "--engine", "vllm", "--seed", "3"]
    assert generate(prompts, models[0], tmp_path / "a.parquet", *words) == 0
    first, seeds = Stand.calls[0], [own.seed for own in Stand.calls]
    assert (first.temperature, first.top_p, first.max_tokens, first.logprobs) == (0.8, 0.9, 30, 0)
    assert (first.detokenize, first.ignore_eos) == (False, True)
    assert len({*seeds}) == 8  # one a sample
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert pl.read_parquet(tmp_path / "a.parquet")["logp_sampled"].explode().is_nan().all()  # vLLM does not say


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "engine vllm needs vLLM, which is not installed"),
        (["--ref", "REF"], "ref must be left out with engine vllm"),
        (["--ref", "REF", "--decode", "mixing"], "decode must be sample or greedy with engine vllm, got 'Mixing'"),
    ],
)
def test_what_it_cannot_do_is_said(
    words: list[str], message: str, models: tuple[Path, Path], prompts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given = [str(models[1]) if word == "REF" else word for word in words]
    assert generate(prompts, models[0], tmp_path / "a.parquet", "--engine", "vllm", *given) == 2
    assert message in capsys.readouterr().err
