//! A row's prompt and responses as text, and where the content stands in it.

use std::ops::Range;

use minijinja::value::Value;

use super::row::{Reject, Response, Row};
use crate::template::{ChatTemplate, Message, Options};

/// Stands in for a content that occurs more than once, to find its place; no text holds it.
const PLACEHOLDER: &str = "\u{f8ff}content\u{f8ff}";
/// A response in its chat's text; ranges are bytes of `text`.
pub(super) struct Rendered {
    pub text: String,
    pub content: Option<Content>,
    pub stop: usize, // end of what is kept: the last visible character that the template writes
    pub turns: Vec<usize>, // where the messages before the last one end
    pub first_turn: usize,
}

/// Where the last message's content stands; `lead` counts the bytes that the template trimmed off its start.
#[derive(Clone)]
pub(super) struct Content {
    pub range: Range<usize>,
    pub lead: usize,
}

/// The template with what one row brings to it.
pub(super) struct Chat<'a> {
    template: &'a ChatTemplate,
    options: Options,
    prompt: Vec<Value>,
}

impl<'a> Chat<'a> {
    pub fn new(template: &'a ChatTemplate, row: &Row) -> Result<Self, Reject> {
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

    pub fn render_prompt(&self, row: &Row) -> Result<Rendered, Reject> {
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

    pub fn render_response(
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
