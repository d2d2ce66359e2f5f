//! Where the messages of a rendered chat end, and what the assistant wrote in them.
//!
//! In a short chat each message is looked at by rendering the chat up to it. In a long one that shows what the template
//! writes between messages of a kind, and further ones are recognised by it.

use std::collections::HashMap;
use std::ops::Range;

use minijinja::value::Value;

use super::places::PLACEHOLDER;
use super::reasoning;
use super::rendering::{Chat, SHORT, calls_tools, shared_bytes, text_of};
use crate::message::Message;

/// Borders of a kind that are remembered.
const MOST_BORDERS: usize = 8;

/// Where a message ends; `known` where the chat up to it renders alone so, else behind its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub at: usize,
    pub known: bool,
}

/// A chat with its text, and where its contents stand in it (of a long chat).
pub struct Rendered<'a> {
    pub chat: &'a [Value],
    pub messages: &'a [&'a Message<'a>],
    pub text: &'a str,
    pub add: bool,
    pub places: Option<Vec<Option<Range<usize>>>>,
}

/// What stands between the contents of two messages of a kind, cut where the first one ends.
struct Border {
    tail: Option<String>,
    head: Option<String>,
    known: bool,
}

impl<'a> Rendered<'a> {
    pub fn new(
        chat: &Chat,
        values: &'a [Value],
        messages: &'a [&'a Message<'a>],
        text: &'a str,
        add: bool,
    ) -> Self {
        let long = values.len() > SHORT;
        Self {
            chat: values,
            messages,
            text,
            add,
            places: long.then(|| chat.places(values, text, add)),
        }
    }

    /// The end of a content that begins at `from` or later.
    fn content(&self, chat: &Chat, index: usize, from: usize) -> Option<Range<usize>> {
        if let Some(places) = &self.places {
            return places[index].clone().filter(|place| place.start >= from);
        }
        let content = &self.messages[index].content;
        let place = chat.locate(self.chat, index, content, from, self.text, self.add)?;
        Some(place.range)
    }

    /// Two neighbours' kinds.
    fn kinds(&self, index: usize) -> [(String, bool, bool); 2] {
        let kind = |index: usize| {
            let message = &self.chat[index];
            let placed = self.places.as_ref().is_some_and(|p| p[index].is_some());
            (text_of(message, "role"), calls_tools(message), placed)
        };
        [kind(index), kind(index + 1)]
    }

    fn learn(&self, index: usize, end: End) -> Border {
        let place = |index: usize| {
            self.places
                .as_ref()
                .and_then(|places| places[index].clone())
        };
        let calls = calls_tools(&self.chat[index]);
        let (own, next) = (place(index).filter(|_| !calls), place(index + 1));
        let text = |from: usize, to: usize| self.text.get(from..to).map(str::to_string);
        Border {
            tail: own.and_then(|own| text(own.end, end.at)),
            head: next.and_then(|next| text(end.at, next.start)),
            known: end.known,
        }
    }

    /// The end of a message between two contents that stand around such a border.
    fn recognise(&self, index: usize, border: &Border, from: usize) -> Option<End> {
        let places = self.places.as_ref()?;
        let by_tail = |own: &Range<usize>| {
            let tail = border.tail.as_ref()?;
            let behind = &self.text[own.end..];
            behind.starts_with(tail).then_some(own.end + tail.len())
        };
        let by_head = |next: &Range<usize>| {
            let head = border.head.as_ref()?;
            let before = &self.text[..next.start];
            before.ends_with(head).then(|| next.start - head.len())
        };
        let calls = calls_tools(&self.chat[index]);
        let own = places[index].as_ref().filter(|_| !calls);
        let at = own
            .and_then(by_tail)
            .or_else(|| places[index + 1].as_ref().and_then(by_head))?;
        let known = border.known;
        (at >= from).then_some(End { at, known })
    }
}

