use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{Array, ArrayRef, BooleanArray, UInt32Array};
use arrow_schema::DataType;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyChunkedArray;
use pyprefopt_core::align;

use crate::columns::{Lists, chunked, field, list_array, list_of};

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
    let spans = Lists::new("spans", field("spans", columns)?)?;
    let span_fields = spans.structs("spans")?;
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

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(spans_to_mask, module)?)
}
