//! Where the messages of a rendered chat end, and what the assistant wrote in them.

use std::ops::Range;

use minijinja::value::Value;

use super::places::PLACEHOLDER;
use super::rendering::{Chat, calls_tools, text_of};
use crate::message::Message;

impl Chat<'_> {
    /// Where each message from `first.start` on ends, the last one left out, in the text from byte `first.end`: as far
    /// as the chat up to it renders alone (then it is known: true), or (where a template renders that differently)
    /// behind its content.
    pub(super) fn turn_ends(
        &self,
        chat: &[Value],
        messages: &[&Message],
        first: Range<usize>,
        text: &str,
        add: bool,
    ) -> Vec<(usize, bool)> {
        let mut end = first.end;
        let mut ends = Vec::new();
        for index in first.start..messages.len() - 1 {
            let content = &messages[index].content;
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
    pub(super) fn close_turns(
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

    /// What the assistant wrote in the response's messages that end at `ends`, up to the last visible character of its
    /// turn: from the content on; where it calls tools, from where content would stand without the calls, or (where
    /// the calls change what stands before it) from the generation prompt on. Of the last message only with calls.
    pub(super) fn written(
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
}
