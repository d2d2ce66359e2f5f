//! One row of preferences or instructions: a prompt with its responses.

use super::chat::{Chat, Rendered};
use super::{Encoded, Encoder};
use crate::template::{ChatTemplate, Message};

const SHOWN_CHARACTERS: usize = 80;

/// A prompt with its responses, as the frame gives them.
pub struct Row<'a> {
    pub prompt: Vec<Message<'a>>,
    pub responses: Vec<Response<'a>>,
    pub tools: Option<&'a str>,
    pub template_kwargs: Option<&'a str>,
}

/// One response; `complete` is false where it was cut, so that no turn end is written.
pub struct Response<'a> {
    pub field: &'static str,
    pub messages: Vec<Message<'a>>,
    pub complete: bool,
}

/// Longest prompt, and longest prompt with one response, in tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub max_prompt_tokens: Option<usize>,
    pub max_tokens: Option<usize>,
}

/// One line of the segments table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    pub ids: Vec<u32>,
    pub mask: Vec<bool>,          // written by the assistant
    pub starts: Vec<Option<u32>>, // bytes in the last message's content; None for the template's tokens
    pub ends: Vec<Option<u32>>,
    pub turns: Vec<u16>, // message of the chat
}

/// The segments of a row: prompt first, then the responses in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowTokens {
    pub segments: Vec<Segment>,
    pub responses_cut: usize,
    pub tokenized_apart: bool, // a token lay across the boundary of prompt and response
}

/// Why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub field: &'static str,
    pub value: String,
    pub reason: &'static str,
    pub rule: String,
    pub remedy: String,
}

impl Reject {
    pub(super) fn new(
        field: &'static str,
        value: &str,
        reason: &'static str,
        rule: impl Into<String>,
        remedy: &str,
    ) -> Self {
        let mut shown: String = value.chars().take(SHOWN_CHARACTERS).collect();
        if shown.len() < value.len() {
            shown.pop();
            shown.push('…');
        }
        Self {
            field,
            value: shown,
            reason,
            rule: rule.into(),
            remedy: remedy.into(),
        }
    }
}

/// Tokens of one row, or the reason why there are none.
pub fn tokenize_row(
    encoder: &Encoder,
    template: &ChatTemplate,
    row: &Row,
    limits: Limits,
) -> Result<RowTokens, Reject> {
    let chat = Chat::new(template, row)?;
    let prompt = chat.render_prompt(row)?;
    let responses = row
        .responses
        .iter()
        .map(|r| chat.render_response(row, r, &prompt.text))
        .collect::<Result<Vec<_>, _>>()?;
    let (prompt_tokens, response_tokens, tokenized_apart) =
        split(encoder, &prompt, &responses, row)?;
    check_prompt(&prompt_tokens, row, limits)?;
    let room = limits
        .max_tokens
        .map_or(usize::MAX, |most| most - prompt_tokens.ids.len());
    let mut segments = vec![segment(&prompt_tokens, &prompt, false)];
    let mut responses_cut = 0;
    for ((tokens, rendered), response) in response_tokens.iter().zip(&responses).zip(&row.responses)
    {
        let mut line = segment(tokens, rendered, true);
        if line.ids.len() > room {
            line.cut(room);
            responses_cut += 1;
        }
        if !line.starts.iter().any(Option::is_some) {
            return Err(no_content(response, prompt_tokens.ids.len(), limits));
        }
        segments.push(line);
    }
    Ok(RowTokens {
        segments,
        responses_cut,
        tokenized_apart,
    })
}

/// Tokens of the prompt and of each response (offsets in the response's whole text), and whether they were tokenized apart.
fn split(
    encoder: &Encoder,
    prompt: &Rendered,
    responses: &[Rendered],
    row: &Row,
) -> Result<(Encoded, Vec<Encoded>, bool), Reject> {
    let boundary = prompt.text.len();
    let whole: Vec<Encoded> = responses
        .iter()
        .map(|r| encode(encoder, &r.text))
        .collect::<Result<_, _>>()?;
    let mut parts = whole.into_iter().map(|tokens| split_at(tokens, boundary));
    let pieces: Option<Vec<(Encoded, Encoded)>> = parts.by_ref().collect();
    if let Some(pieces) = pieces {
        let (mut prompts, responses): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
        if prompts.windows(2).all(|pair| pair[0].ids == pair[1].ids) {
            return Ok((prompts.swap_remove(0), responses, false));
        }
    }
    if !encoder.byte_level() {
        let rule = "prompt and responses must meet at a token's edge, with the same prompt tokens for all responses";
        let remedy = "use a template that separates them, such as --chat_template chatml, or a byte-level tokenizer";
        return Err(Reject::new(
            row.responses[0].field,
            &prompt.text,
            "boundary",
            rule,
            remedy,
        ));
    }
    // What generation sees: the prompt's tokens stand before the response's first byte is known.
    let apart = |rendered: &Rendered| {
        let mut tokens = encode(encoder, &rendered.text[boundary..])?;
        for (start, end) in &mut tokens.offsets {
            (*start, *end) = (*start + boundary as u32, *end + boundary as u32);
        }
        Ok(tokens)
    };
    let responses = responses.iter().map(apart).collect::<Result<_, Reject>>()?;
    Ok((encode(encoder, &prompt.text)?, responses, true))
}