impl Chat<'_> {
    /// Where each message from `first.start` on ends, the last one left out, in the text from byte `first.end`.
    pub(super) fn turn_ends(&self, rendered: &Rendered, first: Range<usize>) -> Vec<End> {
        let mut borders: HashMap<[(String, bool, bool); 2], Vec<Border>> = HashMap::new();
        let mut end = first.end;
        let mut ends = Vec::new();
        for index in first.start..rendered.chat.len() - 1 {
            let kinds = rendered.places.as_ref().map(|_| rendered.kinds(index));
            let known = kinds.as_ref().and_then(|kinds| borders.get(kinds));
            let recognised = known.and_then(|borders| {
                let mut found = borders
                    .iter()
                    .map(|border| rendered.recognise(index, border, end));
                found.find_map(|end| end)
            });
            let found = recognised.unwrap_or_else(|| {
                let found = self.turn_end_at(rendered, index, end);
                if let Some(kinds) = kinds {
                    let known = borders.entry(kinds).or_default();
                    if known.len() < MOST_BORDERS {
                        known.push(rendered.learn(index, found));
                    }
                }
                found
            });
            end = found.at;
            ends.push(found);
        }
        ends
    }

    /// Where a message ends: as far as the chat up to it renders alone, or (where a template renders that differently)
    /// behind its content.
    fn turn_end_at(&self, rendered: &Rendered, index: usize, from: usize) -> End {
        let chat = rendered.chat;
        let alone = self
            .may_render(chat)
            .then(|| self.prefix(&chat[..=index], false, rendered.text));
        match alone.flatten().filter(|alone| *alone >= from) {
            Some(at) => End { at, known: true },
            None => End {
                at: rendered.content(self, index, from).map_or(from, |c| c.end),
                known: false,
            },
        }
    }

    /// Let the assistant's turns of which only the content is known end with the turn end of an answer, the last one
    /// before the next message's content. False where tool calls have no end that is known so.
    pub(super) fn close_turns(&self, rendered: &Rendered, first: usize, ends: &mut [End]) -> bool {
        let (chat, text) = (rendered.chat, rendered.text);
        let mut turn_end = None;
        for (index, end) in (first..).zip(ends) {
            if end.known || text_of(&chat[index], "role") != "assistant" {
                continue;
            }
            let closing = turn_end.get_or_insert_with(|| self.turn_end(chat));
            let closed = rendered
                .content(self, index + 1, end.at)
                .filter(|_| !closing.is_empty())
                .and_then(|next| text[end.at..next.start].rfind(closing.as_str()))
                .map(|at| end.at + at + closing.len());
            match closed {
                Some(closed) => end.at = closed,
                None if calls_tools(&chat[index]) => return false,
                None => {}
            }
        }
        true
    }

    /// What the template writes behind an answer in the place of the last message.
    pub(super) fn turn_end(&self, chat: &[Value]) -> String {
        let answer = Message::new("assistant", PLACEHOLDER);
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

    /// What the assistant wrote in the response's messages from `first.start` on, which end at `ends`, up to the last
    /// visible character of its turn; the text from byte `first.end`. Of the last message only with tool calls.
    pub(super) fn written(
        &self,
        rendered: &Rendered,
        first: Range<usize>,
        ends: &[usize],
        score_reasoning: bool,
    ) -> Vec<Range<usize>> {
        let (chat, text) = (rendered.chat, rendered.text);
        let mut start = first.end;
        let mut written = Vec::new();
        let mut headers = Headers::default();
        for (index, &end) in (first.start..).zip(ends) {
            let calls = calls_tools(&chat[index]);
            let last = index + 1 == chat.len();
            if text_of(&chat[index], "role") == "assistant" && (calls || !last) {
                let from = match index {
                    _ if index == first.start => start,
                    _ => start + headers.prompted(self, rendered, index, start),
                };
                let from = from.min(end);
                let at = written_from(rendered, index, from..end, score_reasoning);
                let at = at.unwrap_or_else(|| {
                    start + headers.content(self, rendered, index, start..end, from)
                });
                written.push(at.min(end)..from + text[from..end].trim_end().len());
            }
            start = end;
        }
        written
    }
}

/// From where a message is the assistant's, by its reasoning and its content; None where it has neither, or calls
/// tools: then it is where content would stand.
fn written_from(
    rendered: &Rendered,
    index: usize,
    range: Range<usize>,
    score_reasoning: bool,
) -> Option<usize> {
    let (message, text) = (&rendered.chat[index], &rendered.text[range.clone()]);
    let content = text_of(message, "content");
    let split = reasoning::split(&content, true);
    let inner = split.as_ref().map(|split| &content[split.inner.clone()]);
    let key = reasoning::of_key(message);
    let shows = |reasoning: &str| {
        let reasoning = reasoning.trim();
        !reasoning.is_empty() && text.contains(reasoning)
    };
    if score_reasoning && (inner.is_some_and(shows) || key.as_deref().is_some_and(shows)) {
        return Some(range.start);
    }
    let answer = split
        .map_or(&*content, |split| &content[split.answer..])
        .trim();
    if answer.is_empty() || calls_tools(message) && inner.is_none() {
        return None;
    }
    let behind = key.as_deref().map(str::trim).and_then(|key| {
        let at = text.find(key).filter(|_| !key.is_empty())?;
        Some(at + key.len())
    });
    let behind = behind.unwrap_or(0);
    let at = match inner {
        Some(_) => text.rfind(answer),
        None => text[behind..].find(answer).map(|at| behind + at),
    };
    at.map(|at| range.start + at)
}

/// What the template writes before what the assistant does, as far as messages have shown it.
#[derive(Default)]
struct Headers {
    prompted: Vec<String>,
    content: Vec<String>,
}

impl Headers {
    /// Bytes from `start` on that a generation prompt writes before message `index`.
    fn prompted(&mut self, chat: &Chat, rendered: &Rendered, index: usize, start: usize) -> usize {
        let text = &rendered.text[start..];
        if rendered.places.is_some()
            && let Some(known) = self.prompted.iter().find(|known| text.starts_with(*known))
        {
            return known.len();
        }
        let before = &rendered.chat[..index];
        let bytes = chat
            .may_render(rendered.chat)
            .then(|| chat.template.render(before, true, &chat.options).ok())
            .flatten()
            .map_or(0, |prompt| {
                shared_bytes(&prompt, rendered.text).saturating_sub(start)
            });
        if bytes > 0 {
            self.prompted.push(text[..bytes].to_string());
        }
        bytes
    }

    /// Bytes from `range.start` on that the template writes before the content of message `index`, were it without
    /// tool calls; up to `from` where that is not to be seen.
    fn content(
        &mut self,
        chat: &Chat,
        rendered: &Rendered,
        index: usize,
        range: Range<usize>,
        from: usize,
    ) -> usize {
        let text = &rendered.text[range.clone()];
        if rendered.places.is_some()
            && let Some(known) = self.content.iter().find(|known| text.starts_with(*known))
        {
            return known.len();
        }
        let at = chat
            .may_render(rendered.chat)
            .then(|| chat.content_start(rendered.chat, index, rendered.text));
        let at = at.flatten().filter(|at| (from..=range.end).contains(at));
        let bytes = at.unwrap_or(from) - range.start;
        if bytes > 0 && at.is_some() {
            self.content.push(text[..bytes].to_string());
        }
        bytes
    }
}
