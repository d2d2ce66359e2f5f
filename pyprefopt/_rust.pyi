# The extension's functions. Columns are anything with the Arrow PyCapsule interface: Polars, PyArrow, DuckDB, …
from typing import Any

__version__: str

# align
def spans_to_mask(columns: Any) -> Any: ...

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
) -> str: ...

# tokenize
class Tokenizer:
    def __new__(
        cls,
        json: bytes,
        *,
        special_tokens: list[tuple[str, str]] = [],
        chat_template: str | None = None,
        now: int = 0,
    ) -> Tokenizer: ...
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
    def encode(self, texts: Any) -> Any: ...
    def tokenize(
        self, frame: Any, *, max_prompt_tokens: int | None = None, max_tokens: int | None = None
    ) -> tuple[Any, Any, int, int]: ...

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