fn encode(encoder: &Encoder, text: &str) -> Result<Encoded, Reject> {
    let refuse = |error: crate::Error| {
        Reject::new(
            "prompt",
            text,
            "tokenizer",
            error.to_string(),
            "drop the row",
        )
    };
    encoder.encode(text).map_err(refuse)
}

/// Tokens before and from byte `boundary` on; None if a token lies across it.
fn split_at(mut tokens: Encoded, boundary: usize) -> Option<(Encoded, Encoded)> {
    let count = tokens
        .offsets
        .partition_point(|(start, _)| (*start as usize) < boundary);
    if tokens.offsets[..count]
        .iter()
        .any(|(_, end)| *end as usize > boundary)
    {
        return None;
    }
    let after = Encoded {
        ids: tokens.ids.split_off(count),
        offsets: tokens.offsets.split_off(count),
    };
    Some((tokens, after))
}

fn check_prompt(prompt: &Encoded, row: &Row, limits: Limits) -> Result<(), Reject> {
    let length = prompt.ids.len();
    if length == 0 {
        let rule = "a prompt must have at least one token";
        return Err(Reject::new(
            "prompt",
            row.prompt[0].content,
            "empty_prompt",
            rule,
            "drop the row",
        ));
    }
    if let Some(most) = limits.max_prompt_tokens.filter(|most| length > *most) {
        let rule = format!("a prompt has at most {most} tokens");
        let remedy = "raise --max_prompt_tokens, or drop the row with --on_error skip";
        return Err(Reject::new(
            "prompt",
            &format!("{length} tokens"),
            "prompt_too_long",
            rule,
            remedy,
        ));
    }
    match limits.max_tokens {
        Some(most) if length >= most => Err(too_long("prompt", length, most)),
        _ => Ok(()),
    }
}

/// The response's room is taken by what the template writes before it, or the tokenizer drops all its characters.
fn no_content(response: &Response, prompt_length: usize, limits: Limits) -> Reject {
    if let Some(most) = limits.max_tokens {
        return too_long(response.field, prompt_length, most);
    }
    let content = response
        .messages
        .last()
        .map_or("", |message| message.content);
    let rule = "a response must have at least one token";
    Reject::new(
        response.field,
        content,
        "empty_response",
        rule,
        "drop the row",
    )
}

fn too_long(field: &'static str, length: usize, most: usize) -> Reject {
    let rule = format!(
        "prompt and response have at most {most} tokens, at least one of them the response's"
    );
    let remedy =
        "raise --max_tokens, or lower --max_prompt_tokens, or drop the row with --on_error skip";
    Reject::new(
        field,
        &format!("a prompt of {length} tokens"),
        "prompt_too_long",
        rule,
        remedy,
    )
}

/// The line of the segments table that `tokens` make; tokens behind `stop` are left out.
fn segment(tokens: &Encoded, rendered: &Rendered, assistant: bool) -> Segment {
    let mut line = Segment::default();
    for (&id, &(start, end)) in tokens.ids.iter().zip(&tokens.offsets) {
        let (start, end) = (start as usize, end as usize);
        if start >= rendered.stop {
            break;
        }
        let span = rendered
            .content
            .as_ref()
            .filter(|content| end > content.range.start && start < content.range.end)
            .map(|content| {
                let (origin, last) = (content.range.start, content.range.end);
                let inside =
                    |byte: usize| (byte.clamp(origin, last) - origin + content.lead) as u32;
                (inside(start), inside(end))
            });
        let after = rendered
            .content
            .as_ref()
            .is_some_and(|content| start >= content.range.end);
        line.ids.push(id);
        line.mask.push(assistant && (span.is_some() || after));
        line.starts.push(span.map(|s| s.0));
        line.ends.push(span.map(|s| s.1));
        line.turns.push(
            (rendered.first_turn + rendered.turns.partition_point(|turn| *turn <= start)) as u16,
        );
    }
    line
}

impl Segment {
    fn cut(&mut self, length: usize) {
        self.ids.truncate(length);
        self.mask.truncate(length);
        self.starts.truncate(length);
        self.ends.truncate(length);
        self.turns.truncate(length);
    }
}
