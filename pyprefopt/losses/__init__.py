"""Losses: one file a method family; `METHODS` is the table of all of them."""

from __future__ import annotations

from pyprefopt.losses.confpo import ConfPO
from pyprefopt.losses.d2po import D2PO, Temporal
from pyprefopt.losses.dpo import DPO
from pyprefopt.losses.ipo import IPO
from pyprefopt.losses.method import Method, chosen_minus_rejected, count_units, weighted_sums
from pyprefopt.losses.r_dpo import RDPO
from pyprefopt.losses.reward import BradleyTerry
from pyprefopt.losses.rrhf import RRHF
from pyprefopt.losses.sepo import SePO
from pyprefopt.losses.sft import SFT
from pyprefopt.losses.simpo import SimPO
from pyprefopt.losses.t_reg import DPOSFT, DPOReg, SimPOReg
from pyprefopt.losses.tdpo import TDPO1, TDPO2
from pyprefopt.losses.tgdpo import TGDPO
from pyprefopt.losses.tis_dpo import TISDPO

METHODS: dict[str, type[Method]] = {
    "sft": SFT,
    "dpo": DPO,
    "ipo": IPO,
    "simpo": SimPO,
    "rrhf": RRHF,
    "r-dpo": RDPO,
    "d2po": D2PO,
    "temporal": Temporal,
    "tdpo1": TDPO1,
    "tdpo2": TDPO2,
    "sepo": SePO,
    "tgdpo": TGDPO,
    "dpo-reg": DPOReg,
    "simpo-reg": SimPOReg,
    "dpo-sft": DPOSFT,
    "confpo": ConfPO,
    "tis-dpo": TISDPO,
    "reward": BradleyTerry,
}

__all__ = [
    "D2PO",
    "DPO",
    "DPOSFT",
    "IPO",
    "METHODS",
    "RDPO",
    "RRHF",
    "SFT",
    "TDPO1",
    "TDPO2",
    "TGDPO",
    "TISDPO",
    "BradleyTerry",
    "ConfPO",
    "DPOReg",
    "Method",
    "SePO",
    "SimPO",
    "SimPOReg",
    "Temporal",
    "chosen_minus_rejected",
    "count_units",
    "weighted_sums",
]  # fmt: skip
