//! Frames of chats as rows, and the segments table that they become, one record batch a chunk of rows.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, RecordBatch, StringArray, UInt16Array,
    UInt32Array, UInt64Array,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, SchemaRef};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3_arrow::{PyChunkedArray, PyTable};
use pyprefopt_core::tokenize::{Columns, Reject, Response, Row, Tokenization, tokenize_row};
use rayon::prelude::*;

use crate::columns::{Chats, Lists, Strings, bitmap, chunked, list_array};

/// Chunks of a batch, and rows of each.
const CHUNKS: usize = 64;
const CHUNK_ROWS: (usize, usize) = (32, 1024);

type Tables = (PyTable, PyTable, usize, PyChunkedArray, usize);

/// Segments, rejects, responses cut, rows tokenized apart, rows without BOS.
pub fn tokenize_table(
    work: &Tokenization,
    batches: &[RecordBatch],
    offsets: bool,
) -> PyResult<Tables> {
    let empty = || Columns {
        lean: !offsets,
        ..Columns::default()
    };
    let mut segments = Vec::new();
    let mut books = Columns::default();
    for batch in batches {
        let source = Source::new(batch)?;
        let step = batch
            .num_rows()
            .div_ceil(CHUNKS)
            .clamp(CHUNK_ROWS.0, CHUNK_ROWS.1);
        let starts: Vec<usize> = (0..batch.num_rows()).step_by(step).collect();
        let chunk = |start: usize| {
            let mut columns = empty();
            for index in start..(start + step).min(batch.num_rows()) {
                tokenize_row(work, &source.row(index), &mut columns);
            }
            segments_batch(&mut columns).map(|batch| (batch, columns))
        };
        let chunks: Vec<(RecordBatch, Columns)> =
            starts.into_par_iter().map(chunk).collect::<PyResult<_>>()?;
        for (batch, mut columns) in chunks {
            segments.push(batch);
            books.rejects.append(&mut columns.rejects);
            books.apart.append(&mut columns.apart);
            books.responses_cut += columns.responses_cut;
            books.without_bos += columns.without_bos;
        }
    }
    if segments.is_empty() {
        segments.push(segments_batch(&mut empty())?);
    }
    let schema = segments[0].schema();
    let apart: ArrayRef = Arc::new(UInt64Array::from(books.apart));
    Ok((
        PyTable::try_new(segments, schema)?,
        table(rejects_batch(&books.rejects)?)?,
        books.responses_cut,
        chunked(vec![apart], DataType::UInt64)?,
        books.without_bos,
    ))
}

/// The columns of a batch of preferences, candidates or instructions.
struct Source<'a> {
    keys: &'a UInt64Array,
    prompts: Chats<'a>,
    tools: Option<Strings<'a>>,
    template_kwargs: Option<Strings<'a>>,
    sides: Vec<Side<'a>>,
    candidates: Option<Candidates<'a>>,
}

/// One response column with what belongs to it.
struct Side<'a> {
    name: &'static str,
    chats: Chats<'a>,
    complete: Option<&'a BooleanArray>,
    score: Option<&'a Float32Array>,
}

/// A column of several responses a row, with their scores.
struct Candidates<'a> {
    lists: Lists<'a>,
    chats: Chats<'a>,
    scores: Option<(Lists<'a>, &'a Float32Array)>,
}

impl<'a> Source<'a> {
    fn new(batch: &'a RecordBatch) -> PyResult<Self> {
        let column = |name: &str| {
            batch
                .column_by_name(name)
                .ok_or_else(|| PyTypeError::new_err(format!("the frame has no column {name}")))
        };
        let optional = |name: &str| {
            batch
                .column_by_name(name)
                .map(|c| Strings::new(name, c))
                .transpose()
        };
        let names = ["chosen", "rejected", "response"];
        Ok(Self {
            keys: column("row")?
                .as_primitive_opt::<UInt64Type>()
                .ok_or_else(|| PyTypeError::new_err("row must be u64"))?,
            prompts: Chats::new("prompt", column("prompt")?)?,
            tools: optional("tools")?,
            template_kwargs: optional("template_kwargs")?,
            sides: names
                .into_iter()
                .filter_map(|name| Side::new(batch, name).transpose())
                .collect::<PyResult<_>>()?,
            candidates: batch
                .column_by_name("responses")
                .map(|responses| Candidates::new(responses, batch.column_by_name("scores")))
                .transpose()?,
        })
    }

    fn row(&self, index: usize) -> Row<'a> {
        let mut responses: Vec<Response> =
            self.sides.iter().map(|side| side.response(index)).collect();
        if let Some(candidates) = &self.candidates {
            responses.extend(candidates.responses(index));
        }
        Row {
            row: self.keys.value(index),
            prompt: self.prompts.get(index),
            responses,
            tools: self.tools.and_then(|c| c.get(index)),
            template_kwargs: self.template_kwargs.and_then(|c| c.get(index)),
        }
    }
}

