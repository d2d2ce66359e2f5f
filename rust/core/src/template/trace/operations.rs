//! Operations on values in which contents stand.

use std::collections::VecDeque;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::record::decide;
use super::symbol::{ANY_TEXT, Symbol, holds, not_followed, slot_of, symbol};
use crate::template::content::{Piece, Question};
use crate::template::operators::{self, Operation};
use crate::template::strip::{Strip, strip};

/// Tests that ask for a value's type.
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

/// What the operation gives if a content takes part in it; None: none does, or the engine's own operation may answer.
pub fn answer(state: &State, operation: Operation, args: &[Value]) -> Result<Option<Value>, Error> {
    match (operation, args) {
        (Operation::Filter(name), [_, ..]) => filter(state, name, args),
        (Operation::Test(name), _) => test(state, name, args),
        (Operation::Method(name), [receiver, args @ ..]) => method(receiver, name, args),
        (Operation::Operator("["), _) => Ok(None), // a symbol says itself that it has no items
        (Operation::Operator(name), [left, right]) if holds(left) || holds(right) => {
            operator(name, left, right)
        }
        _ => Ok(None),
    }
}

/// An operator on values of which at least one holds a content.
fn operator(name: &str, left: &Value, right: &Value) -> Result<Option<Value>, Error> {
    let answer = match name {
        "+" => join(left, right, false)?,
        "~" => join(left, right, true)?,
        "==" => equals(left, right)?.into(),
        "!=" => (!equals(left, right)?).into(),
        "in" => match (left.as_str(), slot_of(right)) {
            (Some(part), Some(slot)) => decide(slot, Question::Contains(part.to_string())).into(),
            (Some(_), None) if right.kind() == ValueKind::Map => return Ok(None),
            _ => return Err(not_followed()),
        },
        _ => return Err(not_followed()),
    };
    Ok(Some(answer))
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
            return Err(not_followed());
        }
    }
    Ok(symbol(pieces))
}

fn equals(left: &Value, right: &Value) -> Result<bool, Error> {
    let (slot, other) = match (slot_of(left), slot_of(right)) {
        (Some(slot), None) => (slot, right),
        (None, Some(slot)) => (slot, left),
        _ => return Err(not_followed()),
    };
    match other.as_str() {
        Some(text) => Ok(decide(slot, Question::Equals(text.to_string()))),
        None if holds(other) => Err(not_followed()),
        None => Ok(false), // a text equals no value of another type
    }
}

fn filter(state: &State, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let Some((value, rest)) = args.split_first() else {
        return Ok(None);
    };
    if !args.iter().any(holds) {
        return Ok(None);
    }
    if rest.iter().any(holds) && !matches!(name, "default" | "d") {
        return Err(not_followed());
    }
    if value.downcast_object_ref::<Symbol>().is_none() {
        let harmless = [
            "length", "count", "first", "last", "list", "reverse", "default", "d",
        ];
        let by_role = matches!(name, "selectattr" | "rejectattr")
            && rest.first().and_then(Value::as_str) == Some("role");
        return if by_role || harmless.contains(&name) {
            operators::filter(state, name, args).map(Some)
        } else {
            Err(not_followed())
        };
    }
    match name {
        "trim" => stripped(value, "strip", rest).map(Some),
        "string" | "safe" => Ok(Some(value.clone())),
        "default" | "d" => operators::filter(state, name, args).map(Some),
        _ => Err(not_followed()),
    }
}

fn test(state: &State, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if !args.iter().any(holds) {
        return Ok(None);
    }
    if args.len() != 1 || !TYPE_TESTS.contains(&name) {
        return Err(not_followed());
    }
    let text = [Value::from(ANY_TEXT)];
    let symbol = args[0].downcast_object_ref::<Symbol>().is_some();
    let answer = state.perform_test(name, if symbol { &text } else { args })?;
    Ok(Some(answer.into()))
}

fn method(receiver: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if receiver.downcast_object_ref::<Symbol>().is_some() {
        return match name {
            "strip" | "lstrip" | "rstrip" => stripped(receiver, name, args).map(Some),
            "startswith" | "endswith" => {
                let (Some(slot), [part]) = (slot_of(receiver), args) else {
                    return Err(not_followed());
                };
                let part = part.as_str().ok_or_else(not_followed)?.to_string();
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
                        .ok_or_else(not_followed)?;
                    if decide(slot, Question::Contains(part.to_string())) {
                        return Err(not_followed());
                    }
                    Ok(Some([receiver.clone()].into_iter().collect()))
                }
                _ => Err(not_followed()),
            },
            _ => Err(not_followed()),
        };
    }
    let container = matches!(
        receiver.kind(),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable
    );
    let follows = matches!(name, "get" | "items" | "keys" | "values");
    if args.iter().any(holds) || name == "changed" || (container && !follows && holds(receiver)) {
        return Err(not_followed());
    }
    Ok(None)
}

/// A text with characters taken off its ends.
fn stripped(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let taken = match args {
        [] => Strip::Spaces,
        [characters] if characters.is_none() => Strip::Spaces,
        [characters] => Strip::Characters(characters.as_str().ok_or_else(not_followed)?.into()),
        _ => return Err(not_followed()),
    };
    let text = value
        .downcast_object_ref::<Symbol>()
        .ok_or_else(not_followed)?;
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
                return Err(not_followed());
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
