//! One row of preferences or instructions: a prompt with its responses.

use std::ops::Range;

use minijinja::value::Value;

use super::{Encoded, Encoder};
use crate::template::{ChatTemplate, Message, Options};

/// Stands in for a content that occurs more than once, to find its place; no text holds it.
const PLACEHOLDER: &str = "\u{f8ff}content\u{f8ff}";
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
    fn new(
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

/// A response in its chat's text; ranges are bytes of `text`.
struct Rendered {
    text: String,
    content: Option<Content>,
    stop: usize, // end of what is kept: the last visible character that the template writes
    turns: Vec<usize>, // where the messages before the last one end
    first_turn: usize,
}

/// Where the last message's content stands; `lead` counts the bytes that the template trimmed off its start.
#[derive(Clone)]
struct Content {
    range: Range<usize>,
    lead: usize,
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
            return Err(too_long(
                response.field,
                prompt_tokens.ids.len(),
                limits.max_tokens.unwrap_or(room),
            ));
        }
        segments.push(line);
    }
    Ok(RowTokens {
        segments,
        responses_cut,
        tokenized_apart,
    })
}

/// The template with what one row brings to it.
struct Chat<'a> {
    template: &'a ChatTemplate,
    options: Options,
    prompt: Vec<Value>,
}

impl<'a> Chat<'a> {
    fn new(template: &'a ChatTemplate, row: &Row) -> Result<Self, Reject> {
        if row.prompt.is_empty() {
            let remedy = "give the prompt at least one message, or drop the row";
            return Err(Reject::new(
                "prompt",
                "[]",
                "empty_prompt",
                "a prompt must not be empty",
                remedy,
            ));
        }
        let options = Options::parse(row.tools, row.template_kwargs).map_err(|error| {
            let value = row.template_kwargs.or(row.tools).unwrap_or_default();
            Reject::new(
                "template_kwargs",
                value,
                "broken_json",
                error.to_string(),
                "tools is a JSON list, template_kwargs a JSON object",
            )
        })?;
        Ok(Self {
            template,
            options,
            prompt: values("prompt", &row.prompt)?,
        })
    }

    fn render(
        &self,
        field: &'static str,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String, Reject> {
        self.template
            .render(messages, add_generation_prompt, &self.options)
            .map_err(|error| {
                let last = messages.last().map(ToString::to_string).unwrap_or_default();
                let rule = format!("the chat template must render the chat; it says: {error}");
                Reject::new(
                    field,
                    &last,
                    "template",
                    rule,
                    "change the row, or pass another --chat_template",
                )
            })
    }

    fn render_prompt(&self, row: &Row) -> Result<Rendered, Reject> {
        let text = self.render("prompt", &self.prompt, true)?;
        let turns = self.turn_ends(&self.prompt, &row.prompt, 0, 0, &text);
        let from = turns.last().copied().unwrap_or(0);
        let content = self.locate(
            &self.prompt,
            row.prompt[row.prompt.len() - 1].content,
            from,
            &text,
            true,
        );
        Ok(Rendered {
            stop: text.len(),
            text,
            content,
            turns,
            first_turn: 0,
        })
    }

    fn render_response(
        &self,
        row: &Row,
        response: &Response,
        prompt: &str,
    ) -> Result<Rendered, Reject> {
        let Some(last) = response
            .messages
            .last()
            .filter(|message| !message.content.trim().is_empty())
        else {
            let rule = "a response must have content";
            return Err(Reject::new(
                response.field,
                "",
                "empty_response",
                rule,
                "drop the row",
            ));
        };
        let mut chat = self.prompt.clone();
        chat.extend(values(response.field, &response.messages)?);
        let mut text = self.render(response.field, &chat, false)?;
        let unfit = |rule: &str| {
            Reject::new(
                response.field,
                last.content,
                "template",
                rule,
                "pass another --chat_template",
            )
        };
        if !text.starts_with(prompt) {
            return Err(unfit(
                "the rendered chat must begin with the rendered prompt",
            ));
        }
        let messages: Vec<Message> = row
            .prompt
            .iter()
            .chain(&response.messages)
            .copied()
            .collect();
        let first_turn = row.prompt.len();
        let turns = self.turn_ends(&chat, &messages, first_turn, prompt.len(), &text);
        let from = turns.last().copied().unwrap_or(prompt.len());
        let content = self
            .locate(&chat, last.content, from, &text, false)
            .ok_or_else(|| {
                unfit("the chat template must write the response's content as it stands")
            })?;
        let end = content.range.end;
        let stop = if response.complete {
            end + text[end..].trim_end().len()
        } else {
            end
        };
        if !response.complete {
            text.truncate(end);
        }
        Ok(Rendered {
            text,
            content: Some(content),
            stop,
            turns,
            first_turn,
        })
    }

