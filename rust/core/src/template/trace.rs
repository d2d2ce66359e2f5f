//! Following contents through a rendering: each stands for itself as a `Symbol`, and what the template asks about it is
//! written down with the answer. A rendering in which all contents were only written, trimmed or asked in these ways
//! is the same for every chat that gives the same answers. Whatever else a template does to a content is refused,
//! and nothing is learned.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::operators;
use super::python::strip;

/// Opens a content's mark in text, which only exists while a shape is learned.
const MARK: char = '\u{f8fe}';
const FIRST_NUMBER: u32 = 0xf_0000;
/// What a content is replaced by where only its type matters.
const ANY_TEXT: &str = "text";
const TYPE_TESTS: [&str; 14] = [
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
    "integer",
    "int",
    "float",
    "boolean",
    "true",
    "false",
];

/// What is taken off an end of a content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Strip {
    #[default]
    Nothing,
    Spaces,
    Characters(Arc<str>),
}

/// A message's content with its ends stripped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub message: usize,
    pub start: Strip,
    pub end: Strip,
}

impl Slot {
    pub fn of<'a>(&self, content: &'a str) -> &'a str {
        strip(content, &self.start, &self.end)
    }
}

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

fn ask(text: &str, question: &Question) -> bool {
    match question {
        Question::IsEmpty => text.is_empty(),
        Question::Equals(other) => text == other,
        Question::Contains(part) => text.contains(part.as_str()),
        Question::StartsWith(part) => text.starts_with(part.as_str()),
        Question::EndsWith(part) => text.ends_with(part.as_str()),
    }
}

#[derive(Default)]
struct Trace {
    contents: Vec<String>,
    slots: Vec<Slot>, // by number of the mark
    guards: Vec<Guard>,
    spoiled: bool, // a content was looked at in a way that cannot be followed
}

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// A text in which contents stand.
#[derive(Debug)]
pub struct Symbol(Vec<Piece>);

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
            spoil();
        }
        None
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        spoil();
        f.write_str(ANY_TEXT)
    }
}

/// Follow `contents` through what `run` does. None where they cannot be followed; else the rendering and its guards.
pub fn follow(
    contents: &[&str],
    run: impl FnOnce(&[Value]) -> Result<String, Error>,
) -> Option<(Vec<Piece>, Vec<Guard>)> {
    let trace = Trace {
        contents: contents.iter().map(ToString::to_string).collect(),
        ..Trace::default()
    };
    TRACE.set(Some(trace));
    let whole = |message| {
        symbol(vec![Piece::Slot(Slot {
            message,
            start: Strip::Nothing,
            end: Strip::Nothing,
        })])
    };
    let values: Vec<Value> = (0..contents.len()).map(whole).collect();
    let text = run(&values);
    let pieces = text.ok().and_then(|text| parse_marks(&text));
    let trace = TRACE.take()?;
    pieces
        .filter(|_| !trace.spoiled)
        .map(|pieces| (pieces, trace.guards))
}

pub fn active() -> bool {
    TRACE.with_borrow(Option::is_some)
}

fn spoil() {
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            trace.spoiled = true;
        }
    });
}

fn symbol(pieces: Vec<Piece>) -> Value {
    Value::from_object(Symbol(pieces))
}

fn lost() -> Error {
    Error::new(ErrorKind::InvalidOperation, "a content cannot be followed")
}

/// The answer for the content at hand, written down.
fn decide(slot: &Slot, question: Question) -> bool {
    TRACE.with_borrow_mut(|trace| {
        let Some(trace) = trace else { return false };
        let answer = ask(slot.of(&trace.contents[slot.message]), &question);
        let guard = Guard {
            slot: slot.clone(),
            question,
            answer,
        };
        if !trace.guards.contains(&guard) {
            trace.guards.push(guard);
        }
        answer
    })
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
                text.push(number_of(slot).ok_or_else(lost)?);
            }
        }
    }
    Ok(text)
}

