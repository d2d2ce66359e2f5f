"""Plain sampling of one model by vLLM, where that is installed.

Tokens are drawn by vLLM's own random numbers, with a seed for each sample: other samples than those of our own sampler,
and the same again as far as vLLM is reproducible.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pyprefopt.errors import ConfigError, check
from pyprefopt.generation.decoders import POLICY, Decoder, Sample
from pyprefopt.generation.draws import stream_seed
from pyprefopt.generation.models import join_ends
from pyprefopt.generation.sampler import Generated, Sampling, Wanted
from pyprefopt.modeling.checkpoints.configuration import read_config, read_json
from pyprefopt.modeling.checkpoints.source import resolve_source

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

REMEDY = "pip install vllm on a machine with a GPU, or leave engine out"


def find_limits(
    model: str, tokenizer: Tokenizer, *, trust_remote_code: bool = False
) -> tuple[frozenset[int], int | None]:
    """The tokens that end a text, and the most tokens that the model reads, by the files of its folder."""
    folder = resolve_source(model, trust_remote_code=trust_remote_code)
    if folder.is_file():
        raise ConfigError(f"engine vllm needs a model with weights, got {model}; give a checkpoint")
    files = [folder / name for name in ("config.json", "generation_config.json")]
    ends = [read_json(file).get("eos_token_id") for file in files if file.is_file()]
    text = read_config(folder, trust_remote_code=trust_remote_code).get_text_config()
    return join_ends(tokenizer.eos_token_id, *ends), getattr(text, "max_position_embeddings", None)


def require_vllm(decoders: Sequence[Decoder], ref: object) -> None:
    """ConfigError where vLLM is not installed, or cannot do what is asked."""
    for decoder in decoders:
        plain = isinstance(decoder, Sample)
        check(plain, "decode", type(decoder).__name__, "sample or greedy with engine vllm", "it draws from one model")
    check(ref is None, "ref", ref, "left out with engine vllm", "it draws from one model")
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"engine vllm needs vLLM, which is not installed; {REMEDY}")


class VllmEngine:
    """A model that vLLM has loaded.

    Args:
        model: a directory or hub name.
        dtype: float32 or bfloat16.
        trust_remote_code: whether code that comes with the model may run.
        end_ids: the tokens that end a sample.

    Raises:
        ConfigError: vLLM cannot run the model here.
    """

    def __init__(self, model: str, *, dtype: str, trust_remote_code: bool, end_ids: Collection[int]) -> None:
        from vllm import LLM

        self.end_ids = sorted(end_ids)
        try:
            self.model: Any = LLM(
                model=model, skip_tokenizer_init=True, dtype=dtype, trust_remote_code=trust_remote_code,
                generation_config="vllm", logprobs_mode="raw_logprobs", seed=0,
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"vLLM cannot run {model} here: {reason}; {REMEDY}") from error

    def sample(self, wanted: Sequence[Wanted], decoder: Decoder, sampling: Sampling) -> list[Generated]:
        """Generate samples; `logp_sampled` is NaN where temperature or top_p change the distribution."""
        from vllm import SamplingParams

        options: dict[str, Any] = {
            "temperature": 0.0 if decoder.greedy else sampling.temperature, "max_tokens": sampling.max_new_tokens,
            "top_p": 1.0 if decoder.greedy else sampling.top_p, "logprobs": 0, "detokenize": False,
            "stop_token_ids": self.end_ids, "ignore_eos": True,
        }  # fmt: skip
        params = [SamplingParams(seed=stream_seed(sampling.seed, *item.stream), **options) for item in wanted]
        prompts = [{"prompt_token_ids": list(item.ids)} for item in wanted]
        found = self.model.generate(prompts, params, use_tqdm=False)
        kept = sampling.keeps(decoder)
        return [_generated(item, request.outputs[0], kept) for item, request in zip(wanted, found, strict=True)]


def _generated(item: Wanted, output: Any, kept: bool) -> Generated:
    ids = [int(token) for token in output.token_ids]
    logps = [float(seen[token].logprob) for token, seen in zip(ids, output.logprobs, strict=True)]
    sampled = logps if kept else [math.nan] * len(ids)
    return Generated(
        item.row, item.sample, ids=ids, finished=output.finish_reason == "stop", logp_policy=logps,
        logp_sampled=sampled, led_by=[POLICY] * len(ids),
    )  # fmt: skip
