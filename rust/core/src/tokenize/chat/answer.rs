//! The last message of a response in its chat's text: its reasoning and its answer.

use std::rc::Rc;

use minijinja::value::Value;

use super::places::{Around, forms, locate};
use super::reasoning::{self, Marks, Split};
use super::rendering::{Chat, shared_bytes, with_keys};
use crate::template::Place;
use crate::tokenize::texts::Notes;

/// An answer in its chat's text.
pub struct Answer {
    pub text: String,
    pub content: Place,
    pub shared: usize, // bytes that the generation prompt's text begins with, too
    verbatim: bool,    // the content stands there as it is
    reasoning: Option<usize>, // it is there, and the answer behind it begins here
    pub notes: Notes,
}

/// What an answer is looked for in.
pub struct Asked<'a> {
    pub chat: &'a [Value], // the answer last
    pub content: &'a str,
    pub text: String,
    pub from: usize, // the messages before it end here
    pub around: Option<Rc<Around>>,
    pub prompt: &'a str, // with the generation prompt
}

impl Answer {
    fn plain(asked: &Asked, content: Place) -> Self {
        Self {
            content,
            shared: 0,
            verbatim: false,
            reasoning: None,
            notes: Notes::default(),
            text: asked.text.clone(),
        }
    }

    fn with_reasoning(self, answer: usize) -> Self {
        let notes = Notes {
            reasoning: 1,
            ..self.notes
        };
        Self {
            reasoning: Some(answer),
            notes,
            ..self
        }
    }

    fn restored(self) -> Self {
        let notes = Notes {
            reasoning_restored: 1,
            ..self.notes
        };
        Self { notes, ..self }
    }

    fn dropped(self) -> Self {
        let notes = Notes {
            reasoning_dropped: 1,
            ..self.notes
        };
        Self { notes, ..self }
    }

    /// The byte from which on the answer is scored.
    pub fn scored(&self, score_reasoning: bool) -> usize {
        match self.reasoning {
            None => self.content.range.start,
            Some(_) if score_reasoning && self.verbatim => {
                self.shared.max(self.content.range.start)
            }
            Some(_) if score_reasoning => self.shared,
            Some(answer) => reasoning::skip_white(&self.text[..self.content.range.end], answer),
        }
    }

    /// Whether it is reasoning alone, with no visible character behind it.
    pub fn is_reasoning_alone(&self) -> bool {
        self.reasoning.is_some_and(|answer| {
            let behind = self.text.get(answer..self.content.range.end);
            behind.is_none_or(|answer| answer.trim().is_empty())
        })
    }
}

impl Chat<'_> {
    /// The answer and its reasoning, as the template writes them. Where it leaves out the reasoning of the last answer,
    /// the text has it all the same, wherever the data or the generation prompt says how it is written.
    pub(super) fn answer(&self, asked: &Asked) -> Option<Answer> {
        let message = asked.chat.last()?;
        let begun = reasoning::begun(asked.prompt);
        let key = reasoning::of_key(message);
        let split = reasoning::split(asked.content, true);
        let found = match (split, key) {
            (Some(split), None) => self.in_content(asked, &split, begun),
            (_, Some(key)) => {
                let known = || reasoning::known(&|mark| self.template.mentions(mark));
                in_key(asked, &key, begun, begun.or_else(known))
            }
            (None, None) => place(asked).map(|place| Answer::plain(asked, place)),
        };
        let found = found?;
        let shared = shared_bytes(asked.prompt, &found.text).max(asked.from);
        Some(Answer { shared, ..found })
    }

    fn in_content(&self, asked: &Asked, split: &Split, begun: Option<Marks>) -> Option<Answer> {
        let reasoning = asked.content[split.inner.clone()].trim();
        if reasoning.is_empty() {
            let place = place(asked).or_else(|| taken_apart(&asked.text, asked, split))?;
            return Some(Answer::plain(asked, place));
        }
        let whole = place(asked).filter(|place| {
            let shown = &asked.text[place.range.clone()];
            shown.contains(reasoning)
        });
        let Some(whole) = whole else {
            if let Some(place) = taken_apart(&asked.text, asked, split)
                .filter(|place| asked.text[place.range.clone()].contains(reasoning))
            {
                let answer = answer_start(&place, split);
                return Some(Answer::plain(asked, place).with_reasoning(answer));
            }
            let moved = self.moved(asked, split);
            return moved.or_else(|| restored_content(asked, split, begun));
        };
        let before = &asked.text[asked.from..whole.range.start];
        if before.contains(split.marks.1)
            && let Some(moved) = self.moved(asked, split)
        {
            return Some(moved);
        }
        if !split.opened && begun.is_some() && !asked.text.starts_with(asked.prompt) {
            return restored_content(asked, split, begun);
        }
        let answer = answer_start(&whole, split);
        let found = Answer::plain(asked, whole);
        if !split.opened && begun.is_none() {
            return Some(found); // a text like any other, in a template that takes nothing apart
        }
        let found = found.with_reasoning(answer);
        Some(Answer {
            verbatim: true,
            ..found
        })
    }

    /// With the reasoning in a key of its own, where the template writes that.
    fn moved(&self, asked: &Asked, split: &Split) -> Option<Answer> {
        let reasoning = asked.content[split.inner.clone()].trim();
        let (last, before) = asked.chat.split_last()?;
        let keys = [
            (
                "content",
                Value::from(asked.content[split.answer..].trim_start()),
            ),
            ("reasoning_content", Value::from(reasoning)),
            ("thinking", Value::from(reasoning)),
        ];
        let chat = [before, &[with_keys(last, &keys)]].concat();
        let text = self.template.render(&chat, false, &self.options).ok()?;
        let place = taken_apart(&text, asked, split)?;
        let shown = &text[place.range.clone()];
        shown.contains(reasoning).then(|| {
            let answer = answer_start(&place, split);
            let found = Answer {
                text,
                ..Answer::plain(asked, place)
            };
            found.with_reasoning(answer).restored()
        })
    }
}