fn number_of(slot: &Slot) -> Option<char> {
    TRACE.with_borrow_mut(|trace| {
        let slots = &mut trace.as_mut()?.slots;
        let number = slots
            .iter()
            .position(|known| known == slot)
            .unwrap_or_else(|| {
                slots.push(slot.clone());
                slots.len() - 1
            });
        char::from_u32(FIRST_NUMBER + number as u32)
    })
}

/// A captured text with marks becomes a symbol again.
pub fn recover(value: Value) -> Value {
    let Some(text) = value
        .as_str()
        .filter(|text| text.contains(MARK) && active())
    else {
        return value;
    };
    if let Some(pieces) = parse_marks(text) {
        return symbol(pieces);
    }
    spoil();
    value
}

fn parse_marks(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    for (index, part) in text.split(MARK).enumerate() {
        let mut literal = part;
        if index > 0 {
            let number = part.chars().next()?;
            let place = (number as u32).checked_sub(FIRST_NUMBER)? as usize;
            let slot = TRACE.with_borrow(|trace| trace.as_ref()?.slots.get(place).cloned())?;
            pieces.push(Piece::Slot(slot));
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
        if value.downcast_object_ref::<Symbol>().is_some() || depth > super::sandbox::DEPTH {
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
fn slot_of(value: &Value) -> Option<&Slot> {
    match value.downcast_object_ref::<Symbol>()?.0.as_slice() {
        [Piece::Slot(slot)] => Some(slot),
        _ => None,
    }
}

/// An operator on values of which at least one holds a content.
pub fn operate(state: &State, name: &str, left: &Value, right: &Value) -> Result<Value, Error> {
    match name {
        "+" => join(left, right, false),
        "~" => join(left, right, true),
        "==" => equals(left, right).map(Value::from),
        "!=" => equals(left, right).map(|equal| Value::from(!equal)),
        "in" => match (left.as_str(), slot_of(right)) {
            (Some(part), Some(slot)) => {
                Ok(decide(slot, Question::Contains(part.to_string())).into())
            }
            (Some(_), None) if right.kind() == ValueKind::Map => {
                operators::contains(state, left, right)
            }
            _ => Err(lost()),
        },
        _ => Err(lost()),
    }
}

fn join(left: &Value, right: &Value, any: bool) -> Result<Value, Error> {
    let lists = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if !any && lists(left) && lists(right) {
        return Ok(left.try_iter()?.chain(right.try_iter()?).collect());
    }
    let mut pieces = Vec::new();
    for value in [left, right] {
        if let Some(symbol) = value.downcast_object_ref::<Symbol>() {
            pieces.extend(symbol.0.iter().cloned());
        } else if let Some(text) = value.as_str() {
            pieces.push(Piece::Literal(text.to_string()));
        } else {
            return Err(lost());
        }
    }
    Ok(symbol(pieces))
}

fn equals(left: &Value, right: &Value) -> Result<bool, Error> {
    let (slot, other) = match (slot_of(left), slot_of(right)) {
        (Some(slot), None) => (slot, right),
        (None, Some(slot)) => (slot, left),
        _ => return Err(lost()),
    };
    match other.as_str() {
        Some(text) => Ok(decide(slot, Question::Equals(text.to_string()))),
        None if holds(other) => Err(lost()),
        None => Ok(false), // a text equals no value of another type
    }
}

/// None: no content is touched, the filter itself may answer.
pub fn filter(state: &State, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let Some((value, rest)) = args.split_first() else {
        return Ok(None);
    };
    if !args.iter().any(holds) {
        return Ok(None);
    }
    if rest.iter().any(holds) && !matches!(name, "default" | "d") {
        return Err(lost());
    }
    if value.downcast_object_ref::<Symbol>().is_none() {
        let harmless = [
            "length", "count", "first", "last", "list", "reverse", "default", "d",
        ];
        let by_role = matches!(name, "selectattr" | "rejectattr")
            && rest.first().and_then(Value::as_str) == Some("role");
        return if by_role || harmless.contains(&name) {
            state.apply_filter(name, args).map(Some)
        } else {
            Err(lost())
        };
    }
    match name {
        "trim" => stripped(value, "strip", rest).map(Some),
        "string" | "safe" => Ok(Some(value.clone())),
        "default" | "d" => state.apply_filter(name, args).map(Some),
        _ => Err(lost()),
    }
}

pub fn test(state: &State, name: &str, args: &[Value]) -> Result<Option<bool>, Error> {
    if !args.iter().any(holds) {
        return Ok(None);
    }
    if args.len() != 1 || !TYPE_TESTS.contains(&name) {
        return Err(lost());
    }
    let text = [Value::from(ANY_TEXT)];
    let symbol = args[0].downcast_object_ref::<Symbol>().is_some();
    state
        .perform_test(name, if symbol { &text } else { args })
        .map(Some)
}

pub fn method(receiver: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if receiver.downcast_object_ref::<Symbol>().is_some() {
        return match name {
            "strip" | "lstrip" | "rstrip" => stripped(receiver, name, args).map(Some),
            "startswith" | "endswith" => {
                let (Some(slot), [part]) = (slot_of(receiver), args) else {
                    return Err(lost());
                };
                let part = part.as_str().ok_or_else(lost)?.to_string();
                let question = match name {
                    "startswith" => Question::StartsWith(part),
                    _ => Question::EndsWith(part),
                };
                Ok(Some(decide(slot, question).into()))
            }
            "split" => match (slot_of(receiver), args) {
                (Some(slot), [part]) => {
                    let part = part
                        .as_str()
                        .filter(|part| !part.is_empty())
                        .ok_or_else(lost)?;
                    if decide(slot, Question::Contains(part.to_string())) {
                        return Err(lost());
                    }
                    Ok(Some([receiver.clone()].into_iter().collect()))
                }
                _ => Err(lost()),
            },
            _ => Err(lost()),
        };
    }
    let container = matches!(
        receiver.kind(),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable
    );
    let follows = matches!(name, "get" | "items" | "keys" | "values");
    if args.iter().any(holds) || name == "changed" || (container && !follows && holds(receiver)) {
        return Err(lost());
    }
    Ok(None)
}

/// A text with characters taken off its ends.
fn stripped(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let taken = match args {
        [] => Strip::Spaces,
        [characters] if characters.is_none() => Strip::Spaces,
        [characters] => Strip::Characters(characters.as_str().ok_or_else(lost)?.into()),
        _ => return Err(lost()),
    };
    let text = value.downcast_object_ref::<Symbol>().ok_or_else(lost)?;
    let mut pieces: VecDeque<Piece> = text.0.iter().cloned().collect();
    for (start, wanted) in [(true, method != "rstrip"), (false, method != "lstrip")] {
        while wanted && strip_end(&mut pieces, start, &taken)? {}
    }
    Ok(symbol(pieces.into()))
}

/// Strip the first or last piece; whether it became empty, is gone and the next one's turn has come.
fn strip_end(pieces: &mut VecDeque<Piece>, start: bool, taken: &Strip) -> Result<bool, Error> {
    let alone = pieces.len() == 1;
    let piece = if start {
        pieces.front_mut()
    } else {
        pieces.back_mut()
    };
    let gone = match piece {
        None => return Ok(false),
        Some(Piece::Literal(text)) => {
            let none = Strip::Nothing;
            let (first, last) = if start {
                (taken, &none)
            } else {
                (&none, taken)
            };
            *text = strip(text, first, last).to_string();
            text.is_empty()
        }
        Some(Piece::Slot(slot)) => {
            let end = if start {
                &mut slot.start
            } else {
                &mut slot.end
            };
            if *end != *taken && *end != Strip::Nothing {
                return Err(lost());
            }
            *end = taken.clone();
            !alone && decide(slot, Question::IsEmpty)
        }
    };
    if gone && start {
        pieces.pop_front();
    } else if gone {
        pieces.pop_back();
    }
    Ok(gone)
}
