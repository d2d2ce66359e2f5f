use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, RecordBatch, StringArray, UInt16Array,
    UInt32Array, UInt64Array,
};
use arrow_schema::SchemaRef;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3_arrow::{PyChunkedArray, PyTable};
use pyprefopt_core::template::{ChatTemplate, to_json_object};
use pyprefopt_core::tokenize::{
    Encoder, Limits, Reject, Response, Row, RowTokens, Segment, tokenize_row,
};
use rayon::prelude::*;

use crate::columns::{Chats, Strings, list_array};
use crate::encode::{encode_column, prove_column};
use crate::error::to_py;
use crate::template::render;

/// A `tokenizer.json` with a chat template, both optional parts of one handle.
#[pyclass(frozen, module = "pyprefopt._rust")]
pub struct Tokenizer {
    encoder: Encoder,
    template: Option<ChatTemplate>,
}

impl Tokenizer {
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    fn template(&self) -> PyResult<&ChatTemplate> {
        self.template
            .as_ref()
            .ok_or_else(|| PyValueError::new_err("the tokenizer has no chat template"))
    }
}

#[pymethods]
impl Tokenizer {
    #[new]
    #[allow(clippy::needless_pass_by_value)] // PyO3 hands over what it converts
    #[pyo3(signature = (json, *, special_tokens = Vec::new(), chat_template = None, now = 0, reference = None))]
    fn new(
        py: Python<'_>,
        json: &[u8],
        special_tokens: Vec<(String, String)>,
        chat_template: Option<&str>,
        now: i64,
        reference: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let reference = reference.map(crate::template::reference);
        py.detach(|| {
            let tokens: Vec<String> = special_tokens
                .iter()
                .map(|(_, token)| token.clone())
                .collect();
            let encoder = Encoder::new(json, &tokens)?;
            let names = to_json_object(&special_tokens);
            let template = chat_template
                .map(|source| ChatTemplate::new(source, &names, now, reference))
                .transpose()?;
            Ok(Self { encoder, template })
        })
        .map_err(to_py)
    }

    /// Why the chat template is rendered by the reference; None where the engine renders it.
    #[getter]
    fn template_refusal(&self) -> Option<String> {
        self.template.as_ref().and_then(ChatTemplate::refusal)
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.encoder.vocab_size()
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.encoder.token_to_id(token)
    }

    #[pyo3(signature = (messages, *, add_generation_prompt, tools = None, template_kwargs = None))]
    fn render(
        &self,
        messages: &str,
        add_generation_prompt: bool,
        tools: Option<&str>,
        template_kwargs: Option<&str>,
    ) -> PyResult<String> {
        render(
            self.template()?,
            messages,
            add_generation_prompt,
            tools,
            template_kwargs,
        )
        .map_err(to_py)
    }

    /// "fast" or "tokenizers".
    #[getter]
    fn engine(&self) -> &'static str {
        self.encoder.engine()
    }

    /// Why the engine is not the fast one.
    #[getter]
    fn why(&self) -> &str {
        self.encoder.why()
    }

    fn encode(&self, py: Python<'_>, texts: &Bound<'_, PyAny>) -> PyResult<PyChunkedArray> {
        let (chunks, _) = texts.extract::<PyChunkedArray>()?.into_inner();
        py.detach(|| encode_column(&self.encoder, &chunks))
    }

    #[pyo3(signature = (texts, *, all = false))]
    fn prove(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        all: bool,
    ) -> PyResult<Option<String>> {
        let (chunks, _) = texts.extract::<PyChunkedArray>()?.into_inner();
        py.detach(|| prove_column(&self.encoder, &chunks, all))
    }

    #[pyo3(signature = (frame, *, max_prompt_tokens = None, max_tokens = None))]
    fn tokenize(
        &self,
        py: Python<'_>,
        frame: PyTable,
        max_prompt_tokens: Option<usize>,
        max_tokens: Option<usize>,
    ) -> PyResult<(PyTable, PyTable, usize, usize)> {
        let limits = Limits {
            max_prompt_tokens,
            max_tokens,
        };
        let template = self.template()?;
        let (batches, _) = frame.into_inner();
        let (segments, rejects, cut, apart) = py.detach(|| {
            let mut out = Output::default();
            for batch in &batches {
                tokenize_batch(&self.encoder, template, batch, limits, &mut out)?;
            }
            let (cut, apart) = (out.responses_cut, out.tokenized_apart);
            Ok::<_, PyErr>((
                segments_batch(&out.lines)?,
                rejects_batch(&out.rejects)?,
                cut,
                apart,
            ))
        })?;
        Ok((table(segments)?, table(rejects)?, cut, apart))
    }
}

/// One line of the segments table with its keys.
struct Line {
    row: u64,
    number: u16,
    kind: &'static str,
    score: Option<f32>,
    segment: Segment,
}

#[derive(Default)]
struct Output {
    lines: Vec<Line>,
    rejects: Vec<(u64, Reject)>,
    responses_cut: usize,
    tokenized_apart: usize,
}

/// One response column with what belongs to it.
struct Side<'a> {
    name: &'static str,
    chats: Chats<'a>,
    complete: Option<&'a BooleanArray>,
    score: Option<&'a Float32Array>,
}

