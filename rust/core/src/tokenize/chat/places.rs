//! Where contents stand in a rendered chat.

use minijinja::value::Value;

use super::reasoning;
use super::rendering::{Chat, text_of, with_keys};
use crate::template::Place;

/// Stands in for a content, to find its place; no text holds it.
pub const PLACEHOLDER: &str = "\u{f8ff}content\u{f8ff}";
const MARK: char = '\u{f8ff}';

/// What the template writes before and behind another content in a message's stead.
pub struct Around {
    pub before: String,
    pub behind: String,
}

impl Chat<'_> {
    /// What stands around message `index` with another content; None where that is shown never.
    pub(super) fn around(&self, chat: &[Value], index: usize, add: bool) -> Option<Around> {
        self.around_with(chat, index, add, &[("content", Value::from(PLACEHOLDER))])
    }

    fn around_with(
        &self,
        chat: &[Value],
        index: usize,
        add: bool,
        keys: &[(&str, Value)],
    ) -> Option<Around> {
        let mut chat = chat.to_vec();
        chat[index] = with_keys(&chat[index], keys);
        let other = self.template.render(&chat, add, &self.options).ok()?;
        let (before, behind) = other.split_once(PLACEHOLDER)?;
        Some(Around {
            before: before.to_string(),
            behind: behind.to_string(),
        })
    }

    /// Where the content of a message without one would begin: behind its header and what the template puts before it.
    pub(super) fn content_start(&self, chat: &[Value], index: usize, text: &str) -> Option<usize> {
        let keys = [
            ("content", Value::from(PLACEHOLDER)),
            ("tool_calls", Value::UNDEFINED),
        ];
        let around = self.around_with(chat, index, false, &keys)?;
        text.starts_with(&around.before)
            .then_some(around.before.len())
    }

    /// The content of message `index` in `text[from..]`, as it stands or with its ends stripped.
    pub(super) fn locate(
        &self,
        chat: &[Value],
        index: usize,
        content: &str,
        from: usize,
        text: &str,
        add: bool,
    ) -> Option<Place> {
        let around = self.around(chat, index, add);
        if around.is_none() && self.leaves_out(chat, index, text, add) {
            return None;
        }
        locate(around.as_ref(), content, from, text).or_else(|| {
            let (reasoning, answer) = parts(content);
            let content = Value::from([reasoning, PLACEHOLDER].concat());
            let around = self.around_with(chat, index, add, &[("content", content)]);
            let around = around.filter(|_| !reasoning.is_empty());
            let mut place = locate(Some(&around?), answer, from, text)?;
            place.lead += reasoning.len();
            Some(place)
        })
    }

    /// Whether the chat's text is the same with another content of message `index`.
    fn leaves_out(&self, chat: &[Value], index: usize, text: &str, add: bool) -> bool {
        let mut chat = chat.to_vec();
        chat[index] = with_keys(&chat[index], &[("content", Value::from(PLACEHOLDER))]);
        let other = self.template.render(&chat, add, &self.options);
        other.is_ok_and(|other| other == text)
    }

    /// The place of every content, or of the answer behind its reasoning, that stands in the chat's text as it is or
    /// with its ends stripped, found by one more rendering; None for the others.
    pub(super) fn places(
        &self,
        chat: &[Value],
        text: &str,
        add: bool,
    ) -> Vec<Option<std::ops::Range<usize>>> {
        let contents: Vec<String> = chat.iter().map(|m| text_of(m, "content")).collect();
        let marked: Vec<Value> = chat.iter().zip(&contents).enumerate().map(mark).collect();
        let mut places = vec![None; chat.len()];
        let Ok(other) = self.template.render(&marked, add, &self.options) else {
            return places;
        };
        let mut pieces = other.split(MARK);
        let mut at = pieces.next().unwrap_or_default().len();
        if !text.starts_with(&other[..at]) {
            return places;
        }
        while let (Some(number), Some(next)) = (pieces.next(), pieces.next()) {
            let Some((index, content)) = number
                .parse()
                .ok()
                .and_then(|index: usize| Some((index, contents.get(index)?)))
            else {
                break;
            };
            let fits = |shown: &&str| {
                let rest = text.get(at..).and_then(|rest| rest.strip_prefix(*shown));
                rest.is_some_and(|rest| rest.starts_with(next))
            };
            let answer = parts(content).1;
            let Some(shown) = forms(answer).into_iter().map(|form| form.0).find(fits) else {
                break;
            };
            places[index] = match places[index] {
                None => Some(at..at + shown.len()),
                Some(_) => None, // shown twice
            };
            at += shown.len() + next.len();
        }
        places
    }
}

/// A content's reasoning with its marks, and the answer behind it.
fn parts(content: &str) -> (&str, &str) {
    let split = reasoning::split(content, true);
    content.split_at(split.map_or(0, |split| split.answer))
}

fn mark((index, (message, content)): (usize, (&Value, &String))) -> Value {
    let (reasoning, answer) = parts(content);
    if answer.trim().is_empty() {
        return message.clone();
    }
    let marked = format!("{reasoning}{MARK}{index}{MARK}");
    with_keys(message, &[("content", Value::from(marked))])
}

/// The content in `text[from..]`, as it stands or with its ends stripped.
pub fn locate(around: Option<&Around>, content: &str, from: usize, text: &str) -> Option<Place> {
    if let Some(place) = around.and_then(|around| between(around, content, from, text)) {
        return place;
    }
    let tail = text.get(from..)?;
    let (shown, lead) = forms(content)
        .into_iter()
        .find(|(shown, _)| !shown.is_empty() && tail.contains(shown))?;
    let at = from
        + tail
            .find(shown)
            .filter(|at| tail.rfind(shown) == Some(*at))?;
    Some(Place::new(at..at + shown.len(), lead))
}

/// What a template shows of a content that it does not take apart, and the bytes that it takes off its start.
pub fn forms(content: &str) -> [(&str, usize); 5] {
    let lead = |shown: &str| content.len() - shown.len();
    let (lines, start) = (content.trim_start_matches('\n'), content.trim_start());
    [
        (content, 0),
        (lines, lead(lines)),
        (content.trim_end(), 0),
        (start, lead(start)),
        (start.trim_end(), lead(start)),
    ]
}

#[allow(clippy::option_option)] // not found out, or found not to be shown
/// The content's place by what stands around another content. None where that is not what stands around this one; none
/// inside where the template does not show it.
fn between(around: &Around, content: &str, from: usize, text: &str) -> Option<Option<Place>> {
    let Around { before, behind } = around;
    let stop = text
        .len()
        .checked_sub(behind.len())
        .filter(|stop| *stop >= before.len())?;
    if before.len() < from || !text.starts_with(before) || !text.ends_with(behind) {
        return None;
    }
    let shown = text.get(before.len()..stop)?;
    if shown.is_empty() {
        return Some(None);
    }
    let at_end = content.trim_end().strip_suffix(shown.trim_end());
    let lead = match at_end {
        Some(start) if content[start.len()..].starts_with(shown) => start.len(),
        _ => content.find(shown)?,
    };
    Some(Some(Place::new(before.len()..stop, lead)))
}
