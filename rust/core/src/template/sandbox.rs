//! Bounds on what one rendering may do: instructions, bytes of values and output, depth of values.

use std::cell::Cell;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Instructions that one rendering may execute; a long chat takes some hundred thousand.
pub const FUEL: u64 = 20_000_000;
/// Bytes of values and output that one rendering may produce, besides a multiple of its input.
const BYTES: usize = 64 << 20;
const BYTES_PER_INPUT_BYTE: usize = 64;
/// Cost of a value in a list or mapping, in bytes.
const ELEMENT: usize = 16;
/// Lists in lists and mappings; a chat with tools has some ten.
pub const DEPTH: usize = 64;

/// Filters and methods whose result may be a number of times as long as their text.
const WIDENING: [&str; 9] = [
    "indent", "center", "ljust", "rjust", "zfill", "batch", "slice", "wordwrap", "format",
];
/// Bytes of an engine's value in a list.
pub const VALUE: usize = 24;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(BYTES) };
}

/// A rendering begins on this thread.
pub fn begin(input_bytes: usize) {
    LEFT.set(BYTES.saturating_add(input_bytes.saturating_mul(BYTES_PER_INPUT_BYTE)));
}

/// Take `bytes` from the rendering's allowance.
pub fn charge(bytes: usize) -> Result<(), Error> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(Error::new(
            ErrorKind::OutOfFuel,
            format!(
                "the template makes more than {} MiB of text and values",
                BYTES >> 20
            ),
        )),
    }
}

/// Whether `bytes` more would be allowed; nothing is taken.
pub fn allows(bytes: usize) -> Result<(), Error> {
    let left = LEFT.get();
    let result = charge(bytes);
    LEFT.set(left);
    result
}

pub fn too_deep() -> Error {
    Error::new(
        ErrorKind::OutOfFuel,
        format!("the template nests values deeper than {DEPTH}"),
    )
}

/// Charge for a value: a text by its bytes, lists and mappings by their elements at every depth.
pub fn charge_value(value: &Value) -> Result<(), Error> {
    charge_nested(value, 0)
}

fn charge_nested(value: &Value, depth: usize) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return charge(if depth == 0 { text.len() } else { ELEMENT });
    }
    charge(ELEMENT)?;
    if !matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
    ) {
        return Ok(());
    }
    if depth > DEPTH {
        return Err(too_deep());
    }
    if value.kind() == ValueKind::Map {
        for key in value.try_iter()? {
            charge_nested(&value.get_item(&key)?, depth + 1)?;
        }
    } else {
        for item in value.try_iter()? {
            charge_nested(&item, depth + 1)?;
        }
    }
    Ok(())
}

/// Refuse a filter or method whose result would not fit, before it is made.
pub fn check_growth(name: &str, args: &[Value]) -> Result<(), Error> {
    let text = args.first().and_then(Value::as_str);
    let size = text.map_or_else(|| args.first().and_then(Value::len).unwrap_or(0), str::len);
    let length = |index: usize| args.get(index).and_then(Value::as_str).map_or(0, str::len);
    match (name, text) {
        ("replace", Some(text)) => {
            let old = args.get(1).and_then(Value::as_str).unwrap_or_default();
            let count = if old.is_empty() {
                text.len() + 1
            } else {
                text.matches(old).count()
            };
            allows(size.saturating_add(count.saturating_mul(length(2))))
        }
        ("join", Some(separator))
            if args
                .get(1)
                .is_some_and(|list| list.kind() != ValueKind::String) =>
        {
            let items = args[1].len().unwrap_or(0);
            allows(items.saturating_mul(separator.len()))
        }
        ("join", _) => allows(size.saturating_mul(length(1))),
        ("list", Some(_)) => allows(size.saturating_mul(VALUE)),
        (name, _) if WIDENING.contains(&name) => {
            let widest = args.iter().map(largest_number).max().unwrap_or(0);
            allows(size.saturating_add(1).saturating_mul(widest))
        }
        _ => Ok(()),
    }
}

/// The largest number in an argument, in a format's text, or among the named arguments.
fn largest_number(value: &Value) -> usize {
    if let Some(text) = value.as_str() {
        let numbers = text.split(|c: char| !c.is_ascii_digit());
        return numbers
            .map(|n| n.parse().unwrap_or(usize::from(!n.is_empty()) * usize::MAX))
            .max()
            .unwrap_or(0);
    }
    if value.kind() == ValueKind::Map {
        let items = value.try_iter().into_iter().flatten();
        return items
            .filter_map(|key| value.get_item(&key).ok())
            .map(|v| largest_number(&v))
            .max()
            .unwrap_or(0);
    }
    value
        .as_i64()
        .map_or(0, |n| usize::try_from(n).unwrap_or(0))
}