impl<'a> Side<'a> {
    fn response(&self, index: usize) -> Response<'a> {
        Response {
            field: self.name,
            messages: self.chats.get(index),
            complete: self
                .complete
                .is_none_or(|flags| flags.is_null(index) || flags.value(index)),
        }
    }
}

fn sides(batch: &RecordBatch) -> PyResult<Vec<Side<'_>>> {
    let mut sides = Vec::new();
    for name in ["chosen", "rejected", "response"] {
        let Some(column) = batch.column_by_name(name) else {
            continue;
        };
        let chats = Chats::new(name, column)?;
        let complete = batch
            .column_by_name(&format!("{name}_complete"))
            .and_then(|c| c.as_boolean_opt());
        let score = batch
            .column_by_name(&format!("score_{name}"))
            .and_then(|c| c.as_primitive_opt::<Float32Type>());
        sides.push(Side {
            name,
            chats,
            complete,
            score,
        });
    }
    Ok(sides)
}

fn tokenize_batch(
    encoder: &Encoder,
    template: &ChatTemplate,
    batch: &RecordBatch,
    limits: Limits,
    out: &mut Output,
) -> PyResult<()> {
    let column = |name: &str| {
        batch
            .column_by_name(name)
            .ok_or_else(|| PyTypeError::new_err(format!("the frame has no column {name}")))
    };
    let keys = column("row")?
        .as_primitive_opt::<UInt64Type>()
        .ok_or_else(|| PyTypeError::new_err("row must be u64"))?;
    let prompts = Chats::new("prompt", column("prompt")?)?;
    let optional = |name: &str| {
        batch
            .column_by_name(name)
            .map(|c| Strings::new(name, c))
            .transpose()
    };
    let (tools, template_kwargs) = (optional("tools")?, optional("template_kwargs")?);
    let sides = sides(batch)?;
    let one = |index: usize| {
        let row = Row {
            prompt: prompts.get(index),
            responses: sides.iter().map(|side| side.response(index)).collect(),
            tools: tools.and_then(|c| c.get(index)),
            template_kwargs: template_kwargs.and_then(|c| c.get(index)),
        };
        tokenize_row(encoder, template, &row, limits)
    };
    let results: Vec<Result<RowTokens, Reject>> =
        (0..batch.num_rows()).into_par_iter().map(one).collect();
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok(tokens) => out.add(keys.value(index), index, tokens, &sides),
            Err(reject) => out.rejects.push((keys.value(index), reject)),
        }
    }
    Ok(())
}

impl Output {
    fn add(&mut self, row: u64, index: usize, tokens: RowTokens, sides: &[Side<'_>]) {
        self.responses_cut += tokens.responses_cut;
        self.tokenized_apart += usize::from(tokens.tokenized_apart);
        for (number, segment) in tokens.segments.into_iter().enumerate() {
            let side = number.checked_sub(1).map(|side| &sides[side]);
            let score = side
                .and_then(|s| s.score)
                .filter(|s| s.is_valid(index))
                .map(|s| s.value(index));
            let kind = side.map_or("prompt", |side| side.name);
            self.lines.push(Line {
                row,
                number: number as u16,
                kind,
                score,
                segment,
            });
        }
    }
}

fn segments_batch(lines: &[Line]) -> PyResult<RecordBatch> {
    let u32s = |part: fn(&Segment) -> &Vec<Option<u32>>| {
        let values: UInt32Array = lines
            .iter()
            .flat_map(|line| part(&line.segment).iter().copied())
            .collect();
        list_array(
            Arc::new(values),
            lines.iter().map(|line| line.segment.ids.len()),
        )
    };
    let ids: UInt32Array = lines
        .iter()
        .flat_map(|line| line.segment.ids.iter().copied().map(Some))
        .collect();
    let masks: BooleanArray = lines
        .iter()
        .flat_map(|line| line.segment.mask.iter().copied().map(Some))
        .collect();
    let turns: UInt16Array = lines
        .iter()
        .flat_map(|line| line.segment.turns.iter().copied().map(Some))
        .collect();
    let lengths = || lines.iter().map(|line| line.segment.ids.len());
    batch(vec![
        (
            "row",
            Arc::new(UInt64Array::from_iter_values(
                lines.iter().map(|line| line.row),
            )),
        ),
        (
            "segment",
            Arc::new(UInt16Array::from_iter_values(
                lines.iter().map(|line| line.number),
            )),
        ),
        (
            "kind",
            Arc::new(StringArray::from_iter_values(
                lines.iter().map(|line| line.kind),
            )),
        ),
        ("ids", list_array(Arc::new(ids), lengths())),
        ("mask", list_array(Arc::new(masks), lengths())),
        ("starts", u32s(|segment| &segment.starts)),
        ("ends", u32s(|segment| &segment.ends)),
        ("turns", list_array(Arc::new(turns), lengths())),
        (
            "score",
            Arc::new(
                lines
                    .iter()
                    .map(|line| line.score)
                    .collect::<Float32Array>(),
            ),
        ),
    ])
}

fn rejects_batch(rejects: &[(u64, Reject)]) -> PyResult<RecordBatch> {
    fn strings(rejects: &[(u64, Reject)], part: impl Fn(&Reject) -> &str) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            rejects.iter().map(|(_, reject)| part(reject)),
        ))
    }
    batch(vec![
        (
            "row",
            Arc::new(UInt64Array::from_iter_values(
                rejects.iter().map(|(row, _)| *row),
            )),
        ),
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

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()
}