impl<'a> Side<'a> {
    fn new(batch: &'a RecordBatch, name: &'static str) -> PyResult<Option<Self>> {
        let Some(column) = batch.column_by_name(name) else {
            return Ok(None);
        };
        Ok(Some(Self {
            name,
            chats: Chats::new(name, column)?,
            complete: batch
                .column_by_name(&format!("{name}_complete"))
                .and_then(|c| c.as_boolean_opt()),
            score: batch
                .column_by_name(&format!("score_{name}"))
                .and_then(|c| c.as_primitive_opt::<Float32Type>()),
        }))
    }

    fn response(&self, index: usize) -> Response<'a> {
        Response {
            field: self.name,
            kind: self.name,
            messages: self.chats.get(index),
            complete: self
                .complete
                .is_none_or(|flags| flags.is_null(index) || flags.value(index)),
            score: self
                .score
                .filter(|scores| scores.is_valid(index))
                .map(|scores| scores.value(index)),
        }
    }
}

impl<'a> Candidates<'a> {
    fn new(responses: &'a ArrayRef, scores: Option<&'a ArrayRef>) -> PyResult<Self> {
        let lists = Lists::new("responses", responses)?;
        let chats = Chats::new("responses", lists.values)?;
        let scores = match scores {
            None => None,
            Some(column) => {
                let lists = Lists::new("scores", column)?;
                let values = lists
                    .values
                    .as_primitive_opt::<Float32Type>()
                    .ok_or_else(|| PyTypeError::new_err("scores must be a list of f32"))?;
                Some((lists, values))
            }
        };
        Ok(Self {
            lists,
            chats,
            scores,
        })
    }

    fn responses(&self, index: usize) -> impl Iterator<Item = Response<'a>> + '_ {
        let first_score = self
            .scores
            .as_ref()
            .map(|(lists, values)| (lists.range(index), *values));
        let Range { start, end } = self.lists.range(index);
        (start..end)
            .enumerate()
            .map(move |(number, place)| Response {
                field: "responses",
                kind: "response",
                messages: self.chats.get(place),
                complete: true,
                score: first_score.as_ref().and_then(|(range, values)| {
                    let at = range.start + number;
                    (at < range.end && values.is_valid(at)).then(|| values.value(at))
                }),
            })
    }
}

/// The lines of a chunk; its buffers are moved, not copied.
fn segments_batch(columns: &mut Columns) -> PyResult<RecordBatch> {
    let take = std::mem::take::<Vec<u32>>;
    let lengths = std::mem::take(&mut columns.lengths);
    let list = |values: ArrayRef| list_array(values, lengths.iter().copied());
    let mask = BooleanArray::new(bitmap(&columns.mask), None);
    let mut named: Vec<(&str, ArrayRef)> = vec![
        (
            "row",
            Arc::new(UInt64Array::from(std::mem::take(&mut columns.rows))),
        ),
        (
            "segment",
            Arc::new(UInt16Array::from(std::mem::take(&mut columns.numbers))),
        ),
        (
            "kind",
            Arc::new(StringArray::from_iter_values(columns.kinds.drain(..))),
        ),
        (
            "ids",
            list(Arc::new(UInt32Array::from(take(&mut columns.ids)))),
        ),
        ("mask", list(Arc::new(mask))),
    ];
    if !columns.lean {
        let inside = NullBuffer::new(bitmap(&columns.inside));
        let placed = |values: Vec<u32>| {
            list(Arc::new(UInt32Array::new(
                values.into(),
                Some(inside.clone()),
            )))
        };
        let turns = UInt16Array::from(std::mem::take(&mut columns.turns));
        named.push(("starts", placed(take(&mut columns.starts))));
        named.push(("ends", placed(take(&mut columns.ends))));
        named.push(("turns", list(Arc::new(turns))));
    }
    named.push((
        "score",
        Arc::new(columns.scores.drain(..).collect::<Float32Array>()),
    ));
    named.push(("cut", Arc::new(UInt32Array::from(take(&mut columns.cuts)))));
    batch(named)
}

fn rejects_batch(rejects: &[(u64, Reject)]) -> PyResult<RecordBatch> {
    fn strings(rejects: &[(u64, Reject)], part: impl Fn(&Reject) -> &str) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            rejects.iter().map(|(_, reject)| part(reject)),
        ))
    }
    let rows = UInt64Array::from_iter_values(rejects.iter().map(|(row, _)| *row));
    batch(vec![
        ("row", Arc::new(rows)),
        ("field", strings(rejects, |reject| reject.field)),
        ("value", strings(rejects, |reject| &reject.value)),
        ("reason", strings(rejects, |reject| reject.reason)),
        ("rule", strings(rejects, |reject| &reject.rule)),
        ("remedy", strings(rejects, |reject| &reject.remedy)),
    ])
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> PyResult<RecordBatch> {
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

fn table(batch: RecordBatch) -> PyResult<PyTable> {
    let schema: SchemaRef = batch.schema();
    PyTable::try_new(vec![batch], schema)
}
