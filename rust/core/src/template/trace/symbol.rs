//! A text in which contents stand for themselves, as a value of the engine and as text with marks.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::record::{bytes_of, decide, give_up, number_of, slot};
use crate::template::content::{Piece, Question, Slot};
use crate::template::sandbox::DEPTH;

/// Opens a content's mark in text, which only exists while a shape is learned.
const MARK: char = '\u{f8fe}';
const FIRST_NUMBER: u32 = 0xf_0000;
/// What a content is replaced by where only its type matters.
pub const ANY_TEXT: &str = "text";
/// Bytes of a piece besides those of its text.
const PIECE: usize = 96;

/// A text in which contents stand.
#[derive(Debug)]
pub struct Symbol(pub Vec<Piece>);

impl Symbol {
    /// Bytes of its pieces and of the texts that they stand for.
    pub fn size(&self) -> usize {
        let bytes = |piece: &Piece| match piece {
            Piece::Literal(text) => text.len(),
            Piece::Slot(slot) => bytes_of(slot),
        };
        self.0.iter().map(|piece| bytes(piece) + PIECE).sum()
    }
}

impl Object for Symbol {
    fn is_true(self: &Arc<Self>) -> bool {
        self.0.iter().any(|piece| match piece {
            Piece::Literal(text) => !text.is_empty(),
            Piece::Slot(slot) => !decide(slot, Question::IsEmpty),
        })
    }

    /// A character of a text cannot be followed; an attribute of a text is undefined.
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        if key.kind() == ValueKind::Number {
            give_up();
        }
        None
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        give_up();
        f.write_str(ANY_TEXT)
    }
}

pub fn symbol(pieces: Vec<Piece>) -> Value {
    Value::from_object(Symbol(pieces))
}

pub fn not_followed() -> Error {
    Error::new(ErrorKind::InvalidOperation, "a content cannot be followed")
}

/// The text as it is written while a shape is learned; an empty content leaves no mark.
pub fn marked(symbol: &Symbol) -> Result<String, Error> {
    let mut text = String::new();
    for piece in &symbol.0 {
        match piece {
            Piece::Literal(literal) => text.push_str(literal),
            Piece::Slot(slot) if decide(slot, Question::IsEmpty) => {}
            Piece::Slot(slot) => {
                text.push(MARK);
                let number = number_of(slot).ok_or_else(not_followed)? as u32;
                text.push(char::from_u32(FIRST_NUMBER + number).ok_or_else(not_followed)?);
            }
        }
    }
    Ok(text)
}

/// A captured text with marks becomes a symbol again.
pub fn recover(value: Value) -> Value {
    let Some(text) = value.as_str().filter(|text| text.contains(MARK)) else {
        return value;
    };
    if let Some(pieces) = parse_marks(text) {
        return symbol(pieces);
    }
    give_up();
    value
}

pub fn parse_marks(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    for (index, part) in text.split(MARK).enumerate() {
        let mut literal = part;
        if index > 0 {
            let number = part.chars().next()?;
            let place = (number as u32).checked_sub(FIRST_NUMBER)? as usize;
            pieces.push(Piece::Slot(slot(place)?));
            literal = &part[number.len_utf8()..];
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.to_string()));
        }
    }
    Some(pieces)
}

/// Whether a content stands anywhere in the value.
pub fn holds(value: &Value) -> bool {
    fn nested(value: &Value, depth: usize) -> bool {
        if value.downcast_object_ref::<Symbol>().is_some() || depth > DEPTH {
            return true;
        }
        match value.kind() {
            ValueKind::Map => value.try_iter().is_ok_and(|mut keys| {
                keys.any(|key| {
                    nested(&key, depth + 1)
                        || value
                            .get_item(&key)
                            .is_ok_and(|item| nested(&item, depth + 1))
                })
            }),
            ValueKind::Seq | ValueKind::Iterable => value
                .try_iter()
                .is_ok_and(|mut items| items.any(|item| nested(&item, depth + 1))),
            _ => false,
        }
    }
    nested(value, 0)
}

/// The single content that a value is.
pub fn slot_of(value: &Value) -> Option<&Slot> {
    match value.downcast_object_ref::<Symbol>()?.0.as_slice() {
        [Piece::Slot(slot)] => Some(slot),
        _ => None,
    }
}