    /// Where each message from `first` on ends, the last one left out: as far as the chat up to it renders alone, or
    /// (where a template renders that differently) behind its content.
    fn turn_ends(
        &self,
        chat: &[Value],
        messages: &[Message],
        first: usize,
        start: usize,
        text: &str,
    ) -> Vec<usize> {
        let mut end = start;
        let mut ends = Vec::new();
        for index in first..messages.len() - 1 {
            let alone = self
                .template
                .render(&chat[..=index], false, &self.options)
                .ok();
            let content = messages[index].content.trim();
            end = match alone {
                Some(alone) if alone.len() >= end && text.starts_with(&alone) => alone.len(),
                _ => text[end..]
                    .find(content)
                    .map_or(end, |at| end + at + content.len()),
            };
            ends.push(end);
        }
        ends
    }

    /// The content in `text[from..]`, as it stands or trimmed as templates do.
    fn locate(
        &self,
        chat: &[Value],
        content: &str,
        from: usize,
        text: &str,
        add_generation_prompt: bool,
    ) -> Option<Content> {
        let tail = &text[from..];
        let lead = content.len() - content.trim_start().len();
        let forms = [
            (content, 0),
            (content.trim_end(), 0),
            (content.trim_start(), lead),
            (content.trim(), lead),
        ];
        let (shown, lead) = forms
            .into_iter()
            .find(|(shown, _)| !shown.is_empty() && tail.contains(shown))?;
        let at = if occurs_once(tail, shown) {
            tail.find(shown)?
        } else {
            self.placeholder_position(chat, from, text, add_generation_prompt)
                .filter(|at| tail.get(*at..).is_some_and(|rest| rest.starts_with(shown)))?
        };
        let range = from + at..from + at + shown.len();
        Some(Content { range, lead })
    }

    /// Bytes from `from` to the last message's content, found by rendering another content in its place.
    fn placeholder_position(
        &self,
        chat: &[Value],
        from: usize,
        text: &str,
        add_generation_prompt: bool,
    ) -> Option<usize> {
        let (last, before) = chat.split_last()?;
        let keys = last.try_iter().ok()?;
        let replaced: Value = keys
            .map(|key| {
                let value = if key.as_str() == Some("content") {
                    Value::from(PLACEHOLDER)
                } else {
                    last.get_item(&key).unwrap_or_default()
                };
                (key, value)
            })
            .collect();
        let chat: Vec<Value> = before.iter().cloned().chain([replaced]).collect();
        let other = self
            .template
            .render(&chat, add_generation_prompt, &self.options)
            .ok()?;
        let at = other.find(PLACEHOLDER).filter(|at| *at >= from)?;
        (text.get(..at) == Some(&other[..at])).then_some(at - from)
    }
}

/// Whether `shown`, which `text` holds, stands there only once, overlaps counted.
fn occurs_once(text: &str, shown: &str) -> bool {
    text.find(shown) == text.rfind(shown)
}

fn values(field: &'static str, messages: &[Message]) -> Result<Vec<Value>, Reject> {
    let convert = |message: &Message| {
        message.to_value().map_err(|error| {
            Reject::new(
                field,
                message.extra.unwrap_or_default(),
                "broken_json",
                error.to_string(),
                "extra is a JSON object or null",
            )
        })
    };
    messages.iter().map(convert).collect()
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
            (*start, *end) = (*start + boundary, *end + boundary);
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
        .partition_point(|(start, _)| *start < boundary);
    if tokens.offsets[..count]
        .iter()
        .any(|(_, end)| *end > boundary)
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
