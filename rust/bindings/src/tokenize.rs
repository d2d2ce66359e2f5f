//! The tokenizer with its chat template, and the segments table that it makes.

mod encode;
mod segments;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::{PyChunkedArray, PyTable};
use pyprefopt_core::prepare::prepare_row;
use pyprefopt_core::template::{ChatTemplate, to_json_object};
use pyprefopt_core::tokenize::{Boundary, Encoder, Limits, PromptOverflow, Tokenization};

use crate::error::to_py;
use crate::formats::{Texts, format_of, name_lines};
use crate::template::{reference, render};
use encode::{encode_column, prove_column};
use segments::{Made, Tables, tokenize_table};

/// A `tokenizer.json` with a chat template, both optional parts of one handle.
#[pyclass(frozen, module = "pyprefopt._rust")]
pub struct Tokenizer {
    encoder: Encoder,
    template: Option<ChatTemplate>,
    tool_template: Option<ChatTemplate>,
    bos: Option<u32>,
    eos: Option<String>,
}

impl Tokenizer {
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    fn work(
        &self,
        max_prompt_tokens: Option<usize>,
        prompt_overflow: &str,
        max_tokens: Option<usize>,
        boundary: &str,
        score_reasoning: bool,
        refuse_identical: bool,
    ) -> PyResult<Tokenization<'_>> {
        let limits = Limits {
            max_prompt_tokens,
            prompt_overflow: PromptOverflow::parse(prompt_overflow).map_err(to_py)?,
            max_tokens,
            boundary: Boundary::parse(boundary).map_err(to_py)?,
        };
        Ok(Tokenization {
            encoder: &self.encoder,
            template: self.template()?,
            tool_template: self.tool_template.as_ref(),
            limits,
            bos: self.bos,
            eos: self.eos.as_deref(),
            score_reasoning,
            refuse_identical,
        })
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
    #[allow(clippy::needless_pass_by_value, clippy::too_many_arguments)] // PyO3 hands over what it converts
    #[pyo3(signature = (json, *, special_tokens = Vec::new(), chat_template = None, tool_template = None, now = 0, reference = None, tool_reference = None))]
    fn new(
        py: Python<'_>,
        json: &[u8],
        special_tokens: Vec<(String, String)>,
        chat_template: Option<&str>,
        tool_template: Option<&str>,
        now: i64,
        reference: Option<Py<PyAny>>,
        tool_reference: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let reference = reference.map(self::reference);
        let tool_reference = tool_reference.map(self::reference);
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
            let tool_template = tool_template
                .map(|source| ChatTemplate::new(source, &names, now, tool_reference))
                .transpose()?;
            let token_of = |wanted: &str| {
                let mut tokens = special_tokens.iter();
                let found = tokens.find(|(name, _)| name == wanted);
                found.map(|(_, token)| token.clone())
            };
            let bos = token_of("bos_token").and_then(|token| encoder.token_to_id(&token));
            Ok(Self {
                encoder,
                template,
                tool_template,
                bos,
                eos: token_of("eos_token"),
            })
        })
        .map_err(to_py)
    }

    /// Why a chat template is rendered by the reference: that of chats, that of chats with tools; None where the engine
    /// renders it.
    #[getter]
    fn template_refusals(&self) -> [Option<String>; 2] {
        [&self.template, &self.tool_template]
            .map(|template| template.as_ref().and_then(ChatTemplate::refusal))
    }

    /// Shapes of chats that the template has shown so far; rows of a known shape need no rendering.
    #[getter]
    fn template_shapes(&self) -> usize {
        self.template.as_ref().map_or(0, ChatTemplate::shape_count)
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
        let of_tools = self.tool_template.as_ref().filter(|_| tools.is_some());
        render(
            of_tools.map_or_else(|| self.template(), Ok)?,
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

    /// Whether `prove` has nothing left to do.
    #[getter]
    fn proved(&self) -> bool {
        self.encoder.is_sampled()
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

    /// Segments (without `offsets`, no starts, ends and turns), rejects, responses cut, rows tokenized apart, rows
    /// without BOS, counts by name of what needed a decision, the first special token in a content, and coverage of the
    /// responses.
    #[allow(clippy::too_many_arguments)] // settings by name
    #[pyo3(signature = (frame, *, max_prompt_tokens = None, prompt_overflow = "error", max_tokens = None, boundary = "split", score_reasoning = true, offsets = true, refuse_identical = true))]
    fn tokenize(
        &self,
        py: Python<'_>,
        frame: PyTable,
        max_prompt_tokens: Option<usize>,
        prompt_overflow: &str,
        max_tokens: Option<usize>,
        boundary: &str,
        score_reasoning: bool,
        offsets: bool,
        refuse_identical: bool,
    ) -> PyResult<Tables> {
        let work = self.work(
            max_prompt_tokens,
            prompt_overflow,
            max_tokens,
            boundary,
            score_reasoning,
            refuse_identical,
        )?;
        let (batches, _) = frame.into_inner();
        py.detach(|| tokenize_table(&work, &batches, offsets))
    }

    /// As `tokenize`, of rows that `parse_rows` takes; the rejects of both.
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // settings by name; PyO3 takes them by value
    #[pyo3(signature = (rows, format, *, first_row = 0, first_line = None, max_prompt_tokens = None, prompt_overflow = "error", max_tokens = None, boundary = "split", score_reasoning = true, offsets = true))]
    fn prepare(
        &self,
        py: Python<'_>,
        rows: Texts,
        format: &str,
        first_row: u64,
        first_line: Option<u64>,
        max_prompt_tokens: Option<usize>,
        prompt_overflow: &str,
        max_tokens: Option<usize>,
        boundary: &str,
        score_reasoning: bool,
        offsets: bool,
    ) -> PyResult<Tables> {
        let work = self.work(
            max_prompt_tokens,
            prompt_overflow,
            max_tokens,
            boundary,
            score_reasoning,
            true,
        )?;
        let format = format_of(format)?;
        rows.check(first_line)?;
        py.detach(|| {
            let (kind, (texts, lines)) = (rows.rows(), rows.split());
            let mut made = Made::default();
            made.add(texts.len(), offsets, |index, columns| {
                let number = first_row + index as u64;
                prepare_row(&work, texts[index], number, format, kind, columns);
            })?;
            if let Some(first_line) = first_line {
                name_lines(made.rejects_mut(), |row| {
                    first_line + lines[(row - first_row) as usize]
                });
            }
            made.tables(&self.encoder, offsets)
        })
    }
}

/// The added tokens of a `tokenizer.json`, as its JSON has them.
#[pyfunction]
fn added_tokens(json: &[u8]) -> PyResult<String> {
    pyprefopt_core::tokenize::added_tokens(json).map_err(to_py)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(added_tokens, module)?)?;
    module.add_class::<Tokenizer>()
}
