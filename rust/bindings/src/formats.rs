//! Text files into blocks of JSON lines; rows (JSON lines, or a column of JSON texts) into chats and rejects.
#![allow(clippy::needless_pass_by_value)] // PyO3 takes arguments by value

mod rows;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt8Type;
use arrow_array::{Array, ArrayRef, UInt8Array};
use arrow_schema::{ArrowError, DataType};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use pyo3_arrow::{PyArray, PyChunkedArray, PyRecordBatch, PyTable};
use pyprefopt_core::Reject;
use pyprefopt_core::formats::{self, Entry, Field, Format, Layout, Limits, Rows, TABLE, TextBlock};
use rayon::prelude::*;

use crate::arrow::{Strings, check_offsets, check_views};
use crate::error::to_py;
use crate::reject::reject_batch;
use rows::{Chunk, Plan, parse, schema};

/// Rows that one thread parses into one record batch.
const CHUNK_ROWS: usize = 1024;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TextBlocks>()?;
    module.add_function(wrap_pyfunction!(format_table, module)?)?;
    module.add_function(wrap_pyfunction!(detect_format, module)?)?;
    module.add_function(wrap_pyfunction!(parse_rows, module)?)?;
    module.add_function(wrap_pyfunction!(quoted_names, module)?)?;
    module.add_function(wrap_pyfunction!(rename_fields, module)?)?;
    module.add_function(wrap_pyfunction!(count_names, module)?)
}

/// A text file's bytes into blocks of JSON lines, as they arrive.
#[pyclass]
struct TextBlocks(formats::Blocks);

type Block = (PyArray, u64, u64);

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
        let limits = Limits {
            bytes: block_bytes,
            rows: block_rows,
            row_bytes,
        };
        Ok(Self(formats::Blocks::new(layout, limits)))
    }

    /// The blocks that are full with this piece: (JSON lines as u8, rows, first line in the file).
    fn push(&mut self, py: Python<'_>, piece: &[u8]) -> PyResult<Vec<Block>> {
        let full = py.detach(|| self.0.push(piece)).map_err(to_py)?;
        Ok(full.into_iter().map(array_of).collect())
    }

    /// The last blocks.
    fn finish(&mut self, py: Python<'_>) -> PyResult<Vec<Block>> {
        let full = py.detach(|| self.0.finish()).map_err(to_py)?;
        Ok(full.into_iter().map(array_of).collect())
    }
}

/// The block's own buffer as an array.
fn array_of(block: TextBlock) -> Block {
    let bytes: ArrayRef = Arc::new(UInt8Array::from(block.data));
    (PyArray::from_array_ref(bytes), block.rows, block.first_line)
}

/// JSON lines as bytes or a column of u8, or a string or binary column of JSON texts.
#[derive(FromPyObject)]
pub enum Texts {
    Bytes(PyBackedBytes),
    Column(PyChunkedArray),
}

impl Texts {
    /// Whether they are of a type that holds texts; `first_line` goes with lines only.
    pub fn check(&self, first_line: Option<u64>) -> PyResult<()> {
        use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
        let Self::Column(column) = self else {
            return Ok(());
        };
        if self.lines().is_some() {
            return Ok(());
        }
        if first_line.is_some() {
            return Err(PyValueError::new_err(
                "first_line goes with bytes of JSON lines; the rows of a column have no lines",
            ));
        }
        match column.data_type() {
            Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView => {
                column.chunks().iter().try_for_each(check_places)
            }
            other => Err(PyValueError::new_err(format!(
                "rows must be text or binary, got {other}"
            ))),
        }
    }

