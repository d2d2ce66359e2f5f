//! A column of texts as lists of token ids.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, UInt32Array};
use arrow_schema::DataType;
use pyo3::prelude::*;
use pyo3_arrow::PyChunkedArray;
use pyprefopt_core::tokenize::Encoder;
use rayon::prelude::*;

use crate::arrow::{Strings, chunked, list_array, list_of};
use crate::error::to_py;

/// Text of one task, in bytes: enough to be worth a task, and several tasks for each thread; least and usual.
const SMALL_TASK_BYTES: usize = 16 << 10;
const TASK_BYTES: usize = 128 << 10;
/// Tasks of a chunk, which becomes as many chunks: those that small tasks are made for, and the most.
const TASKS: usize = 16;
const MOST_TASKS: usize = 256;
/// Bytes of a token; fewer than is usual, so that the room for a task's ids seldom has to grow.
const TOKEN_BYTES: usize = 4;
/// Texts of a column, and bytes of each, on which the engine is proved.
const PROVED_TEXTS: usize = 8;
const PROVED_BYTES: usize = 256;

/// Ids of every text; a null is taken as an empty text. The lists come in chunks that only the texts decide on.
pub fn encode_column(encoder: &Encoder, chunks: &[ArrayRef]) -> PyResult<PyChunkedArray> {
    let mut tasks = Vec::new();
    for chunk in chunks {
        let texts = Strings::new("texts", chunk)?;
        let rows = groups(texts, chunk.len());
        tasks.extend(rows.into_iter().map(|rows| (texts, rows)));
    }
    let one = |(texts, rows)| encode_rows(encoder, texts, rows);
    let lists = tasks.into_par_iter().map(one);
    let lists = lists.collect::<PyResult<Vec<_>>>()?;
    chunked(lists, list_of(DataType::UInt32))
}

/// Rows in groups of about the same number of bytes.
fn groups(texts: Strings, rows: usize) -> Vec<Range<usize>> {
    let total: usize = (0..rows).map(|row| size(texts, row)).sum();
    let least = (total / TASKS).clamp(SMALL_TASK_BYTES, TASK_BYTES);
    let most = least.max(total / MOST_TASKS);
    let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0);
    for row in 0..rows {
        bytes += size(texts, row);
        if bytes >= most {
            groups.push(start..row + 1);
            (start, bytes) = (row + 1, 0);
        }
    }
    if start < rows {
        groups.push(start..rows);
    }
    groups
}

fn size(texts: Strings, row: usize) -> usize {
    texts.get(row).map_or(0, str::len)
}

fn encode_rows(encoder: &Encoder, texts: Strings, rows: Range<usize>) -> PyResult<ArrayRef> {
    let bytes: usize = rows.clone().map(|row| size(texts, row)).sum();
    let mut ids = Vec::with_capacity(bytes / TOKEN_BYTES);
    let mut lengths = Vec::with_capacity(rows.len());
    for row in rows {
        let before = ids.len();
        encoder
            .encode_ids(texts.get(row).unwrap_or_default(), &mut ids)
            .map_err(to_py)?;
        lengths.push(ids.len() - before);
    }
    Ok(list_array(
        Arc::new(UInt32Array::from(ids)),
        lengths.into_iter(),
    ))
}

/// Compare the engines on texts spread over the column, cut to a bounded size, once; or on all of them as they are. Says
/// where they differ.
pub fn prove_column(encoder: &Encoder, chunks: &[ArrayRef], all: bool) -> PyResult<Option<String>> {
    let count: usize = chunks.iter().map(Array::len).sum();
    if count == 0 || !all && !encoder.wants_sample() {
        return Ok(None);
    }
    let step = if all { 1 } else { count.div_ceil(PROVED_TEXTS) };
    let (mut sample, mut rows, mut first) = (Vec::new(), Vec::new(), 0);
    for chunk in chunks {
        let texts = Strings::new("texts", chunk)?;
        for row in (first..first + chunk.len()).filter(|row| row % step == 0) {
            let text = texts.get(row - first).unwrap_or_default();
            sample.push(if all { text } else { beginning(text) });
            rows.push(row);
        }
        first += chunk.len();
    }
    let difference = encoder.prove(&sample);
    Ok(difference.map(|mismatch| format!("row {} of the texts: {mismatch}", rows[mismatch.text])))
}

fn beginning(text: &str) -> &str {
    let mut end = text.len().min(PROVED_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
