//! Top-k% selection of tokens.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float32Array, LargeListArray};
use arrow_buffer::{BooleanBuffer, NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field};
use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyArray;
use pyo3_arrow::input::AnyArray;
use pyprefopt_core::select::{self, Rounding, Row};
use pyprefopt_core::{Error, Result};

use crate::error::to_py;
use crate::lists::Lists;

type Scores = Lists<Float32Array>;
type Masks = Lists<BooleanArray>;

/// Which end of a line's scores is selected, and how much of it: `(ratio, largest)`.
type Side = (f64, bool);

/// The row of the kernel for a line; none where the line has no side.
fn row<'a>(
    scores: &'a Scores,
    masks: Option<&'a Masks>,
    line: usize,
    side: Option<Side>,
) -> Result<Option<Row<'a>>> {
    let Some((ratio, largest)) = side else {
        return Ok(None);
    };
    let (Some(values), candidates) = (scores.get(line), masks.map(|masks| masks.bits(line))) else {
        return Err(Error::Row {
            row: line,
            message: "scores are null; a response needs one score per token".into(),
        });
    };
    match candidates {
        Some(bits) if bits.map(|bits| bits.len()) != Some(values.len()) => {
            let found = bits.map_or("null".into(), |bits| bits.len().to_string());
            let message = format!(
                "mask has {found} entries for {} scores; both must have one per token",
                values.len()
            );
            Err(Error::Row { row: line, message })
        }
        _ => Ok(Some(Row {
            scores: values,
            candidates: candidates.flatten(),
            ratio,
            largest,
        })),
    }
}

/// Select in every line that has a side; the others become null.
fn run(
    scores: &Scores,
    masks: Option<&Masks>,
    rounding: &str,
    side: impl Fn(usize) -> Option<Side>,
) -> Result<LargeListArray> {
    let rounding = Rounding::parse(rounding)?;
    if let Some(masks) = masks.filter(|masks| masks.len() != scores.len()) {
        let message = format!(
            "mask has {} lines but scores has {}; both must be of the same frame",
            masks.len(),
            scores.len()
        );
        return Err(Error::Argument(message));
    }
    let rows = (0..scores.len())
        .map(|line| row(scores, masks, line, side(line)))
        .collect::<Result<Vec<_>>>()?;
    let lengths = rows.iter().map(|row| row.map_or(0, |row| row.scores.len()));
    let offsets = OffsetBuffer::from_lengths(lengths);
    let nulls: NullBuffer = rows.iter().map(Option::is_some).collect();
    let lines: Vec<usize> = (0..rows.len())
        .filter(|&line| rows[line].is_some())
        .collect();
    let rows: Vec<Row<'_>> = rows.into_iter().flatten().collect();
    let selected = select::top_k_mask(&rows, rounding).map_err(|error| match error {
        Error::Row { row, message } => Error::Row {
            row: lines[row],
            message,
        },
        other @ Error::Argument(_) => other,
    })?;
    let values = BooleanArray::new(BooleanBuffer::from(selected), None);
    let field = Field::new("item", DataType::Boolean, true);
    let nulls = (nulls.null_count() > 0).then_some(nulls);
    Ok(LargeListArray::new(
        Arc::new(field),
        offsets,
        Arc::new(values),
        nulls,
    ))
}

fn to_arrow(list: LargeListArray) -> PyArray {
    PyArray::from_array_ref(Arc::new(list) as ArrayRef)
}

/// `pyprefopt.data.select.top_k_mask` on Arrow columns; null lists stay null.
#[pyfunction]
#[pyo3(signature = (scores, ratio, *, largest, mask, rounding))]
fn top_k_mask(
    py: Python<'_>,
    scores: AnyArray,
    ratio: f64,
    largest: bool,
    mask: Option<AnyArray>,
    rounding: &str,
) -> PyResult<PyArray> {
    let scores = Scores::from_arrow(scores, "scores")?;
    let masks = mask
        .map(|mask| Masks::from_arrow(mask, "mask"))
        .transpose()?;
    let side = |line| scores.length(line).map(|_| (ratio, largest));
    py.detach(|| run(&scores, masks.as_ref(), rounding, side))
        .map(to_arrow)
        .map_err(to_py)
}

/// `pyprefopt.data.select.select_top_k` on the columns of a segments frame. `kinds`: 0 prompt (stays null), 1 chosen
/// (highest scores), 2 rejected (lowest scores). `rows` names a line in an error.
#[pyfunction]
#[pyo3(signature = (scores, mask, kinds, rows, *, chosen_ratio, rejected_ratio, rounding))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
fn select_top_k(
    py: Python<'_>,
    scores: AnyArray,
    mask: AnyArray,
    kinds: PyReadonlyArray1<'_, u8>,
    rows: PyReadonlyArray1<'_, u64>,
    chosen_ratio: f64,
    rejected_ratio: f64,
    rounding: &str,
) -> PyResult<PyArray> {
    let scores = Scores::from_arrow(scores, "scores")?;
    let masks = Masks::from_arrow(mask, "mask")?;
    let (kinds, rows) = (kinds.as_slice()?, rows.as_slice()?);
    if kinds.len() != scores.len() || rows.len() != scores.len() {
        return Err(PyValueError::new_err(
            "scores, kinds and rows must have one entry per line",
        ));
    }
    let side = |line: usize| match kinds[line] {
        0 => None,
        1 => Some((chosen_ratio, true)),
        _ => Some((rejected_ratio, false)),
    };
    let named = |error| match error {
        Error::Row { row, message } => Error::Row {
            row: rows[row] as usize,
            message,
        },
        other @ Error::Argument(_) => other,
    };
    py.detach(|| run(&scores, Some(&masks), rounding, side).map_err(named))
        .map(to_arrow)
        .map_err(to_py)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(top_k_mask, module)?)?;
    module.add_function(wrap_pyfunction!(select_top_k, module)?)
}