    /// The JSON lines, if it is lines.
    fn lines(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(data) => Some(data),
            Self::Column(column) => match column.chunks() {
                [one] if one.null_count() == 0 => {
                    Some(one.as_primitive_opt::<UInt8Type>()?.values())
                }
                _ => None,
            },
        }
    }

    pub fn rows(&self) -> Rows {
        match self.lines() {
            Some(_) => Rows::Json,
            None => Rows::Typed,
        }
    }

    /// Each row with its line, counted from the first.
    pub fn split(&self) -> (Vec<&[u8]>, Vec<u64>) {
        match (self.lines(), self) {
            (None, Self::Column(column)) => (
                column.chunks().iter().flat_map(column_rows).collect(),
                Vec::new(),
            ),
            (lines, _) => formats::lines(lines.unwrap_or_default())
                .into_iter()
                .unzip(),
        }
    }
}

/// Whether texts or bytes stand where the array says.
fn check_places(chunk: &ArrayRef) -> PyResult<()> {
    match chunk.data_type() {
        DataType::Binary => {
            let array = chunk.as_binary::<i32>();
            check_offsets("rows", array.value_offsets(), array.value_data().len())
        }
        DataType::LargeBinary => {
            let array = chunk.as_binary::<i64>();
            check_offsets("rows", array.value_offsets(), array.value_data().len())
        }
        DataType::BinaryView => check_views("rows", chunk.as_binary_view()),
        _ => Strings::new("rows", chunk).map(|_| ()),
    }
}

/// The rows' bytes; a null row is empty, which is no JSON object.
fn column_rows(chunk: &ArrayRef) -> Vec<&[u8]> {
    fn bytes(text: Option<&str>) -> &[u8] {
        text.unwrap_or("").as_bytes()
    }
    match chunk.data_type() {
        DataType::Utf8 => chunk.as_string::<i32>().iter().map(bytes).collect(),
        DataType::LargeUtf8 => chunk.as_string::<i64>().iter().map(bytes).collect(),
        DataType::Utf8View => chunk.as_string_view().iter().map(bytes).collect(),
        DataType::Binary => chunk
            .as_binary::<i32>()
            .iter()
            .map(Option::unwrap_or_default)
            .collect(),
        DataType::LargeBinary => chunk
            .as_binary::<i64>()
            .iter()
            .map(Option::unwrap_or_default)
            .collect(),
        _ => chunk
            .as_binary_view()
            .iter()
            .map(Option::unwrap_or_default)
            .collect(),
    }
}

/// A row of the table of formats, as a dict.
#[derive(IntoPyObject)]
struct FormatRow {
    name: &'static str,
    kind: &'static str,
    /// (name, role, meaning).
    fields: Vec<(&'static str, &'static str, &'static str)>,
    /// The required fields of the usual form; of those in one list, one is enough.
    needed: Vec<Vec<&'static str>>,
    /// Fields of other formats that must say the same where they are there.
    compared: Vec<&'static str>,
    /// The responses of a pair are chosen and rejected, texts or chats.
    plain: bool,
    /// (name, meaning) of the weights of tokens.
    weights: Vec<(&'static str, &'static str)>,
    looks: &'static str,
    example: &'static str,
}

/// What is known of every format, in the order in which they are tried.
#[pyfunction]
fn format_table() -> Vec<FormatRow> {
    let row = |entry: &Entry| {
        let group = |group: Vec<&Field>| group.iter().map(|field| field.name).collect();
        FormatRow {
            name: entry.name,
            kind: entry.kind.name(),
            fields: entry
                .fields()
                .iter()
                .map(|field| (field.name, field.role.name(), field.meaning))
                .collect(),
            needed: entry.forms[0].needed().into_iter().map(group).collect(),
            compared: entry.compared.to_vec(),
            plain: entry.is_plain(),
            weights: entry.kind.weights().to_vec(),
            looks: entry.looks,
            example: entry.example,
        }
    };
    TABLE.iter().map(row).collect()
}

/// (format or None, field names of the first object, whether it has whole texts without a prompt).
#[pyfunction]
fn detect_format(
    py: Python<'_>,
    rows: Texts,
    candidates: Vec<String>,
) -> PyResult<(Option<&'static str>, Vec<String>, bool)> {
    let candidates = candidates
        .iter()
        .map(|name| format_of(name))
        .collect::<PyResult<Vec<_>>>()?;
    rows.check(None)?;
    let seen = py.detach(|| formats::detect(rows.split().0.into_iter(), &candidates));
    Ok((seen.format.map(Format::name), seen.fields, seen.unmarked))
}

/// Those of the names that stand in quotes somewhere in JSON lines, so that a row may have the field.
#[pyfunction]
fn quoted_names(py: Python<'_>, rows: Texts, names: Vec<String>) -> PyResult<Vec<String>> {
    let lines = rows
        .lines()
        .ok_or_else(|| PyValueError::new_err("rows must be JSON lines, as bytes or u8"))?;
    let found = py.detach(|| formats::quoted(lines, &names));
    Ok(found.into_iter().map(str::to_owned).collect())
}

/// JSON lines with fields under other names: pairs of the name there and the new one.
#[pyfunction]
fn rename_fields(
    py: Python<'_>,
    rows: Texts,
    names: Vec<(String, String)>,
) -> PyResult<Bound<'_, PyBytes>> {
    let lines = rows
        .lines()
        .ok_or_else(|| PyValueError::new_err("rows must be JSON lines, as bytes or u8"))?;
    let renamed = py.detach(|| formats::rename_fields(lines, &names));
    Ok(PyBytes::new(py, &renamed))
}

