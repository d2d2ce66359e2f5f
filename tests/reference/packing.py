"""Slow Python twin of the packer: a PackedBatch from plain lists, written from the contract and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pyprefopt.types import PackedBatch


@dataclass
class Response:
    """One response: ids, which of them the assistant wrote, which of those are scored (None: all)."""

    ids: list[int]
    mask: list[bool] | None = None
    selected: list[bool] | None = None
    kind: str = "chosen"  # chosen, rejected, response
    score: float = float("nan")
    ratio: float = 1.0
    values: dict[str, list[float]] = field(default_factory=dict)  # token_rewards, ref_logps, user_weights; per id

    def scored(self) -> list[int]:
        mask = self.mask or [True] * len(self.ids)
        selected = self.selected or [True] * len(self.ids)
        return [t for t in range(len(self.ids)) if mask[t] and selected[t]]

    def live(self, keep_unweighted: bool) -> list[int]:
        """The scored tokens that can change a loss: those whose user weight is not 0."""
        weights = self.values.get("user_weights")
        if weights is None or keep_unweighted:
            return self.scored()
        return [t for t in self.scored() if weights[t] != 0]

    def length(self) -> int:
        return sum(self.mask or [True] * len(self.ids))


@dataclass
class Group:
    """A prompt with its responses."""

    prompt: list[int]
    responses: list[Response]
    row: int = 0


def pack_groups(  # noqa: PLR0912
    groups: list[Group], layout: str = "shared", *, last_token: bool = False, keep_unweighted: bool = False
) -> PackedBatch:
    """All groups in one micro-batch, in the given order."""
    inputs: list[int] = []
    positions: list[int] = []
    offsets, parents = [0], []
    per_token: dict[str, list[float]] = {
        k: [] for k in ("hidden_index", "target_ids", "response_index", "token_position")
    }
    per_response: dict[str, list[float]] = {
        k: [] for k in ("row", "line", "length", "scored", "ratio", "group", "score", "chosen", "rejected")
    }
    values: dict[str, list[float]] = {}
    last_index: list[int] = []
    line = 0

    def add_segment(ids: list[int], start: int, parent: int) -> int:
        first = len(inputs)
        inputs.extend(ids)
        positions.extend(range(start, start + len(ids)))
        offsets.append(len(inputs))
        parents.append(parent)
        return first

    for g, group in enumerate(groups):
        prompt_line = line
        line += 1 + len(group.responses)
        prompt_length = len(group.prompt)
        group_lives = last_token or any(response.live(keep_unweighted) for response in group.responses)
        if layout == "shared" and group_lives:
            prompt_segment = len(parents)
            prompt_first = add_segment(group.prompt, 0, -1)
        for i, response in enumerate(group.responses):
            scored, live = response.scored(), response.live(keep_unweighted)
            kept = response.ids[: live[-1]] if live else []  # the last live token is a target, never an input
            kept = response.ids if last_token else kept
            if not live and not last_token:
                pass
            elif layout == "shared":
                first = add_segment(kept, prompt_length, prompt_segment)
                last_prompt = prompt_first + prompt_length - 1
            else:
                first = add_segment(group.prompt + kept, 0, -1) + prompt_length
                last_prompt = first - 1
            if last_token:
                last_index.append(first + len(kept) - 1 if kept else last_prompt)
            position = 0
            r = len(per_response["row"])
            for t in range(len(response.ids)):
                if t in live:
                    per_token["hidden_index"].append(first + t - 1 if t > 0 else last_prompt)
                    per_token["target_ids"].append(response.ids[t])
                    per_token["response_index"].append(r)
                    per_token["token_position"].append(position)
                    for name, column in response.values.items():
                        values.setdefault(name, []).append(column[t])
                position += bool((response.mask or [True] * len(response.ids))[t])
            if response.kind in ("chosen", "rejected"):
                per_response[response.kind].append(r)
            row = {"row": group.row, "line": prompt_line + 1 + i, "length": response.length(), "scored": len(scored)}
            row |= {"ratio": response.ratio, "group": g, "score": response.score}
            for name, value in row.items():
                per_response[name].append(value)

    if not inputs:
        add_segment(groups[0].prompt[:1], 0, -1)

    def array(data: list[float], dtype: type = np.int64) -> np.ndarray:
        return np.asarray(data, dtype=dtype)

    return PackedBatch(
        input_ids=array(inputs),
        position_ids=array(positions),
        segment_offsets=array(offsets),
        segment_parent=array(parents),
        **{name: array(column) for name, column in per_token.items()},
        token_mask=np.ones(len(per_token["target_ids"]), np.float32),
        response_row=array(per_response["row"]),
        response_line=array(per_response["line"]),
        response_length=array(per_response["length"], np.float32),
        scored_length=array(per_response["scored"], np.float32),
        selection_ratio=array(per_response["ratio"], np.float32),
        response_group=array(per_response["group"]),
        response_score=array(per_response["score"], np.float32),
        pair_chosen=array(per_response["chosen"]),
        pair_rejected=array(per_response["rejected"]),
        last_index=array(last_index) if last_token else None,
        **{name: array(column, np.float32) for name, column in values.items()},
    )  # fmt: skip
