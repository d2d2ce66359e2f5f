# The extension's functions. Columns are anything with the Arrow PyCapsule interface: Polars, PyArrow, DuckDB, …
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Packer",
    "Tokenizer",
    "__version__",
    "detect_format",
    "parse_instructions",
    "parse_preferences",
    "render_chat",
    "select_top_k",
    "spans_to_mask",
    "split_json",
    "top_k_mask",
    "truncate_positions",
    "truncate_text",
]
__version__: str

# align
def spans_to_mask(columns: Any) -> Any: ...

# formats
def split_json(data: bytes, array: bool) -> tuple[Any, Any]: ...
def detect_format(rows: Any, candidates: Sequence[str]) -> tuple[str | None, list[str]]: ...
def parse_preferences(rows: Any, format: str) -> tuple[Any, Any, bytes]: ...
def parse_instructions(rows: Any, format: str) -> tuple[Any, Any, bytes]: ...

# template
def render_chat(
    chat_template: str,
    messages: str,
    *,
    special_tokens: list[tuple[str, str]],
    add_generation_prompt: bool,
    tools: str | None = None,
    template_kwargs: str | None = None,
    now: int = 0,
    reference: Callable[..., str] | None = None,
) -> str: ...

# tokenize
@final
class Tokenizer:
    def __new__(
        cls,
        json: bytes,
        *,
        special_tokens: list[tuple[str, str]] = ...,
        chat_template: str | None = None,
        now: int = 0,
        reference: Callable[..., str] | None = None,
    ) -> Tokenizer: ...
    @property
    def template_refusal(self) -> str | None: ...
    @property
    def template_shapes(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def token_to_id(self, token: str) -> int | None: ...
    def render(
        self,
        messages: str,
        *,
        add_generation_prompt: bool,
        tools: str | None = None,
        template_kwargs: str | None = None,
    ) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def why(self) -> str: ...
    def encode(self, texts: Any) -> Any: ...
    def prove(self, texts: Any, *, all: bool = False) -> str | None: ...
    def tokenize(
        self,
        frame: Any,
        *,
        max_prompt_tokens: int | None = None,
        prompt_overflow: str = "drop",
        max_tokens: int | None = None,
        boundary: str = "split",
    ) -> tuple[Any, Any, int, Any, int]: ...

# truncate
def truncate_text(
    column: Any,
    *,
    ratio: float | None = None,
    tokens: int | None = None,
    rounding: str = "ceil",
    tokenizer: Tokenizer | None = None,
) -> Any: ...
def truncate_positions(
    segments: Any, *, ratio: float | None = None, tokens: int | None = None, rounding: str = "ceil"
) -> Any: ...

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
