//! A row's prompt and responses as text, and where their parts stand in it.

use std::ops::{AddAssign, Range};

use crate::template::Place;

/// What became of rows and responses that needed a decision, in counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Notes {
    /// Rows whose prompt ends where its rendering and those of the whole chats part.
    pub prompts_cut: usize,
    /// Responses with reasoning.
    pub reasoning: usize,
    /// Responses whose reasoning the template leaves out.
    pub reasoning_dropped: usize,
    /// Responses whose reasoning the template leaves out, and that have it all the same.
    pub reasoning_restored: usize,
    /// Responses that held the end of turn which the template writes.
    pub ends_removed: usize,
    /// Responses behind which the template writes no end of turn.
    pub without_end: usize,
    /// Contents that hold special tokens, and where the first of them stands.
    pub special_tokens: usize,
    pub first_special: Option<FoundSpecial>,
    /// Pairs whose chosen response has the lower score, and the first row with one.
    pub scores_reversed: usize,
    pub first_reversed_row: Option<u64>,
}

/// A special token in a content of a row's field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSpecial {
    pub row: u64,
    pub field: &'static str,
    pub id: u32,
}

impl Notes {
    /// The counts by name, and a row where one is known.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let counts = [
            ("prompts_cut", self.prompts_cut),
            ("reasoning", self.reasoning),
            ("reasoning_dropped", self.reasoning_dropped),
            ("reasoning_restored", self.reasoning_restored),
            ("ends_removed", self.ends_removed),
            ("without_end", self.without_end),
            ("special_tokens", self.special_tokens),
            ("scores_reversed", self.scores_reversed),
        ];
        let counts = counts.map(|(name, count)| (name, count as u64));
        let row = self
            .first_reversed_row
            .map(|row| ("first_reversed_row", row));
        counts.into_iter().chain(row).collect()
    }
}

impl AddAssign for Notes {
    fn add_assign(&mut self, other: Self) {
        self.prompts_cut += other.prompts_cut;
        self.reasoning += other.reasoning;
        self.reasoning_dropped += other.reasoning_dropped;
        self.reasoning_restored += other.reasoning_restored;
        self.ends_removed += other.ends_removed;
        self.without_end += other.without_end;
        self.special_tokens += other.special_tokens;
        let both = [self.first_special, other.first_special];
        self.first_special = both.into_iter().flatten().min_by_key(|found| found.row);
        self.scores_reversed += other.scores_reversed;
        let both = [self.first_reversed_row, other.first_reversed_row];
        self.first_reversed_row = both.into_iter().flatten().min();
    }
}

/// The prompt, with which each response's text begins.
#[derive(Default)]
pub(super) struct Prompt {
    pub bytes: usize,
    pub generation: usize, // where the generation prompt begins
    pub cut: bool,         // not all of the generation prompt is there: responses go on otherwise
    pub parts: Parts,
}

impl Prompt {
    /// Let the prompt end at an earlier byte, behind its last message's content.
    pub fn cut_at(&mut self, bytes: usize) {
        self.bytes = bytes;
        self.cut = true;
        self.generation = self.generation.min(bytes);
        self.parts.stop = bytes;
    }
}

/// A prompt or a response in its chat's text; ranges are bytes of the text.
#[derive(Default)]
pub(super) struct Parts {
    pub content: Option<Place>, // the last message's
    pub stop: usize, // end of what is kept: the last visible character that the template writes
    pub turns: Vec<usize>, // where the messages before the last one end
    pub first_turn: usize,
    pub written: Vec<Range<usize>>, // by the assistant, in messages before the last one and in tool calls
    pub scored: usize,              // of the last message, from here on
}

/// Texts of a row: each response behind the prompt.
#[derive(Default)]
pub(super) struct Texts {
    pub prompt: Prompt,
    pub responses: Vec<(String, Parts)>,
    pub notes: Notes,
}

impl Parts {
    /// The text's end: of the content where it was cut, else the last visible character behind it.
    pub fn ended(text: &mut String, content: Place, complete: bool) -> Self {
        let end = content.range.end;
        let stop = if complete {
            end + text[end..].trim_end().len()
        } else {
            text.truncate(end);
            end
        };
        Self {
            scored: content.range.start,
            content: Some(content),
            stop,
            ..Self::default()
        }
    }
}
