//! Contents of messages as parts of a text, and what may be asked about them.

use super::strip::{Strip, strip};

/// A message's content with its ends stripped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub message: usize,
    pub start: Strip,
    pub end: Strip,
}

impl Slot {
    #[inline]
    pub fn of<'a>(&self, content: &'a str) -> &'a str {
        strip(content, &self.start, &self.end)
    }
}

/// A part of a text in which contents stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Literal(String),
    Slot(Slot),
}

/// What a template may ask about a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    IsEmpty,
    Equals(String),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
}

/// A question with the answer on which a rendering depends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub slot: Slot,
    pub question: Question,
    pub answer: bool,
}

impl Guard {
    pub fn holds(&self, content: &str) -> bool {
        ask(self.slot.of(content), &self.question) == self.answer
    }
}

/// The answer that a text gives.
pub fn ask(text: &str, question: &Question) -> bool {
    match question {
        Question::IsEmpty => text.is_empty(),
        Question::Equals(other) => text == other,
        Question::Contains(part) => text.contains(part.as_str()),
        Question::StartsWith(part) => text.starts_with(part.as_str()),
        Question::EndsWith(part) => text.ends_with(part.as_str()),
    }
}
