//! Rows as an Arrow column of JSON texts in; chats, rejects and the remaining fields as Arrow columns out.
#![allow(clippy::needless_pass_by_value)] // PyO3 takes arguments by value

use std::slice::from_ref;
use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, LargeBinaryArray, LargeListArray, RecordBatch,
    StringArray, StructArray, UInt64Array,
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{ArrowError, DataType, Field, Fields};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3_arrow::{PyArray, PyChunkedArray, PyRecordBatch};
use pyprefopt_core::formats::{
    self, Format, Instruction, Layout, Limits, Message, Pair, Reject, TextBlock,
};

use crate::error::to_py;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TextBlocks>()?;
    module.add_function(wrap_pyfunction!(split_lines, module)?)?;
    module.add_function(wrap_pyfunction!(detect_format, module)?)?;
    module.add_function(wrap_pyfunction!(format_fields, module)?)?;
    module.add_function(wrap_pyfunction!(parse_preferences, module)?)?;
    module.add_function(wrap_pyfunction!(parse_instructions, module)?)
}

/// A text file's bytes into blocks of JSON lines, as they arrive.
#[pyclass]
struct TextBlocks(formats::Blocks);

type PyBlock<'py> = (Bound<'py, PyBytes>, u64, u64);

#[pymethods]
impl TextBlocks {
    /// `layout` is lines, array or csv; `delimiter` is one byte.
    #[new]
    #[pyo3(signature = (layout, *, delimiter=b',', block_bytes, block_rows, row_bytes))]
    fn new(
        layout: &str,
        delimiter: u8,
        block_bytes: usize,
        block_rows: u64,
        row_bytes: usize,
    ) -> PyResult<Self> {
        let layout = match layout {
            "lines" => Layout::Lines,
            "array" => Layout::Array,
            "csv" => Layout::Csv { delimiter },
            _ => return Err(PyValueError::new_err(format!("unknown layout '{layout}'"))),
        };
        Ok(Self(formats::Blocks::new(
            layout,
            Limits {
                bytes: block_bytes,
                rows: block_rows,
                row_bytes,
            },
        )))
    }

    /// The blocks that are full with this piece: (JSON lines, rows, first line in the file).
    fn push<'py>(&mut self, py: Python<'py>, piece: &[u8]) -> PyResult<Vec<PyBlock<'py>>> {
        let full = py.detach(|| self.0.push(piece)).map_err(to_py)?;
        Ok(into_bytes(py, full))
    }

    /// The last block, if any.
    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<PyBlock<'py>>> {
        let full = py.detach(|| self.0.finish()).map_err(to_py)?;
        Ok(into_bytes(py, full))
    }
}

fn into_bytes(py: Python<'_>, blocks: Vec<TextBlock>) -> Vec<PyBlock<'_>> {
    blocks
        .into_iter()
        .map(|block| (PyBytes::new(py, &block.data), block.rows, block.first_line))
        .collect()
}

/// Rows (binary) of JSON lines and their lines (u64, from 0).
#[pyfunction]
fn split_lines(py: Python<'_>, data: &[u8]) -> (PyArray, PyArray) {
    let (rows, lines): (Vec<&[u8]>, Vec<u64>) =
        py.detach(|| formats::lines(data).into_iter().unzip());
    let rows = PyArray::from_array_ref(Arc::new(LargeBinaryArray::from_iter_values(rows)));
    (
        rows,
        PyArray::from_array_ref(Arc::new(UInt64Array::from(lines))),
    )
}

/// (format or None, field names of the first object) of the rows.
#[pyfunction]
fn detect_format(
    py: Python<'_>,
    rows: PyChunkedArray,
    candidates: Vec<String>,
) -> PyResult<(Option<&'static str>, Vec<String>)> {
    let candidates = candidates
        .iter()
        .map(|name| format_of(name))
        .collect::<PyResult<Vec<_>>>()?;
    let rows = Rows::new(&rows)?;
    let seen = py.detach(|| formats::detect(&rows.slices(), &candidates));
    Ok((seen.format.map(Format::name), seen.fields))
}

/// The fields that the format takes.
#[pyfunction]
fn format_fields(format: &str) -> PyResult<Vec<&'static str>> {
    Ok(format_of(format)?.fields().to_vec())
}

