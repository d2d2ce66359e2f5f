//! Frames of chats as rows, and the segments table that they become, one record batch a chunk of rows.

use std::collections::HashMap;
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
use pyprefopt_core::Reject;
use pyprefopt_core::tokenize::{
    Columns, Coverage, Encoder, FoundSpecial, Response, Row, Tokenization, tokenize_row,
};
use rayon::prelude::*;

use crate::arrow::{Chats, Lists, Strings, bitmap, chunked, list_array};
use crate::reject::reject_batch;

/// Chunks of a batch, and rows of each.
const CHUNKS: usize = 64;
const CHUNK_ROWS: (usize, usize) = (128, 1024);

pub type Tables = (
    PyTable,
    PyTable,
    usize,
    PyChunkedArray,
    usize,
    HashMap<&'static str, u64>,
    Option<Special>,
    Counts,
);
/// The first special token in a content: row, field, token.
pub type Special = (u64, &'static str, String);
/// Of the responses: tokens, unknown ones, visible bytes, dropped ones.
pub type Counts = (usize, usize, usize, usize);

/// Segments, rejects, responses cut, rows tokenized apart, rows without BOS, notes, the first special token in a content,
/// coverage.
pub fn tokenize_table(
    work: &Tokenization,
    batches: &[RecordBatch],
    offsets: bool,
) -> PyResult<Tables> {
    let mut made = Made::default();
    for batch in batches {
        let source = Source::new(batch)?;
        made.add(batch.num_rows(), offsets, |index, columns| {
            tokenize_row(work, &source.row(index), columns);
        })?;
    }
    made.tables(work.encoder, offsets)
}

/// Record batches of segments, with their counts.
#[derive(Default)]
pub struct Made {
    segments: Vec<RecordBatch>,
    counts: Columns,
}

impl Made {
    /// Append the lines that `append` makes of each of `rows`. What a batch holds depends on the rows alone.
    pub fn add(
        &mut self,
        rows: usize,
        offsets: bool,
        append: impl Fn(usize, &mut Columns) + Sync,
    ) -> PyResult<()> {
        let step = rows.div_ceil(CHUNKS).clamp(CHUNK_ROWS.0, CHUNK_ROWS.1);
        let starts: Vec<usize> = (0..rows).step_by(step).collect();
        let chunk = |columns: &mut Columns, start: usize| {
            (start..(start + step).min(rows)).for_each(|index| append(index, columns));
            let batch = segments_batch(columns)?;
            columns.clear_lines();
            Ok((batch, columns.take_counts()))
        };
        let chunks: Vec<(RecordBatch, Columns)> = starts
            .into_par_iter()
            .map_init(|| Columns::new(offsets), chunk)
            .collect::<PyResult<_>>()?;
        for (batch, mut columns) in chunks {
            self.segments.push(batch);
            self.counts.rejects.append(&mut columns.rejects);
            self.counts.apart.append(&mut columns.apart);
            self.counts.responses_cut += columns.responses_cut;
            self.counts.without_bos += columns.without_bos;
            self.counts.notes += columns.notes;
            self.counts.coverage += columns.coverage;
        }
        Ok(())
    }

    /// The bad rows so far.
    pub fn rejects_mut(&mut self) -> &mut [(u64, Reject)] {
        &mut self.counts.rejects
    }

    /// Segments, rejects, responses cut, rows tokenized apart, rows without BOS, notes, the first special token in a content,
    /// coverage.
    pub fn tables(mut self, encoder: &Encoder, offsets: bool) -> PyResult<Tables> {
        if self.segments.is_empty() {
            self.segments.push(segments_batch(&Columns::new(offsets))?);
        }
        let schema = self.segments[0].schema();
        let rejects = reject_batch(&self.counts.rejects)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let apart: ArrayRef = Arc::new(UInt64Array::from(self.counts.apart));
        let special = self
            .counts
            .notes
            .first_special
            .map(|FoundSpecial { row, field, id }| (row, field, encoder.special_name(id).into()));
        Ok((
            PyTable::try_new(self.segments, schema)?,
            table(rejects)?,
            self.counts.responses_cut,
            chunked(vec![apart], DataType::UInt64)?,
            self.counts.without_bos,
            self.counts.notes.named().into_iter().collect(),
            special,
            {
                let Coverage {
                    tokens,
                    unknown,
                    bytes,
                    dropped,
                } = self.counts.coverage;
                (tokens, unknown, bytes, dropped)
            },
        ))
    }
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
    lists: Lists<&'a ArrayRef>,
    chats: Chats<'a>,
    scores: Option<(Lists<&'a ArrayRef>, &'a Float32Array)>,
    complete: Option<(Lists<&'a ArrayRef>, &'a BooleanArray)>,
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
                .map(|responses| Candidates::new(responses, batch))
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
            prompt: self.prompts.get(index).into(),
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
            messages: self.chats.get(index).into(),
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
    fn new(responses: &'a ArrayRef, batch: &'a RecordBatch) -> PyResult<Self> {
        let lists = Lists::new("responses", responses)?;
        let chats = Chats::new("responses", lists.values)?;
        let lists_of = |name| batch.column_by_name(name).map(|c| Lists::new(name, c));
        let wrong = |what: &str| PyTypeError::new_err(what.to_owned());
        let scores = lists_of("scores").transpose()?.map(|lists| {
            let values = lists.values.as_primitive_opt::<Float32Type>();
            values.map(|values| (lists, values))
        });
        let complete = lists_of("responses_complete").transpose()?.map(|lists| {
            let values = lists.values.as_boolean_opt();
            values.map(|values| (lists, values))
        });
        let not_scores = || wrong("scores must be a list of f32");
        let not_flags = || wrong("responses_complete must be a list of booleans");
        Ok(Self {
            lists,
            chats,
            scores: scores.map(|s| s.ok_or_else(not_scores)).transpose()?,
            complete: complete.map(|c| c.ok_or_else(not_flags)).transpose()?,
        })
    }

    fn responses(&self, index: usize) -> impl Iterator<Item = Response<'a>> + '_ {
        let first_score = self
            .scores
            .as_ref()
            .map(|(lists, values)| (lists.range(index), *values));
        let flags = self
            .complete
            .as_ref()
            .map(|(lists, values)| (lists.range(index), *values));
        let Range { start, end } = self.lists.range(index);
        (start..end)
            .enumerate()
            .map(move |(number, place)| Response {
                field: "responses",
                kind: "response",
                messages: self.chats.get(place).into(),
                complete: flags.as_ref().is_none_or(|(range, values)| {
                    let at = range.start + number;
                    at >= range.end || values.is_null(at) || values.value(at)
                }),
                score: first_score.as_ref().and_then(|(range, values)| {
                    let at = range.start + number;
                    (at < range.end && values.is_valid(at)).then(|| values.value(at))
                }),
            })
    }
}

/// The lines of a chunk, in buffers that fit them.
fn segments_batch(columns: &Columns) -> PyResult<RecordBatch> {
    let list = |values: ArrayRef| list_array(values, columns.lengths.iter().copied());
    let numbers = |values: &[u32]| UInt32Array::from(values.to_vec());
    let kinds = columns.kinds.iter().copied();
    let mask = BooleanArray::new(bitmap(&columns.mask), None);
    let mut named: Vec<(&str, ArrayRef)> = vec![
        ("row", Arc::new(UInt64Array::from(columns.rows.clone()))),
        (
            "segment",
            Arc::new(UInt16Array::from(columns.numbers.clone())),
        ),
        ("kind", Arc::new(StringArray::from_iter_values(kinds))),
        ("ids", list(Arc::new(numbers(&columns.ids)))),
        ("mask", list(Arc::new(mask))),
    ];
    if !columns.lean {
        let inside = NullBuffer::new(bitmap(&columns.inside));
        let placed = |values: &[u32]| {
            let values = values.to_vec().into();
            list(Arc::new(UInt32Array::new(values, Some(inside.clone()))))
        };
        let turns = UInt16Array::from(columns.turns.clone());
        named.push(("starts", placed(&columns.starts)));
        named.push(("ends", placed(&columns.ends)));
        named.push(("turns", list(Arc::new(turns))));
    }
    let scores: Float32Array = columns.scores.iter().copied().collect();
    named.push(("score", Arc::new(scores)));
    named.push(("cut", Arc::new(numbers(&columns.cuts))));
    batch(named)
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
