//! A row's prompt and responses as text, and where their parts stand in it.

use std::ops::Range;
use std::sync::Arc;

use minijinja::value::Value;

use super::row::{Response, Row};
use crate::reject::Reject;
use crate::template::{ChatTemplate, Message, Options, Place, Places, Shape};

/// Stands in for a content, to find its place; no text holds it.
const PLACEHOLDER: &str = "\u{f8ff}content\u{f8ff}";

/// The prompt, with which each response's text begins.
#[derive(Default)]
pub(super) struct Prompt {
    pub bytes: usize,
    pub generation: usize, // where the generation prompt begins
    pub parts: Parts,
}

/// A prompt or a response in its chat's text; ranges are bytes of the text.
#[derive(Default)]
pub(super) struct Parts {
    pub content: Option<Place>, // the last message's
    pub stop: usize, // end of what is kept: the last visible character that the template writes
    pub turns: Vec<usize>, // where the messages before the last one end
    pub first_turn: usize,
    pub written: Vec<Range<usize>>, // by the assistant, in messages before the last one
}

/// Texts of a row: each response behind the prompt.
#[derive(Default)]
pub(super) struct Texts {
    pub prompt: Prompt,
    pub responses: Vec<(String, Parts)>,
}

/// Render a row: by the shape of its chats where they have one, else message by message.
pub(super) fn render(
    template: &ChatTemplate,
    row: &Row,
    find_generation: bool,
    shapes: &mut Recent,
    out: &mut Texts,
) -> Result<(), Reject> {
    check(row)?;
    if by_shape(template, row, shapes, out).is_none() {
        *out = Chat::new(template, row)?.render_all(row, find_generation)?;
    }
    Ok(())
}

/// Shapes that rows before had; most rows have one of them.
#[derive(Default)]
pub(super) struct Recent(Vec<Arc<Shape>>);

impl Recent {
    const MOST: usize = 16;

    fn find(&mut self, template: &ChatTemplate, chat: &[Message]) -> Option<Arc<Shape>> {
        if let Some(shape) = self.0.iter().find(|shape| shape.fits(chat)) {
            return Some(shape.clone());
        }
        let shape = template.shape(chat)?;
        self.0.truncate(Self::MOST - 1);
        self.0.push(shape.clone());
        Some(shape)
    }
}

fn check(row: &Row) -> Result<(), Reject> {
    if row.prompt.is_empty() {
        let (rule, remedy) = (
            "a prompt must not be empty",
            "give the prompt at least one message, or drop the row",
        );
        return Err(Reject::new("prompt", "[]", "empty_prompt", rule, remedy));
    }
    if row.responses.is_empty() {
        let rule = "a prompt must have at least one response";
        return Err(Reject::new(
            "responses",
            "[]",
            "empty_response",
            rule,
            "drop the row",
        ));
    }
    let empty = |response: &&Response| {
        let last = response.messages.last();
        last.is_none_or(|message| message.content.trim().is_empty())
    };
    match row.responses.iter().find(empty) {
        None => Ok(()),
        Some(response) => {
            let rule = "a response must have content";
            Err(Reject::new(
                response.field,
                "",
                "empty_response",
                rule,
                "drop the row",
            ))
        }
    }
}

fn by_shape(
    template: &ChatTemplate,
    row: &Row,
    shapes: &mut Recent,
    out: &mut Texts,
) -> Option<()> {
    let plain = |message: &Message| message.extra.is_none();
    if row.tools.is_some() || row.template_kwargs.is_some() || !row.prompt.iter().all(plain) {
        return None;
    }
    out.responses
        .resize_with(row.responses.len(), Default::default);
    let mut chat = Vec::with_capacity(row.prompt.len() + 1);
    chat.extend_from_slice(&row.prompt);
    let mut of_first = None;
    for (index, response) in row.responses.iter().enumerate() {
        let [message] = response.messages.as_slice() else {
            return None;
        };
        chat.truncate(row.prompt.len());
        chat.push(*message);
        let shape = plain(message).then(|| shapes.find(template, &chat))??;
        let (before, rest) = out.responses.split_at_mut(index);
        let (text, parts) = &mut rest[0];
        text.clear();
        match (before.first(), &of_first) {
            (Some((first, _)), Some(other)) if Arc::ptr_eq(other, &shape) => {
                text.push_str(&first[..out.prompt.bytes]); // of one shape: of one prompt
            }
            (Some((first, _)), _) => {
                shape.write_prompt(&chat, text);
                if *text != first[..out.prompt.bytes] {
                    return None;
                }
            }
            _ => {
                out.prompt = of_prompt(shape.write_prompt(&chat, text));
                of_first = Some(shape.clone());
            }
        }
        let content = shape.write_response(&chat, text)?;
        *parts = Parts {
            first_turn: row.prompt.len(),
            ..ended(text, content, response.complete)
        };
    }
    Some(())
}