/// (pairs, rejects, JSON lines of the further fields) of the rows; `index` counts rows from 0.
#[pyfunction]
fn parse_preferences(py: Python<'_>, rows: PyChunkedArray, format: &str) -> PyResult<Parsed> {
    let (rows, format) = (Rows::new(&rows)?, format_of(format)?);
    py.detach(|| {
        let (pairs, rejects) = divide(formats::parse_preferences(&rows.slices(), format));
        let others = further_fields(&pairs);
        Ok((pair_batch(&pairs)?, reject_batch(&rejects)?, others))
    })
    .map_err(arrow_error)
    .map(into_python)
}

/// (prompts and responses, rejects, nothing) of rows of instruction data.
#[pyfunction]
fn parse_instructions(py: Python<'_>, rows: PyChunkedArray, format: &str) -> PyResult<Parsed> {
    let (rows, format) = (Rows::new(&rows)?, format_of(format)?);
    py.detach(|| {
        let (rows, rejects) = divide(formats::parse_instructions(&rows.slices(), format));
        Ok((
            instruction_batch(&rows)?,
            reject_batch(&rejects)?,
            Vec::new(),
        ))
    })
    .map_err(arrow_error)
    .map(into_python)
}

type Parsed = (PyRecordBatch, PyRecordBatch, Vec<u8>);
type Numbered<T> = Vec<(u64, T)>;

fn into_python((rows, rejects, others): (RecordBatch, RecordBatch, Vec<u8>)) -> Parsed {
    (
        PyRecordBatch::new(rows),
        PyRecordBatch::new(rejects),
        others,
    )
}

