//! Shapes: a chat's rendering as a fixed list of texts and contents.

use std::ops::Range;

use super::content::{Guard, Piece};
use super::strip::strip_start;
use crate::message::Message;

/// A prompt with one response message, as pieces of text. Indices count pieces.
#[derive(Debug)]
pub struct Shape {
    pub(super) roles: Vec<String>,
    pub(super) guards: Vec<Guard>,
    pub(super) pieces: Vec<Piece>,
    pub(super) boundary: usize,       // the response begins here
    pub(super) generation: usize,     // the generation prompt begins here
    pub(super) turns: Vec<usize>,     // the prompt's messages but the last one end here
    pub(super) prompt: Option<usize>, // content of the prompt's last message
    pub(super) response: usize,       // content of the response
}

/// Where the parts of a prompt stand in its text, in bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Places {
    pub boundary: usize,
    pub generation: usize,
    pub turns: Vec<usize>,
    pub prompt: Option<Place>,
}

/// A content in the text; `lead` counts the bytes that the template took off its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub range: Range<usize>,
    pub lead: usize,
    /// Where the text goes on at another byte of the content: bytes of the text, each with the content's.
    pub breaks: Vec<(usize, usize)>,
}

impl Place {
    pub fn new(range: Range<usize>, lead: usize) -> Self {
        Self {
            range,
            lead,
            breaks: Vec::new(),
        }
    }

    /// The content's byte at a byte of the text.
    pub fn content_byte(&self, at: usize) -> usize {
        let at = at.clamp(self.range.start, self.range.end);
        let next = self.breaks.partition_point(|(byte, _)| *byte <= at);
        let (from, byte) = match next.checked_sub(1) {
            Some(last) => self.breaks[last],
            None => (self.range.start, self.lead),
        };
        let most = self
            .breaks
            .get(next)
            .map_or(usize::MAX, |(_, content)| *content);
        (byte + at - from).min(most)
    }

    /// Leave out what stands before a byte of the text.
    pub fn begin_at(&mut self, at: usize) {
        if at > self.range.start {
            self.lead = self.content_byte(at);
            self.range.start = at.min(self.range.end);
            self.breaks.retain(|(byte, _)| *byte > at);
        }
    }
}

impl Shape {
    /// Whether a chat, whose messages are no more than role and content, has this shape.
    pub fn fits(&self, chat: &[&Message]) -> bool {
        self.roles.len() == chat.len()
            && self
                .roles
                .iter()
                .zip(chat)
                .all(|(role, message)| role == message.role)
            && self
                .guards
                .iter()
                .all(|guard| guard.holds(&chat[guard.slot.message].content))
    }

    /// Append the prompt's text to `text`, which is empty.
    pub fn write_prompt(&self, chat: &[&Message], text: &mut String) -> Places {
        let mut places = Places::default();
        let mut turns = self.turns.iter().peekable();
        for (index, piece) in self.pieces[..self.boundary].iter().enumerate() {
            while turns.next_if(|turn| **turn == index).is_some() {
                places.turns.push(text.len());
            }
            if index == self.generation {
                places.generation = text.len();
            }
            let place = write(piece, chat, text);
            if Some(index) == self.prompt {
                places.prompt = place;
            }
        }
        places.boundary = text.len();
        places.turns.extend(turns.map(|_| places.boundary));
        if self.generation == self.boundary {
            places.generation = places.boundary;
        }
        places
    }

    /// Append what follows on the prompt's text, and say where the response's content stands in it.
    pub fn write_response(&self, chat: &[&Message], text: &mut String) -> Option<Place> {
        let mut response = None;
        for (index, piece) in (self.boundary..).zip(&self.pieces[self.boundary..]) {
            let place = write(piece, chat, text);
            if index == self.response {
                response = place;
            }
        }
        response
    }
}

/// Append a piece, and say where it stands if it is a content.
fn write(piece: &Piece, chat: &[&Message], text: &mut String) -> Option<Place> {
    let start = text.len();
    match piece {
        Piece::Literal(literal) => {
            text.push_str(literal);
            None
        }
        Piece::Slot(slot) => {
            let content: &str = &chat[slot.message].content;
            text.push_str(slot.of(content));
            let lead = content.len() - strip_start(content, &slot.start).len();
            Some(Place::new(start..text.len(), lead))
        }
    }
}
