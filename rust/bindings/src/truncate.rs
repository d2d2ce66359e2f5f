use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, LargeListArray, LargeStringArray, ListArray, StructArray, UInt32Array,
};
use arrow_schema::{DataType, Field, Fields};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyChunkedArray;
use pyprefopt_core::truncate::{Cut, kept_bytes, kept_characters, kept_positions};
use rayon::prelude::*;

use crate::columns::{Lists, Strings, chunked, field};
use crate::error::to_py;
use crate::tokenize::Tokenizer;

/// Cut strings, or the last content of chats, by the tokenizer's tokens or (without one) by characters.
#[pyfunction]
#[pyo3(signature = (column, *, ratio = None, tokens = None, rounding = "ceil", tokenizer = None))]
fn truncate_text(
    py: Python<'_>,
    column: PyChunkedArray,
    ratio: Option<f64>,
    tokens: Option<usize>,
    rounding: &str,
    tokenizer: Option<&Tokenizer>,
) -> PyResult<PyChunkedArray> {
    let cut = Cut::new(ratio, tokens, rounding).map_err(to_py)?;
    let (chunks, field) = column.into_inner();
    let chunks = py.detach(|| {
        let truncate = |chunk: &ArrayRef| match chunk.data_type() {
            DataType::List(_) | DataType::LargeList(_) => truncate_chats(chunk, cut, tokenizer),
            _ => truncate_strings(chunk, cut, tokenizer, |_| true),
        };
        chunks.iter().map(truncate).collect::<PyResult<Vec<_>>>()
    })?;
    let data_type = chunks.first().map_or_else(
        || field.data_type().clone(),
        |chunk| chunk.data_type().clone(),
    );
    chunked(chunks, data_type)
}

fn truncate_strings(
    column: &ArrayRef,
    cut: Cut,
    tokenizer: Option<&Tokenizer>,
    concerned: impl Fn(usize) -> bool + Sync,
) -> PyResult<ArrayRef> {
    let texts = Strings::new("text", column)?;
    let shorten = |index: usize| -> pyprefopt_core::Result<Option<&str>> {
        let Some(text) = texts.get(index).filter(|_| concerned(index)) else {
            return Ok(texts.get(index));
        };
        let length = match tokenizer {
            Some(tokenizer) => kept_bytes(text, &tokenizer.encoder().encode(text)?.offsets, cut),
            None => kept_characters(text, cut),
        };
        Ok(Some(&text[..length]))
    };
    let kept: Vec<Option<&str>> = (0..column.len())
        .into_par_iter()
        .map(shorten)
        .collect::<Result<_, _>>()
        .map_err(to_py)?;
    Ok(Arc::new(LargeStringArray::from_iter(kept)))
}

fn truncate_chats(
    column: &ArrayRef,
    cut: Cut,
    tokenizer: Option<&Tokenizer>,
) -> PyResult<ArrayRef> {
    let lists = Lists::new("chat", column)?;
    let messages = lists.structs("chat")?;
    let mut last = vec![false; messages.len()];
    for range in (0..column.len())
        .map(|index| lists.range(index))
        .filter(|range| !range.is_empty())
    {
        last[range.end - 1] = true;
    }
    let content = truncate_strings(field("content", messages)?, cut, tokenizer, |index| {
        last[index]
    })?;
    let (fields, mut arrays, nulls) = messages.clone().into_parts();
    let mut new_fields: Vec<Arc<Field>> = fields.iter().cloned().collect();
    for (index, field) in fields
        .iter()
        .enumerate()
        .filter(|(_, field)| field.name() == "content")
    {
        new_fields[index] = Arc::new(
            field
                .as_ref()
                .clone()
                .with_data_type(content.data_type().clone()),
        );
        arrays[index] = content.clone();
    }
    let broken = |error: arrow_schema::ArrowError| PyValueError::new_err(error.to_string());
    let messages = StructArray::try_new(Fields::from(new_fields), arrays, nulls).map_err(broken)?;
    let item = Arc::new(Field::new("item", messages.data_type().clone(), true));
    let values: ArrayRef = Arc::new(messages);
    if let Some(lists) = column.as_list_opt::<i32>() {
        let (_, offsets, _, nulls) = lists.clone().into_parts();
        return Ok(Arc::new(
            ListArray::try_new(item, offsets, values, nulls).map_err(broken)?,
        ));
    }
    let (_, offsets, _, nulls) = column.as_list::<i64>().clone().into_parts();
    Ok(Arc::new(
        LargeListArray::try_new(item, offsets, values, nulls).map_err(broken)?,
    ))
}

/// Positions kept of each segment: struct{mask: list<bool>, starts: list<u32>} to u32; `starts` is optional.
#[pyfunction]
#[pyo3(signature = (segments, *, ratio = None, tokens = None, rounding = "ceil"))]
fn truncate_positions(
    py: Python<'_>,
    segments: PyChunkedArray,
    ratio: Option<f64>,
    tokens: Option<usize>,
    rounding: &str,
) -> PyResult<PyChunkedArray> {
    let cut = Cut::new(ratio, tokens, rounding).map_err(to_py)?;
    let (chunks, _) = segments.into_inner();
    let kept = py.detach(|| {
        chunks
            .iter()
            .map(|chunk| positions(chunk, cut))
            .collect::<PyResult<Vec<_>>>()
    })?;
    chunked(kept, DataType::UInt32)
}

fn positions(chunk: &ArrayRef, cut: Cut) -> PyResult<ArrayRef> {
    let broken = |what: &str| PyValueError::new_err(format!("truncate_positions needs {what}"));
    let segments = chunk
        .as_struct_opt()
        .ok_or_else(|| broken("a struct column"))?;
    let masks = Lists::new("mask", field("mask", segments)?)?;
    let starts = segments
        .column_by_name("starts")
        .map(|column| Lists::new("starts", column))
        .transpose()?;
    let mask = masks
        .values
        .as_boolean_opt()
        .ok_or_else(|| broken("mask of type list<bool>"))?;
    let mut kept = Vec::with_capacity(chunk.len());
    for index in 0..chunk.len() {
        let range = masks.range(index);
        let first = starts
            .as_ref()
            .map_or(0, |starts| starts.range(index).start);
        if starts
            .as_ref()
            .is_some_and(|starts| starts.range(index).len() != range.len())
        {
            return Err(broken("mask and starts of equal lengths"));
        }
        let is_content = |offset: usize| {
            let position = range.start + offset;
            let of_template = starts
                .as_ref()
                .is_some_and(|starts| starts.values.is_null(first + offset));
            mask.is_valid(position) && mask.value(position) && !of_template
        };
        let content: Vec<bool> = (0..range.len()).map(is_content).collect();
        kept.push(kept_positions(&content, cut) as u32);
    }
    Ok(Arc::new(UInt32Array::from(kept)))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(truncate_text, module)?)?;
    module.add_function(wrap_pyfunction!(truncate_positions, module)?)
}
