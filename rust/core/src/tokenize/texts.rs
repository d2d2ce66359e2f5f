//! A row's prompt and responses as text, and where their parts stand in it.

use std::ops::Range;

use crate::template::Place;

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
            content: Some(content),
            stop,
            ..Self::default()
        }
    }
}