/// How many names of fields JSON lines have, those inside of fields too; with the line and the first name beyond the most
/// that a frame may have, where they are more.
#[pyfunction]
fn count_names(py: Python<'_>, lines: &[u8]) -> (usize, Option<(usize, String)>) {
    match py.detach(|| formats::count_names(lines)) {
        Ok(count) => (count, None),
        Err((line, name)) => (0, Some((line, name))),
    }
}

/// (table, rejects, JSON lines of the further fields) of rows that count from `first_row`, their lines from
/// `first_line`.
#[pyfunction]
#[pyo3(signature = (rows, format, *, first_row=0, first_line=None, carry=false))]
fn parse_rows<'py>(
    py: Python<'py>,
    rows: Texts,
    format: &str,
    first_row: u64,
    first_line: Option<u64>,
    carry: bool,
) -> PyResult<(PyTable, PyRecordBatch, Bound<'py, PyBytes>)> {
    let plan = Plan {
        format: format_of(format)?,
        rows: rows.rows(),
        carry,
    };
    rows.check(first_line)?;
    let parsed = py.detach(|| -> Result<_, ArrowError> {
        let (texts, lines) = rows.split();
        let chunks = texts
            .par_chunks(CHUNK_ROWS)
            .enumerate()
            .map(|(index, chunk)| parse(chunk, first_row + (index * CHUNK_ROWS) as u64, plan))
            .collect::<Result<Vec<_>, _>>()?;
        let (mut batches, mut rejects, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for Chunk {
            batch,
            rejects: bad,
            others: further,
        } in chunks
        {
            batches.push(batch);
            rejects.extend(bad);
            others.extend(further);
        }
        if let Some(first_line) = first_line {
            name_lines(&mut rejects, |row| {
                first_line + lines[(row - first_row) as usize]
            });
        }
        Ok((batches, reject_batch(&rejects)?, others))
    });
    let (batches, rejects, others) =
        parsed.map_err(|error| PyValueError::new_err(error.to_string()))?;
    let table = PyTable::try_new(batches, schema(plan.format))?;
    Ok((
        table,
        PyRecordBatch::new(rejects),
        PyBytes::new(py, &others),
    ))
}

/// Broken JSON is looked for in the file, by its line.
pub fn name_lines(rejects: &mut [(u64, Reject)], line: impl Fn(u64) -> u64) {
    for (row, reject) in rejects {
        if reject.reason == "broken_json" && reject.field.is_empty() {
            reject.rule = format!("line {}: {}", line(*row), reject.rule);
        }
    }
}

pub fn format_of(name: &str) -> PyResult<Format> {
    Format::named(name).ok_or_else(|| PyValueError::new_err(format!("unknown format '{name}'")))
}