fn of_prompt(places: Places) -> Prompt {
    Prompt {
        bytes: places.boundary,
        generation: places.generation,
        parts: Parts {
            content: places.prompt,
            stop: places.boundary,
            turns: places.turns,
            ..Parts::default()
        },
    }
}

/// The text's end: of the content where it was cut, else the last visible character behind it.
fn ended(text: &mut String, content: Place, complete: bool) -> Parts {
    let end = content.range.end;
    let stop = if complete {
        end + text[end..].trim_end().len()
    } else {
        text.truncate(end);
        end
    };
    Parts {
        content: Some(content),
        stop,
        ..Parts::default()
    }
}

/// The template with what one row brings to it.
struct Chat<'a> {
    template: &'a ChatTemplate,
    options: Options,
    prompt: Vec<Value>,
}

impl<'a> Chat<'a> {
    fn new(template: &'a ChatTemplate, row: &Row) -> Result<Self, Reject> {
        let options = Options::parse(row.tools, row.template_kwargs).map_err(|error| {
            let value = row.template_kwargs.or(row.tools).unwrap_or_default();
            let remedy = "tools is a JSON list, template_kwargs a JSON object";
            Reject::new(
                "template_kwargs",
                value,
                "broken_json",
                error.to_string(),
                remedy,
            )
        })?;
        Ok(Self {
            template,
            options,
            prompt: values("prompt", &row.prompt)?,
        })
    }

    fn render_all(&self, row: &Row, find_generation: bool) -> Result<Texts, Reject> {
        let (text, prompt) = self.render_prompt(row, find_generation)?;
        let responses = row
            .responses
            .iter()
            .map(|response| self.render_response(row, response, &text))
            .collect::<Result<_, _>>()?;
        Ok(Texts { prompt, responses })
    }

    fn render(&self, field: &'static str, messages: &[Value], add: bool) -> Result<String, Reject> {
        self.template
            .render(messages, add, &self.options)
            .map_err(|error| {
                let last = messages.last().map(ToString::to_string).unwrap_or_default();
                let rule = format!("the chat template must render the chat; it says: {error}");
                let remedy = "change the row, or pass another chat_template";
                Reject::new(field, &last, "template", rule, remedy)
            })
    }

    /// The chat's text where it renders and `text` begins with it.
    fn prefix(&self, messages: &[Value], add: bool, text: &str) -> Option<usize> {
        let prefix = self.template.render(messages, add, &self.options).ok()?;
        text.starts_with(&prefix).then_some(prefix.len())
    }

    fn render_prompt(&self, row: &Row, find_generation: bool) -> Result<(String, Prompt), Reject> {
        let text = self.render("prompt", &self.prompt, true)?;
        let ends = self.turn_ends(&self.prompt, &row.prompt, 0..0, &text, true);
        let turns: Vec<usize> = ends.iter().map(|(end, _)| *end).collect();
        let from = turns.last().copied().unwrap_or(0);
        let last = row.prompt[row.prompt.len() - 1].content;
        let index = self.prompt.len() - 1;
        let content = self.locate(&self.prompt, index, last, from, &text, true);
        let generation = find_generation.then(|| self.prefix(&self.prompt, false, &text));
        let behind = content
            .as_ref()
            .map_or(text.len(), |content| content.range.end);
        let prompt = Prompt {
            bytes: text.len(),
            generation: generation.flatten().unwrap_or(behind),
            parts: Parts {
                content,
                stop: text.len(),
                turns,
                ..Parts::default()
            },
        };
        Ok((text, prompt))
    }

