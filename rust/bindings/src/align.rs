//! Characters to tokens, and values of tokens to other tokens.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt16Type, UInt32Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, LargeListArray, StructArray, UInt32Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyChunkedArray;
use pyprefopt_core::align::{self, Token};

use crate::arrow::{Lists, chunked, field, list_array, list_of, structs};

/// struct{spans: list<struct{start, end}>, starts: list<u32>, ends: list<u32>} to list<bool>; offsets are u32.
#[pyfunction]
fn spans_to_mask(py: Python<'_>, columns: PyChunkedArray) -> PyResult<PyChunkedArray> {
    let (chunks, _) = columns.into_inner();
    let masks = py.detach(|| chunks.iter().map(mask_chunk).collect::<PyResult<Vec<_>>>())?;
    chunked(masks, list_of(DataType::Boolean))
}

fn u32s<'a>(name: &str, array: &'a ArrayRef) -> PyResult<&'a UInt32Array> {
    let wrong = || PyValueError::new_err(format!("{name} must be u32, got {}", array.data_type()));
    array.as_primitive_opt::<UInt32Type>().ok_or_else(wrong)
}

fn mask_chunk(chunk: &ArrayRef) -> PyResult<ArrayRef> {
    let wrong = |what: &str| PyValueError::new_err(format!("spans_to_mask needs {what}"));
    let columns = chunk
        .as_struct_opt()
        .ok_or_else(|| wrong("a struct column"))?;
    let column = field("spans", columns)?;
    let spans = Lists::new("spans", column)?;
    let span_fields = structs("spans", column, spans.values)?;
    let (from, to) = (
        u32s("start", field("start", span_fields)?)?,
        u32s("end", field("end", span_fields)?)?,
    );
    let (starts, ends) = (
        Lists::new("starts", field("starts", columns)?)?,
        Lists::new("ends", field("ends", columns)?)?,
    );
    let (start, end) = (u32s("starts", starts.values)?, u32s("ends", ends.values)?);
    let mut masks: Vec<Vec<bool>> = Vec::with_capacity(chunk.len());
    for row in 0..chunk.len() {
        if starts.range(row).len() != ends.range(row).len() {
            return Err(wrong("starts and ends of equal lengths"));
        }
        let wanted: Vec<(u32, u32)> = spans
            .range(row)
            .map(|i| (from.value(i), to.value(i)))
            .collect();
        let token = |(s, e): (usize, usize)| {
            (start.is_valid(s) && end.is_valid(e)).then(|| (start.value(s), end.value(e)))
        };
        let tokens: Vec<Option<(u32, u32)>> =
            starts.range(row).zip(ends.range(row)).map(token).collect();
        masks.push(align::spans_to_mask(&wanted, &tokens));
    }
    let values: BooleanArray = masks.iter().flatten().copied().map(Some).collect();
    Ok(list_array(Arc::new(values), masks.iter().map(Vec::len)))
}

/// struct of `values` list<f32>, `starts_from`, `ends_from`, `starts_to`, `ends_to` list<u32> and, where given,
/// `turns_from`, `turns_to` list<u16>, `mask_from`, `mask_to` list<bool>, to list<f32>; null values stay null.
#[pyfunction]
fn transfer_values(py: Python<'_>, columns: PyChunkedArray) -> PyResult<PyChunkedArray> {
    let (chunks, _) = columns.into_inner();
    let moved = py.detach(|| {
        chunks
            .iter()
            .map(transfer_chunk)
            .collect::<PyResult<Vec<_>>>()
    })?;
    chunked(moved, list_of(DataType::Float32))
}

fn transfer_chunk(chunk: &ArrayRef) -> PyResult<ArrayRef> {
    let wrong = || PyValueError::new_err("transfer_values needs a struct column");
    let columns = chunk.as_struct_opt().ok_or_else(wrong)?;
    let lists = field("values", columns)?;
    let values = Lists::new("values", lists)?;
    let numbers = values.values.as_primitive_opt::<Float32Type>();
    let numbers = numbers.ok_or_else(|| PyValueError::new_err("values must be f32"))?;
    let (from, to) = (Tokens::new(columns, "from")?, Tokens::new(columns, "to")?);
    let mut moved: Vec<Vec<f32>> = Vec::with_capacity(chunk.len());
    for row in 0..chunk.len() {
        if lists.is_null(row) {
            moved.push(Vec::new());
            continue;
        }
        let (range, source) = (values.range(row), from.get(row)?);
        if range.len() != source.len() {
            return Err(PyValueError::new_err(format!(
                "line {row} has {} values for {} tokens",
                range.len(),
                source.len()
            )));
        }
        moved.push(align::transfer_values(
            &numbers.values()[range],
            &source,
            &to.get(row)?,
        ));
    }
    let flat: Float32Array = moved.iter().flatten().copied().collect::<Vec<f32>>().into();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let offsets = OffsetBuffer::from_lengths(moved.iter().map(Vec::len));
    Ok(Arc::new(LargeListArray::new(
        item,
        offsets,
        Arc::new(flat),
        lists.nulls().cloned(),
    )))
}

/// The tokens of one side, `from` or `to`.
struct Tokens<'a> {
    side: &'a str,
    starts: Lists<&'a ArrayRef>,
    ends: Lists<&'a ArrayRef>,
    turns: Option<Lists<&'a ArrayRef>>,
    mask: Option<Lists<&'a ArrayRef>>,
}

impl<'a> Tokens<'a> {
    fn new(columns: &'a StructArray, side: &'a str) -> PyResult<Self> {
        let list = |name: &str| {
            let column = columns.column_by_name(&format!("{name}_{side}"));
            column.map(|column| Lists::new(name, column)).transpose()
        };
        let needed = |name: &str| {
            let missing = || PyValueError::new_err(format!("{name}_{side} is missing"));
            list(name)?.ok_or_else(missing)
        };
        Ok(Self {
            side,
            starts: needed("starts")?,
            ends: needed("ends")?,
            turns: list("turns")?,
            mask: list("mask")?,
        })
    }

    fn get(&self, row: usize) -> PyResult<Vec<Token>> {
        let (at, until) = (self.starts.range(row), self.ends.range(row));
        for (name, other) in [
            ("ends", Some(&self.ends)),
            ("turns", self.turns.as_ref()),
            ("mask", self.mask.as_ref()),
        ] {
            if other.is_some_and(|other| other.range(row).len() != at.len()) {
                return Err(PyValueError::new_err(format!(
                    "line {row}: starts_{side} and {name}_{side} must have equal lengths",
                    side = self.side
                )));
            }
        }
        let (start, end) = (
            u32s("starts", self.starts.values)?,
            u32s("ends", self.ends.values)?,
        );
        let turns = self.turns.as_ref().map(|turns| {
            (
                turns.values.as_primitive::<UInt16Type>(),
                turns.range(row).start,
            )
        });
        let mask = self
            .mask
            .as_ref()
            .map(|mask| (mask.values.as_boolean(), mask.range(row).start));
        let token = |(index, (s, e)): (usize, (usize, usize))| Token {
            span: (start.is_valid(s) && end.is_valid(e)).then(|| (start.value(s), end.value(e))),
            turn: turns.map_or(0, |(turns, first)| turns.value(first + index)),
            scored: mask.is_none_or(|(mask, first)| mask.value(first + index)),
        };
        Ok(at.zip(until).enumerate().map(token).collect())
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(spans_to_mask, module)?)?;
    module.add_function(wrap_pyfunction!(transfer_values, module)?)
}
