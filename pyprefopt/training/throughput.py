"""How fast a training is: tokens, useful tokens, MFU, padding, memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pyprefopt.ranks import world_size
from pyprefopt.training.metrics import TALLY, Metrics
from pyprefopt.training.usage import peak_memory

if TYPE_CHECKING:
    from torch import Tensor

    from pyprefopt.modeling.cost import Flops
    from pyprefopt.settings.config import RunConfig

GIB = 2**30
# Words of a card's name -> dense TFLOP/s in bfloat16 (float32 sums) and float32 (without TF32), of its data sheet.
PEAKS: dict[tuple[str, ...], tuple[float, float]] = {
    ("B200",): (2250, 75), ("GH200",): (989, 67), ("H200",): (989, 67), ("H100", "PCIe"): (756, 51),
    ("H100", "NVL"): (835, 60), ("H100",): (989, 67), ("A100",): (312, 19.5), ("A800",): (312, 19.5),
    ("L40S",): (362, 91.6), ("L40",): (181, 90.5), ("L4",): (121, 30.3), ("A40",): (149.7, 37.4),
    ("A30",): (165, 10.3), ("A10G",): (70, 35), ("A10",): (125, 31.2), ("RTX", "6000", "Ada"): (364, 91.1),
    ("RTX", "A6000"): (154.8, 38.7), ("RTX", "4090"): (165.2, 82.6), ("RTX", "3090"): (71, 35.6),
}  # fmt: skip


def known_peak(card: str, dtype: str) -> float | None:
    """TFLOP/s of a card by its name, the first entry of PEAKS all of whose words are in it; None: not known."""
    words = card.replace("-", " ").replace("/", " ").split()
    found = next((peak for name, peak in PEAKS.items() if set(name) <= set(words)), None)
    return None if found is None else found[0 if dtype == "bfloat16" else 1]


def peak_tflops(run: RunConfig, device: torch.device) -> float | str:
    """TFLOP/s that one device can do in the run's dtype, or why that is not known."""
    if run.peak_tflops is not None:
        return run.peak_tflops
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    peak = known_peak(card, run.dtype) if device.type == "cuda" else None
    return f"the peak of {card} is not known, give peak_tflops" if peak is None else peak


@dataclass
class Throughput:
    """The speed of the steps that this process took part in, over all ranks. Evaluation does not count."""

    flops: Flops | str  # operations of the model, or why they are not known
    peak: float | str  # TFLOP/s of one device, or why it is not known
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, totals: Tensor, seconds: float) -> Metrics:
        """Count a step of `seconds` by its global tally, and give its own rates."""
        step = dict(zip(TALLY, totals.tolist(), strict=True))
        self.seconds += seconds
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in step.items()}
        return self._rates(step, seconds) | {"peak_memory_gib": peak_memory() / GIB}

    def line(self) -> str:
        """All steps, for the terminal."""
        if not self.seconds:
            return "no step was taken"
        rates = self._rates(self.sums, self.seconds)
        mfu = f"MFU {100 * rates['mfu']:.1f} %, " if "mfu" in rates else ""
        kind = "GPU" if torch.cuda.is_available() else "resident"
        return (
            f"{int(self.sums['num_computed_tokens']):,} tokens in {self.seconds:.1f} s, "
            f"{rates['tokens_per_second']:,.0f} tokens/s, {rates['useful_tokens_per_second']:,.0f} useful, "
            f"padding {100 * rates['padding_share']:.1f} %, {mfu}peak memory {peak_memory() / GIB:.2f} GiB ({kind})"
        )

    @property
    def unknown(self) -> str:
        """Why there is no MFU; empty where there is one."""
        return next((why for why in (self.flops, self.peak) if isinstance(why, str)), "")

    def _rates(self, sums: Metrics, seconds: float) -> Metrics:
        """MFU: operations that the useful tokens need, by what all devices could do in that time."""
        useful, computed = sums["num_useful_tokens"], sums["num_computed_tokens"]
        rates = {
            "tokens_per_second": computed / seconds,
            "useful_tokens_per_second": useful / seconds,
            "padding_share": 1 - useful / computed,
        }
        if not isinstance(self.flops, str) and not isinstance(self.peak, str):
            needed = self.flops.total(useful, sums["num_useful_context"], sums["num_scored_tokens"])
            rates["mfu"] = needed / (seconds * self.peak * 1e12 * world_size())
        return rates