fn place(asked: &Asked) -> Option<Place> {
    locate(
        asked.around.as_deref(),
        asked.content,
        asked.from,
        &asked.text,
    )
}

/// The byte of the text at which the answer behind the reasoning begins.
fn answer_start(place: &Place, split: &Split) -> usize {
    let breaks = place.breaks.iter().rev();
    let last = breaks.map(|&(byte, content)| (byte, content));
    let (byte, content) = last
        .chain([(place.range.start, place.lead)])
        .find(|(_, content)| *content <= split.answer)
        .unwrap_or((place.range.start, place.lead));
    let start = byte + (split.answer.saturating_sub(content));
    match place
        .breaks
        .iter()
        .find(|(_, content)| *content > split.answer)
    {
        Some((byte, _)) => start.max(*byte),
        None => start.min(place.range.end),
    }
}

/// The content in a text whose template writes reasoning and answer its own way: at its end the answer, before it the
/// reasoning, if that is there.
fn taken_apart(text: &str, asked: &Asked, split: &Split) -> Option<Place> {
    let behind = asked.around.as_ref().map_or("", |around| &around.behind);
    let end = text.len() - behind.len();
    let before = text.strip_suffix(behind)?;
    let answer = &asked.content[split.answer..];
    let (shown, lead) = forms(answer)
        .into_iter()
        .find(|(shown, _)| before.ends_with(shown))?;
    let at = end - shown.len();
    let answer = (at, split.answer + lead);
    let inner = &asked.content[split.inner.clone()];
    let reasoning = inner.trim();
    let found = text
        .get(asked.from..at)
        .and_then(|text| text.rfind(reasoning))
        .filter(|_| !reasoning.is_empty());
    let Some(found) = found.map(|found| asked.from + found) else {
        return (!shown.is_empty()).then(|| Place::new(at..end, answer.1));
    };
    let lead = split.inner.start + inner.len() - inner.trim_start().len();
    let open = text[asked.from..found].trim_end();
    let start = match open.strip_suffix(split.marks.0) {
        Some(before) if split.opened => (asked.from + before.len(), split.start),
        _ => (found, lead),
    };
    let mut place = Place::new(start.0..end, start.1);
    place.breaks = vec![
        (found, lead),
        (found + reasoning.len(), lead + reasoning.len()),
        answer,
    ];
    place.breaks.retain(|(byte, _)| *byte > start.0);
    Some(place)
}

/// The content as the data has it, where the template leaves the reasoning out.
fn restored_content(asked: &Asked, split: &Split, begun: Option<Marks>) -> Option<Answer> {
    let around = asked.around.as_ref()?;
    let begins_before = !split.opened && begun == Some(split.marks);
    let (before, content, lead) = if begins_before && asked.prompt.len() >= asked.from {
        (asked.prompt, asked.content.trim_start(), split.start)
    } else {
        (&*around.before, asked.content, 0)
    };
    let range = before.len()..before.len() + content.len();
    let place = Place::new(range, lead);
    let answer = answer_start(&place, split);
    let found = Answer {
        text: [before, content, &around.behind].concat(),
        ..Answer::plain(asked, place)
    };
    Some(found.with_reasoning(answer).restored())
}

/// The answer of a message that has its reasoning in a key of its own.
fn in_key(asked: &Asked, key: &str, begun: Option<Marks>, known: Option<Marks>) -> Option<Answer> {
    let mut content = place(asked)?;
    let start = content.range.start;
    let written = shared_bytes(asked.prompt, &asked.text).max(asked.from);
    let between = asked.text.get(written..start);
    if between.is_some_and(|text| text.contains(key.trim())) {
        return Some(Answer::plain(asked, content).with_reasoning(start));
    }
    let (Some((open, close)), true) = (known, between.is_some_and(|text| text.trim().is_empty()))
    else {
        return Some(Answer::plain(asked, content).dropped());
    };
    let behind = if reasoning::stands_apart((open, close)) {
        "\n\n"
    } else {
        ""
    };
    let reasoning = [key.trim_matches('\n'), "\n", close, behind].concat();
    let before = match begun {
        Some(_) => [asked.prompt, &reasoning].concat(),
        None => [&asked.text[..start], open, "\n", &reasoning].concat(),
    };
    content.range = before.len()..before.len() + content.range.len();
    let answer = content.range.start;
    let found = Answer {
        text: [&before, &asked.text[start..]].concat(),
        ..Answer::plain(asked, content)
    };
    Some(found.with_reasoning(answer).restored())
}
