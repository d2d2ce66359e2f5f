"""A packed batch through a transformers model's own forward: its documents beside each other, padded on the right.

What a causal model gives a token does not depend on what stands behind it, so padding changes nothing, and a prompt
that several responses share has the same hidden states before each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import distributed

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.attention.layout import PackedLayout, Run
from pyprefopt.modeling.rotary import longest_alike

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyprefopt.modeling.attention.layout import Pack
    from pyprefopt.types import PackedBatch

_FULL = 0.75  # a document of a call is at least so long, as a share of the longest: at most a quarter is padding
_SAME = 1e-3  # largest difference of a shared prompt's states before two responses, relative to their mean size


def run_documents(module: nn.Module, batch: PackedBatch | Pack, output: str) -> Tensor:
    """Run every document of a pack, its prompt with it, through a transformers module.

    Documents of about the same length go in one call; one whose positions are rotated by its length goes alone. A
    prompt that stands once is computed before each of its responses, and given as it is before the last.

    Args:
        module: a causal model, or the base of one.
        batch: of torch tensors, on the module's device.
        output: the name of what is taken of the module's outputs, [documents, length, H].

    Returns:
        [N, H], in the order of the pack.

    Raises:
        ConfigError: responses share a prompt whose positions are rotated by their lengths.
    """
    alike, device = longest_alike(module), batch.input_ids.device
    runs = sorted(PackedLayout.of(batch).runs, key=lambda run: run.keys, reverse=True)
    places = torch.empty(len(batch.input_ids), dtype=torch.int64)  # of each position, in the rows of all outputs
    outputs: list[Tensor] = []
    rows, shared = 0, []
    for call in _calls(runs, alike):
        longest = call[0].keys
        tokens = torch.stack([_padded(_tokens(run), longest) for run in call])
        for run in call:
            if alike is not None and longest > alike and run.parent_start < run.parent_stop:
                shared.append((run, rows))
            places[_tokens(run)] = rows + torch.arange(run.keys)
            rows += longest
        outputs.append(_run(module, batch.input_ids[tokens.to(device)], output).flatten(0, 1))
    states = torch.cat(outputs) + _idle_calls(module, batch, len(outputs), output)
    for run, row in shared:
        _check_prompt(module, states[row:], states[places[run.parent_start : run.parent_stop].to(device)])
    return F.embedding(places.to(device), states)


def _run(module: nn.Module, tokens: Tensor, output: str) -> Tensor:
    """Of [documents, length] tokens; no mask, because nothing before the padding sees it."""
    states: Tensor = module(input_ids=tokens, use_cache=False, return_dict=True)[output]
    return states


def _tokens(run: Run) -> Tensor:
    """The positions of a document in the pack: what it begins with, then its own."""
    return torch.cat([torch.arange(run.parent_start, run.parent_stop), torch.arange(run.start, run.stop)])


def _calls(runs: list[Run], alike: int | None) -> Iterator[list[Run]]:
    """Documents of about the same length, the longest first; those of more than `alike` tokens alone."""
    call: list[Run] = []
    for run in runs:
        if call and (run.keys < _FULL * call[0].keys or (alike is not None and call[0].keys > alike)):
            yield call
            call = []
        call.append(run)
    yield call


def _padded(tokens: Tensor, length: int) -> Tensor:
    """Repeat the last of [n] up to [length]: a token of the text itself, which no module takes for padding."""
    return torch.cat([tokens, tokens[-1:].expand(length - len(tokens))])


def _check_prompt(module: nn.Module, first: Tensor, second: Tensor) -> None:
    """ConfigError where a prompt has other states before one response than before another."""
    with torch.no_grad():
        off = ((first[: len(second)] - second).abs().mean() / second.abs().mean()).item()
    if not off <= _SAME:
        raise ConfigError(
            f"layout must be separate for documents of more than {longest_alike(module)} tokens, whose positions "
            f"{type(module).__name__} rotates by their lengths: responses of other lengths share a prompt; set layout "
            "separate"
        )


def _idle_calls(module: nn.Module, batch: PackedBatch | Pack, calls: int, output: str) -> Tensor | float:
    """Zero, from calls that make up for those of other ranks where ZeRO-3 gathers weights on all ranks at once."""
    if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        return 0.0
    most = torch.tensor(calls, device=batch.input_ids.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    outputs = [_run(module, batch.input_ids[None, :1], output) for _ in range(int(most) - calls)]
    return sum((0.0 * states.sum() for states in outputs), 0.0)