    fn render_response(
        &self,
        row: &Row,
        response: &Response,
        prompt: &str,
    ) -> Result<(String, Parts), Reject> {
        let mut chat = self.prompt.clone();
        chat.extend(values(response.field, &response.messages)?);
        let mut text = self.render(response.field, &chat, false)?;
        let last = response
            .messages
            .last()
            .map_or("", |message| message.content);
        let unfit = |rule: &str| {
            Reject::new(
                response.field,
                last,
                "template",
                rule,
                "pass another chat_template",
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
        let mut ends = self.turn_ends(&chat, &messages, first_turn..prompt.len(), &text, false);
        if !self.close_turns(&chat, first_turn, &mut ends, &text) {
            return Err(unfit(
                "where the assistant's tool calls end must be seen in the rendered chat; the chat template writes a \
                 message otherwise when more follow, without the turn end of an answer",
            ));
        }
        let turns: Vec<usize> = ends.iter().map(|(end, _)| *end).collect();
        let from = turns.last().copied().unwrap_or(prompt.len());
        let content = self
            .locate(&chat, chat.len() - 1, last, from, &text, false)
            .ok_or_else(|| {
                unfit("the chat template must write the response's content as it stands")
            })?;
        let mut all_ends = turns.clone();
        all_ends.push(text.len());
        let written = self.written(&chat, first_turn, prompt.len(), &all_ends, &text);
        let parts = Parts {
            turns,
            first_turn,
            written,
            ..ended(&mut text, content, response.complete)
        };
        Ok((text, parts))
    }

    /// Where each message from `first.start` on ends, the last one left out, in the text from byte `first.end`: as far
    /// as the chat up to it renders alone (then it is known: true), or (where a template renders that differently)
    /// behind its content.
    fn turn_ends(
        &self,
        chat: &[Value],
        messages: &[Message],
        first: Range<usize>,
        text: &str,
        add: bool,
    ) -> Vec<(usize, bool)> {
        let mut end = first.end;
        let mut ends = Vec::new();
        for index in first.start..messages.len() - 1 {
            let content = messages[index].content;
            let alone = self.prefix(&chat[..=index], false, text);
            let known = alone.filter(|alone| *alone >= end);
            end = known.unwrap_or_else(|| {
                self.locate(chat, index, content, end, text, add)
                    .map_or(end, |place| place.range.end)
            });
            ends.push((end, known.is_some()));
        }
        ends
    }

    /// Let the assistant's turns of which only the content is known end with the turn end of an answer, the last one
    /// before the next message's content. False where tool calls have no end that is known so.
    fn close_turns(
        &self,
        chat: &[Value],
        first: usize,
        ends: &mut [(usize, bool)],
        text: &str,
    ) -> bool {
        let mut turn_end = None;
        for (index, (end, known)) in (first..).zip(ends) {
            if *known || text_of(&chat[index], "role") != "assistant" {
                continue;
            }
            let closing = turn_end.get_or_insert_with(|| self.turn_end(chat));
            let next = text_of(&chat[index + 1], "content");
            let closed = self
                .locate(chat, index + 1, &next, *end, text, false)
                .filter(|_| !closing.is_empty())
                .and_then(|next| text[*end..next.range.start].rfind(closing.as_str()))
                .map(|at| *end + at + closing.len());
            match closed {
                Some(closed) => *end = closed,
                None if calls_tools(&chat[index]) => return false,
                None => {}
            }
        }
        true
    }

    /// What the template writes behind an answer in the place of the last message.
    fn turn_end(&self, chat: &[Value]) -> String {
        let answer = Message {
            role: "assistant",
            content: PLACEHOLDER,
            extra: None,
        };
        let (Ok(answer), Some((_, before))) = (answer.to_value(), chat.split_last()) else {
            return String::new();
        };
        let chat = [before, &[answer]].concat();
        let text = self.template.render(&chat, false, &self.options).ok();
        let behind = text
            .as_deref()
            .and_then(|text| text.split_once(PLACEHOLDER));
        behind.map_or(String::new(), |(_, end)| end.trim_end().to_string())
    }

    /// Where the content of a message without one would begin: behind its header and what the template puts before it.
    fn content_start(&self, chat: &[Value], index: usize, text: &str) -> Option<usize> {
        let mut chat = chat.to_vec();
        chat[index] = with_placeholder(&chat[index], &["tool_calls"])?;
        let other = self.template.render(&chat, false, &self.options).ok()?;
        let (start, _) = other.split_once(PLACEHOLDER)?;
        text.starts_with(start).then_some(start.len())
    }

    /// What the assistant wrote in the response's messages that end at `ends`, up to the last visible character of its
    /// turn: from the content on; where it calls tools, from where content would stand without the calls, or (where
    /// the calls change what stands before it) from the generation prompt on. Of the last message only with calls.
    fn written(
        &self,
        chat: &[Value],
        first: usize,
        boundary: usize,
        ends: &[usize],
        text: &str,
    ) -> Vec<Range<usize>> {
        let mut start = boundary;
        let mut written = Vec::new();
        for (index, &end) in (first..).zip(ends) {
            let calls = calls_tools(&chat[index]);
            let last = index + 1 == chat.len();
            if text_of(&chat[index], "role") == "assistant" && (calls || !last) {
                let prompted = match index {
                    _ if index == first => Some(boundary),
                    _ => self.prefix(&chat[..index], true, text),
                };
                let from = prompted
                    .filter(|at| (start..=end).contains(at))
                    .unwrap_or(start);
                let content = text_of(&chat[index], "content");
                let at = match content.trim() {
                    shown if !calls && !shown.is_empty() => {
                        text[from..end].find(shown).map(|at| from + at)
                    }
                    _ => self
                        .content_start(chat, index, text)
                        .filter(|at| (from..=end).contains(at)),
                };
                written.push(at.unwrap_or(from)..from + text[from..end].trim_end().len());
            }
            start = end;
        }
        written
    }

    /// The content of message `index` in `text[from..]`, as it stands or with its ends stripped.
    fn locate(
        &self,
        chat: &[Value],
        index: usize,
        content: &str,
        from: usize,
        text: &str,
        add: bool,
    ) -> Option<Place> {
        if let Some(place) = self.by_placeholder(chat, index, content, from, text, add) {
            return place;
        }
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
        let at = from
            + tail
                .find(shown)
                .filter(|at| tail.rfind(shown) == Some(*at))?;
        Some(Place {
            range: at..at + shown.len(),
            lead,
        })
    }

    #[allow(clippy::option_option)] // not found out, or found not to be shown
    /// The content's place, found by rendering another content in its stead. None where that changes the text around
    /// it; none inside where the template does not show it.
    fn by_placeholder(
        &self,
        chat: &[Value],
        index: usize,
        content: &str,
        from: usize,
        text: &str,
        add: bool,
    ) -> Option<Option<Place>> {
        let replaced = with_placeholder(chat.get(index)?, &[])?;
        let mut chat = chat.to_vec();
        chat[index] = replaced;
        let other = self.template.render(&chat, add, &self.options).ok()?;
        let (start, end) = other.split_once(PLACEHOLDER)?;
        let stop = text
            .len()
            .checked_sub(end.len())
            .filter(|stop| *stop >= start.len())?;
        if start.len() < from || !text.starts_with(start) || !text.ends_with(end) {
            return None;
        }
        let shown = text.get(start.len()..stop)?;
        if shown.is_empty() {
            return Some(None);
        }
        let lead = content.find(shown)?;
        Some(Some(Place {
            range: start.len()..stop,
            lead,
        }))
    }
}

/// The message with another content, without the keys `left_out`.
fn with_placeholder(message: &Value, left_out: &[&str]) -> Option<Value> {
    let kept = |key: &Value| !key.as_str().is_some_and(|key| left_out.contains(&key));
    let replaced = message.try_iter().ok()?.filter(kept).map(|key| {
        let value = match key.as_str() {
            Some("content") => Value::from(PLACEHOLDER),
            _ => message.get_item(&key).unwrap_or_default(),
        };
        (key, value)
    });
    Some(replaced.collect())
}

fn calls_tools(message: &Value) -> bool {
    let calls = message.get_attr("tool_calls");
    calls.is_ok_and(|calls| calls.is_true())
}

fn text_of(message: &Value, key: &str) -> String {
    let value = message.get_attr(key).unwrap_or_default();
    value.as_str().unwrap_or_default().to_string()
}

fn values(field: &'static str, messages: &[Message]) -> Result<Vec<Value>, Reject> {
    let convert = |message: &Message| {
        message.to_value().map_err(|error| {
            let extra = message.extra.unwrap_or_default();
            let remedy = "extra is a JSON object or null";
            Reject::new(field, extra, "broken_json", error.to_string(), remedy)
        })
    };
    messages.iter().map(convert).collect()
}