fn arrow_error(error: ArrowError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn format_of(name: &str) -> PyResult<Format> {
    Format::named(name).ok_or_else(|| PyValueError::new_err(format!("unknown format '{name}'")))
}

/// A string or binary column of any width, kept alive while its slices are read.
struct Rows(Vec<ArrayRef>);

impl Rows {
    fn new(column: &PyChunkedArray) -> PyResult<Self> {
        use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
        match column.data_type() {
            Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView => {
                Ok(Self(column.chunks().to_vec()))
            }
            other => Err(PyValueError::new_err(format!(
                "rows must be text or binary, got {other}"
            ))),
        }
    }

    /// The rows' bytes; a null row is empty, which is no JSON object.
    fn slices(&self) -> Vec<&[u8]> {
        let mut rows = Vec::with_capacity(self.0.iter().map(Array::len).sum());
        for chunk in &self.0 {
            match chunk.data_type() {
                DataType::Utf8 => rows.extend(
                    chunk
                        .as_string::<i32>()
                        .iter()
                        .map(|s| s.unwrap_or("").as_bytes()),
                ),
                DataType::LargeUtf8 => rows.extend(
                    chunk
                        .as_string::<i64>()
                        .iter()
                        .map(|s| s.unwrap_or("").as_bytes()),
                ),
                DataType::Utf8View => rows.extend(
                    chunk
                        .as_string_view()
                        .iter()
                        .map(|s| s.unwrap_or("").as_bytes()),
                ),
                DataType::Binary => rows.extend(
                    chunk
                        .as_binary::<i32>()
                        .iter()
                        .map(Option::unwrap_or_default),
                ),
                DataType::LargeBinary => rows.extend(
                    chunk
                        .as_binary::<i64>()
                        .iter()
                        .map(Option::unwrap_or_default),
                ),
                _ => rows.extend(chunk.as_binary_view().iter().map(Option::unwrap_or_default)),
            }
        }
        rows
    }
}

fn divide<T>(parsed: Vec<Result<T, Reject>>) -> (Numbered<T>, Numbered<Reject>) {
    let (mut used, mut rejects) = (Vec::with_capacity(parsed.len()), Vec::new());
    for (index, row) in (0..).zip(parsed) {
        match row {
            Ok(row) => used.push((index, row)),
            Err(reject) => rejects.push((index, reject)),
        }
    }
    (used, rejects)
}

/// One JSON object a used row, as JSON lines; empty where no row has further fields.
fn further_fields(pairs: &Numbered<Pair>) -> Vec<u8> {
    if pairs.iter().all(|(_, pair)| pair.others.is_none()) {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for (_, pair) in pairs {
        let compact = pair
            .others
            .as_deref()
            .unwrap_or("{}")
            .bytes()
            .filter(|&byte| byte != b'\n' && byte != b'\r');
        lines.extend(compact); // raw line breaks stand only between tokens of an element of a JSON array
        lines.push(b'\n');
    }
    lines
}

fn pair_batch(pairs: &Numbered<Pair>) -> Result<RecordBatch, ArrowError> {
    let lists = |list: fn(&Pair) -> &[Message]| chats(pairs.iter().map(|(_, pair)| list(pair)));
    let strings = |text: fn(&Pair) -> Option<&str>| -> ArrayRef {
        let column: StringArray = pairs.iter().map(|(_, pair)| text(pair)).collect();
        Arc::new(column)
    };
    let flags = |flag: fn(&Pair) -> bool| -> ArrayRef {
        let column: BooleanArray = pairs.iter().map(|(_, pair)| Some(flag(pair))).collect();
        Arc::new(column)
    };
    let scores = |score: fn(&Pair) -> Option<f32>| -> ArrayRef {
        let column: Float32Array = pairs.iter().map(|(_, pair)| score(pair)).collect();
        Arc::new(column)
    };
    RecordBatch::try_from_iter_with_nullable([
        ("row", row_numbers(pairs), false),
        ("prompt", lists(|pair| &pair.prompt)?, false),
        ("chosen", lists(|pair| from_ref(&pair.chosen))?, false),
        ("rejected", lists(|pair| from_ref(&pair.rejected))?, false),
        ("chosen_complete", flags(|pair| pair.chosen_complete), false),
        (
            "rejected_complete",
            flags(|pair| pair.rejected_complete),
            false,
        ),
        ("score_chosen", scores(|pair| pair.score_chosen), true),
        ("score_rejected", scores(|pair| pair.score_rejected), true),
        ("tools", strings(|pair| pair.tools.as_deref()), true),
        (
            "template_kwargs",
            strings(|pair| pair.template_kwargs.as_deref()),
            true,
        ),
    ])
}

fn instruction_batch(rows: &Numbered<Instruction>) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_from_iter_with_nullable([
        ("row", row_numbers(rows), false),
        (
            "prompt",
            chats(rows.iter().map(|(_, row)| row.prompt.as_slice()))?,
            false,
        ),
        (
            "response",
            chats(rows.iter().map(|(_, row)| from_ref(&row.response)))?,
            false,
        ),
    ])
}

fn reject_batch(rejects: &Numbered<Reject>) -> Result<RecordBatch, ArrowError> {
    let column = |text: fn(&Reject) -> &str| -> ArrayRef {
        let texts = rejects.iter().map(|(_, reject)| text(reject));
        Arc::new(StringArray::from_iter_values(texts))
    };
    RecordBatch::try_from_iter_with_nullable([
        ("row", row_numbers(rejects), false),
        ("field", column(|reject| &reject.field), false),
        ("value", column(|reject| &reject.value), false),
        ("reason", column(|reject| reject.reason), false),
        ("rule", column(|reject| &reject.rule), false),
        ("remedy", column(|reject| reject.remedy), false),
    ])
}

fn row_numbers<T>(rows: &Numbered<T>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(
        rows.iter().map(|(row, _)| *row),
    ))
}

/// A column list<struct{role, content, extra}>.
fn chats<'a>(lists: impl Iterator<Item = &'a [Message]>) -> Result<ArrayRef, ArrowError> {
    let (mut role, mut content, mut extra) = (
        LargeStringBuilder::new(),
        LargeStringBuilder::new(),
        LargeStringBuilder::new(),
    );
    let mut lengths = Vec::new();
    for list in lists {
        lengths.push(list.len());
        for message in list {
            role.append_value(&message.role);
            content.append_value(&message.content);
            extra.append_option(message.extra.as_deref());
        }
    }
    let fields = Fields::from(vec![
        Field::new("role", DataType::LargeUtf8, true),
        Field::new("content", DataType::LargeUtf8, true),
        Field::new("extra", DataType::LargeUtf8, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(role.finish()),
        Arc::new(content.finish()),
        Arc::new(extra.finish()),
    ];
    let messages = StructArray::try_new(fields.clone(), columns, None::<NullBuffer>)?;
    let item = Arc::new(Field::new("item", DataType::Struct(fields), true));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(LargeListArray::try_new(
        item,
        offsets,
        Arc::new(messages),
        None,
    )?))
}
