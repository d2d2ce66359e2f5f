"""Columns of any kind (Polars, PyArrow, DuckDB, `datasets`) in, the same kind out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data.arrow import as_float32, check_schema, check_sound, check_types, first_line
from pyprefopt.errors import DataError

Column = TypeVar("Column")  # pl.Expr, pl.Series, pa.Array, or anything with an Arrow stream, which gives a ChunkedArray
Kernel = Callable[..., pl.Series]


def apply(kernel: Kernel, columns: Sequence[Column | None], dtype: Any) -> Column:
    """`kernel` on columns (None: left out) of one kind, as Series; its result as that kind, under the first's name.

    dtype: the result's, or None where it is that of the first column.
    """
    given: list[Any] = [column for column in columns if column is not None]
    step = partial(_fill, kernel, tuple(column is not None for column in columns), dtype is None)
    if any(isinstance(column, pl.Expr) for column in given):
        wanted = pl.dtype_of(given[0]) if dtype is None else dtype
        lazy: Any = pl.map_batches(given, step, return_dtype=wanted, is_elementwise=True)
        return lazy  # type: ignore[no-any-return]
    if isinstance(given[0], pl.Series):
        return step([as_series(column) for column in given])  # type: ignore[return-value]
    first = to_arrow(given[0])
    result: Any = step([as_series(first), *map(as_series, given[1:])]).to_arrow()
    if dtype is None:
        result = result.cast(first.type)
    return result if isinstance(first, pa.Array) else pa.chunked_array([result])  # type: ignore[no-any-return]


def _fill(kernel: Kernel, present: tuple[bool, ...], same: bool, columns: Sequence[pl.Series]) -> pl.Series:
    """Call the kernel with None where no column was given."""
    if same and isinstance(columns[0].dtype, pl.Array):
        raise DataError(f"column '{columns[0].name}' has lists of one fixed size; cast them to lists first")
    given = iter(columns)
    result = kernel(*(as_lists(next(given)) if is_there else None for is_there in present))
    return result.alias(columns[0].name)


def as_series(column: Any) -> pl.Series:
    """Any column that is no expression."""
    if isinstance(column, pl.Series):
        return column
    array = to_arrow(column)
    check_types(pa.schema([("", array.type)]), "a column")
    try:
        return pl.Series(array)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"a column of Arrow type {array.type} cannot be read ({error}); cast it") from None


def as_frame(table: Any) -> pl.DataFrame:
    """An Arrow table from outside as a frame. DataError where it is not sound, or of types that Polars lacks."""
    table = pa.table(table)
    check_schema(table.schema, "the table")
    check_sound(table, "the table")
    return frame_of(table, "the table")


def frame_of(table: pa.Table | pa.RecordBatch, name: str) -> pl.DataFrame:
    """A sound Arrow table as a frame. DataError for a type that Polars does not have."""
    check_types(table.schema, name)
    try:
        return pl.DataFrame(table.replace_schema_metadata(None))  # which Polars has no use for, and may be anything
    except pl.exceptions.PolarsError as error:
        types = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise DataError(f"{name} cannot be read ({first_line(error)}); cast the column: {types}") from None


def to_arrow(column: Any) -> Any:
    """A PyArrow array of a column that is not Polars'. DataError where it is none, or lies about its lengths."""
    array = _to_arrow(column)
    check_sound(array, "a column")
    return array


def _to_arrow(column: Any) -> Any:
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    if hasattr(column, "source") and hasattr(column, "column_name"):  # a `datasets` column: its rows may be a selection
        name = column.column_name
        return column.source.select_columns([name]).with_format("arrow")[:][name]
    if hasattr(column, "__arrow_c_stream__") or hasattr(column, "__arrow_c_array__"):
        array = pa.chunked_array(column) if hasattr(column, "__arrow_c_stream__") else pa.array(column)
        if pa.types.is_struct(array.type) and array.type.num_fields == 1:  # a relation or table of one column
            return pa.table(column).column(0)
        return array
    kinds = "a Polars expression or Series, a PyArrow array, or an object with Arrow's capsule interface"
    raise DataError(f"a column must be {kinds}, got {type(column).__name__}; for lists write pl.Series(…)")


def as_lists(column: pl.Series) -> pl.Series:
    """Fixed-size lists (Polars' Array) as lists; other columns as they are."""
    return column.cast(pl.List(column.dtype.inner)) if isinstance(column.dtype, pl.Array) else column


def as_floats(column: pl.Series, name: str) -> pl.Series:
    """Lists of numbers of any type as lists of Float32; other columns as they are."""
    inner = column.dtype.inner if isinstance(column.dtype, pl.List) else None
    if inner is None or inner == pl.Float32 or not inner.is_numeric():
        return column
    return pl.Series(column.name, as_float32(column.to_arrow(), name))


def numbers(column: pl.Series, dtype: Any) -> NDArray[Any]:
    """A column of whole numbers as contiguous NumPy. DataError for nulls and for numbers that `dtype` cannot hold."""
    if column.null_count():
        raise DataError(f"column '{column.name}' must have no nulls, got one at line {column.is_null().arg_max()}")
    if not column.dtype.is_integer():
        raise DataError(f"column '{column.name}' must hold whole numbers, got {column.dtype}; cast it")
    try:
        return np.ascontiguousarray(column.cast(dtype).to_numpy())
    except pl.exceptions.InvalidOperationError as error:
        raise DataError(f"column '{column.name}' does not fit {dtype}: {error}") from None


def to_series(name: str, column: Any, dtype: Any) -> pl.Series:
    """The column under `name`, in `dtype` (a cast where Arrow's type is a variant of it)."""
    return pl.Series(column).alias(name).cast(dtype)


def check_flags(flag: str, dtype: pl.DataType) -> None:
    """DataError for flags of candidates that are no lists of booleans."""
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    if dtype != pl.Null and not (isinstance(dtype, pl.List) and inner in (pl.Boolean, pl.Null)):
        raise DataError(f"column '{flag}' must hold lists of booleans, a flag a response, got {dtype}; mend or drop it")


def check_flag_counts(flags: pl.Series, responses: pl.Series, rows: pl.Series | None = None) -> None:
    """DataError where a line has not as many flags as responses; a null line stands for none."""
    wrong = (flags.list.len() != responses.list.len()).fill_null(value=False)
    if wrong.any():
        at = int(wrong.arg_max() or 0)
        where = f"row {rows[at]}" if rows is not None else f"line {at}"
        counts = int(responses.list.len()[at]), int(flags.list.len()[at])
        raise DataError(
            f"{where}: column '{flags.name}' must have a flag for each of the {counts[0]} responses, got {counts[1]}; "
            "null stands for one that ends"
        )
