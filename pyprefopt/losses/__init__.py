"""Losses: one file a method family; `METHODS` is the table of all of them, and of the user's once they are loaded."""

from __future__ import annotations

from pyprefopt.losses.decay import D2PO, Temporal
from pyprefopt.losses.dpo import DPO, IPO, RDPO
from pyprefopt.losses.guided import TGDPO, TISDPO
from pyprefopt.losses.method import Method, chosen_minus_rejected, count_units, undeclared_kind, weighted_sums
from pyprefopt.losses.ranking import RRHF, BradleyTerry
from pyprefopt.losses.regularised import DPOSFT, DPOReg, SimPOReg
from pyprefopt.losses.sepo import SePO
from pyprefopt.losses.sft import SFT
from pyprefopt.losses.simpo import ConfPO, SimPO
from pyprefopt.losses.tdpo import TDPO1, TDPO2
from pyprefopt.storage.user_code import Table

_SHIPPED: dict[str, type[Method]] = {
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
METHODS: Table[Method] = Table(_SHIPPED, base=Method, setting="method", check=undeclared_kind)

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
