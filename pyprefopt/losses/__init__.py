"""Losses: one file a method family; `METHODS` is the table of all of them."""

from __future__ import annotations

from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.method import Method, chosen_minus_rejected, count_units, weighted_sums
from pyprefopt.losses.sepo import SePO
from pyprefopt.losses.sft import SFT
from pyprefopt.losses.simpo import SimPO

METHODS: dict[str, type[Method]] = {"dpo": DPO, "sepo": SePO, "sft": SFT, "simpo": SimPO}

__all__ = ["DPO", "METHODS", "SFT", "Method", "SePO", "SimPO", "chosen_minus_rejected", "count_units", "weighted_sums"]
