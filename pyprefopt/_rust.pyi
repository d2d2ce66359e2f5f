# The extension's functions. Columns are anything with the Arrow PyCapsule interface: Polars, PyArrow, DuckDB, …
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FileCutter",
    "Packer",
    "TextBlocks",
    "Tokenizer",
    "__version__",
    "added_tokens",
    "count_content",
    "count_names",
    "count_units",
    "detect_format",
    "format_table",
    "kept_units",
    "pack_lengths",
    "parse_rows",
    "quoted_names",
    "read_footer",
    "rename_fields",
    "render_chat",
    "select_tokens",
    "spans_to_mask",
    "transfer_values",
    "truncate_positions",
    "truncate_text",
]
__version__: str

# align
def spans_to_mask(columns: Any) -> Any: ...
def transfer_values(columns: Any) -> Any: ...

# formats
@final
class TextBlocks:
    def __new__(
        cls, layout: str, *, delimiter: int = ..., block_bytes: int, block_rows: int, row_bytes: int
    ) -> TextBlocks: ...
    def push(self, piece: bytes) -> list[tuple[Any, int, int]]: ...
    def finish(self) -> list[tuple[Any, int, int]]: ...

@final
class FileCutter:
    def __new__(
        cls,
        layout: str,
        written: str,
        *,
        delimiter: int = ...,
        written_delimiter: int = ...,
        row_bytes: int,
        format: str | None = None,
        columns: Sequence[str] | None = None,
        unit: str,
        ratio: float | None = None,
        length: int | None = None,
        rounding: str = "ceil",
        tokenizer: Tokenizer | None = None,
        of_shortest: bool = False,
        ended: bool = False,
    ) -> FileCutter: ...
    def push(self, piece: bytes) -> bytes: ...
    def finish(self) -> bytes: ...
    def cut_rows(self, rows: Any) -> tuple[Any, int]: ...
    @property
    def rows(self) -> int: ...
    @property
    def same(self) -> int: ...
    @property
    def missing(self) -> str | None: ...

def format_table() -> list[dict[str, Any]]: ...
def detect_format(rows: Any, candidates: Sequence[str]) -> tuple[str | None, list[str], bool]: ...
def parse_rows(
    rows: Any, format: str, *, first_row: int = 0, first_line: int | None = None, carry: bool = False
) -> tuple[Any, Any, bytes]: ...
def count_names(lines: bytes) -> tuple[int, tuple[int, str] | None]: ...
def quoted_names(rows: Any, names: Sequence[str]) -> list[str]: ...
def rename_fields(rows: Any, names: Sequence[tuple[str, str]]) -> bytes: ...

# parquet
def read_footer(footer: bytes, columns: set[str]) -> list[dict[str, Any]]: ...

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
_Tables = tuple[Any, Any, int, Any, int, dict[str, int], tuple[int, str, str] | None, tuple[int, int, int, int]]

@final
class Tokenizer:
    def __new__(
        cls,
        json: bytes,
        *,
        special_tokens: list[tuple[str, str]] = ...,
        chat_template: str | None = None,
        tool_template: str | None = None,
        now: int = 0,
        reference: Callable[..., str] | None = None,
        tool_reference: Callable[..., str] | None = None,
    ) -> Tokenizer: ...
    @property
    def template_refusals(self) -> list[str | None]: ...
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
    @property
    def proved(self) -> bool: ...
    def prepare(
        self,
        rows: Any,
        format: str,
        *,
        first_row: int = 0,
        first_line: int | None = None,
        max_prompt_tokens: int | None = None,
        prompt_overflow: str = "error",
        max_tokens: int | None = None,
        boundary: str = "split",
        score_reasoning: bool = True,
        offsets: bool = True,
    ) -> _Tables: ...
    def tokenize(
        self,
        frame: Any,
        *,
        max_prompt_tokens: int | None = None,
        prompt_overflow: str = "error",
        max_tokens: int | None = None,
        boundary: str = "split",
        score_reasoning: bool = True,
        offsets: bool = True,
        refuse_identical: bool = True,
    ) -> _Tables: ...

def added_tokens(json: bytes) -> str: ...

# truncate
def truncate_text(
    column: Any,
    *,
    unit: str,
    ratio: float | None = None,
    length: int | None = None,
    rounding: str = "ceil",
    tokenizer: Tokenizer | None = None,
    base: NDArray[np.int64] | None = None,
) -> tuple[Any, Any]: ...
def count_units(column: Any, *, unit: str, tokenizer: Tokenizer | None = None) -> Any: ...
def truncate_positions(
    segments: Any,
    *,
    ratio: float | None = None,
    length: int | None = None,
    rounding: str = "ceil",
    base: NDArray[np.int64] | None = None,
) -> tuple[Any, Any]: ...
def kept_units(
    lengths: NDArray[np.uint32], *, ratio: float | None = None, length: int | None = None, rounding: str = "ceil"
) -> NDArray[np.uint32]: ...
def count_content(segments: Any) -> tuple[Any, Any]: ...

# select, pack

class _Arrow(Protocol):
    """Anything with the Arrow capsule interface: a Polars Series, a PyArrow array or chunked array."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

def select_tokens(
    scores: Any | None,
    *,
    method: str,
    sides: list[tuple[float, bool]],
    rounding: str,
    minimum: int,
    mask: Any | None = None,
    ids: Any | None = None,
    excluded: Sequence[int] = ...,
    lengths: NDArray[np.int64] | None = None,
    seed: int = 0,
    side: NDArray[np.uint8] | None = None,
    rows: NDArray[np.uint64] | None = None,
    segments: NDArray[np.uint64] | None = None,
) -> _Arrow: ...
def pack_lengths(
    lengths: NDArray[np.int64], *, max_tokens: int, max_groups: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

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
        last_token: bool,
        keep_unweighted: bool,
        selected: Any | None,
        token_rewards: Any | None,
        user_weights: Any | None,
        ref_logps: Any | None,
    ) -> Packer: ...
    def lengths(self, groups: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def plan(
        self, groups: NDArray[np.int64], *, max_tokens: int, max_groups: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def assemble(self, bins: Sequence[NDArray[np.int64]]) -> list[dict[str, Any]]: ...
