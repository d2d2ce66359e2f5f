//! What is tokenized and by what: rows of chats, the tokenizer with its template, the bounds on a row's tokens.

use std::borrow::Cow;

use super::encoder::Encoder;
use crate::message::Message;
use crate::template::ChatTemplate;
use crate::{Error, Result};

/// A prompt with its responses, as the frame gives them.
pub struct Row<'a> {
    pub row: u64,
    pub prompt: Cow<'a, [Message<'a>]>,
    pub responses: Vec<Response<'a>>,
    pub tools: Option<&'a str>,
    pub template_kwargs: Option<&'a str>,
}

/// One response; `complete` is false where it was cut, so that no turn end is written.
pub struct Response<'a> {
    pub field: &'static str,
    pub kind: &'static str,
    pub messages: Cow<'a, [Message<'a>]>,
    pub complete: bool,
    pub score: Option<f32>,
}

impl Response<'_> {
    /// The content of its last message.
    pub(super) fn content(&self) -> &str {
        let last = self.messages.last();
        last.map_or("", |message| &*message.content)
    }
}

/// What tokenizes rows.
#[derive(Clone, Copy)]
pub struct Tokenization<'a> {
    pub encoder: &'a Encoder,
    pub template: &'a ChatTemplate,
    /// Of rows with tools; None: the same one.
    pub tool_template: Option<&'a ChatTemplate>,
    pub limits: Limits,
    pub bos: Option<u32>,
    pub eos: Option<&'a str>,
    /// Whether the assistant's reasoning is scored as its answer is.
    pub score_reasoning: bool,
    /// Whether responses that are to be told apart may not become the same tokens; a model that only reads them may.
    pub refuse_identical: bool,
}

impl<'a> Tokenization<'a> {
    /// The template of a row, as transformers chooses it.
    pub(super) fn template_of(&self, row: &Row) -> &'a ChatTemplate {
        let tools = row.tools.is_some_and(|tools| tools.trim() != "null");
        self.tool_template
            .filter(|_| tools)
            .unwrap_or(self.template)
    }
}

/// Longest prompt, and longest prompt with one response, in tokens; what happens where they do not fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub max_prompt_tokens: Option<usize>,
    pub prompt_overflow: PromptOverflow,
    pub max_tokens: Option<usize>,
    pub boundary: Boundary,
}

/// What happens to a prompt that is longer than `max_prompt_tokens`: its row is bad, or left out without being bad, or
/// the prompt is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptOverflow {
    #[default]
    Error,
    Drop,
    KeepStart,
    KeepEnd,
}

/// What happens where a token lies across the boundary of prompt and response: they are tokenized apart, as generation
/// sees them; the row is bad; or it is the response's first, and the response goes on to the last character that the
/// template writes: one text, as a reader of finished chats has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Boundary {
    #[default]
    Split,
    Error,
    Join,
}

impl PromptOverflow {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "error" => Ok(Self::Error),
            "drop" => Ok(Self::Drop),
            "keep_start" => Ok(Self::KeepStart),
            "keep_end" => Ok(Self::KeepEnd),
            _ => Err(unknown("prompt_overflow", name)),
        }
    }
}

impl Boundary {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "split" => Ok(Self::Split),
            "error" => Ok(Self::Error),
            "join" => Ok(Self::Join),
            _ => Err(unknown("boundary", name)),
        }
    }
}

fn unknown(setting: &str, value: &str) -> Error {
    Error::Argument(format!("{setting} has no value {value:?}"))
}

impl Limits {
    /// Whether a prompt may be cut, so that the place of its generation prompt is needed.
    pub(super) fn cuts_prompts(self) -> bool {
        let cuts = matches!(
            self.prompt_overflow,
            PromptOverflow::KeepStart | PromptOverflow::KeepEnd
        );
        cuts && self.max_prompt_tokens.is_some()
    }

    /// Tokens that are left for a response.
    pub(super) fn room(self, prompt_length: usize) -> usize {
        self.max_tokens
            .map_or(usize::MAX, |most| most.saturating_sub(prompt_length))
    }
}
