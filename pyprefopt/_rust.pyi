from collections.abc import Sequence
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Packer", "__version__", "select_top_k", "top_k_mask"]
__version__: str

# select, pack

class _Arrow(Protocol):
    """Anything with the Arrow capsule interface: a Polars Series, a PyArrow array or chunked array."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

def top_k_mask(scores: Any, ratio: float, *, largest: bool, mask: Any | None, rounding: str) -> _Arrow: ...
def select_top_k(
    scores: Any,
    mask: Any,
    kinds: NDArray[np.uint8],
    rows: NDArray[np.uint64],
    *,
    chosen_ratio: float,
    rejected_ratio: float,
    rounding: str,
) -> _Arrow: ...
@final
class Packer:
    def __new__(
        cls,
        ids: Any,
        mask: Any,
        kinds: NDArray[np.uint8],
        scores: NDArray[np.float32],
        rows: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        *,
        layout: str,
        chosen_ratio: float,
        rejected_ratio: float,
        only: int | None,
        selected: Any | None,
        token_rewards: Any | None,
        user_weights: Any | None,
        ref_logps: Any | None,
    ) -> Packer: ...
    def lengths(self, groups: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def plan(
        self, groups: NDArray[np.int64], *, max_tokens: int, max_groups: int | None
    ) -> list[NDArray[np.int64]]: ...
    def assemble(self, bins: Sequence[NDArray[np.int64]]) -> list[dict[str, Any]]: ...
