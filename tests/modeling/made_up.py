"""Made-up architectures, known to transformers as `made_up`: a Llama with, if its config says so, one habit more.

Some habits can be packed and some cannot, whatever the architectures of transformers come to do.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

MADE_UP: dict[str, Any] = {
    "model_type": "made_up", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
# Habit -> what it is refused with.
BROKEN = {
    "mixes neighbours": r"differ by \d+% in the separate layout and \d+% in the shared layout, in a tiny copy",
    "looks back": r"differ by \d+% in the separate layout",
    "keeps a state": r"differ by \d+% in the separate layout",
    "counts positions itself": r"differ by \d+% in the shared layout, .*from elsewhere than position_ids",
    "keeps the layout": r"\(documents in a pack see each other\) does not take another attention",
    "has a table of attentions": r"\(KeyError: 'pyprefopt_packed'\) does not take another attention",
    "is always random": r"MadeUpFor\w+ .*",
    "has a bias": r"LlamaAttention asks for position_bias \(a learned position bias\)",
}
ALONE = [habit for habit in BROKEN if habit != "is always random"]  # exact where it is not packed
EXACT = ("", "has a gate", "has gates in hybrid layers", "has attention sinks")


class MadeUpConfig(LlamaConfig):
    model_type = "made_up"


class MadeUpModel(LlamaModel):
    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        if config.habit == "has a table of attentions":
            self.attend = {"eager": None, "sdpa": None}[config._attn_implementation]
        if getattr(config, "needs_room", False) and config.vocab_size < 100:
            raise ValueError("the vocabulary is too small")

    def forward(self, input_ids: Any = None, position_ids: Any = None, **options: Any) -> Any:
        habit = self.config.habit
        if habit == "counts positions itself":
            position_ids = None
        if habit == "keeps the layout":
            options.pop("packed_layout", None)
        if habit == "has attention sinks":
            options["s_aux"] = torch.ones(4)
        if habit == "has a bias":
            options["position_bias"] = torch.ones(4)
        output = super().forward(input_ids=input_ids, position_ids=position_ids, **options)
        states = output.last_hidden_state
        if habit == "mixes neighbours":
            states = states + torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1]
        if habit == "sees what follows":
            states = states + states.mean(1, keepdim=True)
        if habit == "looks back":
            far = self.config.reach_window
            states = states + torch.nn.functional.pad(states, (0, 0, far, 0))[:, :-far]
        if habit == "keeps a state":
            states = states + states.cumsum(1)
        if (
            (habit == "is random in training" and self.training)
            or (habit == "is random with a gradient" and self.training and torch.is_grad_enabled())
            or (habit == "is rarely random in training" and self.training and torch.rand(()) < 1e-6)
            or (habit == "is random by another generator" and self.training and random.random() < 1e-6)
            or habit == "is always random"
        ):
            states = states + torch.randn_like(states)
        if habit == "computes otherwise in training" and self.training:
            states = 1.0001 * states
        if self.has_gate(0 if position_ids is None else int(position_ids.max()), states.shape[1]):
            states = states * states.sigmoid()
        output.last_hidden_state = states
        return output

    def has_gate(self, last: int, count: int) -> bool:
        """Whether there is a gate behind the layers, for a call of `count` tokens with `last` as its last position."""
        longest = getattr(self, "longest", 0)
        self.longest = max(longest, last)
        return {
            "has a gate": True,
            "has gates in hybrid layers": "hybrid" in (getattr(self.config, "layer_types", None) or ()),
            "follows the longest position": last >= getattr(self.config, "original_max_position_embeddings", 0),
            "follows the longest position far away": last > 300,
            "follows the length of a batch": count > 400,
            "remembers the longest position": longest > 300,
        }.get(self.config.habit, False)


class MadeUpForCausalLM(LlamaForCausalLM):
    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.model = MadeUpModel(config)
        self.post_init()


class MadeUpForSequenceClassification(LlamaForSequenceClassification):
    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.model = MadeUpModel(config)
        self.post_init()


AutoConfig.register("made_up", MadeUpConfig)
AutoModel.register(MadeUpConfig, MadeUpModel)
AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM)
AutoModelForSequenceClassification.register(MadeUpConfig, MadeUpForSequenceClassification)


def made_up(habit: str, **settings: Any) -> dict[str, Any]:
    """The content of a config.json."""
    kinds = {"layer_types": ["full_attention", "hybrid"]} if "hybrid" in habit else {}
    return {**MADE_UP, **kinds, "reach_window": 400, "habit": habit, **settings}
